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
#: The rings of each stage of refinement: few are good at first that end up best, so the worse half drops out each time.
_STAGES = (24, 12, 6, 3)
#: How often a scenario that chooses again passes over a period that it could have, so that others get it.
_MODESTY = 0.25


def best_calendar(curves: Sequence[RecoveryCurve], slots: int, *, refinements: int = 8000) -> Calendar:
    """The calendar with the highest rate among those we know how to make; the ones with a proven ratio are among them.

    The same curves always give the same calendar.

    Args:
        curves: of each scenario.
        slots: boosts per round.
        refinements: small rearrangements to try, of all rings together; 8,000 take about half a second.
    """
    if slots < 1 or not curves:
        return Calendar(())
    found = [lane_calendar(curves, slots)]
    if len(curves) <= _MOST_ON_A_RING:
        found += ring_calendars(curves, slots, refinements=refinements)
    return max(found, key=lambda calendar: calendar.rate(curves))


def ring_calendars(curves: Sequence[RecoveryCurve], slots: int, *, refinements: int) -> list[Calendar]:
    """A few good calendars: two first ones on every cycle, refined by small rearrangements while the worse drop out.

    That is successive halving (Jamieson, Talwalkar 2016): every stage has the same number of refinements for half the rings.
    """
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
    for most in _STAGES:
        rings = sorted(rings, key=lambda ring: -ring.rate)[:most]
        for ring in rings:
            ring.refine(refinements // len(_STAGES) // most)
    return [ring.calendar for ring in rings]


class _Ring:
    """The rounds of one cycle, how many boosts each has, and which have no slot left: one bit a round."""

    def __init__(self, curves: Sequence[RecoveryCurve], slots: int, cycle: int) -> None:
        self.cycle = cycle
        self._slots = min(slots, len(curves))
        self._divisors = [d for d in range(1, cycle + 1) if cycle % d == 0]
        self._worth = [{d: curve.at(d) / d for d in self._divisors} for curve in curves]
        self._favourites = [
            [d for d in sorted(worth, key=lambda d: (-worth[d], d)) if worth[d] > 0] for worth in self._worth
        ]
        self._periods: dict[int, int] = {}
        self._offsets: dict[int, int] = {}
        self._loads = bytearray(cycle)
        self._full = 0
        self._as_bits = bytes(48 + (load >= self._slots) for load in range(256))
        self._generator = random.Random(cycle)  # noqa: S311 - the same for the same curves

    @property
    def calendar(self) -> Calendar:
        """What stands on the ring now."""
        return Calendar.of(Entry(s, d, self._offsets[s]) for s, d in self._periods.items())

    @property
    def rate(self) -> float:
        """Its reward per round."""
        return sum(self._worth[s][d] for s, d in self._periods.items())

    def fill(self, wanted: Iterable[tuple[int, int]]) -> None:
        """Place periods and scenarios in this order, at the next longer divisor that fits; then let each choose again."""
        for period, scenario in wanted:
            self._place_first(scenario, [d for d in self._divisors if d >= min(period, self.cycle)])
        for _ in range(_ROUNDS_OF_CHOOSING):
            for scenario, favourites in enumerate(self._favourites):
                self._remove(scenario)
                self._place_first(scenario, favourites)

    def refine(self, times: int) -> None:
        """Take a few scenarios out and let them choose anew in random order; keep what is no worse."""
        count, chance = len(self._worth), self._generator.random
        for _ in range(times):
            movers = self._generator.sample(range(count), min(self._generator.randint(2, 4), count))
            before = [(s, self._periods[s], self._offsets[s]) for s in movers if s in self._periods]
            was = sum(self._worth[s][d] for s, d, _ in before)
            for scenario in movers:
                self._remove(scenario)
            for scenario in movers:
                self._place_first(scenario, [d for d in self._favourites[scenario] if chance() >= _MODESTY])
            now = sum(self._worth[s][self._periods[s]] for s in movers if s in self._periods)
            if now < was:
                for scenario in movers:
                    self._remove(scenario)
                for scenario, period, offset in before:
                    self._add(scenario, period, offset)

    def _place_first(self, scenario: int, periods: Iterable[int]) -> None:
        for period in periods:
            offset = self._offset(period)
            if offset is not None:
                self._add(scenario, period, offset)
                return

    def _offset(self, period: int) -> int | None:
        """The offset whose rounds have most boosts already and still a slot each: it leaves the others most room."""
        taken, step, mask = self._full, period, (1 << period) - 1
        while step < self.cycle:
            taken |= taken >> step
            step *= 2
        taken &= mask
        if taken == mask:
            return None
        if self._slots == 1:
            return (~taken & (taken + 1)).bit_length() - 1
        loads = self._loads
        best, most = 0, -1
        for offset in range(period):
            if not taken >> offset & 1 and (load := sum(loads[offset::period])) > most:
                best, most = offset, load
        return best

    def _remove(self, scenario: int) -> None:
        period = self._periods.pop(scenario, None)
        if period is not None:
            self._change(period, self._offsets.pop(scenario), _LESS)

    def _add(self, scenario: int, period: int, offset: int) -> None:
        self._periods[scenario] = period
        self._offsets[scenario] = offset
        self._change(period, offset, _MORE)

    def _change(self, period: int, offset: int, table: bytes) -> None:
        loads = self._loads
        loads[offset::period] = loads[offset::period].translate(table)
        # base 2 is read in linear time
        self._full = int(loads[::-1].translate(self._as_bits), 2)


#: Of a byte the next one, and the one before.
_MORE = bytes((load + 1) % 256 for load in range(256))
_LESS = bytes((load - 1) % 256 for load in range(256))
