"""Times as the API writes them, and as planning computes with them."""

from __future__ import annotations

from datetime import UTC, datetime


def as_time(moment: datetime) -> str:
    """RFC 3339 in UTC with whole seconds, as in `lastTransitionTime`."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def as_exact_time(moment: datetime) -> str:
    """RFC 3339 in UTC with milliseconds."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def from_time(text: str) -> datetime:
    """The moment that an RFC 3339 text names; the beginning of time if it is none."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return datetime.min.replace(tzinfo=UTC)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
