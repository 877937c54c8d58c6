"""Calendars on a ring: all periods divide one cycle, and a scenario may take any offset at which every round has a slot left.

Lanes keep odd classes apart; a ring lets them share a slot where their offsets happen not to meet. No ratio is proven for
it, so `best_calendar` takes it only where it is better.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from tidewheel.planning.allocation.bound import relax
from tidewheel.planning.allocation.calendar import Calendar, Entry
from tidewheel.planning.allocation.curves import RecoveryCurve
from tidewheel.planning.allocation.lanes import lane_calendar

CYCLES = (36, 48, 60, 72, 84, 96, 120, 144, 168, 180, 240, 360)
#: With more scenarios the lanes lose so little that the rings have never been better, and they take seconds.
_MOST_ON_A_RING = 64
_ROUNDS_OF_CHOOSING = 4
_REFINED = 4
_REFINEMENTS = 800
#: How often a scenario that chooses again passes over a period that it could have, so that others get it.
_MODESTY = 0.25


def best_calendar(curves: Sequence[RecoveryCurve], slots: int) -> Calendar:
    """The calendar with the highest rate among those we know how to make; the ones with a proven ratio are among them.

    The same curves always give the same calendar.
    """
    if slots < 1 or not curves:
        return Calendar(())
    found = [lane_calendar(curves, slots)]
    if len(curves) <= _MOST_ON_A_RING:
        found += ring_calendars(curves, slots)
    return max(found, key=lambda calendar: calendar.rate(curves))


def ring_calendars(curves: Sequence[RecoveryCurve], slots: int) -> list[Calendar]:
    """A few good calendars: a first one on every cycle, the best of which are refined by small rearrangements."""
    wanted = [
        (vertices[-1][0], scenario)
        for scenario, vertices in enumerate(relax(curves, slots).vertices)
        if vertices
    ]
    by_period = sorted(wanted)
    by_reward = sorted(wanted, key=lambda one: -curves[one[1]].at(one[0]) / one[0])
    rings = []
    for cycle in CYCLES:
        for order in (by_period, by_reward):
            ring = _Ring(curves, slots, cycle)
            ring.fill(order)
            rings.append(ring)
    rings.sort(key=lambda ring: -ring.rate)
    for ring in rings[:_REFINED]:
        ring.refine(random.Random(ring.cycle), _REFINEMENTS)  # noqa: S311 - the same for the same curves
    return [ring.calendar for ring in rings[:_REFINED]]


class _Ring:
    """The rounds of one cycle, how many boosts each has, and which have no slot left: one bit a round."""

    def __init__(self, curves: Sequence[RecoveryCurve], slots: int, cycle: int) -> None:
        self.cycle = cycle
        self._curves = curves
        self._slots = slots
        self._divisors = [d for d in range(1, cycle + 1) if cycle % d == 0]
        self._favourites = [
            [period for rate, period in sorted((-curve.at(d) / d, d) for d in self._divisors) if rate < 0]
            for curve in curves
        ]
        self._entries: dict[int, Entry] = {}
        self._loads = [0] * cycle
        self._full = 0

    @property
    def calendar(self) -> Calendar:
        """What stands on the ring now."""
        return Calendar.of(self._entries.values())

    @property
    def rate(self) -> float:
        """Its reward per round."""
        return self.calendar.rate(self._curves)

    def fill(self, wanted: Iterable[tuple[int, int]]) -> None:
        """Place periods and scenarios in this order, at the next longer divisor that fits; then let each choose again."""
        for period, scenario in wanted:
            self._place_first(scenario, [d for d in self._divisors if d >= min(period, self.cycle)])
        for _ in range(_ROUNDS_OF_CHOOSING):
            for scenario, favourites in enumerate(self._favourites):
                self._remove(scenario)
                self._place_first(scenario, favourites)

    def refine(self, generator: random.Random, times: int) -> None:
        """Take a few scenarios out and let them choose anew in random order; keep what is no worse."""
        count = len(self._curves)
        for _ in range(times):
            movers = generator.sample(range(count), min(generator.randint(2, 4), count))
            before = {scenario: self._entries.get(scenario) for scenario in movers}
            was = self._worth(movers)
            for scenario in movers:
                self._remove(scenario)
            for scenario in movers:
                modest = [d for d in self._favourites[scenario] if generator.random() >= _MODESTY]
                self._place_first(scenario, modest)
            if self._worth(movers) < was:
                for scenario in movers:
                    self._remove(scenario)
                for entry in before.values():
                    if entry is not None:
                        self._add(entry)

    def _worth(self, scenarios: Iterable[int]) -> float:
        entries = [self._entries[scenario] for scenario in scenarios if scenario in self._entries]
        return sum(self._curves[entry.scenario].at(entry.period) / entry.period for entry in entries)

    def _place_first(self, scenario: int, periods: Iterable[int]) -> None:
        for period in periods:
            offset = self._offset(period)
            if offset is not None:
                self._add(Entry(scenario, period, offset))
                return

    def _offset(self, period: int) -> int | None:
        """The offset whose rounds have most boosts already and still a slot each: it leaves the others most room."""
        taken, full, mask = 0, self._full, (1 << period) - 1
        while full:
            taken |= full & mask
            full >>= period
        if taken == mask:
            return None
        free = (offset for offset in range(period) if not taken >> offset & 1)
        return max(free, key=lambda offset: sum(self._loads[offset::period]))

    def _remove(self, scenario: int) -> None:
        entry = self._entries.pop(scenario, None)
        if entry is not None:
            self._change(entry, -1)

    def _add(self, entry: Entry) -> None:
        self._entries[entry.scenario] = entry
        self._change(entry, 1)

    def _change(self, entry: Entry, count: int) -> None:
        for at in range(entry.offset, self.cycle, entry.period):
            self._loads[at] += count
            if self._loads[at] >= self._slots:
                self._full |= 1 << at
            else:
                self._full &= ~(1 << at)
