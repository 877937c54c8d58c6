"""The fluid model: its shares are those of queues followed one by one, it counts every instance, and restarts change nothing."""

from __future__ import annotations

import heapq
import random
from array import array
from dataclasses import replace
from functools import partial

import pytest
from tests.unit.scaling.worlds import DEVICE, TARGETS, WORK

from tidewheel.planning.scaling.scenario import Limits
from tidewheel.planning.scaling.state import from_text, to_text
from tidewheel.simulation.fluid import FluidScenario, FluidSettings, run
from tidewheel.simulation.fluid_planners import Clairvoyant, Each, Fixed, Operators, Reactive, true_needs
from tidewheel.simulation.fluid_traffic import Arrivals, Surge, Traffic, draw, hourly
from tidewheel.simulation.forwarding import OnDemand
from tidewheel.simulation.planners import KedaLaw
from tidewheel.simulation.service import ServiceSettings, simulate
from tidewheel.simulation.sources import OpenLoop
from tidewheel.simulation.traces import Request, poisson


def arrivals(rate, *, seconds: float = 3600.0, seed: int = 1, **more) -> Arrivals:
    """Prompts of 0.1 s each."""
    return draw(
        Traffic(rate=rate if callable(rate) else lambda _: rate, **more),
        seconds=seconds,
        step=5.0,
        service_mean=0.1,
        service_variance=0.0,
        generator=random.Random(seed),
    )


def scenario(rate=30.0, *, name: str = "a", start=(4, 2), **more) -> FluidScenario:
    return FluidScenario(
        name=name, arrivals=arrivals(rate, **more), work=WORK, profile=DEVICE, targets=TARGETS, start=start
    )


def fixed(*scenarios: FluidScenario, **settings):
    planner = Fixed(counts={one.name: one.start for one in scenarios})
    return run(scenarios, planner, FluidSettings(**settings))


def in_time(rate: float, servers: int, *, requests: int = 100_000) -> float:
    """The share of single requests that got their first token in time; the hopeless leave at once."""
    generator, free, at, got = random.Random(5), [0.0] * servers, 0.0, 0
    for _ in range(requests):
        at += generator.expovariate(rate)
        if max(at, free[0]) + 0.1 - at <= TARGETS.ttft_seconds:
            got += 1
            heapq.heapreplace(free, max(at, free[0]) + 0.1)
    return got / requests


@pytest.mark.parametrize(
    ("rate", "servers"), [(6.0, 1), (9.0, 1), (25.0, 3), (29.0, 3), (36.0, 3), (95.0, 10), (120.0, 10)]
)
def test_first_tokens_come_in_time_as_one_by_one(rate, servers):
    fluid = fixed(scenario(rate, start=(servers, 20), seconds=7200.0))["a"].ttft_attainment
    assert fluid == pytest.approx(in_time(rate, servers), abs=0.015)


@pytest.mark.parametrize(
    ("rate", "prefills", "decodes"),
    [
        pytest.param(27.0, 3, 1, id="prefills nearly full"),
        pytest.param(33.0, 3, 1, id="more than prefills can do"),
        pytest.param(40.0, 6, 1, id="a decode nearly full"),
        pytest.param(70.0, 12, 1, id="more than a decode serves in time"),
    ],
)
def test_both_simulators_agree(rate, prefills, decodes):
    like = [Request(at=0.0, prompt_tokens=1000, answer_tokens=100)]
    requests = poisson(like, per_second=rate, count=round(rate * 60), generator=random.Random(2))
    settings = ServiceSettings(
        profile=DEVICE,
        prefills=prefills,
        decodes=decodes,
        make_gateway=partial(OnDemand, slots=1),
        ttft_seconds=TARGETS.ttft_seconds,
        tpot_seconds=TARGETS.tpot_seconds,
    )
    answered = simulate(settings, OpenLoop(requests)).answered
    fluid = fixed(scenario(rate, start=(prefills, decodes)))["a"]
    in_time_singly = sum(one.ttft <= TARGETS.ttft_seconds for one in answered) / len(requests)
    fast_singly = sum(one.tpot <= TARGETS.tpot_seconds for one in answered) / len(answered)
    assert fluid.ttft_attainment == pytest.approx(in_time_singly, abs=0.03)
    assert fluid.tpot_attainment == pytest.approx(fast_singly, abs=0.03)


def test_decodes_that_are_too_few_are_slow():
    # 50 requests a second are the most that one decode serves within 20 ms a token
    assert fixed(scenario(30.0, start=(8, 1)))["a"].tpot_attainment > 0.999
    assert fixed(scenario(60.0, start=(12, 1)))["a"].tpot_attainment < 0.05
    assert fixed(scenario(60.0, start=(12, 2)))["a"].tpot_attainment > 0.999


def test_every_instance_costs_from_asking_until_it_is_gone():
    class Once:
        """From two and one to three and one, and back at 300 s."""

        reads_waits = False

        def plan(self, now, seen):  # noqa: ARG002
            return {"a": (3, 1) if 60 <= now < 300 else (2, 1)}

    one = run(
        [scenario(1.0, start=(2, 1), seconds=600.0)],
        Once(),
        FluidSettings(window=30.0, startup=100.0, drain=20.0),
    )["a"]
    assert one.instance_seconds == pytest.approx(3 * 600 + (300 - 60) + 20)
    ready = {window.ends: window.prefills for window in one.windows}
    assert (ready[150.0], ready[180.0], ready[300.0], ready[330.0]) == (2, 3, 3, 2)
    assert one.changes == 2


