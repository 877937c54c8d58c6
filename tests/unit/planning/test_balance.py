"""How a group's ratio changes: which pairs of prefill and decode pods take requests on the way."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidewheel.planning.balance import RoleState, skew, step_balance


def role(routed: int, ready: int, wanted: int, *, coming: bool = True) -> RoleState:
    return RoleState(routed=routed, ready=ready, wanted=wanted, coming=coming)


@pytest.mark.parametrize(
    ("prefill", "decode", "want"),
    [
        pytest.param(role(2, 2, 2), role(1, 1, 1), (2, 1), id="a settled group stays"),
        pytest.param(role(1, 2, 2), role(1, 1, 2), (1, 1), id="a prefill waits for its decode"),
        pytest.param(role(1, 2, 2), role(1, 2, 2), (2, 2), id="both join in one step"),
        pytest.param(role(1, 2, 2), role(1, 1, 1), (2, 1), id="what brings the ratio nearer joins at once"),
        pytest.param(role(2, 2, 3), role(2, 2, 1), (2, 2), id="nobody leaves before who comes for him"),
        pytest.param(role(2, 3, 3), role(2, 2, 1), (3, 1), id="then one comes as the other goes"),
        pytest.param(
            role(2, 2, 3, coming=False), role(2, 2, 1), (2, 1), id="who finds no room is made room for"
        ),
        pytest.param(role(4, 4, 1), role(4, 4, 1), (1, 1), id="a group shrinks in one step, evenly"),
        pytest.param(role(4, 4, 4), role(3, 3, 4), (4, 3), id="a loss takes nobody else out"),
        pytest.param(role(3, 4, 4), role(3, 3, 4), (4, 3), id="within the bound who is ready joins"),
        pytest.param(role(0, 4, 4), role(0, 1, 4), (1, 1), id="a new group starts as near as it can"),
        pytest.param(role(0, 1, 4), role(0, 1, 1), (1, 1), id="even if that is not near"),
        pytest.param(
            role(0, 0, 1), role(0, 2, 2), (0, 2), id="without a prefill there is nothing to balance"
        ),
    ],
)
def test_the_routes_follow_the_ratio(prefill, decode, want):
    assert step_balance(prefill, decode, max_skew=0.5) == want


@pytest.mark.parametrize(
    ("pair", "wanted", "want"),
    [((2, 1), (2, 1), 0), ((4, 1), (2, 1), 1), ((1, 1), (2, 1), 1), ((3, 2), (1, 1), 0.5)],
)
def test_skew_is_symmetric_about_the_wanted_ratio(pair, wanted, want):
    assert skew(*pair, *wanted) == pytest.approx(want)


@st.composite
def roles(draw):
    routed = draw(st.integers(0, 6))
    return role(routed, routed + draw(st.integers(0, 3)), draw(st.integers(1, 6)), coming=draw(st.booleans()))


@given(prefill=roles(), decode=roles(), max_skew=st.sampled_from([0.0, 0.5, 1.0]))
def test_no_step_goes_beyond_the_bound_or_away_from_the_goal(prefill, decode, max_skew):
    found = step_balance(prefill, decode, max_skew=max_skew)
    for one, now in zip((prefill, decode), found, strict=True):
        assert min(one.routed, one.goal) <= now <= max(one.routed, one.goal)
    if all((*found, prefill.routed, decode.routed)):
        before = skew(prefill.routed, decode.routed, prefill.wanted, decode.wanted)
        assert skew(*found, prefill.wanted, decode.wanted) <= max(max_skew, before) + 1e-6


@given(prefill=roles(), decode=roles(), max_skew=st.sampled_from([0.0, 0.5]))
def test_once_all_are_ready_the_wanted_ratio_is_reached(prefill, decode, max_skew):
    complete = [
        RoleState(routed=one.routed, ready=max(one.ready, one.wanted), wanted=one.wanted)
        for one in (prefill, decode)
    ]
    found = step_balance(*complete, max_skew=max_skew)
    assert found == (prefill.wanted, decode.wanted)
