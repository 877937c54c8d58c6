"""Recorded decisions: the last things done to a PDService and why, newest first, each told once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from tidewheel.api.status import Decision
from tidewheel.planning.plan import EventNote
from tidewheel.planning.times import as_time, from_time

MOST = 10
#: A repeat within this time is the same deed, tried again because it failed half-way.
_SAME_DEED = timedelta(minutes=2)
_LONGEST_MESSAGE = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Deed:
    """Something this plan does: an entry in `.status.decisions` and an Event."""

    action: str
    reason: str
    message: str
    type: Literal["Normal", "Warning"] = "Normal"


def record(
    past: Sequence[Decision], deeds: Sequence[Deed], *, now: datetime
) -> tuple[tuple[Decision, ...], tuple[EventNote, ...]]:
    """The decisions after `deeds`, and the Events for those that are new. Without deeds nothing changes."""
    recent = {(d.action, d.reason, d.message) for d in past if now - from_time(d.time) < _SAME_DEED}
    added: list[Decision] = []
    events: list[EventNote] = []
    for deed in deeds:
        message = shorten(deed.message, _LONGEST_MESSAGE)
        if (deed.action, deed.reason, message) in recent:
            continue
        recent.add((deed.action, deed.reason, message))
        added.insert(0, Decision(time=as_time(now), action=deed.action, reason=deed.reason, message=message))
        events.append(EventNote(type=deed.type, reason=deed.reason, action=deed.action, message=message))
    return (*added, *past)[:MOST], tuple(events)


def shorten(text: str, length: int) -> str:
    """The text, or its beginning with an ellipsis."""
    return text if len(text) <= length else text[: length - 1] + "…"
