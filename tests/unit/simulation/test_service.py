"""A simulated service: no request is lost or counted twice, slots are kept, faults cost one substitute, and runs repeat."""

from __future__ import annotations

import math
import random
from functools import partial

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.unit.simulation.world import DEVICE, device, on_demand, request, run, settings

from tidewheel.simulation.forwarding import LocalQueues, RoundRobin
from tidewheel.simulation.prefill import Prefill
from tidewheel.simulation.service import Fault, simulate
from tidewheel.simulation.sources import ClosedLoop, OpenLoop

GATEWAYS = {
    "on demand": on_demand(),
    "one line": on_demand(ends_early=False),
    "round robin": RoundRobin,
    "local queues": lambda service: LocalQueues(service, gateways=2, generator=random.Random(3)),
}
LOADS = st.lists(
    st.tuples(st.floats(0, 20), st.integers(1, 3000), st.integers(1, 200)), min_size=1, max_size=40
).map(lambda rows: [request(at, prompt, answer) for at, prompt, answer in sorted(rows)])
FAULTS = st.lists(
    st.builds(
        Fault, at=st.floats(0, 30), role=st.sampled_from(["prefill", "decode"]), number=st.integers(0, 1)
    ),
    max_size=4,
).map(tuple)


@pytest.mark.parametrize("gateway", GATEWAYS.values(), ids=GATEWAYS)
@given(requests=LOADS, faults=FAULTS, resumes=st.booleans())
@example(
    # a prefill dies while it sends a KV, and the next one sends it to the same decode
    requests=[request(0.0, 1, 1), request(1.0, 1, 1)],
    faults=(Fault(at=0.0078125, role="prefill"),),
    resumes=True,
)
def test_every_request_ends_once_whatever_breaks(gateway, requests, faults, resumes):
    seen = run(
        requests,
        make_gateway=gateway,
        prefills=2,
        decodes=2,
        ttft_seconds=3.0,
        faults=faults,
        resumes=resumes,
        start_seconds=5.0,
        profile=device(transfer_base_seconds=0.01, transfer_seconds_per_token=1e-5),
    )
    assert len(seen.outcomes) == len(requests)
    for one in seen.outcomes:
        assert one.e2e >= 0
        if one.ending == "answered":
            assert 0 < one.ttft <= one.e2e
        if one.ending == "failed":
            assert not resumes


@given(requests=LOADS, slots=st.integers(1, 3))
def test_no_prefill_holds_more_than_its_slots(requests, slots):
    most = [0]

    class Watched(Prefill):
        def take(self, flight):
            super().take(flight)
            most[0] = max(most[0], len(self.held))

    from tidewheel.simulation import service

    original, service.Prefill = service.Prefill, Watched
    try:
        run(requests, make_gateway=on_demand(slots), prefills=2)
    finally:
        service.Prefill = original
    assert 1 <= most[0] <= slots


@given(requests=LOADS)
def test_the_same_settings_give_the_same_run(requests):
    first, second = (run(requests, make_gateway=GATEWAYS["local queues"], prefills=2) for _ in range(2))
    assert repr(first.outcomes) == repr(second.outcomes)


def test_one_request_takes_its_prefill_its_transfer_and_its_iterations():
    (one,) = run([request(prompt=1000, answer=11)], profile=device(transfer_base_seconds=0.5)).outcomes
    assert one.ttft == pytest.approx(1 + 0.5 + 0.01)
    assert one.e2e == pytest.approx(1 + 0.5 + 0.11)
    assert (one.tpot, one.transfer) == (pytest.approx(0.01), pytest.approx(0.5))


def test_a_prefill_sends_one_kv_after_the_other_and_its_slot_is_held_meanwhile():
    slow = device(transfer_base_seconds=2.0)
    seen = run([request(answer=1) for _ in range(2)], profile=slow, make_gateway=on_demand(1))
    assert [one.ttft for one in seen.outcomes] == pytest.approx([3.01, 6.01])


