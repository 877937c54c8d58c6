"""Boosts in a service's life: pods lent round by round to its scenarios, in the real controller and a world in miniature."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from tests.unit.autoscaling.loaded import PROFILE, SECONDS, LoadedWorld

ROUND = 120
NAMES = ("default", "chat", "code")
#: Requests a second, prompt tokens, answer tokens.
LOAD = dict.fromkeys(NAMES, (2.0, 100.0, 100.0))


def scenario(name: str) -> dict:
    return {"name": name, "match": {"modelAliases": [name]}, "groups": {"replicas": 1}}


def world(*, mode: str = "Off", scaling: dict | None = None, **allocation) -> LoadedWorld:
    rules = {
        "mode": "Auto",
        "slots": 1,
        "goodRequestsPerMinute": 60,
        "roundSeconds": ROUND,
        "burnInSeconds": 30,
        "fewestRequests": 10,
        "explorePercent": 0,
    }
    loaded = LoadedWorld(
        mode=mode,
        scaling=scaling or {},
        scenarios=[scenario("chat"), scenario("code")],
        allocation=rules | allocation,
    )
    loaded.work(30)
    begun = loaded.now.timestamp() % ROUND
    loaded.now += timedelta(seconds=ROUND - begun)
    return loaded


def decodes(loaded: LoadedWorld) -> dict[str, int]:
    return {name: loaded.number("decode", name) for name in NAMES}


def status(loaded: LoadedWorld) -> dict:
    return loaded.service["status"]["allocation"]


def pass_rounds(loaded: LoadedWorld, rounds: int) -> list[dict[str, int]]:
    """Rounds under an even load; gives the decodes in the midst of each."""
    seen = []
    for _ in range(rounds):
        for window in range(round(ROUND / SECONDS)):
            loaded.pass_window(**LOAD)
            if window == 1:
                seen.append(decodes(loaded))
    return seen


def test_each_round_lends_its_slots_and_takes_them_back():
    loaded = world()
    for seen in pass_rounds(loaded, 6)[1:]:
        assert sorted(seen.values()) in ([1, 1, 1], [1, 1, 2])
    assert any(max(seen.values()) == 2 for seen in pass_rounds(loaded, 2))


def test_what_boosts_brought_is_recorded_with_the_reason_of_each_pick():
    loaded = world()
    pass_rounds(loaded, 8)
    told = status(loaded)
    assert told["rewards"]
    assert {one["verdict"] for one in told["rewards"]} <= {
        "Measured",
        "NotSaturated",
        "NoBaseline",
        "NotApplied",
    }
    assert told["picks"][0]["reason"]
    assert loaded.told("Boost")


def test_a_shadow_says_whom_it_would_boost_and_lends_nothing():
    loaded = world()
    loaded.change(allocation=loaded.service["spec"]["allocation"] | {"mode": "Shadow"})
    assert all(set(seen.values()) == {1} for seen in pass_rounds(loaded, 3)[1:])
    assert status(loaded)["outcome"] == "Shadow"


def test_an_operator_that_begins_anew_boosts_whom_the_last_one_would_have():
    loaded, twin = world(), world()
    for one in (loaded, twin):
        pass_rounds(one, 4)
    loaded.restart_operator()
    assert pass_rounds(loaded, 4) == pass_rounds(twin, 4)
    assert status(loaded)["picks"] == status(twin)["picks"]


@pytest.mark.parametrize("policy", ["RoundRobin", "Myopic", "Periodic", "Index"])
def test_every_policy_keeps_to_its_slots(policy):
    loaded = world(policy=policy, slots=2)
    for seen in pass_rounds(loaded, 5):
        assert sum(seen.values()) <= len(NAMES) + 2


def test_pods_that_are_lent_are_none_that_the_planner_counts():
    loaded = world(mode="Auto")
    seen = pass_rounds(loaded, 6)
    assert max(sum(one.values()) for one in seen) <= len(NAMES) + 1
    asked = loaded.found
    assert {one["decode"] for one in asked.values()} == {1}


@settings(max_examples=3, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(
    rates=st.lists(st.floats(5, 30), min_size=2, max_size=4),
    spare=st.integers(0, 9),
    slots=st.integers(1, 2),
    pods_per_slot=st.integers(1, 2),
    role=st.sampled_from(["prefill", "decode"]),
)
def test_what_is_lent_comes_out_of_the_budget(rates, spare, slots, pods_per_slot, role):
    budget = 2 * len(NAMES) + slots * pods_per_slot + spare
    loaded = world(
        mode="Auto",
        scaling={"deviceBudget": budget, "profile": PROFILE},
        slots=slots,
        podsPerSlot=pods_per_slot,
        role=role,
    )
    for rate in rates:
        load = dict.fromkeys(NAMES, (rate, 1000.0, 100.0))
        for _ in range(round(ROUND / SECONDS)):
            loaded.pass_window(**load)
            numbers = [loaded.number(each, name) for each in ("prefill", "decode") for name in NAMES]
            assert min(numbers) >= 1
            assert sum(numbers) <= budget
