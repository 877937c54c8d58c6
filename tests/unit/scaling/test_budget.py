"""One budget over several scenarios: never exceeded, minima first, a fair part, then where requests gain; and it says why."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidewheel.planning.scaling.budget import Ask, share


def ask(name: str = "a", need=(4, 2), **more) -> Ask:
    return Ask(name=name, need=need, **more)


@st.composite
def asks(draw) -> list[Ask]:
    found = []
    for number in range(draw(st.integers(1, 6))):
        least = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
        need = (least[0] + draw(st.integers(0, 9)), least[1] + draw(st.integers(0, 9)))
        found.append(
            ask(
                f"s{number}",
                need,
                least=least,
                rate=draw(st.floats(0.1, 100)),
                weight=draw(st.floats(0.1, 10)),
                costs=(draw(st.integers(1, 4)), draw(st.integers(1, 4))),
            )
        )
    return found


@given(wants=asks(), budget=st.integers(0, 120), fairness=st.floats(0, 1))
def test_the_budget_is_never_exceeded_and_minima_come_first(wants, budget, fairness):
    shares = share(budget, wants, fairness=fairness)
    assert sum(one.cost(got) for one, got in zip(wants, shares.granted, strict=True)) <= budget
    for one, got in zip(wants, shares.granted, strict=True):
        assert got[0] <= one.need[0]
        assert got[1] <= one.need[1]
        assert got == (0, 0) or (got[0] >= one.least[0] and got[1] >= one.least[1])
        assert not shares.is_feasible or got != (0, 0)
    assert shares.is_feasible == (sum(one.cost(one.least) for one in wants) <= budget)
    assert shares.binds == (sum(one.cost(one.need) for one in wants) > budget)
    assert bool(shares.reason) == shares.binds
    assert share(budget, wants, fairness=fairness) == shares


def test_enough_for_all_gives_all():
    shares = share(12, [ask("a"), ask("b")])
    assert shares.granted == ((4, 2), (4, 2))
    assert not shares.binds


def test_no_budget_is_no_bound():
    assert share(None, [ask(need=(400, 200))]).granted == ((400, 200),)


def test_a_short_budget_keeps_every_ratio():
    # half of what both need: each serves half of its requests, with half of each role
    assert share(9, [ask("a", (8, 4)), ask("b", (4, 2))], fairness=1.0).granted == ((4, 2), (2, 1))


def test_without_fairness_accelerators_go_where_most_requests_gain():
    wants = [ask("few", (4, 4), rate=1.0), ask("many", (4, 4), rate=10.0)]
    assert share(10, wants, fairness=0.0).granted == ((1, 1), (4, 4))
    few, _ = share(10, wants, fairness=1.0).granted
    assert sum(few) > 2


def test_a_weight_speaks_like_a_rate():
    wants = [ask("light", (4, 4), weight=1.0), ask("heavy", (4, 4), weight=5.0)]
    assert share(10, wants, fairness=0.0).granted == ((1, 1), (4, 4))


def test_greedy_is_as_good_as_any_other_way_but_for_one_pair():
    wants = [ask("a", (5, 2), rate=7.0), ask("b", (2, 4), rate=9.0), ask("c", (3, 3), rate=2.0)]
    budget = 12

    def served(granted) -> float:
        return sum(one.rate * one.served(got) for one, got in zip(wants, granted, strict=True))

    options = [
        [(p, d) for p in range(1, one.need[0] + 1) for d in range(1, one.need[1] + 1)] for one in wants
    ]
    best = max(
        served(granted)
        for granted in itertools.product(*options)
        if sum(one.cost(got) for one, got in zip(wants, granted, strict=True)) <= budget
    )
    worth_of_a_pair = max(one.rate / min(one.need) for one in wants)
    assert served(share(budget, wants, fairness=0.0).granted) >= best - worth_of_a_pair


@pytest.mark.parametrize(
    ("budget", "wants", "says"),
    [
        pytest.param(7, [ask("a"), ask("b")], "12 accelerators are needed and the budget is 7", id="binds"),
        pytest.param(3, [ask("a"), ask("b")], "the budget is 3: b cannot run", id="too small"),
    ],
)
def test_the_reason_says_what_to_do(budget, wants, says):
    shares = share(budget, wants)
    assert says in shares.reason
    assert "raise the budget" in shares.reason
