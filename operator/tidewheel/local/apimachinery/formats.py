"""The string formats that CRD schemas may name; formats that are not in the table are not checked, as in kube-apiserver."""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
import uuid
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from tidewheel.local.apimachinery import names

if TYPE_CHECKING:
    from collections.abc import Callable

_EMAIL: Final = re.compile(r"[^@\s]+@[^@\s]+")
_HOSTNAME: Final = re.compile(
    r"(?=.{1,253}$)([a-zA-Z0-9]([-a-zA-Z0-9]{0,61}[a-zA-Z0-9])?)(\.[a-zA-Z0-9]([-a-zA-Z0-9]{0,61}[a-zA-Z0-9])?)*\.?"
)
_MAC: Final = re.compile(r"([0-9A-Fa-f]{2}[:-]){5}[0-9A-Fa-f]{2}")
_HEX_COLOUR: Final = re.compile(r"#?([0-9a-fA-F]{3}|[0-9a-fA-F]{6})")
_DURATION_PART: Final = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
_SECONDS: Final = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,
    "μs": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
}


def has_format(text: str, name: str) -> bool:
    """Whether a string has a format; true for formats that are not known."""
    check = _CHECKS.get(name)
    if check is None:
        return True
    try:
        return bool(check(text))
    except ValueError:
        return False


def parse_duration(text: str) -> timedelta:
    """A duration as Go writes it, such as `1h30m` or `-1.5s`.

    Raises:
        ValueError: the text is no duration.
    """
    sign, rest = (-1, text[1:]) if text[:1] == "-" else (1, text.removeprefix("+"))
    if rest == "0":
        return timedelta()
    parts = _DURATION_PART.findall(rest)
    if not parts or "".join(number + unit for number, unit in parts) != rest:
        raise ValueError(f'invalid duration "{text}"')
    return timedelta(seconds=sign * sum(float(number) * _SECONDS[unit] for number, unit in parts))


def parse_time(text: str) -> datetime:
    """An RFC 3339 time.

    Raises:
        ValueError: the text is no time with a zone.
    """
    instant = datetime.fromisoformat(text)
    if instant.tzinfo is None or text[10:11] not in ("T", "t"):
        raise ValueError(f'invalid time "{text}"')
    return instant


def _is_base64(text: str) -> bool:
    try:
        base64.b64decode(text, validate=True)
    except binascii.Error:
        return False
    return True


def _never_raises(parse: Callable[[str], object]) -> Callable[[str], bool]:
    def check(text: str) -> bool:
        parse(text)
        return True

    return check


_CHECKS: Final[dict[str, Callable[[str], bool]]] = {
    "uri": lambda text: bool(urlsplit(text).scheme),
    "email": lambda text: bool(_EMAIL.fullmatch(text)),
    "hostname": lambda text: bool(_HOSTNAME.fullmatch(text)),
    "ipv4": _never_raises(ipaddress.IPv4Address),
    "ipv6": _never_raises(ipaddress.IPv6Address),
    "cidr": lambda text: "/" in text and bool(ipaddress.ip_network(text, strict=False)),
    "mac": lambda text: bool(_MAC.fullmatch(text)),
    "uuid": _never_raises(uuid.UUID),
    "uuid3": lambda text: uuid.UUID(text).version == 3,
    "uuid4": lambda text: uuid.UUID(text).version == 4,
    "uuid5": lambda text: uuid.UUID(text).version == 5,
    "hexcolor": lambda text: bool(_HEX_COLOUR.fullmatch(text)),
    "byte": _is_base64,
    "date": _never_raises(date.fromisoformat),
    "duration": _never_raises(parse_duration),
    "date-time": _never_raises(parse_time),
    "datetime": _never_raises(parse_time),
    "k8s-short-name": lambda text: not names.label_complaints(text),
    "k8s-long-name": lambda text: not names.subdomain_complaints(text),
}
