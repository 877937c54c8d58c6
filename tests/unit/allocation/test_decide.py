"""A round's decision: slots, pins, gaps and cool-downs are kept, and a restart changes nothing."""

from __future__ import annotations

import dataclasses
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.allocation.curves import mixed

from tidewheel.planning.allocation.bound import Gaps, relax
from tidewheel.planning.allocation.certificate import certificate
from tidewheel.planning.allocation.curves import RecoveryCurve, idle_grid
from tidewheel.planning.allocation.decide import Decision, decide, forecast
from tidewheel.planning.allocation.estimates import Estimate, Learning, observe
from tidewheel.planning.allocation.rules import Contender, Infeasible, Rules, admit
from tidewheel.planning.allocation.state import (
    AllocationState,
    Reward,
    from_text,
    to_text,
)
from tidewheel.planning.stored import UnreadableState

LEARNING = Learning(starts=idle_grid(12))


def rules(slots: int = 2, **more) -> Rules:
    return Rules(slots=slots, learning=LEARNING, **more)


def contenders(count: int, **of: dict) -> list[Contender]:
    """`s0`, `s1`, ...; keyword arguments change one of them."""
    return [Contender(uid=f"s{i}", **of.get(f"s{i}", {})) for i in range(count)]


def live(
    family: list[RecoveryCurve],
    who: list[Contender],
    spec: Rules,
    rounds: int,
    *,
    state: AllocationState | None = None,
    first: int = 1,
    delay: int = 0,
    through=lambda state: state,
) -> tuple[AllocationState, list[Decision]]:
    """Decide round after round; each reward comes `delay` rounds later."""
    state = state or AllocationState()
    decisions: list[Decision] = []
    due: list[tuple[int, Reward]] = []
    for at in range(first, first + rounds):
        for reward in [reward for when, reward in due if when == at]:
            state, _ = state.settle(reward, LEARNING)
        state, decision = decide(through(state), who, spec, at=at)
        decisions.append(decision)
        for pick in decision.picks:
            value = family[int(pick.uid[1:])].at(pick.idle)
            noise = random.Random(f"{at}{pick.uid}").gauss(0, 0.1)
            reward = Reward(round=at, uid=pick.uid, value=value + noise)
            if delay:
                due.append((at + delay, reward))
            else:
                state, _ = state.settle(reward, LEARNING)
    return state, decisions


def picked(decisions: list[Decision]) -> list[tuple[str, ...]]:
    return [tuple(pick.uid for pick in decision.picks) for decision in decisions]


gaps = st.builds(
    lambda least, more: Gaps(least=least, most=least + more), st.integers(1, 4), st.integers(4, 20)
)
worlds = st.fixed_dictionaries(
    {
        "pinned": st.sets(st.integers(0, 7), max_size=1),
        "frozen": st.sets(st.integers(0, 7), max_size=2),
        "gaps": st.dictionaries(st.integers(0, 7), gaps, max_size=3),
        "policy": st.sampled_from(["Index", "Periodic", "Myopic", "RoundRobin"]),
        "hold_out": st.sampled_from([0.0, 0.3]),
        "seed": st.integers(0, 5),
    }
)


@given(worlds)
@settings(max_examples=25, deadline=None)
def test_slots_pins_freezes_cool_downs_and_longest_gaps_are_kept_in_every_round(world):
    who = [
        Contender(
            uid=f"s{i}",
            pinned=i in world["pinned"],
            frozen=i in world["frozen"] - world["pinned"],
            gaps=world["gaps"].get(i, Gaps()),
        )
        for i in range(8)
    ]
    spec = rules(3, policy=world["policy"], hold_out=world["hold_out"], seed=world["seed"])
    try:
        admit(who, spec.slots)
    except Infeasible:
        return
    _, decisions = live(mixed(random.Random(0), 8, 12), who, spec, 80)
    last = dict.fromkeys(range(8), 0)
    for decision in decisions:
        chosen = {int(pick.uid[1:]) for pick in decision.picks}
        assert len(chosen) == len(decision.picks) <= spec.slots
        for i, one in enumerate(who):
            gap = decision.round - last[i]
            if one.pinned:
                assert i in chosen
            elif one.frozen and one.gaps.most is None:
                assert i not in chosen
            if i in chosen and not one.pinned and last[i]:
                assert gap >= one.gaps.least
            if one.gaps.most is not None:
                assert gap <= one.gaps.most
            if i in chosen:
                last[i] = decision.round


@pytest.mark.parametrize("policy", ["Index", "Periodic", "Myopic", "RoundRobin"])
def test_a_restart_in_any_round_changes_nothing(policy):
    family, who, spec = mixed(random.Random(3), 8, 12), contenders(8), rules(policy=policy)
    state, decisions = live(family, who, spec, 120)
    restarted, again = live(family, who, spec, 120, through=lambda state: from_text(to_text(state)))
    assert again == decisions
    assert to_text(restarted) == to_text(state)