def test_what_there_is_no_room_for_is_not_placed():
    runs = run(
        [scenario(60.0, name="a", start=(2, 1)), scenario(60.0, name="b", start=(2, 1))],
        Fixed(counts={"a": (6, 1), "b": (6, 1)}),
        FluidSettings(accelerators=8),
    )
    held = [
        sum(windows)
        for windows in zip(*([w.holding for w in one.windows] for one in runs.values()), strict=True)
    ]
    assert max(held) == 8


def operators(*scenarios: FluidScenario, **more) -> Operators:
    limits = Limits(startup_seconds=60.0)
    return Operators(
        scenarios={one.name: one for one in scenarios},
        limits={one.name: limits for one in scenarios},
        **more,
    )


def tide(at: float) -> float:
    """Half an hour of ebb, half an hour of flood, half an hour of ebb."""
    return 60.0 if 1800 <= at < 3600 else 12.0


def test_the_operators_planner_follows_a_tide():
    one = scenario(tide, seconds=5400.0)
    planner = operators(one)
    ran = run([one], planner, FluidSettings())["a"]
    most = max(window.prefills for window in ran.windows)
    assert most >= 7
    assert ran.windows[-1].prefills <= 3
    assert ran.changes <= 12


def test_a_restart_in_each_window_changes_nothing():
    one = scenario(tide, seconds=5400.0, dispersion=3.0)
    straight, restarted = operators(one), operators(one, stored=lambda state: from_text(to_text(state)))
    assert run([one], straight, FluidSettings()) == run([one], restarted, FluidSettings())
    assert straight.decisions == restarted.decisions


def test_a_budget_over_two_scenarios_is_kept_in_every_window():
    both = (scenario(tide, name="a", seconds=5400.0), scenario(30.0, name="b", seconds=5400.0))
    runs = run(both, operators(*both, budget=12), FluidSettings())
    held = [
        sum(windows)
        for windows in zip(*([w.holding for w in one.windows] for one in runs.values()), strict=True)
    ]
    assert max(held) <= 12


def test_who_knows_the_future_is_in_time_with_less():
    one = scenario(tide, seconds=5400.0)
    settings = FluidSettings()
    needs = {"a": true_needs(one, window=30.0, share=0.99)}
    ideal = run([replace(one, start=needs["a"][0])], Clairvoyant(needs=needs, settings=settings), settings)[
        "a"
    ]
    ours = run([one], operators(one), settings)["a"]
    assert min(ideal.ttft_attainment, ideal.tpot_attainment) >= 0.99
    assert ideal.gpu_hours < ours.gpu_hours


@pytest.mark.parametrize("kind", ["reactive", "keda"])
def test_the_others_follow_too(kind):
    one = scenario(tide, seconds=5400.0)
    planners = {
        "reactive": Reactive(scenarios={"a": one}),
        "keda": Each(
            scenarios={"a": one}, planners={"a": KedaLaw(ttft_seconds=1.0, tpot_seconds=0.02, most=64)}
        ),
    }
    ran = run([one], planners[kind], FluidSettings(window=10.0))["a"]
    held = [window.holding for window in ran.windows]
    assert max(held) > held[0]
    assert held[-1] < max(held)


@pytest.mark.parametrize(("dispersion", "rate"), [(1.0, 2.0), (1.0, 50.0), (4.0, 2.0), (4.0, 200.0)])
def test_arrivals_have_the_mean_and_dispersion_asked_for(dispersion, rate):
    drawn = arrivals(rate, seconds=40_000.0, dispersion=dispersion).counts
    mean = sum(drawn) / len(drawn)
    variance = sum((count - mean) ** 2 for count in drawn) / len(drawn)
    assert mean == pytest.approx(5 * rate, rel=0.03)
    assert variance / mean == pytest.approx(dispersion, rel=0.1)


def test_a_surge_wanders_as_long_and_as_far_as_asked():
    drawn = arrivals(200.0, seconds=200_000.0, surge=Surge(deviation=0.3, seconds=60.0)).counts
    mean = sum(drawn) / len(drawn)

    def covariance(lag: int) -> float:
        pairs = zip(drawn, drawn[lag:], strict=False)
        return sum((a - mean) * (b - mean) for a, b in pairs) / (len(drawn) - lag)

    assert mean == pytest.approx(1000, rel=0.05)
    assert covariance(0) ** 0.5 / mean == pytest.approx(0.3, rel=0.1)
    assert covariance(12) / covariance(1) == pytest.approx(0.4, abs=0.08)  # a minute apart


def test_hours_go_over_into_one_another():
    rate = hourly([10.0, 20.0, 30.0])
    assert rate(1800) == 10
    assert rate(3600) == 15
    assert rate(2.5 * 3600) == 30
    assert rate(3 * 3600) == 20  # and the last into the first


@pytest.mark.parametrize(
    ("change", "settings", "says"),
    [
        pytest.param({}, {"window": 7.0}, "no multiple", id="a window of no whole steps"),
        pytest.param(
            {"targets": replace(TARGETS, ttft_seconds=9.0)}, {}, "needs steps", id="too short steps"
        ),
    ],
)
def test_what_the_model_cannot_do_is_refused(change, settings, says):
    with pytest.raises(ValueError, match=says):
        fixed(replace(scenario(1.0), **change), **settings)


def test_no_arrivals_are_no_misses():
    nothing = array("d", [0.0] * 60)
    silent = Arrivals(step=5.0, rates=nothing, counts=nothing, work=nothing)
    ran = fixed(replace(scenario(1.0), arrivals=silent))["a"]
    assert (ran.ttft_attainment, ran.tpot_attainment) == (1.0, 1.0)