def test_a_prompt_waits_in_its_prefill_while_no_decode_has_room():
    narrow = device(decode_slots=1)
    seen = run([request(prompt=100, answer=101) for _ in range(2)], profile=narrow)
    assert [one.ttft for one in seen.outcomes] == pytest.approx([0.21, 0.2 + 1.01 + 0.01])


def test_a_lost_decode_costs_one_substitute_and_its_streams_go_on():
    requests = [request(at=0.1 * number, prompt=100, answer=500) for number in range(6)]
    seen = run(requests, decodes=2, faults=(Fault(at=3.0, role="decode"),), start_seconds=20.0)
    assert seen.substitutions == 1
    assert seen.endings() == {"answered": 6}
    assert seen.decode_seconds == pytest.approx(2 * seen.seconds, rel=0.01)


@pytest.mark.parametrize("gateway", GATEWAYS.values(), ids=GATEWAYS)
def test_a_stream_goes_on_however_long_ago_its_first_token_was_due(gateway):
    requests = [request(at=0.0, prompt=100, answer=2000)]
    seen = run(
        requests, make_gateway=gateway, ttft_seconds=1.0, decodes=2, faults=(Fault(at=10.0, role="decode"),)
    )
    (one,) = seen.outcomes
    assert one.ending == "answered"
    assert one.ttft == pytest.approx(0.11)
    # a prefill computes prompt and answer so far, and the rest of the tokens follows
    assert one.e2e == pytest.approx(0.1 + 10.0 + 1.09 + 10.1, rel=0.02)


def test_without_resuming_streams_of_a_lost_decode_fail_and_say_so():
    seen = run([request(prompt=100, answer=500)], faults=(Fault(at=3.0, role="decode"),), resumes=False)
    assert seen.reasons() == {"its decode was lost": 1}


def test_a_lost_prefill_s_prompts_are_computed_elsewhere():
    requests = [request(prompt=1000, answer=1) for _ in range(2)]
    seen = run(requests, prefills=2, make_gateway=on_demand(1), faults=(Fault(at=0.5, role="prefill"),))
    assert seen.endings() == {"answered": 2}
    assert sorted(one.ttft for one in seen.outcomes) == pytest.approx([1.01, 2.01])


def test_a_closed_loop_keeps_its_number_in_flight():
    requests = [request(prompt=100, answer=50) for _ in range(50)]
    seen = simulate(settings(make_gateway=on_demand(8), decodes=2), ClosedLoop(requests, 5))
    spans = sorted((one.at, one.at + one.e2e) for one in seen.outcomes)
    for at, _ in spans[:-5]:
        assert sum(begin <= at + 1e-9 < end for begin, end in spans) == 5


def test_throughput_is_that_of_the_slower_role():
    requests = [request(prompt=1000, answer=20) for _ in range(400)]
    seen = simulate(settings(prefills=2, make_gateway=on_demand(2)), ClosedLoop(requests, 12))
    assert seen.per_second() == pytest.approx(2.0, rel=0.05)


def test_figures_add_up():
    seen = run([request(at=number * 0.3) for number in range(20)], ttft_seconds=2.0)
    figures = seen.figures(ttft_seconds=2.0, tpot_seconds=0.1)
    assert figures["good"] + figures["late"] + figures["shed"] == figures["requests"] == 20
    assert figures["gpu hours"] == pytest.approx(2 * seen.seconds / 3600)


def test_an_empty_figure_is_no_number():
    seen = run([request(prompt=5000)], ttft_seconds=1.0)
    assert math.isnan(seen.figures(ttft_seconds=1.0)["ttft mean s"])


def test_nothing_happens_after_the_last_request():
    planned = partial(simulate, settings(window_seconds=1.0), OpenLoop([request(answer=1)]))
    assert planned().seconds == pytest.approx(1 + DEVICE.decode_seconds(1, 1000))
