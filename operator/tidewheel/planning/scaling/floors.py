"""Scheduled floors: so many instances at least at certain times of the week, there when their time begins."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

_DAY_MINUTES = 1440
#: The Unix epoch was a Thursday.
_EPOCH_WEEKDAY = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor:
    """A floor on certain weekdays between two times of day, UTC; one that ends at or before its start ends a day later."""

    days: tuple[int, ...]  # 0 is Monday
    from_minute: int  # of the day
    to_minute: int
    prefill: int = 0
    decode: int = 0

    def __post_init__(self) -> None:
        if not all(0 <= day < 7 for day in self.days):
            raise ValueError(f"days {self.days} are not all 0 (Monday) to 6 (Sunday)")
        if not (0 <= self.from_minute < _DAY_MINUTES and 0 <= self.to_minute <= _DAY_MINUTES):
            raise ValueError(
                f"minutes {self.from_minute} to {self.to_minute} do not lie within a day of {_DAY_MINUTES}"
            )

    def touches(self, begin: float, end: float) -> bool:
        """Whether any part of [begin, end] (seconds since the Unix epoch) lies in it."""
        length = (self.to_minute - self.from_minute) % _DAY_MINUTES or _DAY_MINUTES
        first = int(begin // 86_400) - 1
        for day in range(first, int(end // 86_400) + 1):
            if (day + _EPOCH_WEEKDAY) % 7 not in self.days:
                continue
            starts = day * 86_400 + self.from_minute * 60
            if starts <= end and begin < starts + length * 60:
                return True
        return False


def floor_at(floors: Iterable[Floor], *, now: float, ahead: float) -> tuple[int, int]:
    """The least prefills and decodes from `now` until `ahead` seconds later, so that they are ready when a floor begins."""
    prefill = decode = 0
    for one in floors:
        if one.touches(now, now + ahead):
            prefill, decode = max(prefill, one.prefill), max(decode, one.decode)
    return prefill, decode
