"""Calendars: their gaps are exact, no round has more boosts than slots, and they keep what is proven of them."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.allocation.curves import curves, mixed

from tidewheel.planning.allocation.bound import relax
from tidewheel.planning.allocation.calendar import Calendar, Entry
from tidewheel.planning.allocation.lanes import LaneLoad, pack, period_class, textbook_calendars
from tidewheel.planning.allocation.ring import best_calendar


def earned(calendar: Calendar, family, rounds: int) -> float:
    """What it earns per round when it is followed, from the second boost of each scenario on."""
    last: dict[int, int] = {}
    total = 0.0
    for at in range(rounds):
        for scenario in calendar.due(at):
            if scenario in last:
                total += family[scenario].at(at - last[scenario])
            last[scenario] = at
    return total / rounds


@given(st.lists(curves(), min_size=1, max_size=5), st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_no_round_of_a_calendar_has_more_boosts_than_slots(family, slots):
    assert best_calendar(family, slots, refinements=400).busiest <= slots


@given(st.dictionaries(st.integers(0, 30), st.sampled_from(period_class(2, 48)), max_size=20))
def test_periods_that_divide_each_other_pack_onto_exactly_the_lanes_they_need(periods):
    calendar = pack(periods)
    assert calendar.busiest <= LaneLoad.of(iter(periods.values())).lanes
    assert {entry.scenario: entry.period for entry in calendar.entries} == periods


def test_a_calendar_earns_what_it_says():
    family = mixed(random.Random(1), 8, 24)
    calendar = best_calendar(family, 2, refinements=400)
    assert earned(calendar, family, 24_000) == pytest.approx(calendar.rate(family), rel=0.01)


@pytest.mark.parametrize(("count", "slots"), [(10, 3), (10, 8), (30, 10)])
def test_the_textbook_calendar_keeps_its_ratio(count, slots):
    """(sqrt(K+1)-1)/(sqrt(K+1)+1) with whole numbers of classes: a/(a+1) (K-a)/K for the best a."""
    proven = max(a / (a + 1) * (slots - a) / slots for a in range(1, slots))
    for seed in range(3):
        family = mixed(random.Random(seed), count, 24)
        best = max(calendar.rate(family) for calendar in textbook_calendars(family, slots))
        assert best >= proven * relax(family, slots).value


def test_one_slot_keeps_a_third_of_the_bound():
    for seed in range(5):
        family = mixed(random.Random(seed), 6, 24)
        best = max(calendar.rate(family) for calendar in textbook_calendars(family, 1))
        assert best >= relax(family, 1).value / 3


@pytest.mark.parametrize(("count", "slots", "share"), [(10, 5, 0.96), (20, 4, 0.95), (50, 10, 0.975)])
def test_the_best_calendar_is_near_the_bound(count, slots, share):
    ratios = []
    for seed in range(2):
        family = mixed(random.Random(seed), count, 24)
        ratios.append(best_calendar(family, slots, refinements=400).rate(family) / relax(family, slots).value)
    assert sum(ratios) / len(ratios) >= share


def test_refining_a_ring_keeps_its_slots_and_only_gains():
    family = mixed(random.Random(2), 10, 24)
    rates = []
    for refinements in (0, 200, 3000):
        calendar = best_calendar(family, 2, refinements=refinements)
        assert calendar.busiest <= 2
        rates.append(calendar.rate(family))
    assert rates[0] <= rates[1] <= rates[2]
    assert rates[0] < rates[2]


def test_periods_of_a_class_cost_at_most_their_share():
    assert period_class(1, 16) == (1, 2, 4, 8, 16)
    assert period_class(2, 16) == (1, 2, 3, 4, 6, 8, 12, 16)
    for classes in (1, 2, 4):
        allowed = period_class(classes, 200)
        for period in range(1, 100):
            assert next(d for d in allowed if d >= period) / period <= (classes + 1) / classes


def test_nothing_to_boost_or_no_slot_is_an_empty_calendar():
    assert best_calendar([], 3) == best_calendar(mixed(random.Random(0), 3, 8), 0) == Calendar(())
    assert Calendar(()).busiest == 0


def test_a_calendar_lists_whom_a_round_boosts():
    calendar = Calendar.of([Entry(2, 3, 1), Entry(0, 2, 1)])
    assert [calendar.due(at) for at in range(4)] == [(), (0, 2), (), (0,)]