def test_rounds_that_nobody_decided_count_as_idle():
    family, who = mixed(random.Random(3), 3, 12), contenders(3)
    state, _ = live(family, who, rules(1), 10)
    before = {one.uid: one.idle(11) for one in state.scenarios}
    _, (decision,) = live(family, who, rules(1), 1, state=state, first=20)
    assert all(pick.idle == before[pick.uid] + 9 for pick in decision.picks)


def test_a_round_is_decided_once():
    state, _ = decide(AllocationState(), contenders(3), rules(), at=7)
    with pytest.raises(ValueError, match="round 7 was decided before"):
        decide(state, contenders(3), rules(), at=7)


def test_a_reward_counts_once_whatever_comes_twice_or_out_of_order():
    state, decision = decide(AllocationState(), contenders(3), rules(), at=1)
    first, second = (Reward(round=1, uid=pick.uid, value=0.5) for pick in decision.picks)
    once, _ = state.settle(second, LEARNING)
    once, _ = once.settle(first, LEARNING)
    twice, said = once.settle(second, LEARNING)
    assert (twice, said) == (once, "unknown")
    assert once.observations == 2


def test_a_boost_that_never_took_effect_teaches_nothing_and_resets_no_idle_time():
    who, spec = contenders(2), rules(1)
    state, decision = decide(AllocationState(), who, spec, at=5)
    uid = decision.picks[0].uid
    undone, said = state.settle(Reward(round=5, uid=uid, value=None, applied=False), LEARNING)
    assert said == "not applied"
    assert (undone.observations, undone.of(uid).boosted) == (0, None)


def test_a_boost_without_a_verdict_teaches_nothing_and_was_one_all_the_same():
    state, decision = decide(AllocationState(), contenders(2), rules(1), at=5)
    uid = decision.picks[0].uid
    after, said = state.settle(Reward(round=5, uid=uid, value=None), LEARNING)
    assert said == "no verdict"
    assert (after.observations, after.of(uid).boosted, after.pending) == (0, 5, ())


def test_a_boost_that_failed_does_not_undo_a_later_one():
    who, spec = contenders(1), rules(1)
    state, _ = decide(AllocationState(), who, spec, at=5)
    state, _ = decide(state, who, spec, at=6)
    state, _ = state.settle(Reward(round=5, uid="s0", value=None, applied=False), LEARNING)
    assert state.of("s0").boosted == 6


def test_a_reward_that_is_late_is_counted_and_not_taken_for_nothing():
    who, spec = contenders(2), rules(1, patience=2)
    state, _ = decide(AllocationState(), who, spec, at=1)
    state, _ = decide(state, who, spec, at=2)
    assert (state.late, len(state.pending)) == (0, 2)
    state, _ = decide(state, who, spec, at=3)
    assert (state.late, state.observations) == (1, 0)


def test_a_delay_of_a_few_rounds_only_delays():
    family, who = mixed(random.Random(5), 8, 12), contenders(8)
    state, _ = live(family, who, rules(patience=30), 100, delay=5)
    assert state.observations == sum(one.estimate.total for one in state.scenarios) == 2 * 95
    assert state.late == 0


def test_a_scenario_that_comes_is_tried_and_one_that_leaves_is_forgotten():
    family = mixed(random.Random(3), 4, 12)
    state, _ = live(family, contenders(3), rules(1), 40)
    state, decisions = live(family, contenders(4)[1:], rules(1), 12, state=state, first=41)
    assert "s3" in {uid for uids in picked(decisions) for uid in uids}
    assert [one.uid for one in state.scenarios] == ["s1", "s2", "s3"]


def test_the_forecast_is_what_happens_if_nothing_new_is_learnt():
    family, who, spec = mixed(random.Random(3), 6, 12), contenders(6), rules(explore=0.0)
    state, _ = live(family, who, spec, 60)
    ahead = forecast(state, who, spec, at=61, rounds=5)
    for at, foretold in enumerate(ahead, start=61):
        state, decision = decide(state, who, spec, at=at)
        assert decision == foretold


def test_the_certificate_bounds_what_is_planned_and_closes_in_as_the_curves_become_known():
    family, who, spec = mixed(random.Random(3), 6, 12), contenders(6), rules(2)
    early, _ = live(family, who, spec, 20)
    late, _ = live(family, who, spec, 600)
    before, after = (
        certificate(state, who, spec, at=state.decided + 1, rounds=200) for state in (early, late)
    )
    truth = relax(family, 2).value
    for one in (before, after):
        # the first boosts of the look ahead live on what recovered before
        assert one.planned <= one.bound * 1.05
        assert one.bound <= one.hoped
    assert after.hoped - after.bound < before.hoped - before.bound
    assert after.bound == pytest.approx(truth, rel=0.1)
    assert after.share > 0.9
    assert sum(after.rates) <= 2 + 1e-9


