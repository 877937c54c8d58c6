"""A spec in the planner's terms: which requests belong together, what they are promised, and what devices can do."""

from __future__ import annotations

import pytest

from tidewheel.api.pdservice import PDServiceSpec
from tidewheel.planning.autoscaling.terms import (
    labels_of,
    limits_of,
    profile_of,
    promises_of,
    scenarios_with_groups,
)


def spec(**changes) -> PDServiceSpec:
    model = {"name": "m", "source": {"package": {"name": "p"}}}
    return PDServiceSpec.model_validate({"model": model} | changes)


def scenario(name: str, **more) -> dict:
    return {"name": name, "match": {"modelAliases": [name]}} | more


BOTH = spec(scenarios=[scenario("own", groups={"replicas": 1}), scenario("guest")])


def test_scenarios_without_groups_are_the_default_ones_guests():
    assert scenarios_with_groups(BOTH) == ("default", "own")
    assert labels_of(BOTH, "default") == ("default", "guest")
    assert labels_of(BOTH, "own") == ("own",)


@pytest.mark.parametrize(
    ("given", "name", "want"),
    [
        pytest.param({}, "default", (30.0, 1.0, 0.99, None), id="nothing promised"),
        pytest.param({"slo": {"ttftMs": 500, "tpotMs": 50}}, "default", (0.5, 0.05, 0.99, None), id="to all"),
        pytest.param({"slo": {"endToEndMs": 4000, "attainmentPercent": 90}}, "default", (30.0, 1.0, 0.9, 4.0), id="as a whole"),
        pytest.param({"slo": {"attainmentPercent": 100}}, "default", (30.0, 1.0, 0.999, None), id="always"),
        pytest.param({"slo": {"ttftMs": 500}, "scenarios": [scenario("own", slo={"tpotMs": 20})]}, "own", (0.5, 0.02, 0.99, None), id="what a scenario leaves out"),
        pytest.param({"scenarios": [scenario("own", ttftDeadlineSeconds=3)]}, "own", (3.0, 1.0, 0.99, None), id="a scenario's deadline"),
    ],
)  # fmt: skip
def test_promises(given, name, want):
    targets = promises_of(spec(**given), name)
    assert (targets.ttft_seconds, targets.tpot_seconds, targets.attainment, targets.e2e_seconds) == want


def test_limits_and_floors():
    floor = {"days": ["Monday", "Sunday"], "start": "08:30", "end": "17:00", "prefill": 3}
    scaling = {"prefill": {"min": 2, "max": 9}, "floors": [floor], "startupSeconds": 45, "mode": "Auto"}
    limits = limits_of(spec(scaling=scaling, decode={"devicesPerPod": 4}))
    assert (limits.prefill, limits.decode, limits.startup_seconds, limits.costs) == (
        (2, 9),
        (1, 64),
        45.0,
        (1, 4),
    )
    (one,) = limits.floors
    assert (one.days, one.from_minute, one.to_minute, one.prefill) == ((0, 6), 510, 1020, 3)


def test_a_profile_of_the_spec():
    given = {
        "prefill": {"baseMicroseconds": 1000, "nanosecondsPerToken": 2000, "femtosecondsPerTokenSquared": 1_000_000},
        "decode": {"baseMicroseconds": 5000, "nanosecondsPerSequence": 1000, "picosecondsPerKvToken": 100_000},
    }  # fmt: skip
    profile = profile_of(spec(scaling={"profile": given}, decode={"slots": 8}))
    assert profile.prefill_seconds(1000) == pytest.approx(0.001 + 0.002 + 0.001)
    assert profile.decode_seconds(4, 500) == pytest.approx(0.005 + 4e-6 + 2000 * 1e-7)
    assert (profile.decode_slots, profile.kv_tokens) == (8, 8 * 2048)
    assert profile_of(spec()) is None
