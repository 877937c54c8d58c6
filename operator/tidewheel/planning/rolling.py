"""Rolling replacement of whole units, be they groups or gateways: how many to add, and which of the old may go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Unit = TypeVar("Unit")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rolling(Generic[Unit]):
    """One step of a replacement."""

    keep: tuple[Unit, ...]
    retire: tuple[Unit, ...]
    #: Units of the current revision to create now.
    create: int


def roll(
    *,
    current: Sequence[Unit],
    available: int,
    old: Sequence[Unit],
    leaving: int,
    wanted: int,
    max_surge: int,
    max_unavailable: int,
) -> Rolling[Unit]:
    """The next step towards `wanted` units of the current revision and none of the old.

    As a Deployment's rolling update, with n wanted, s surge, u unavailable, a available among those kept:

    - current ones beyond n retire, the last of `current` first;
    - at most n + s units exist at any time, those that are leaving included, because they hold devices;
    - old ones retire as long as |old| + a >= n - u + 1, the first of `old` first. With units that do not serve
      at the front of `old`, no step takes the serving ones below n - u.

    Args:
        current: units of the current revision, those to keep longest first.
        available: how many of the first `wanted` of `current` serve in full.
        old: units of other revisions, those to retire first in front.
        leaving: units that are on their way out and still exist.
        wanted: n.
        max_surge: s.
        max_unavailable: u; s + u must be positive, or nothing could ever be replaced.
    """
    keep, surplus = tuple(current[:wanted]), tuple(current[wanted:])
    spare = len(old) + available - max(wanted - max_unavailable, 0)
    going = min(len(old), max(spare, 0))
    existing = len(current) + len(old) + leaving
    create = max(0, min(wanted - len(keep), wanted + max_surge - existing))
    return Rolling(keep=keep + tuple(old[going:]), retire=surplus + tuple(old[:going]), create=create)
