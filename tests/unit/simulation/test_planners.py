"""Planners in the loop: start-up takes its time, drained instances finish first, and each law says what it should."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.simulation.world import DEVICE, request, run

from tidewheel.planning.scaling.observed import RoleCounts, ScenarioLoad
from tidewheel.planning.scaling.scenario import Limits
from tidewheel.planning.scaling.sizing import Targets
from tidewheel.simulation.outcomes import Window
from tidewheel.simulation.planners import DynamoLoad, KedaLaw, Ours, Reactive
from tidewheel.simulation.service import Fault


@dataclass
class Scripted:
    """Wants what it is told, window by window, and keeps what it saw."""

    wants: list[tuple[int, int]]

    def __post_init__(self) -> None:
        self.seen: list[Window] = []

    def plan(self, window: Window) -> tuple[int, int, str]:
        self.seen.append(window)
        return (*self.wants[min(len(self.seen), len(self.wants)) - 1], "as told")


STEADY = [request(at=0.5 * number, prompt=500, answer=20) for number in range(200)]


def test_an_instance_serves_only_after_its_start_up_but_costs_from_the_beginning():
    script = Scripted([(2, 1)])
    seen = run(STEADY, script, start_seconds=25.0, window_seconds=10.0)
    counts = [(window.prefill.ready, window.prefill.starting) for window in script.seen]
    assert counts[:5] == [(1, 0), (1, 1), (1, 1), (2, 0), (2, 0)]
    assert seen.prefill_seconds == pytest.approx(2 * seen.seconds - 10)
    assert seen.changes == 1


def test_a_drained_instance_ends_when_its_streams_do():
    long = [request(at=0.0, prompt=100, answer=5000)]
    script = Scripted([(1, 1)])
    seen = run([*long, *STEADY], script, decodes=2, window_seconds=10.0)
    assert seen.endings() == {"answered": 201}
    assert seen.decode_seconds < 1.6 * seen.seconds


def test_a_start_that_is_not_wanted_any_more_is_called_off():
    script = Scripted([(3, 1), (1, 1)])
    seen = run(STEADY, script, start_seconds=60.0, window_seconds=10.0)
    assert seen.prefill_seconds == pytest.approx(seen.seconds + 2 * 10)


def test_a_window_tells_what_was_measured():
    script = Scripted([(1, 1)])
    run(STEADY, script, window_seconds=20.0)
    window = script.seen[1]
    assert (window.load.arrivals, window.load.finished) == (40, 40)
    assert window.load.prefill_seconds == pytest.approx(0.5)
    assert window.load.answer_tokens == 20
    assert window.prefill_use == pytest.approx(1.0, abs=0.03)
    assert window.load.ttft_attainment == 1.0


def test_our_planner_adds_prefills_when_prompts_need_them_and_says_why():
    load = [request(at=0.25 * number, prompt=500, answer=20) for number in range(1200)]
    ours = Ours(DEVICE, Targets(ttft_seconds=2.0, tpot_seconds=0.05), Limits(startup_seconds=20.0))
    seen = run(load, ours, ttft_seconds=2.0, start_seconds=20.0, window_seconds=15.0)
    assert seen.windows[-1].prefill.ready >= 3
    assert any(window.why.startswith("LoadGrows") for window in seen.windows)
    assert all(one.ttft <= 2.0 for one in seen.outcomes[600:])


@given(
    rows=st.lists(
        st.tuples(st.floats(0, 200), st.integers(50, 3000), st.integers(1, 300)), min_size=5, max_size=120
    ).map(sorted),
    budget=st.integers(2, 6),
    start=st.sampled_from([5.0, 30.0]),
    faults=st.lists(
        st.builds(Fault, at=st.floats(0, 200), role=st.sampled_from(["prefill", "decode"])), max_size=3
    ).map(tuple),
)
def test_our_planner_keeps_one_of_each_and_its_budget_whatever_comes(rows, budget, start, faults):
    targets = Targets(ttft_seconds=2.0, tpot_seconds=0.05)
    ours = Ours(DEVICE, targets, Limits(startup_seconds=start), budget=budget)
    seen = run(
        [request(at, prompt, answer) for at, prompt, answer in rows],
        ours,
        ttft_seconds=2.0,
        start_seconds=start,
        window_seconds=10.0,
        faults=faults,
    )
    assert len(seen.outcomes) == len(rows)
    assert seen.substitutions <= len(faults)
    for one in seen.windows:
        assert min(one.wanted) >= 1
        assert min(one.prefill.coming, one.decode.coming) >= 1
        assert one.prefill.holding + one.decode.holding <= budget


def window(**changes) -> Window:
    known = {
        "ends": 10.0,
        "load": ScenarioLoad(seconds=10.0, arrivals=10, prompt_tokens=100, answer_tokens=10),
        "prefill": RoleCounts(ready=2),
        "decode": RoleCounts(ready=2),
        "prefill_use": 0.7,
        "decode_use": 0.7,
        "queued_tokens": (1000, 1000),
        "kv_uses": (0.2, 0.2),
    }
    return Window(**(known | changes))


@pytest.mark.parametrize(
    ("planner", "seen", "want"),
    [
        pytest.param(DynamoLoad("latency"), window(), (2, 2), id="dynamo: neither"),
        pytest.param(DynamoLoad("latency"), window(queued_tokens=(0, 14_000)), (3, 2), id="dynamo: one long queue"),
        pytest.param(DynamoLoad("latency"), window(queued_tokens=(0, 0)), (1, 2), id="dynamo: all queues empty"),
        pytest.param(DynamoLoad("latency"), window(kv_uses=(0.05, 0.02)), (2, 1), id="dynamo: KV hardly used"),
        pytest.param(DynamoLoad("throughput"), window(queued_tokens=(9, 9)), (1, 1), id="dynamo: throughput gives back"),
        pytest.param(
            DynamoLoad("latency"),
            window(queued_tokens=(0, 90_000), prefill=RoleCounts(ready=1, starting=1)),
            (2, 2),
            id="dynamo: nothing while one starts",
        ),
        pytest.param(DynamoLoad("latency", most=4), window(queued_tokens=(0, 14_000)), (2, 2), id="dynamo: no room"),
        pytest.param(Reactive(), window(), (2, 2), id="reactive: content"),
        pytest.param(
            Reactive(), window(load=replace(window().load, ttft_attainment=0.9)), (3, 2), id="reactive: late tokens"
        ),
        pytest.param(Reactive(), window(decode_use=0.1), (2, 1), id="reactive: idle decodes"),
    ],
)  # fmt: skip
def test_one_step_at_a_time(planner, seen, want):
    assert planner.plan(seen)[:2] == want


def test_kedas_law_grows_after_half_a_minute_and_shrinks_after_three():
    law = KedaLaw(ttft_seconds=1.0, tpot_seconds=0.05)
    wants = []
    for number in range(1, 61):
        latency = 1.1 if number <= 12 else 0.1
        prefills = wants[-1] if wants else 2
        seen = window(
            ends=5.0 * number,
            prefill=RoleCounts(ready=prefills),
            ttfts=(latency,) * 10,
            tpots=(0.025,) * 10,
        )
        wants.append(law.plan(seen)[0])
    # s = 1.1: 2 + ceil(2 (1.1 / 0.55 - 1)) = 4 at once, as no older wish holds it back, and so on up to four in a minute
    assert wants[0] == 4
    assert max(wants) > 4
    grown = wants.index(max(wants))
    first_down = next(at for at in range(grown, 60) if wants[at] < wants[at - 1])
    assert 5.0 * (first_down - 12) >= 120
    assert all(before - after <= 1 for before, after in itertools.pairwise(wants))
