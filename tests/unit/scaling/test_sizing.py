"""The least instances that keep an objective: enough, never one too many, and more where chance is greater."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.scaling.worlds import DEVICE, TARGETS, WORK

from tidewheel.planning.scaling.sizing import (
    Demand,
    Targets,
    combined_for,
    decode_attainment,
    decode_work,
    decodes_for,
    prefill_attainment,
    prefill_work,
    prefills_for,
)

rates = st.floats(0.1, 400)
variances = st.floats(0, 0.5)


def prefills(rate: float, **more) -> int:
    variance = more.pop("relative_variance", 0.0)
    work = prefill_work(replace(WORK, **more), DEVICE, TARGETS)
    return prefills_for(Demand(mean=rate, relative_variance=variance), work, 0.99)


def decodes(rate: float, targets: Targets = TARGETS, **more) -> int:
    return decodes_for(Demand(mean=rate), decode_work(replace(WORK, **more), DEVICE, targets), 0.99)


@given(rate=rates, variance=variances)
@settings(max_examples=60)
def test_prefills_are_enough_and_not_one_too_many(rate, variance):
    demand, work = Demand(mean=rate, relative_variance=variance), prefill_work(WORK, DEVICE, TARGETS)
    count = prefills_for(demand, work, 0.99)
    assert prefill_attainment(count, demand, work) >= 0.99
    assert count == 1 or prefill_attainment(count - 1, demand, work) < 0.99


@given(rate=st.floats(0.1, 4000), variance=variances)
@settings(max_examples=60)
def test_decodes_are_enough_and_not_one_too_many(rate, variance):
    demand, work = Demand(mean=rate, relative_variance=variance), decode_work(WORK, DEVICE, TARGETS)
    count = decodes_for(demand, work, 0.99)
    assert decode_attainment(count, demand, work) >= 0.99
    assert count == 1 or decode_attainment(count - 1, demand, work) < 0.99


def test_many_prefills_need_less_margin_than_few():
    # each carries 10 prompts a second at best
    assert prefills(8.0) == 1
    assert prefills(95.0) == 10
    # where the one request in a hundred that may be late pays for all of the margin
    assert prefills(990.0) == 99


@pytest.mark.parametrize(
    ("change", "more"),
    [
        pytest.param({"relative_variance": 0.1}, True, id="an uncertain load"),
        pytest.param({"arrival_dispersion": 20.0}, True, id="clumped arrivals"),
        pytest.param({"prompt_tokens_squared": 8e6}, True, id="prompts of unlike lengths"),
        pytest.param({"prefill_correction": 1.3}, True, id="a device slower than its profile"),
        pytest.param({"prefix_factor": 0.5}, False, id="cached prefixes"),
    ],
)
def test_what_asks_for_more_prefills(change, more):
    assert (prefills(75.0, **change) > prefills(75.0)) == more
    assert (prefills(75.0, **change) < prefills(75.0)) == (not more)


@pytest.mark.parametrize(
    ("change", "targets", "more"),
    [
        pytest.param({"answer_tokens": 200.0}, TARGETS, True, id="longer answers"),
        pytest.param({"decode_correction": 1.2}, TARGETS, True, id="a device slower than its profile"),
        pytest.param({}, replace(TARGETS, tpot_seconds=0.012), True, id="a tighter TPOT"),
        pytest.param({}, replace(TARGETS, e2e_seconds=2.2), True, id="an E2E that leaves 12 ms a token"),
        pytest.param({}, replace(TARGETS, tpot_seconds=0.05), False, id="a looser TPOT"),
    ],
)
def test_what_asks_for_more_decodes(change, targets, more):
    assert (decodes(500.0, targets, **change) > decodes(500.0)) == more


def test_an_objective_that_no_batch_keeps_is_sized_by_capacity():
    work = decode_work(WORK, DEVICE, replace(TARGETS, tpot_seconds=0.005))
    assert not work.objective
    assert decodes_for(Demand(mean=10.0), work, 0.99) == 1


def test_no_load_needs_one_of_each():
    assert prefills(0.0) == 1
    assert decodes(0.0) == 1


def test_few_short_requests_need_no_disaggregation_and_heavy_decode_does():
    work = prefill_work(WORK, DEVICE, TARGETS)
    batches = [(float(n), DEVICE.decode_seconds(n, 1050)) for n in (1, 10, 30, 60, 100)]

    def combined(rate: float, answer: float) -> int:
        return combined_for(Demand(mean=rate), work, batches, answer, TARGETS, most=100)

    assert combined(1.0, 10.0) == 1
    # 20 s of decode in batches beside 2 s of prefill per second: prompts would slow every batch down
    assert combined(20.0, 1000.0) > prefills(20.0) + decodes(20.0, answer_tokens=1000.0)


def test_targets_that_promise_nothing_are_refused():
    with pytest.raises(ValueError, match="no targets"):
        Targets(ttft_seconds=0, tpot_seconds=0.1)
