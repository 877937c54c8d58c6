"""Decisions: the load is followed up at once and down with patience, within limits and budget, and a restart changes nothing."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.scaling.worlds import DEVICE, TARGETS, counts, load

from tidewheel.planning.scaling.decide import decide, decide_all
from tidewheel.planning.scaling.floors import Floor
from tidewheel.planning.scaling.observed import RoleCounts
from tidewheel.planning.scaling.profile import DecodeLaw
from tidewheel.planning.scaling.scenario import Counts, Limits, Scenario
from tidewheel.planning.scaling.state import ScalingState, from_text, to_text
from tidewheel.planning.stored import UnreadableState

LIMITS = Limits(startup_seconds=60.0)


def live(
    rates,
    *,
    limits: Limits = LIMITS,
    profile=DEVICE,
    budget=None,
    disaggregation="Always",
    start=(1, 1),
    state: ScalingState | None = None,
    since: int = 1,
    through=lambda s: s,
    **more,
):
    """Decide window after window; what is asked for is ready at once."""
    state, have, decisions = state or ScalingState(), start, []
    for number, rate in enumerate(rates, start=since):
        decision, state = decide(
            through(state),
            load(rate, **more),
            counts(*have),
            targets=TARGETS,
            limits=limits,
            profile=profile,
            now=number * 30.0,
            budget=budget,
            disaggregation=disaggregation,
        )
        have = (decision.prefill, decision.decode)
        decisions.append(decision)
    return decisions, state


def asked(decisions) -> list[tuple[int, int]]:
    return [(one.prefill, one.decode) for one in decisions]


def test_a_load_is_met_from_its_first_window():
    decisions, _ = live([70.0])
    assert decisions[0].reason == "LoadGrows"
    assert decisions[0].prefill >= 8


def test_growth_waits_for_nothing_and_shrinking_waits():
    decisions, _ = live([20.0] * 20 + [60.0] * 20 + [20.0] * 40)
    at = asked(decisions)
    assert at[21][0] > at[19][0]  # within two windows
    high = at[39][0]
    assert [p for p, _ in at[40:44]] == [high] * 4  # two start-ups
    assert at[-1][0] < high
    assert "Holding" in [one.reason for one in decisions[40:]]


def test_who_has_forgotten_everything_gives_nothing_back_at_once():
    at = asked(live([20.0] * 8, start=(9, 5))[0])
    assert at[:3] == [(9, 5)] * 3
    assert at[-1][0] < 9


def test_the_role_that_starts_slowly_is_asked_for_earlier_in_a_rise():
    rise = [10.0 + 0.5 * window for window in range(120)]
    slow_prefills, _ = live(
        rise, limits=replace(LIMITS, startup_seconds=900.0, startup_by_role=(900.0, 60.0))
    )
    slow_decodes, _ = live(rise, limits=replace(LIMITS, startup_seconds=900.0, startup_by_role=(60.0, 900.0)))
    (prefill, decode), (later_prefill, earlier_decode) = asked(slow_prefills)[-1], asked(slow_decodes)[-1]
    assert prefill > later_prefill
    assert decode < earlier_decode


def test_a_steady_load_changes_nothing():
    decisions, _ = live([45.0] * 200)
    # at first an unknown load asks for some more
    assert len(set(asked(decisions)[60:])) == 1


def test_a_load_at_the_edge_does_not_flap():
    # alternating around the load at which a prefill more is needed
    decisions, _ = live([44.0, 48.0] * 100)
    at = asked(decisions)[10:]
    assert sum(a != b for a, b in itertools.pairwise(at)) <= 1


@pytest.mark.parametrize(
    ("limits", "budget", "want", "reason"),
    [
        pytest.param(replace(LIMITS, prefill=(1, 3)), None, (3, None), "AtMaximum", id="the most of a role"),
        pytest.param(replace(LIMITS, decode=(4, 9)), None, (None, 4), "LoadGrows", id="the least of a role"),
        pytest.param(LIMITS, 5, (4, 1), "BudgetBinds", id="a budget that binds"),
        pytest.param(LIMITS, 1, (0, 0), "BudgetTooSmall", id="a budget for half a scenario"),
        pytest.param(replace(LIMITS, mode="Off"), None, (1, 1), "Off", id="Off"),
        pytest.param(
            replace(
                LIMITS,
                floors=(Floor(days=tuple(range(7)), from_minute=0, to_minute=0, prefill=20, decode=3),),
                most_per_step=64,
            ),
            None,
            (20, 3),
            "ScheduledFloor",
            id="a scheduled floor",
        ),
    ],
)
def test_what_bounds_a_decision_is_its_reason(limits, budget, want, reason):
    decisions, _ = live([70.0] * 10, limits=limits, budget=budget)
    assert reason in [one.reason for one in decisions]
    for at, count in zip(asked(decisions)[-1], want, strict=True):
        assert count in (None, at)


def test_advice_is_shown_and_not_taken():
    decisions, _ = live([70.0] * 5, limits=replace(LIMITS, mode="Advise"))
    assert asked(decisions)[-1] == (1, 1)
    assert decisions[-1].advised[0] >= 8


def test_nothing_is_sized_before_anything_was_seen():
    decisions, _ = live([0.0] * 5, start=(3, 2))
    assert asked(decisions)[-1] == (3, 2)
    assert decisions[-1].reason == "NothingMeasured"


def test_after_the_last_request_the_least_stays():
    decisions, _ = live([30.0] * 20 + [0.0] * 60)
    assert asked(decisions)[-1] == (1, 1)


def test_prefills_without_room_do_not_stop_decodes():
    there = Counts(prefill=RoleCounts(ready=2, unplaceable=2), decode=RoleCounts(ready=1))
    decision, _ = decide(
        ScalingState(),
        load(90.0, answer_tokens=900.0),
        there,
        targets=TARGETS,
        limits=LIMITS,
        profile=DEVICE,
        now=30.0,
    )
    assert decision.prefill == 4
    assert decision.decode > 1
    assert decision.reason == "NoRoom"


def test_accelerators_that_are_still_draining_are_not_given_away():
    def scenario(name: str, rate: float, there: Counts) -> Scenario:
        return Scenario(
            name=name, load=load(rate), counts=there, targets=TARGETS, limits=LIMITS, profile=DEVICE
        )

    wants = scenario("wants", 60.0, counts(2, 1))
    gives = scenario("gives", 5.0, counts(1, 1, leaving=(5, 0)))
    decisions, _, _ = decide_all({}, (wants, gives), budget=12, now=30.0)
    assert decisions["wants"].prefill == 4  # two of twelve are free
    wants, gives = (replace(wants, counts=counts(4, 1)), replace(gives, counts=counts(1, 1)))
    decisions, _, _ = decide_all({}, (wants, gives), budget=12, now=60.0)
    assert decisions["wants"].prefill > 4


def test_a_device_slower_than_its_profile_is_noticed():
    fast, _ = live([45.0] * 40, prefill_seconds=0.1)
    slow, state = live([45.0] * 40, prefill_seconds=0.15)
    assert state.work.prefill_correction == pytest.approx(1.5, rel=0.05)
    assert asked(slow)[-1][0] > asked(fast)[-1][0]


def test_it_says_when_disaggregation_does_not_pay():
    little, _ = live([0.5] * 5)
    assert little[-1].combined == 1
    # a device on which a large batch is hardly slower than a small one
    flat = replace(
        DEVICE,
        decode=DecodeLaw(base_seconds=0.015, seconds_per_sequence=5e-6, seconds_per_kv_token=0.0),
        decode_slots=1024,
    )
    much, _ = live([60.0] * 10, profile=flat, answer_tokens=900.0)
    assert much[-1].combined is None


def test_the_bottleneck_is_the_role_that_lacks_more():
    decisions, _ = live([70.0], start=(1, 4))
    assert decisions[0].bottleneck == "prefill"
    decisions, _ = live([70.0], start=(20, 1), answer_tokens=2000.0)
    assert decisions[0].bottleneck == "decode"


def test_without_a_profile_signs_decide():
    calm = {"ttft_seconds": 0.5, "e2e_seconds": 2.5, "prefill_seconds": 0.5, "decode_seconds": 2.0}
    decisions, state = live([10.0] * 12, profile=None, **calm)
    assert asked(decisions)[-1] == (1, 1)
    slow = {**calm, "ttft_seconds": 2.5, "e2e_seconds": 4.5}
    for number in (13, 14):
        decision, state = decide(
            state, load(10.0, **slow), counts(1, 1),
            targets=TARGETS, limits=LIMITS, profile=None, now=number * 30.0,
        )  # fmt: skip
    assert (decision.prefill, decision.decode) == (2, 1)
    assert decision.reason == "PrefillBound"


def test_limits_that_leave_nothing_are_refused():
    with pytest.raises(ValueError, match="keep one at least"):
        Limits(prefill=(0, 4))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param('{"schema": 99}', "schema 99", id="another schema"),
        pytest.param("{", "cannot be read", id="no JSON"),
        pytest.param('{"schema": 1}', "cannot be read", id="parts missing"),
    ],
)
def test_a_state_that_is_none_is_refused(text, says):
    with pytest.raises(UnreadableState, match=says):
        from_text(text)


rates = st.lists(st.floats(0, 120), min_size=1, max_size=25)


@given(rates=rates)
@settings(max_examples=25, deadline=None)
def test_a_restart_changes_nothing_and_state_stays_small(rates):
    straight, state = live(rates)
    restarted, same = live(rates, through=lambda state: from_text(to_text(state)))
    assert restarted == straight
    assert same == state
    assert len(to_text(state)) < 8192


@given(data=st.data(), budget=st.integers(0, 40), most=st.integers(1, 9), least=st.sampled_from([1, 2]))
@settings(max_examples=40, deadline=None)
def test_bounds_hold_at_every_step(data, budget, most, least):
    names = ("a", "b", "c")
    limits = Limits(prefill=(least, 12), decode=(least, 6), most_per_step=most)
    states: dict[str, ScalingState] = {}
    have = dict.fromkeys(names, (0, 0))
    for number in range(1, 9):
        told = tuple(
            Scenario(
                name=name,
                load=load(data.draw(st.floats(0, 150)), answer_tokens=data.draw(st.floats(1, 2000))),
                counts=counts(*have[name]),
                targets=TARGETS,
                limits=limits,
                profile=DEVICE,
            )
            for name in names
        )
        decisions, states, shares = decide_all(states, told, budget=budget, now=number * 30.0)
        again, *_ = decide_all(states, told, budget=budget, now=number * 30.0)
        assert decide_all(states, told, budget=budget, now=number * 30.0)[0] == again
        for name, decision in decisions.items():
            assert decision.prefill <= 12
            assert decision.decode <= 6
            assert max(decision.prefill - have[name][0], decision.decode - have[name][1]) <= most
            assert decision.message
            # who serves keeps the least of each, one or two, unless the budget is too small for all
            if min(have[name]) >= least and shares.is_feasible:
                assert min(decision.prefill, decision.decode) >= least
        have = {name: (decision.prefill, decision.decode) for name, decision in decisions.items()}
        assert sum(map(sum, have.values())) <= budget


@given(rates=st.lists(st.floats(0.1, 150), min_size=5, max_size=40))
@settings(max_examples=25, deadline=None)
def test_whoever_goes_leaves_a_rest_that_can_carry_the_load(rates):
    before = (20, 6)
    for decision in live(rates, start=before)[0]:
        after = (decision.prefill, decision.decode)
        for count, earlier, share in zip(after, before, decision.attainment, strict=True):
            assert count >= earlier or share >= TARGETS.attainment
        before = after
