"""When a scenario runs combined, and when it is divided again: costs, patience, and what each way needs."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.scaling.test_decide import LIMITS, asked, live
from tests.unit.scaling.worlds import DEVICE, counts

from tidewheel.planning.scaling.combining import Choice, as_chosen, choose, windows_needed
from tidewheel.planning.scaling.floors import Floor
from tidewheel.planning.scaling.observed import RoleCounts
from tidewheel.planning.scaling.state import ScalingState, from_text, to_text
from tidewheel.planning.scaling.steps import step

APART, TOGETHER = Choice(is_combined=False), Choice(is_combined=True)


def chosen(choice, *costs, disaggregation="Auto", have=(1, 1), needed=3) -> Choice:
    """After windows in each of which the two ways cost so much."""
    for apart, together in costs:
        choice = choose(
            choice, disaggregation, have=have, apart=apart, together=together, needed_windows=needed
        )
    return choice


@pytest.mark.parametrize(
    ("choice", "costs", "want"),
    [
        pytest.param(APART, [(4, 3)] * 2, Choice(is_combined=False, windows=2), id="not yet"),
        pytest.param(APART, [(4, 3)] * 3, TOGETHER, id="after enough windows it is combined"),
        pytest.param(APART, [(4, 3), (4, 3), (4, 4), (4, 3)], Choice(is_combined=False, windows=1),
                     id="windows in a row"),
        pytest.param(APART, [(40, 39)] * 9, APART, id="a little less is nothing"),
        pytest.param(APART, [(4, None)] * 9, APART, id="what no number can do is not chosen"),
        pytest.param(TOGETHER, [(3, 4)] * 3, APART, id="and back likewise"),
        pytest.param(TOGETHER, [(39, 40)] * 9, TOGETHER, id="a little more is nothing either"),
        pytest.param(TOGETHER, [(99, None)] * 3, APART, id="what no number can do any more is left"),
    ],
)  # fmt: skip
def test_a_change_must_pay_clearly_and_for_a_while(choice, costs, want):
    assert chosen(choice, *costs) == want


@pytest.mark.parametrize(("disaggregation", "want"), [("Always", APART), ("Never", TOGETHER)])
def test_what_the_user_says_holds_at_once_and_whatever_it_costs(disaggregation, want):
    for before in (Choice(), APART, TOGETHER):
        assert chosen(before, (1, 9), disaggregation=disaggregation) == want
        assert chosen(before, (9, 1), disaggregation=disaggregation) == want


@pytest.mark.parametrize(("have", "want"), [((2, 3), False), ((0, 3), True), ((0, 0), False)])
def test_a_first_choice_is_what_there_is(have, want):
    assert chosen(Choice(), (4, 4), have=have).is_combined is want


@given(costs=st.lists(st.tuples(st.integers(2, 40), st.none() | st.integers(1, 40)), max_size=60))
def test_it_never_flaps(costs):
    """Whatever comes, two changes lie at least so many windows apart as one must pay for."""
    choice, changes = APART, []
    for at, cost in enumerate(costs):
        before, choice = choice, chosen(choice, cost, needed=4)
        if choice.is_combined != before.is_combined:
            changes.append(at)
    assert all(later - sooner >= 4 for sooner, later in itertools.pairwise(changes))


def test_patience_lasts_a_holding_time_and_some_windows_at_least():
    assert windows_needed(120.0, 30.0) == 4
    assert windows_needed(600.0, 30.0) == 20
    assert windows_needed(0.0, 30.0) == 4


@pytest.mark.parametrize(
    ("have", "is_combined", "want"),
    [
        pytest.param((2, 3), True, (0, 5), id="all do both"),
        pytest.param((0, 4), False, (2, 4), id="prefills join"),
        pytest.param((0, 1), False, (1, 1), id="one at least"),
        pytest.param((2, 3), False, (2, 3), id="nothing changes"),
        pytest.param((0, 0), True, (0, 0), id="of nothing nothing comes"),
    ],
)
def test_without_measurements_what_there_is_goes_on_the_other_way(have, is_combined, want):
    assert as_chosen(have, is_combined=is_combined) == want


# ---- decisions


def test_a_small_load_is_combined_after_a_while_and_a_large_one_divided_again():
    quiet = asked(live([0.5] * 12, disaggregation="Auto")[0])
    assert quiet[:3] == [(1, 1)] * 3
    assert quiet[-1] == (0, 1)
    # long answers in large batches, which prompts beside them would slow down beyond what is promised
    decisions, _ = live([0.5] * 12 + [40.0] * 30, disaggregation="Auto", answer_tokens=400.0)
    at = asked(decisions)
    assert at[11][0] == 0
    assert at[-1][0] > 0
    assert [one.reason for one in decisions].count("Divides") == 1
    ways = [prefill == 0 for prefill, _ in at]
    assert sum(one != other for one, other in itertools.pairwise(ways)) == 2


def test_a_decision_to_change_says_why():
    decisions, _ = live([0.5] * 12, disaggregation="Auto")
    (changed,) = (one for one in decisions if one.reason == "Combines")
    assert "1 prefill and 1 decode, or 1 that do both" in changed.message
    assert "for 4 windows" in changed.message
    assert changed.combined == 1
    forced, _ = live([0.5], disaggregation="Never")
    assert "disaggregation is Never" in forced[0].message


def test_always_tells_and_never_does():
    decisions, _ = live([0.5] * 12)
    assert (asked(decisions)[-1], decisions[-1].combined) == ((1, 1), 1)


def test_never_follows_the_load_with_decodes_only():
    decisions, _ = live([5.0] * 4 + [40.0] * 4 + [5.0] * 30, disaggregation="Never", start=(0, 1))
    at = asked(decisions)
    assert {prefill for prefill, _ in at} == {0}
    assert at[7][1] > at[3][1]
    assert at[-1][1] < at[7][1]
    assert {one.bottleneck for one in decisions} <= {"decode", "traffic"}
    assert decisions[-1].combined == at[-1][1]


def test_advice_is_given_and_nothing_done():
    decisions, _ = live([0.5] * 12, disaggregation="Auto", limits=replace(LIMITS, mode="Advise"))
    assert asked(decisions)[-1] == (1, 1)
    assert decisions[-1].advised == (0, 1)


def test_a_floor_counts_both_roles_together_and_limits_those_of_decodes():
    floor = Floor(days=tuple(range(7)), from_minute=0, to_minute=0, prefill=3, decode=2)
    limits = replace(LIMITS, floors=(floor,))
    decisions, _ = live([0.5] * 3, disaggregation="Never", limits=limits, start=(0, 1))
    assert asked(decisions)[-1] == (0, 5)
    assert "ScheduledFloor" in [one.reason for one in decisions]
    decisions, _ = live([40.0] * 3, disaggregation="Never", limits=replace(LIMITS, decode=(1, 3)))
    assert (asked(decisions)[-1], decisions[-1].reason) == ((0, 3), "AtMaximum")


def test_a_budget_is_shared_with_those_that_have_no_prefills():
    decisions, _ = live([70.0] * 6, disaggregation="Never", budget=4)
    assert (asked(decisions)[-1], decisions[-1].reason) == ((0, 4), "BudgetBinds")


def test_without_a_profile_signs_decide_for_those_who_do_both():
    calm = {"ttft_seconds": 0.5, "e2e_seconds": 2.5, "prefill_seconds": 0.0, "decode_seconds": 2.0}
    slow = {**calm, "ttft_seconds": 2.5, "e2e_seconds": 4.5}
    decisions, state = live([10.0] * 12, profile=None, disaggregation="Never", start=(1, 1), **calm)
    assert asked(decisions)[0] == (0, 2), "who did one thing each do both"
    assert (decisions[0].reason, decisions[1].reason) == ("Combines", "Balanced")
    more, _ = live(
        [10.0] * 2, profile=None, disaggregation="Never", start=(0, 2), state=state, since=13, **slow
    )
    assert asked(more)[-1] == (0, 3)


def test_without_a_request_nothing_but_the_way_is_decided():
    decisions, _ = live([0.0], disaggregation="Never", start=(2, 2))
    assert asked(decisions)[0] == (0, 4)
    decisions, _ = live([0.0], disaggregation="Always", start=(0, 4))
    assert asked(decisions)[0] == (2, 4)


def test_the_choice_survives_a_restart_and_an_older_release_had_none():
    _, state = live([0.5] * 3, disaggregation="Auto")
    assert state.choice == Choice(is_combined=False, windows=3)
    assert from_text(to_text(state)) == state
    old = to_text(state).replace(',"choice":[false,3]', "")
    assert from_text(old) == replace(state, choice=Choice())
    assert from_text(to_text(ScalingState())) == ScalingState()


@pytest.mark.parametrize(
    ("have", "wanted", "want"),
    [
        pytest.param((6, 4), (0, 6), (0, 6), id="prefills go together"),
        pytest.param((6, 4), (0, 9), (6, 7), id="once the decodes for them are asked for"),
        pytest.param((0, 4), (6, 4), (6, 4), id="and come together"),
        pytest.param((0, 4), (0, 9), (0, 7), id="decodes go step by step"),
    ],
)
def test_a_change_of_way_is_no_step(have, wanted, want):
    there = counts(*have)
    assert step(there.prefill, there.decode, wanted, most=3) == want


def test_decodes_without_room_keep_no_prefill():
    prefill, decode = RoleCounts(ready=2), RoleCounts(ready=2, unplaceable=1)
    assert step(prefill, decode, (0, 9), most=3) == (0, 3)


def test_too_few_prefills_for_a_budget_are_none():
    """What decodes do now a part of the prefills could not."""
    decisions, _ = live(
        [40.0] * 2, disaggregation="Always", start=(0, 9), budget=10, answer_tokens=400.0, profile=DEVICE
    )
    assert asked(decisions)[0][0] in (0, decisions[0].needed[0])
