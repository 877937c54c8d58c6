"""Names of a PDService's children: deterministic, at most 63 characters, and readable back into places."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tidewheel.api.ranktable import Role

_PLACE = re.compile(r"(?P<ordinal>\d+)(?:-(?P<incarnation>\d+))?")


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """One of the numbered places of a role, and how many pods had it before."""

    ordinal: int
    incarnation: int = 0

    def __str__(self) -> str:
        return f"{self.ordinal}-{self.incarnation}" if self.incarnation else f"{self.ordinal}"


def group_name(service: str, revision: str, ordinal: int) -> str:
    """`chat-5f2c1-0`."""
    return f"{service}-{revision}-{ordinal}"


def group_ordinal(group: str) -> int:
    """The number at the end of a group's name; -1 if there is none."""
    tail = group.rpartition("-")[2]
    return int(tail) if tail.isdecimal() else -1


def member_name(group: str, role: Role, place: Place) -> str:
    """`chat-5f2c1-0-decode-1`, and `chat-5f2c1-0-decode-1-1` for the first substitute of that member."""
    return f"{group}-{role}-{place}"


def gateway_name(service: str, revision: str, place: Place) -> str:
    """`chat-gateway-9d0ab-0`."""
    return f"{service}-gateway-{revision}-{place}"


def place_of(name: str, *, service: str, group: str, role: Role, revision: str) -> Place | None:
    """The place a pod's name stands for, or None if the name is none of ours."""
    prefix = f"{service}-gateway-{revision}-" if role == "gateway" else f"{group}-{role}-"
    return read_place(name[len(prefix) :]) if name.startswith(prefix) else None


def read_place(text: str) -> Place | None:
    """What `str` made of a place, or None if it is no such text."""
    if (match := _PLACE.fullmatch(text)) is None:
        return None
    return Place(int(match["ordinal"]), int(match["incarnation"] or 0))


def ranks_name(group: str) -> str:
    """The ConfigMap of a group's rank table."""
    return f"{group}-ranks"


def routes_name(service: str) -> str:
    """The ConfigMap of the gateways' routes."""
    return f"{service}-routes"


def record_name(service: str, revision: str) -> str:
    """The ConfigMap that keeps the spec a revision is built from."""
    return f"{service}-{revision}-record"


def scaling_name(service: str) -> str:
    """The ConfigMap that keeps what the planner of the numbers remembers."""
    return f"{service}-scaling"


def boosts_name(service: str) -> str:
    """The ConfigMap that keeps what was learnt of boosts."""
    return f"{service}-boosts"


def budget_name(service: str, part: str) -> str:
    """The PodDisruptionBudget of `gateway` or `compute` pods."""
    return f"{service}-{part}"
