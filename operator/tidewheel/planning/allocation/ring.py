"""Calendars on a ring: all periods divide one cycle, and each scenario takes the offset that leaves the others most room.

Lanes keep odd classes apart; a ring lets them share a slot where their offsets happen not to meet. No ratio is proven for
it, so `best_calendar` takes it only where it is better.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tidewheel.planning.allocation.bound import relax
from tidewheel.planning.allocation.calendar import Calendar, Entry
from tidewheel.planning.allocation.curves import RecoveryCurve
from tidewheel.planning.allocation.lanes import greedy_calendar, textbook_calendars

CYCLES = (48, 60, 72, 96, 120, 144, 180, 240)
_IMPROVEMENTS = 2
#: With more scenarios the lanes lose so little that the rings have never been better, and they take seconds.
_MOST_ON_A_RING = 64


def best_calendar(curves: Sequence[RecoveryCurve], slots: int) -> Calendar:
    """The calendar with the highest rate among those we know how to make; the ones with a proven ratio are among them."""
    if slots < 1 or not curves:
        return Calendar(())
    return max(_candidates(curves, slots), key=lambda calendar: calendar.rate(curves))


def _candidates(curves: Sequence[RecoveryCurve], slots: int) -> Iterator[Calendar]:
    yield from textbook_calendars(curves, slots)
    for classes in (1, 2, 4):
        yield greedy_calendar(curves, slots, classes=classes)
    if len(curves) <= _MOST_ON_A_RING:
        for cycle in CYCLES:
            yield ring_calendar(curves, slots, cycle=cycle)


def ring_calendar(curves: Sequence[RecoveryCurve], slots: int, *, cycle: int) -> Calendar:
    """Place the relaxation's periods, rounded up to divisors of `cycle`, shortest first; then let each choose again."""
    ring = _Ring(cycle, slots)
    chosen = [
        (ring.round_up(vertices[-1][0]), scenario)
        for scenario, vertices in enumerate(relax(curves, slots).vertices)
        if vertices
    ]
    for period, scenario in sorted(chosen):
        for longer in ring.divisors:
            if longer >= period and ring.place(scenario, longer):
                break
    for _ in range(_IMPROVEMENTS):
        for scenario, curve in enumerate(curves):
            ring.remove(scenario)
            rates = sorted((-curve.at(period) / period, period) for period in ring.divisors)
            for rate, period in rates:
                if rate >= 0 or ring.place(scenario, period):
                    break
    return Calendar.of(ring.entries.values())


class _Ring:
    """The rounds of one cycle, how many boosts each has, and which have no slot left: one bit a round."""

    def __init__(self, cycle: int, slots: int) -> None:
        self.divisors = tuple(d for d in range(1, cycle + 1) if cycle % d == 0)
        self.entries: dict[int, Entry] = {}
        self._cycle = cycle
        self._slots = slots
        self._loads = [0] * cycle
        self._full = 0

    def round_up(self, period: int) -> int:
        """The next divisor; the whole cycle for what is longer."""
        return next((d for d in self.divisors if d >= period), self._cycle)

    def place(self, scenario: int, period: int) -> bool:
        """Take the offset whose rounds have most boosts already and still a slot each; False when there is none."""
        taken, mask = 0, (1 << period) - 1
        full = self._full
        while full:
            taken |= full & mask
            full >>= period
        if taken == mask:
            return False
        offset = max(
            (at for at in range(period) if not taken >> at & 1),
            key=lambda at: sum(self._loads[at::period]),
        )
        self.entries[scenario] = Entry(scenario, period, offset)
        self._add(self.entries[scenario], 1)
        return True

    def remove(self, scenario: int) -> None:
        """Give the scenario's rounds back."""
        entry = self.entries.pop(scenario, None)
        if entry is not None:
            self._add(entry, -1)

    def _add(self, entry: Entry, count: int) -> None:
        for at in range(entry.offset, self._cycle, entry.period):
            self._loads[at] += count
            if self._loads[at] >= self._slots:
                self._full |= 1 << at
            else:
                self._full &= ~(1 << at)
