"""Who stays, who leaves and who joins when pods fail or their number changes."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.planning.seen import NOW, group_pods, pod, revision_of, spec

from tidewheel.planning.groups import Group
from tidewheel.planning.members import staff, staff_group
from tidewheel.planning.names import Place
from tidewheel.planning.observed import Exit

CRASHED = Exit(reason="Error", exit_code=139)


def decodes(*ordinals: int, **fields):
    return [pod("decode", ordinal, **fields) for ordinal in ordinals]


def places(staffing) -> list[str]:
    return [str(joining.place) for joining in staffing.join]


def names(pods) -> list[str]:
    return [one.name.removeprefix("chat-aaaaa-0-") for one in pods]


@pytest.mark.parametrize(
    ("pods", "wanted", "stay", "join"),
    [
        pytest.param([], 2, [], ["0", "1"], id="an empty role is filled from place 0"),
        pytest.param(decodes(0, 1), 2, ["decode-0", "decode-1"], [], id="a full role is left alone"),
        pytest.param(decodes(0, 2), 3, ["decode-0", "decode-2"], ["1"], id="a gap is filled first"),
        pytest.param(decodes(0, 1, 2), 2, ["decode-0", "decode-1"], [], id="the youngest goes first"),
        pytest.param(
            [pod("decode", 0, ready=False), pod("decode", 1)], 1, ["decode-1"], [], id="an unready one goes first"
        ),
        pytest.param(
            [pod("decode", 0, phase="Failed", ready=False), pod("decode", 1)],
            2,
            ["decode-1"],
            ["0-1"],
            id="a failed pod's place goes to a substitute under a new name",
        ),
        pytest.param(
            [pod("decode", 0, deleting=True), pod("decode", 1)],
            2,
            ["decode-1"],
            ["0-1"],
            id="so does the place of one that is being deleted",
        ),
        pytest.param(
            [pod("decode", 0, phase="Failed", ready=False), pod("decode", 0, 1, ready=False)],
            1,
            ["decode-0-1"],
            [],
            id="a substitute that is there gets no sister",
        ),
        pytest.param(
            [pod("decode", 0, phase="Failed", ready=False), pod("decode", 1)],
            1,
            ["decode-1"],
            [],
            id="a failed surplus pod is not substituted",
        ),
        pytest.param(
            [pod("decode", 0, phase="Unknown", ready=False)], 1, [], ["0-1"], id="a lost node's pod is substituted"
        ),
        pytest.param(
            [pod("decode", 0, ready=False, restarts=3, exit=CRASHED)],
            1,
            [],
            ["0-1"],
            id="a pod that keeps crashing is tried elsewhere",
        ),
        pytest.param(
            [pod("decode", 0, ready=False, restarts=2, exit=CRASHED)],
            1,
            ["decode-0"],
            [],
            id="after two crashes it is still given a chance where it is",
        ),
    ],
)  # fmt: skip
def test_a_role_is_staffed_at_the_least_cost(pods, wanted, stay, join):
    staffing = staff(pods, wanted, now=NOW)
    assert (names(staffing.stay), places(staffing)) == (stay, join)


def test_a_pod_that_gateways_do_not_use_leaves_before_one_they_do():
    first, second = decodes(0, 1)
    staffing = staff([first, second], 1, now=NOW, routed={second.name})
    assert names(staffing.stay) == ["decode-1"]


def test_a_model_that_is_not_there_is_not_sought_by_ever_new_pods():
    told = Exit(
        reason="Error", exit_code=1, message='{"reason": "ModelNotFound", "message": "no such package"}'
    )
    staffing = staff([pod("decode", 0, ready=False, restarts=50, exit=told)], 1, now=NOW)
    assert names(staffing.stay) == ["decode-0"]
    assert not staffing.join


def test_a_missing_device_is_sought_on_another_node():
    told = Exit(
        reason="Error", exit_code=1, message='{"reason": "DeviceUnavailable", "message": "no cuda device"}'
    )
    staffing = staff([pod("decode", 0, ready=False, restarts=3, exit=told)], 1, now=NOW)
    assert places(staffing) == ["0-1"]


@pytest.mark.parametrize(
    ("incarnation", "wait"),
    [(0, None), (1, 9), (2, 19), (3, 39), (6, 299), (20, 299)],
)
def test_substitutes_of_substitutes_come_ever_later(incarnation, wait):
    failed = pod("decode", 0, incarnation, age=1, phase="Failed", ready=False)
    staffing = staff([failed], 1, now=NOW)
    if wait is None:
        assert places(staffing) == ["0-1"]
    else:
        assert staffing.stay == (failed,)
        assert staffing.wait == timedelta(seconds=wait)
        later = staff([failed], 1, now=NOW + timedelta(seconds=wait))
        assert later.join[0].place == Place(0, incarnation + 1)


def test_without_a_record_of_its_spec_nobody_joins_a_group():
    wanted = spec(decode={"replicas": 2})
    pods = group_pods(wanted)
    pods[1] = replace(pods[1], phase="Failed", ready=False)
    group = Group(name=pods[0].group, revision=revision_of(wanted), ordinal=0, pods=tuple(pods))
    staffed = staff_group(group, None, size=None, now=NOW, routed=())
    assert [one.role for one in staffed.stay] == ["prefill", "decode"]
    assert not staffed.join
    assert len(staffed.leave) == 1


@st.composite
def crews(draw):
    """Any pods of one role, however they came about; names differ."""
    taken = draw(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), unique=True, max_size=8))
    return [
        pod(
            "decode",
            ordinal,
            incarnation,
            age=draw(st.sampled_from([1, 1000])),
            ready=(is_ready := draw(st.booleans())),
            deleting=draw(st.booleans()),
            phase="Running" if is_ready else draw(st.sampled_from(["Pending", "Running", "Failed"])),
        )
        for ordinal, incarnation in taken
    ]


@given(pods=crews(), wanted=st.integers(0, 5))
def test_however_pods_came_about_each_place_ends_with_one(pods, wanted):
    staffing = staff(pods, wanted, now=NOW)
    taken = [one.ordinal for one in staffing.stay] + [joining.place.ordinal for joining in staffing.join]
    assert len(taken) == len(set(taken)) == wanted
    fresh = {(joining.place.ordinal, joining.place.incarnation) for joining in staffing.join}
    assert not fresh & {(one.ordinal, one.incarnation) for one in pods}, "a new pod gets a name nobody has"
    leaving = [one.name for one, _ in staffing.leave]
    stay = [one.name for one in staffing.stay]
    going = [one.name for one in pods if one.deleting]
    assert sorted([*leaving, *stay, *going]) == sorted(one.name for one in pods), (
        "everyone is accounted for once"
    )
    healthy = [one for one in pods if one.ready and not one.deleting]
    best = len({one.ordinal for one in healthy})
    kept = sum(one in healthy for one in staffing.stay)
    assert kept == min(best, wanted), "no ready pod goes while one that is not ready stays"


@given(pods=crews(), wanted=st.integers(0, 5))
def test_staffing_what_was_staffed_changes_nothing(pods, wanted):
    first = staff(pods, wanted, now=NOW)
    joined = [
        pod("decode", joining.place.ordinal, joining.place.incarnation, age=0, ready=False)
        for joining in first.join
    ]
    gone = {one.name for one, _ in first.leave}
    second = staff([*(one for one in pods if one.name not in gone), *joined], wanted, now=NOW)
    assert not second.join
    assert not second.leave