def test_the_certificate_counts_a_pin_as_a_slot_and_the_frozen_as_nothing():
    family = [RecoveryCurve((1,), (reward,)) for reward in (0.2, 0.9, 0.6)]
    free = [Contender(uid=f"s{i}") for i in range(3)]
    state, _ = live(family, free, rules(3), 100)
    held = contenders(3, s0={"pinned": True}, s1={"frozen": True})
    one = certificate(state, held, rules(2), at=101)
    assert one.rates == (1.0, 0.0, 1.0)
    assert one.bound == pytest.approx(0.8, abs=0.05)


def test_propensities_are_those_of_the_draw():
    """The last of two slots goes to a random one of the other six with 20 %; over the seeds that is what happens."""
    who = contenders(8)
    chances: list[float] = []
    explored = 0
    for seed in range(400):
        _, decision = decide(AllocationState(), who, rules(seed=seed, explore=0.2), at=9)
        first, last = decision.picks
        assert (first.why, first.propensity) == ("Ranked", 1.0)
        explored += last.why == "Explored"
        chances.append(last.propensity)
    assert set(chances) == {0.8, 0.2 / 6}
    assert 40 < explored < 120


def test_less_and_less_is_given_at_random_where_optimism_explores_as_well():
    chances = {
        policy: [round(rules(explore=0.2, policy=policy).exploring(rounds), 3) for rounds in (0, 300, 9900)]
        for policy in ("Index", "Myopic")
    }
    assert chances == {"Index": [0.2, 0.1, 0.02], "Myopic": [0.2, 0.2, 0.2]}


@pytest.mark.parametrize(
    ("who", "slots", "says"),
    [
        pytest.param(
            contenders(3, s0={"pinned": True}, s1={"pinned": True}), 1, "need 2 slots, there are 1", id="pins"
        ),
        pytest.param(
            contenders(3, s0={"gaps": Gaps(most=1)}, s1={"gaps": Gaps(most=3)}), 1, "need 2", id="gaps"
        ),
        pytest.param(
            contenders(1, s0={"gaps": Gaps(least=4, most=3)}), 1, "at least 4 and at most 3", id="bounds"
        ),
    ],
)
def test_what_can_never_be_kept_is_refused_with_what_to_do(who, slots, says):
    with pytest.raises(Infeasible, match=says):
        admit(who, slots)


def test_a_change_of_a_curve_is_noticed_and_noise_is_not():
    generator = random.Random(1)
    estimate = Estimate.empty(len(LEARNING.starts))
    for _ in range(400):
        reward = 0.7 + generator.gauss(0, 0.2)
        estimate = observe(estimate, 4, reward, LEARNING)
    assert (estimate.resets, estimate.total) == (0, 400)
    for _ in range(20):
        estimate = observe(estimate, 4, 0.2 + generator.gauss(0, 0.2), LEARNING)
    assert estimate.resets == 1
    assert estimate.sums[3] / estimate.counts[3] == pytest.approx(0.2, abs=0.2)


def test_a_state_of_two_hundred_scenarios_fits_an_object_many_times():
    learning = Learning(starts=idle_grid(24))
    who = [Contender(uid=f"{i:036d}") for i in range(200)]
    state = AllocationState()
    spec = Rules(slots=20, learning=learning)
    for at in range(1, 60):
        state, decision = decide(state, who, spec, at=at)
        for pick in decision.picks:
            reward = Reward(round=at, uid=pick.uid, value=random.Random(at).random())
            state, _ = state.settle(reward, learning)
    assert len(to_text(state)) <= 64 * 1024


@pytest.mark.parametrize("text", ["", "{}", '{"schema": 9}', '{"schema": 1, "scenarios": [[1]]}', "[]"])
def test_a_state_that_cannot_be_read_is_an_error_and_never_an_empty_one(text):
    with pytest.raises(UnreadableState):
        from_text(text)


def test_nothing_of_a_state_is_lost_on_its_way():
    family, who, spec = mixed(random.Random(3), 6, 12), contenders(6), rules(policy="Periodic")
    state, _ = live(family, who, spec, 50)
    assert state.calendar is not None
    assert state.pending == ()
    waiting, _ = decide(state, who, spec, at=51)
    assert from_text(to_text(waiting)) == waiting
    assert dataclasses.replace(waiting, late=4) != waiting
