"""Calendars of harmonic lanes: periods that divide each other fit a slot exactly as long as their rates do.

D_a = {q 2^j : q odd, q <= 2a-1} holds for every period one at most (a+1)/a times as long. The periods of one odd class q
form a divisibility chain, and such a chain packs s slots exactly when its rates sum to at most s: with the periods in
rising order, an earlier one d_j blocks d_n/d_j of the s d_n pairs of slot and remainder, which leaves
d_n (s - sum 1/d_j) >= 1 free. So sum_q ceil(rate of class q) <= slots is enough, and first fit finds the offsets.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from math import isqrt

from tidewheel.planning.allocation.bound import relax, segments_of
from tidewheel.planning.allocation.calendar import Calendar, Entry
from tidewheel.planning.allocation.curves import RecoveryCurve

#: Periods are at most an odd number times this power of two.
_HIGHEST_POWER = 40


def odd_part(period: int) -> int:
    """The class q of q 2^j."""
    return period // (period & -period)


def period_class(classes: int, longest: int) -> tuple[int, ...]:
    """D_a up to `longest` for a = `classes`, rising."""
    return tuple(d for d in range(1, longest + 1) if odd_part(d) <= 2 * classes - 1)


class LaneLoad:
    """How many slots some periods need when every odd class has slots of its own; exact, in integers."""

    def __init__(self) -> None:
        self._loads: dict[int, int] = defaultdict(
            int
        )  # of each class q, in units of 1 / (q 2^40) boosts a round

    @classmethod
    def of(cls, periods: Iterator[int]) -> LaneLoad:
        """The load of these periods."""
        load = cls()
        for period in periods:
            load.add(period)
        return load

    def add(self, period: int, times: int = 1) -> None:
        """Take one more boost in every `period` rounds, or with -1 one less."""
        odd = odd_part(period)
        self._loads[odd] += times * ((1 << _HIGHEST_POWER) * odd // period)

    @property
    def lanes(self) -> int:
        """Slots needed."""
        return sum(-(-load // (odd << _HIGHEST_POWER)) for odd, load in self._loads.items())


class _Lane:
    """One slot, and the remainders that are still free on it; periods come in rising order and divide each other."""

    def __init__(self) -> None:
        self._period = 1
        self._free = [0]

    def take(self, period: int) -> int | None:
        """An offset for that period, if there is one."""
        if self._period != period:
            self._free = [offset + step for step in range(0, period, self._period) for offset in self._free]
            self._period = period
        return self._free.pop(0) if self._free else None


def pack(periods: Mapping[int, int]) -> Calendar:
    """Offsets for these periods, by scenario, on the slots that `LaneLoad` says; no two of one lane ever meet."""
    classes: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for scenario, period in periods.items():
        classes[odd_part(period)].append((period, scenario))
    entries: list[Entry] = []
    for members in classes.values():
        lanes: list[_Lane] = []
        for period, scenario in sorted(members):
            offset = next((at for lane in lanes if (at := lane.take(period)) is not None), None)
            if offset is None:
                lanes.append(_Lane())
                offset = lanes[-1].take(period)
            entries.append(Entry(scenario, period, offset or 0))
    return Calendar.of(entries)


def lane_calendar(curves: Sequence[RecoveryCurve], slots: int) -> Calendar:
    """The lane calendar with the highest rate; made in milliseconds, and never below the proven ratio."""
    found = [*textbook_calendars(curves, slots)]
    found += [greedy_calendar(curves, slots, classes=classes) for classes in (1, 2, 4)]
    return max(found, key=lambda calendar: calendar.rate(curves))


def textbook_calendars(curves: Sequence[RecoveryCurve], slots: int) -> Iterator[Calendar]:
    """The calendars with a proven ratio, one for each number of classes a up to the square root of the slots.

    Relax with slots - a, promote the one fractional scenario to its faster period, round every period up into D_a:
    the classes then need at most `slots` lanes, and the rate is at least a/(a+1) (slots-a)/slots of the bound. With
    a = sqrt(slots+1) - 1 that is 1 - 2/sqrt(slots) + O(1/slots). With one slot: the better of all but the fractional
    scenario in powers of two, and of that one alone, at least a third of the bound.
    """
    if slots == 1:
        vertices = [one for one in enumerate(relax(curves, 1).vertices) if one[1]]
        yield pack({i: v[-1][0] for i, v in vertices if v[-1][1] < 1.0})
        periods = {i: _round_up(v[-1][0], 1) for i, v in vertices if v[-1][1] == 1.0}
        if LaneLoad.of(iter(periods.values())).lanes <= 1:
            yield pack(periods)
    for classes in range(1, min(slots, isqrt(slots) + 2)):
        chosen = enumerate(relax(curves, slots - classes).vertices)
        periods = {i: _round_up(v[-1][0], classes) for i, v in chosen if v}
        if LaneLoad.of(iter(periods.values())).lanes <= slots:
            yield pack(periods)


def greedy_calendar(curves: Sequence[RecoveryCurve], slots: int, *, classes: int) -> Calendar:
    """Steeper hull segments first, periods from D_a only, as long as the lanes suffice; then whatever still fits."""
    allowed = period_class(classes, 2 * max(curve.starts[-1] for curve in curves))
    steps: list[tuple[float, int, int]] = []
    gains: list[tuple[float, int, int]] = []
    for scenario, curve in enumerate(curves):
        coarse = RecoveryCurve(allowed, tuple(curve.at(period) for period in allowed))
        steps += [(segment.slope, scenario, segment.period) for segment in segments_of(coarse)]
        gains += [(reward / period, scenario, period) for period, reward in coarse.points]
    periods: dict[int, int] = {}
    load = LaneLoad()
    for slope, scenario, period in sorted(steps, reverse=True):
        if slope > 0:
            _exchange(load, periods, scenario, period, slots)
    for gain, scenario, period in sorted(gains, reverse=True):
        now = periods.get(scenario)
        if gain > (curves[scenario].at(now) / now if now is not None else 0.0):
            _exchange(load, periods, scenario, period, slots)
    return pack(periods)


def _exchange(load: LaneLoad, periods: dict[int, int], scenario: int, period: int, slots: int) -> None:
    """Give the scenario that period if the lanes suffice, else leave everything as it is."""
    before = periods.get(scenario)
    load.add(period)
    if before is not None:
        load.add(before, -1)
    if load.lanes <= slots:
        periods[scenario] = period
        return
    load.add(period, -1)
    if before is not None:
        load.add(before)


def _round_up(period: int, classes: int) -> int:
    while odd_part(period) > 2 * classes - 1:
        period += 1
    return period
