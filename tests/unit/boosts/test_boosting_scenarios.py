"""Boosts from round to round, through the one function that plans call: given what was counted, who gets more pods."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidewheel.api.allocation import Allocation, AllocationStatus, ScenarioBoosts
from tidewheel.planning.boosts.memory import StoredMemory, memory_from_text, memory_to_text
from tidewheel.planning.boosts.step import BoostsSeen, BoostStep, step_boosts
from tidewheel.planning.boosts.windows import Stretch, Tally, tally_of

ROUND = 600.0
START = 1_000 * ROUND
NAMES = ("chat", "code", "mail", "default")


def an_allocation(**changes) -> Allocation:
    fields = {"mode": "Auto", "slots": 1, "good_requests_per_minute": 60, "explore_percent": 0}
    return Allocation(**{**fields, **changes})


def busy(name: str, boosted: bool, number: int) -> Tally:
    """600 requests a minute of which half are good."""
    del name, boosted, number
    return Tally(arrived=4800, good=2400)


@dataclass
class Cluster:
    """What a service would show: pods come when they are asked for, and requests are counted."""

    allocation: Allocation
    names: tuple[str, ...] = NAMES
    counts: Callable[[str, bool, int], Tally] = busy
    pods_come: bool = True
    memory: str = ""
    status: AllocationStatus | None = None
    steps: list[BoostStep] = field(default_factory=list)
    stretch: Stretch | None = None

    def look(self, now: float, *, serving: tuple[str, ...] = ()) -> BoostStep:
        stored = StoredMemory.of(self.memory)
        seen = BoostsSeen(memory=stored, stretch=self.stretch, serving=serving, status=self.status)
        step = step_boosts(self.allocation, self.names, seen, now=now)
        self.memory, self.status = step.memory or "", step.status
        self.steps.append(step)
        return step

    def live(self, number: int) -> BoostStep:
        """One round: its beginning, the pods that serve, and what was counted by its end."""
        began = START + number * ROUND
        step = self.look(began + 1)
        serving = tuple(step.pods) if self.pods_come else ()
        self.look(began + 60, serving=serving)
        self.look(began + 125)
        # too late for those that came only now
        self.look(began + 200, serving=tuple(step.pods))
        tallies = {name: self.counts(name, name in step.pods, number) for name in self.names}
        self.stretch = Stretch(since=began + 120, until=began + 590, tallies=tallies)
        self.look(began + 591)
        return step

    def rounds(self, first: int, last: int) -> list[BoostStep]:
        return [self.live(number) for number in range(first, last)]


def test_nobody_is_boosted_before_requests_were_counted_and_then_those_that_have_some():
    cluster = Cluster(
        an_allocation(), counts=lambda name, *_: Tally(arrived=200 if name == "code" else 99, good=50)
    )
    first, second = cluster.rounds(0, 2)
    assert first.pods == {}
    assert first.status.outcome == "NobodyEligible"
    assert second.pods == {"code": 1}
    assert {one.name: one.reason for one in second.status.scenarios} == {
        "chat": "InsufficientData",
        "code": "",
        "mail": "InsufficientData",
        "default": "InsufficientData",
    }


def test_a_boost_is_given_for_its_round_and_told_with_its_reason():
    cluster = Cluster(an_allocation(slots=2, pods_per_slot=3, role="prefill"))
    cluster.live(0)
    step = cluster.live(1)
    assert (step.role, set(step.pods.values()), len(step.pods)) == ("prefill", {3}, 2)
    assert [pick.reason for pick in step.status.picks] == ["Ranked", "Ranked"]
    assert "3 more prefill in round 1001" in step.status.message
    assert step.deeds[0].action == "Boost"
    assert all(one.pods == step.pods for one in cluster.steps[-5:])
    assert step.look_again_in == pytest.approx(119)
    assert cluster.steps[-1].look_again_in == pytest.approx(9)


def lifted(name: str, boosted: bool, number: int) -> Tally:
    """`chat` gains 0.6 good requests a second by a boost, the others nothing; a tide moves all of them."""
    tide = 1 + 0.3 * (number % 4)
    good = 470 * (5 * tide + (0.6 if boosted and name == "chat" else 0.0))
    return Tally(arrived=round(470 * 10 * tide), good=round(good))


def test_rewards_are_what_a_boost_added_without_the_tide():
    # now and then a round without boosts, or those who always have one would have nothing to be compared with
    cluster = Cluster(an_allocation(slots=2, hold_out_percent=20, seed=3), counts=lifted)
    measured = []
    for number in range(40):
        step = cluster.live(number)
        if step.status is not None:
            measured += [
                one for one in step.status.rewards if one.round == 999 + number and one.verdict == "Measured"
            ]
    assert {one.name for one in measured} == set(NAMES)
    for one in measured:
        assert one.reward_percent == pytest.approx(60 if one.name == "chat" else 0, abs=2)
    known = {one.name: one for one in cluster.status.scenarios}
    assert known["chat"].expected_percent == pytest.approx(60, abs=2)
    assert all(known[name].expected_percent <= 2 for name in NAMES if name != "chat")
    boosts = [name for step in cluster.steps[-50::5] for name in step.pods]
    assert boosts.count("chat") >= 5, "of the last ten rounds, some of them held out"


def test_a_boost_whose_pods_do_not_serve_in_time_is_none():
    cluster = Cluster(an_allocation(), pods_come=False)
    cluster.rounds(0, 2)
    boosted = next(iter(cluster.steps[-1].pods))
    step = cluster.look(START + 2 * ROUND + 1)
    assert step.status.rewards[0].verdict == "NotApplied"
    assert step.status.rewards[0].name == boosted
    assert next(iter(step.pods)) == boosted, "it counts as idle since before, so it is still first in line"


def test_a_scenario_whose_requests_are_all_good_gains_nothing_and_is_told_so():
    cluster = Cluster(an_allocation(), counts=lambda *_: Tally(arrived=4800, good=4800))
    cluster.rounds(0, 4)
    assert {(one.verdict, one.reward_percent) for one in cluster.status.rewards} == {("NotSaturated", 0)}


def test_without_a_round_without_a_boost_there_is_nothing_to_compare_with():
    cluster = Cluster(an_allocation(policy="RoundRobin"), names=("chat",))
    cluster.rounds(0, 16)
    verdicts = [one.verdict for one in cluster.status.rewards]
    assert verdicts[-1] == "Measured"
    assert verdicts[0] == "NoBaseline"
    assert cluster.status.scenarios[0].rewards == verdicts.count("Measured")


def test_a_round_that_begins_unseen_is_let_pass_but_for_pins():
    pinned = (ScenarioBoosts(name="mail", state="Pinned"),)
    cluster = Cluster(an_allocation(slots=2, scenarios=pinned))
    cluster.rounds(0, 3)
    step = cluster.look(START + 5 * ROUND + 400)
    assert step.pods == {"mail": 1}
    assert step.status.round == 1002
    assert step.look_again_in == pytest.approx(200)


def test_idle_rounds_pass_while_nobody_looks():
    cluster = Cluster(an_allocation())
    cluster.rounds(0, 2)
    boosted = next(iter(cluster.steps[-1].pods))
    cluster.live(20)
    step = cluster.live(21)
    known = {one.name: one for one in step.status.scenarios}
    assert known[boosted].idle_rounds == (20 if boosted not in step.pods else 0)


def test_shadow_shows_and_gives_nothing_and_what_it_showed_is_forgotten_when_it_ends():
    shadow = Cluster(an_allocation(mode="Shadow"))
    steps = shadow.rounds(0, 6)
    assert all(one.pods == {} for one in shadow.steps)
    assert [step.status.outcome for step in steps[1:]] == ["Shadow"] * 5
    assert all(len(step.status.picks) == 1 for step in steps[1:])
    assert shadow.status.rewards == ()
    shadow.allocation = an_allocation()
    step = shadow.live(6)
    assert len(step.pods) == 1
    idle = {one.name: one.idle_rounds for one in step.status.scenarios}
    assert sorted(idle.values()) == [0, 7, 7, 7], "only the boost that was given counts"


def test_boosts_that_are_taken_back_before_their_time_are_not_learnt_from():
    cluster = Cluster(an_allocation(), counts=lifted)
    cluster.rounds(0, 3)
    boosted = cluster.look(START + 3 * ROUND + 1)
    assert boosted.pods
    known = sum(one.rewards for one in boosted.status.scenarios)
    cluster.allocation = an_allocation(mode="Shadow")
    assert cluster.look(START + 3 * ROUND + 60).pods == {}
    step = cluster.live(4)
    assert sum(one.rewards for one in step.status.scenarios) == known


def test_what_was_counted_before_the_measured_part_or_twice_is_left_out():
    cluster = Cluster(an_allocation(fewest_requests=1))
    began = START
    cluster.look(began + 1)
    few = {"chat": Tally(arrived=10, good=5)}
    for since, until in [(110, 130), (130, 160), (130, 160), (140, 170), (160, 190), (580, 610)]:
        cluster.stretch = Stretch(since=began + since, until=began + until, tallies=few)
        cluster.look(began + until)
    record = memory_from_text(cluster.memory).record(1000)
    assert (record.seconds, record.tallies) == (60, {"chat": Tally(arrived=20, good=10)})


def test_a_reward_of_which_nothing_is_remembered_is_given_up_at_its_deadline():
    cluster = Cluster(an_allocation(reward_deadline_rounds=2))
    cluster.rounds(0, 1)
    assert len(cluster.look(START + ROUND + 1).pods) == 1
    # the operator's memory of rounds is short, so an old one is gone by the time it looks again
    memory = memory_from_text(cluster.memory)
    cluster.memory = memory_to_text(replace(memory, records=()))
    cluster.live(2)
    assert cluster.status.late == 0
    cluster.live(3)
    assert cluster.status.late == 1


@dataclass
class Load:
    finished: int
    rejected: int = 0
    ttft_attainment: float = 1.0
    tpot_attainment: float = 1.0


@pytest.mark.parametrize(
    ("load", "tally"),
    [
        pytest.param(Load(100), Tally(arrived=100, good=100), id="all promises kept"),
        pytest.param(
            Load(80, 20, ttft_attainment=0.6),
            Tally(arrived=100, good=60),
            id="those without a token are late",
        ),
        pytest.param(Load(100, 0, 0.9, 0.5), Tally(arrived=100, good=45), id="both promises count"),
    ],
)
def test_good_requests_are_those_that_keep_both_promises(load, tally):
    assert tally_of(load) == tally


def test_off_gives_nothing_and_keeps_what_was_learnt():
    cluster = Cluster(an_allocation(), counts=lifted)
    cluster.rounds(0, 10)
    memory = cluster.memory
    cluster.allocation = an_allocation(mode="Off")
    off = cluster.look(START + 10 * ROUND)
    assert (off.pods, off.status, off.memory) == ({}, None, memory)
    cluster.allocation = an_allocation()
    assert sum(one.rewards for one in cluster.live(11).status.scenarios) >= 8


def test_another_meaning_of_rewards_begins_anew_and_another_number_of_slots_does_not():
    cluster = Cluster(an_allocation(), counts=lifted)
    cluster.rounds(0, 10)
    cluster.allocation = an_allocation(slots=2, policy="Periodic")
    assert sum(one.rewards for one in cluster.live(10).status.scenarios) >= 8
    cluster.allocation = an_allocation(pods_per_slot=2)
    step = cluster.look(START + 11 * ROUND + 1)
    assert step.deeds[0].action == "ForgetRewards"
    assert "2 decode for 60 a minute" in step.deeds[0].message
    assert sum(one.rewards for one in step.status.scenarios) == 0


def test_a_memory_that_cannot_be_read_is_told_of():
    step = step_boosts(an_allocation(), NAMES, BoostsSeen(memory=StoredMemory.of("{}")), now=START)
    assert step.deeds[0].type == "Warning"
    assert "cannot be read" in step.deeds[0].message
    assert step.memory is not None


def test_what_cannot_be_kept_is_told_and_pins_stand():
    rules = tuple(ScenarioBoosts(name=name, state="Pinned") for name in ("chat", "code"))
    step = step_boosts(an_allocation(scenarios=rules), NAMES, BoostsSeen(), now=START)
    assert step.status.outcome == "Infeasible"
    assert "need 2 slots, there are 1" in step.status.message
    assert step.pods == {"chat": 1}


@given(
    slots=st.integers(1, 3),
    policy=st.sampled_from(["Index", "Periodic", "Myopic", "RoundRobin"]),
    hold_out=st.sampled_from([0, 30]),
    explore=st.sampled_from([0, 50]),
    seed=st.integers(0, 2**32),
    crashes=st.sets(st.integers(1, 60)),
)
@settings(max_examples=20, deadline=None)
def test_lost_work_and_repeats_change_no_round_and_slots_are_never_exceeded(
    slots, policy, hold_out, explore, seed, crashes
):
    """A crash after the memory was written and before anything was done: the same look is made again from what is stored."""
    noise = random.Random(seed)
    story = {(name, number): noise.randint(1000, 4800) for name in NAMES for number in range(13)}
    allocation = an_allocation(
        slots=slots, policy=policy, hold_out_percent=hold_out, explore_percent=explore, seed=seed % 1000
    )

    def counts(name: str, boosted: bool, number: int) -> Tally:
        return Tally(arrived=4800, good=min(4800, story[name, number] + 200 * boosted))

    straight, crashing = Cluster(allocation, counts=counts), Cluster(allocation, counts=counts)
    look, made = crashing.look, [0]

    def look_twice(now: float, *, serving: tuple[str, ...] = ()) -> BoostStep:
        made[0] += 1
        first = look(now, serving=serving)
        if made[0] not in crashes:
            return first
        crashing.status = None
        again = look(now, serving=serving)
        assert again.pods == first.pods
        assert again.memory == first.memory
        return again

    crashing.look = look_twice
    one, other = straight.rounds(0, 12), crashing.rounds(0, 12)
    assert [step.pods for step in one] == [step.pods for step in other]
    assert straight.memory == crashing.memory
    for step in straight.steps:
        assert len(step.pods) <= slots
        assert set(step.pods) <= set(NAMES)


def test_nothing_of_a_memory_is_lost_on_its_way():
    cluster = Cluster(an_allocation(slots=2, policy="Periodic"), counts=lifted)
    cluster.rounds(0, 8)
    memory = memory_from_text(cluster.memory)
    assert memory_to_text(memory) == cluster.memory
    assert replace(memory, counted=1.0) != memory
    assert len(cluster.memory) < 64 * 1024
