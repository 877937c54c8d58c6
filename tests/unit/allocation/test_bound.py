"""The bound on what any allocation can earn, and the index: against the optimum itself where that can be computed."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.unit.allocation.curves import curves, mixed, of

from tidewheel.planning.allocation.bound import Gaps, relax
from tidewheel.planning.allocation.curves import RecoveryCurve, idle_grid
from tidewheel.planning.allocation.estimates import Estimate, Learning, believed, expected, observe
from tidewheel.planning.allocation.index import whittle_index, worth_now


def best_rate(family: list[RecoveryCurve], slots: int) -> float:
    """The most reward per round in the long run, by relative value iteration over all idle times."""
    caps = [curve.starts[-1] for curve in family]
    states = list(itertools.product(*(range(1, cap + 1) for cap in caps)))
    choices = [
        chosen for count in range(slots + 1) for chosen in itertools.combinations(range(len(family)), count)
    ]
    value = dict.fromkeys(states, 0.0)
    low = high = 0.0
    for _ in range(300):
        after = {}
        for state in states:
            waited = [min(idle + 1, cap) for idle, cap in zip(state, caps, strict=True)]
            after[state] = max(
                sum(family[i].at(state[i]) for i in chosen)
                + value[tuple(1 if i in chosen else idle for i, idle in enumerate(waited))]
                for chosen in choices
            )
        gains = [after[state] - value[state] for state in states]
        low, high = min(gains), max(gains)
        # half-steps make a periodic chain converge
        value = {state: (value[state] + after[state]) / 2 for state in states}
        if high - low < 1e-4:
            break
    return high


def followed(family: list[RecoveryCurve], slots: int, rounds: int = 3000) -> float:
    """What always boosting those who are worth most earns per round."""
    idle = [curve.starts[-1] for curve in family]
    price = relax(family, slots).price
    earned = 0.0
    for _ in range(rounds):
        scores = [worth_now(curve, at, price) for curve, at in zip(family, idle, strict=True)]
        ranked = sorted(range(len(family)), key=lambda i: -scores[i])[:slots]
        picked = [i for i in ranked if scores[i] >= 0]
        earned += sum(family[i].at(idle[i]) for i in picked)
        idle = [1 if i in picked else at + 1 for i, at in enumerate(idle)]
    return earned / rounds


@pytest.mark.parametrize("seed", range(4))
def test_no_policy_beats_the_bound_and_the_index_is_close_to_the_best_policy(seed):
    family = mixed(random.Random(seed), 3, 6)
    best = best_rate(family, 1)
    assert relax(family, 1).value >= best - 1e-3
    assert followed(family, 1) >= 0.9 * best


@given(st.lists(curves(), min_size=1, max_size=6), st.floats(0.1, 4))
def test_the_relaxation_keeps_its_slots_and_leaves_at_most_one_scenario_between_two_periods(family, slots):
    found = relax(family, slots)
    assert sum(found.rates) <= slots + 1e-9
    assert all(0 <= rate <= 1 + 1e-9 for rate in found.rates)
    between = [
        vertices for vertices in found.vertices if vertices and any(0 < share < 1 for _, share in vertices)
    ]
    assert len(between) <= 1


@given(st.lists(curves(), min_size=1, max_size=6), st.integers(1, 3), st.integers(1, 3))
def test_more_slots_never_earn_less_and_each_more_earns_no_more_than_the_one_before(family, slots, more):
    values = [relax(family, count).value for count in (slots, slots + more, slots + 2 * more)]
    assert values[0] <= values[1] + 1e-9
    assert values[2] - values[1] <= values[1] - values[0] + 1e-9


def test_a_longest_gap_is_served_first_and_one_that_cannot_be_is_refused():
    poor, rich = of(0.1), of(1.0)
    free = relax([poor, rich], 1)
    bound = relax([poor, rich], 1, gaps={0: Gaps(most=4)})
    assert (free.rates, bound.rates) == ((0.0, 1.0), (0.25, 0.75))
    with pytest.raises(ValueError, match=r"need 1\.50 slots a round, there are 1"):
        relax([poor] * 3, 1, gaps=dict.fromkeys(range(3), Gaps(most=2)))


def test_a_shortest_gap_bounds_the_rate():
    assert relax([of(1.0)], 1, gaps={0: Gaps(least=3)}).rates == pytest.approx((1 / 3,))


@pytest.mark.parametrize(
    ("curve", "idle", "index"),
    [
        pytest.param(of(0.5), 1, 0.5, id="what never falls is worth its reward at once"),
        pytest.param(of(0.4, 0.6, 0.7), 1, 0.4 - 1 * 0.2, id="a concave curve: R(t) - t (R(t+1) - R(t))"),
        pytest.param(of(0.4, 0.6, 0.7), 3, 0.7, id="fully recovered"),
        pytest.param(of(0.0, 0.0, 1.0), 2, -1.0, id="just before a jump it pays to wait"),
    ],
)
def test_the_index_in_closed_form(curve, idle, index):
    assert whittle_index(curve, idle) == pytest.approx(index)


@given(curves(), st.integers(1, 12), st.floats(-0.5, 1))
def test_a_boost_pays_at_a_price_exactly_below_the_index(curve, idle, price):
    gain = max(0.0, *((reward - price) / start for start, reward in curve.points))
    worth = all(curve.at(idle + k) - curve.at(idle) <= k * gain + 1e-12 for k in range(1, 13))
    index = whittle_index(curve, idle)
    assume(gain > 0)  # else it is never worth it
    assume(abs(index - price) > 1e-6)
    assert worth == (price < index)


def test_the_idle_grid_doubles():
    assert idle_grid(24) == (1, 2, 3, 4, 6, 8, 12, 16, 24)
    assert idle_grid(5) == (1, 2, 3, 4)


@given(curves(), st.integers(1, 14), st.floats(-0.5, 1.5))
def test_a_boost_is_worth_its_price_exactly_where_the_index_is(curve, idle, price):
    index = whittle_index(curve, idle)
    assume(abs(index - price) > 1e-6)
    assert (worth_now(curve, idle, price) > price) == (index > price)


@pytest.mark.parametrize(
    ("curve", "idle", "price", "worth"),
    [
        pytest.param(
            of(0.5), 1, 0.2, 0.5, id="what never falls loses its gain, reward - price, by a round of waiting"
        ),
        pytest.param(of(0.5), 1, 0.9, 0.5, id="what never pays loses nothing later"),
        pytest.param(of(0.0, 1.0), 1, 0.2, -0.4, id="next round's boost earns 1 - 0.2 - (1 - 0.2) / 2"),
        pytest.param(of(0.0, 1.0), 9, 0.2, 0.6, id="recovered long ago: price and a round of its gain"),
    ],
)
def test_what_a_boost_is_worth_at_a_price(curve, idle, price, worth):
    assert worth_now(curve, idle, price) == pytest.approx(worth)


@given(st.lists(curves(), min_size=1, max_size=5), st.integers(1, 3), st.integers(0, 2**32))
@settings(max_examples=40)
def test_what_any_policy_loses_to_the_bound_is_what_its_rounds_lose(family, slots, seed):
    """Whatever is boosted: reward per round = bound - mean loss, up to what the first and the last states are worth."""
    relaxation = relax(family, slots)
    price, generator = relaxation.price, random.Random(seed)
    idle = [1] * len(family)
    earned = lost = 0.0
    rounds = 200
    for _ in range(rounds):
        picked = set(generator.sample(range(len(family)), generator.randint(0, min(slots, len(family)))))
        lost += price * (slots - len(picked))
        for i, curve in enumerate(family):
            over = worth_now(curve, idle[i], price) - price
            lost += max(0.0, -over if i in picked else over)
            earned += curve.at(idle[i]) if i in picked else 0.0
        idle = [1 if i in picked else at + 1 for i, at in enumerate(idle)]
    assert earned / rounds == pytest.approx(relaxation.value - lost / rounds, abs=2 * len(family) / rounds)


observed = st.lists(st.tuples(st.integers(1, 30), st.floats(0, 1)), max_size=40)


@given(observed)
def test_believed_curves_rise_and_are_bounds_of_what_was_seen(rewards):
    learning = Learning(starts=idle_grid(12))
    estimate = Estimate.empty(len(learning.starts))
    for idle, reward in rewards:
        estimate = observe(estimate, idle, reward, learning)
    (hoped,), (seen,) = believed([estimate], learning, at=100), expected([estimate], learning)
    for curve in (hoped, seen):
        assert all(a <= b for a, b in itertools.pairwise(curve.rewards))
        assert max(curve.rewards) <= 1.0
    # a step is bounded by each later one, and by nothing else
    for step, bound in enumerate(hoped.rewards):
        later = [
            total / count + 0.25 * math.sqrt(math.log(100) / count)
            for count, total in zip(estimate.counts[step:], estimate.sums[step:], strict=True)
            if count
        ]
        assert bound == pytest.approx(min([1.0, *later]))
