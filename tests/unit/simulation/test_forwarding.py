"""Who is sent where: deadlines, slots, and what queues in prefills do instead."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.simulation.world import on_demand, request, run

from tidewheel.simulation.forwarding import LocalQueues, RoundRobin
from tidewheel.simulation.prefill import PrefillRules


def endings(seen) -> list[str]:
    return [one.ending for one in seen.outcomes]


def test_who_needs_longer_than_allowed_even_alone_is_told_at_once():
    seen = run([request(prompt=3000), request(prompt=500)], ttft_seconds=2.0)
    assert endings(seen) == ["shed", "answered"]
    assert seen.outcomes[0].e2e == 0
    assert "even alone" in seen.outcomes[0].why


def test_who_could_not_be_in_time_any_more_leaves_and_makes_room():
    # a second each, one at a time, 2.5 s allowed: the third is too late, and the fourth, which came later, is not
    requests = [
        request(0.0, answer=1),
        request(0.0, answer=1),
        request(0.2, answer=1),
        request(1.0, answer=1),
    ]
    seen = run(requests, ttft_seconds=2.5, make_gateway=on_demand(1))
    assert endings(seen) == ["answered", "answered", "shed", "answered"]
    assert seen.outcomes[2].e2e == pytest.approx(1.5, abs=0.05)


def test_a_long_prompt_that_would_be_late_is_passed_over_for_one_that_would_not():
    requests = [request(0.0, 1000, 1), request(0.1, 2300, 1), request(0.2, 500, 1)]
    seen = run(requests, ttft_seconds=3.0, make_gateway=on_demand(2))
    assert seen.outcomes[2].ttft < 1.5


def test_without_deadlines_everyone_is_served_in_order_and_too_late():
    requests = [request(0.01 * number, answer=1) for number in range(6)]
    seen = run(requests, ttft_seconds=1.9, make_gateway=on_demand(1, ends_early=False))
    assert seen.endings() == {"answered": 6}
    assert seen.good(1.9) == 1


@given(st.lists(st.floats(0, 30), min_size=10, max_size=60).map(sorted), st.integers(1, 3))
def test_nobody_who_is_answered_on_demand_is_late(times, slots):
    # one prompt after the other, and iterations that nobody lengthens: then estimates are exact
    seen = run(
        [request(at, 1000, 1) for at in times],
        ttft_seconds=3.0,
        make_gateway=on_demand(slots),
        decodes=4,
        prefill_rules=PrefillRules(chunk_tokens=1000),
    )
    assert all(one.ttft <= 3.0 + 0.05 for one in seen.answered)


@given(st.lists(st.tuples(st.floats(0, 20), st.integers(100, 2500)), min_size=5, max_size=60).map(sorted))
def test_ending_early_serves_no_fewer_in_time_than_one_line_without_deadlines(rows):
    requests = [request(at, prompt, 1) for at, prompt in rows]
    early, late = (
        run(requests, ttft_seconds=2.5, make_gateway=on_demand(1, ends_early=early)).good(2.5)
        for early in (True, False)
    )
    assert early >= late - 1


def test_round_robin_takes_everything_in_turn():
    requests = [request(0.0, prompt, 1) for prompt in (2000, 100, 100, 100)]
    seen = run(requests, prefills=2, make_gateway=RoundRobin)
    assert [one.ttft < 1 for one in seen.outcomes] == [False, True, False, True]


def test_gateways_that_follow_reports_send_to_the_queue_that_was_shortest():
    requests = [request(0.001 * number, 1000, 1) for number in range(4)]
    seen = run(
        requests,
        prefills=2,
        make_gateway=lambda service: LocalQueues(service, gateways=1, generator=random.Random(1)),
    )
    # one gateway counts what it sends, so the queues are even
    assert sorted(round(one.ttft) for one in seen.outcomes) == [1, 1, 2, 2]


def test_a_request_whose_time_ends_in_a_queue_leaves_it_and_costs_nothing():
    requests = [request(0.0, 2000, 1), request(0.1, 2000, 1), request(0.9, 400, 1)]
    seen = run(
        requests,
        ttft_seconds=1.6,
        make_gateway=lambda service: LocalQueues(service, gateways=1, generator=random.Random(1)),
    )
    assert endings(seen) == ["answered", "expired", "answered"]
    assert seen.outcomes[1].e2e == pytest.approx(1.6)
    assert seen.outcomes[2].ttft == pytest.approx(2.0 + 0.4 + 0.01 - 0.9)
