"""A budget of devices is kept at every moment, while pods move between roles and groups and those that go take their time."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.autoscaling.loaded import PROFILE, LoadedWorld

from tidewheel.api.meta import LABEL_ROLE
from tidewheel.planning.times import from_time

#: Requests a second, prompt tokens, answer tokens.
READING, BOTH = (12.0, 1000.0, 20.0), (6.0, 1000.0, 900.0)


class SlowToLeave(LoadedWorld):
    """Whoever is deleted holds its devices for a while; nobody may come for whom there is no room."""

    def __init__(self, *, budget: int, leaving_seconds: int, **spec) -> None:
        self.leaving_seconds = leaving_seconds
        self.budget = budget
        self.most = 0
        scaling = {"profile": PROFILE, "podsPerGroup": 4, "deviceBudget": budget, "holdSeconds": 30}
        rollout = {"maxSurgeGroups": 16, "maxSkewPercent": 400}
        super().__init__(scaling=scaling, rollout=rollout, **spec)
        self.wanted_groups = lambda _: 1  # at least; the surge is what a planner may ask for beyond
        self.settle()

    @property
    def devices(self) -> int:
        costs = {
            role: self.service["spec"].get(role, {}).get("devicesPerPod", 1) for role in ("prefill", "decode")
        }
        return sum(costs.get(pod["metadata"]["labels"][LABEL_ROLE], 0) for pod in self.all_pods)

    def reconcile(self) -> bool:
        before = {pod["metadata"]["uid"] for pod in self.all_pods}
        changed = super().reconcile()
        if {pod["metadata"]["uid"] for pod in self.all_pods} - before:
            self.check()
        self.most = max(self.most, self.devices)
        return changed

    def check(self) -> None:
        assert self.devices <= self.budget, "who comes waits until who goes is gone"

    def end_pods(self) -> None:
        for pod in self.all_pods:
            since = pod["metadata"].get("deletionTimestamp")
            if since and self.now - from_time(since) >= timedelta(seconds=self.leaving_seconds):
                self.vanish(pod["metadata"]["name"])


def groups_of(loaded: LoadedWorld) -> int:
    return len({pod["metadata"]["labels"].get("tidewheel.dev/group") for pod in loaded.pods} - {None, ""})


def test_pods_that_go_to_another_group_are_gone_before_those_for_which_they_make_room_come():
    loaded = SlowToLeave(budget=8, leaving_seconds=7)
    loaded.carry(4, default=READING)
    assert (loaded.numbers, groups_of(loaded)) == ((7, 1), 1)
    loaded.carry(12, default=BOTH)
    assert sum(loaded.numbers) == 8, "all of the budget is used in the end"
    assert groups_of(loaded) > 1


@settings(max_examples=6, deadline=None)
@given(
    loads=st.lists(
        st.tuples(st.floats(0.1, 14), st.floats(50, 1500), st.floats(5, 1500)), min_size=2, max_size=5
    ),
    budget=st.integers(3, 12),
    leaving_seconds=st.integers(0, 40),
    decode_devices=st.integers(1, 2),
)
def test_no_moment_exceeds_the_budget_and_every_scenario_is_served_on(
    loads, budget, leaving_seconds, decode_devices
):
    loaded = SlowToLeave(
        budget=budget, leaving_seconds=leaving_seconds, decode={"slots": 32, "devicesPerPod": decode_devices}
    )
    for load in loads:
        loaded.carry(3, default=load)
        assert min(loaded.numbers) >= 1
        asked = loaded.found["default"]
        assert loaded.numbers == (asked["prefill"], asked["decode"]), "nobody waits for ever"
    assert loaded.most <= budget


@pytest.mark.parametrize("budget", [2, 3])
def test_a_rollout_at_a_full_budget_has_its_surge(budget):
    loaded = SlowToLeave(budget=budget, leaving_seconds=3)
    loaded.carry(2, default=(2.0, 100.0, 100.0))
    before = {pod["metadata"]["uid"] for pod in loaded.pods}
    loaded.check = lambda: None
    loaded.change(decode={"slots": 16})
    loaded.settle()
    after = {pod["metadata"]["uid"] for pod in loaded.pods}
    assert len(after - before) >= 2, "the group of the new revision came"
