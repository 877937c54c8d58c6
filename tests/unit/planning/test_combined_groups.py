"""Groups whose decodes compute the prompts, too: how they come about, how they are divided again, and what is said of them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.planning.test_balance import role, roles
from tests.unit.planning.world import World

from tidewheel.api.manifest import CONFIG_MAPS
from tidewheel.api.ranktable import RankTable
from tidewheel.planning.balance import RoleState, step_combined
from tidewheel.planning.targets import Target, target_for


def settled(**spec: Any) -> World:
    world = World(**spec)
    world.settle()
    return world


def code(**groups: Any) -> dict[str, Any]:
    return {"name": "code", "match": {"modelAliases": ["coder"]}, "groups": groups}


def uids(world: World, role: str) -> set[str]:
    return {
        one["metadata"]["uid"]
        for one in world.pods
        if one["metadata"]["labels"]["tidewheel.dev/role"] == role
    }


def routed(world: World) -> tuple[bool, int, int]:
    """Of the one group: whether it is combined, and its prefills and decodes that gateways know."""
    (group,) = world.routes().groups
    return group.combined, len(group.prefill), len(group.decode)


def table(world: World) -> RankTable:
    (name,) = (name for name in world.names("ConfigMap") if name.endswith("-ranks"))
    found = world.cache.get(CONFIG_MAPS, "ns", name)
    assert found is not None
    return RankTable.model_validate_json(found["data"]["ranktable.json"])


COMBINED = {"disaggregation": "Never", "prefill": {"replicas": 3}, "decode": {"replicas": 2}}


def test_without_disaggregation_there_are_no_prefills_and_requests_are_served():
    world = settled(**COMBINED)
    assert (len(uids(world, "prefill")), len(uids(world, "decode"))) == (0, 2)
    assert routed(world) == (True, 0, 2)
    assert table(world).combined
    status = world.service["status"]
    assert (status["ratio"], status["prefill"]["summary"], status["decode"]["summary"]) == (
        "0:2",
        "0/0",
        "2/2",
    )
    assert world.condition("Ready")["reason"] == "Serving"


def test_a_service_at_rest_says_what_a_group_would_be():
    assert settled(**COMBINED, groups=0).service["status"]["ratio"] == "0:2"


def test_a_scenario_has_its_own_way():
    world = settled(disaggregation="Never", scenarios=[code(disaggregation="Always", prefill=2)])
    assert [(one["name"], one["ratio"]) for one in world.service["status"]["scenarios"]] == [
        ("default", "0:1"),
        ("code", "2:1"),
    ]
    world.change(disaggregation="Always", scenarios=[code(disaggregation="Never")])
    world.settle()
    told = {one["name"]: one for one in world.service["status"]["scenarios"]}
    assert (told["default"]["ratio"], told["code"]["ratio"]) == ("1:1", "0:1")
    assert told["code"]["reason"] == "spec.scenarios[code].groups.replicas is 1, and disaggregation Never"


def test_prefills_leave_the_maps_before_they_go_and_no_decode_is_touched():
    world = settled(prefill={"replicas": 2}, decode={"replicas": 2})
    decodes, prefills = uids(world, "decode"), uids(world, "prefill")
    world.change(disaggregation="Never")
    world.reconcile()
    assert (routed(world), uids(world, "prefill")) == ((True, 0, 2), prefills)
    assert table(world).combined
    world.reconcile()
    assert len(table(world).of_role("prefill")) == 2, "gateways that have not read it yet may send prompts"
    assert world.plan().look_again_in == 2.0
    world.now += timedelta(seconds=2)
    world.reconcile()
    assert not table(world).of_role("prefill")
    assert uids(world, "prefill") == prefills
    world.settle()
    assert (uids(world, "decode"), uids(world, "prefill")) == (decodes, set())
    assert any("spec.groups is 1" in one["message"] for one in world.service["status"]["decisions"])


def test_prefills_serve_until_the_decodes_that_take_over_are_ready():
    world = settled()
    world.change(disaggregation="Never", decode={"replicas": 3})
    for _ in range(3):
        world.reconcile()
    assert routed(world) == (False, 1, 1)
    world.settle()
    assert routed(world) == (True, 0, 3)


def test_decodes_serve_by_themselves_until_the_prefills_that_join_are_ready():
    world = settled(disaggregation="Never", decode={"replicas": 2})
    decodes = uids(world, "decode")
    world.change(disaggregation="Always", prefill={"replicas": 2})
    world.reconcile()
    first, second = sorted(
        one["metadata"]["name"] for one in world.pods if one["metadata"]["uid"] in uids(world, "prefill")
    )
    for name in (first, second):
        world.run_pod(name)  # it gets an address
    world.reconcile()
    world.run_pod(first)
    world.reconcile()
    assert table(world).combined, "who serves needs no prefill yet"
    assert len(table(world).of_role("prefill")) == 2, "but they know each other"
    assert routed(world) == (True, 0, 2)
    world.run_pod(second)
    world.reconcile()
    assert routed(world) == (False, 2, 2)
    assert not table(world).combined
    world.settle()
    assert uids(world, "decode") == decodes


def test_a_decode_that_stumbles_while_prefills_come_serves_again_without_them():
    world = settled(disaggregation="Never")
    world.change(disaggregation="Always")
    world.reconcile()
    (decode,) = (name for name in world.names("Pod") if "decode" in name)
    world.unready_pod(decode)
    world.reconcile()
    assert world.routes().groups == ()
    world.run_pod(decode)
    world.reconcile()
    assert routed(world) == (True, 0, 1)


def test_a_prefill_that_fails_does_not_make_its_group_combined():
    world = settled()
    (prefill,) = (name for name in world.names("Pod") if "prefill" in name)
    world.fail_pod(prefill)
    world.reconcile()
    assert world.routes().groups == ()
    assert not table(world).combined


def test_a_rollout_replaces_whole_groups_each_with_its_own_way():
    world = settled(groups=2)
    world.change(disaggregation="Never", image="two")
    world.settle()
    assert {(group.combined, len(group.prefill)) for group in world.routes().groups} == {(True, 0)}
    assert len(world.routes().groups) == 2


def test_a_scaler_of_prefills_that_cannot_be_is_told_so():
    world = World(**COMBINED)
    world.put_scaler("one", role="prefill", replicas=3)
    world.put_scaler("two", role="decode", replicas=4)
    world.settle()
    told = {name: world.scaler(name)["conditions"][0] for name in ("one", "two")}
    assert (told["one"]["status"], told["one"]["reason"]) == ("False", "ScenarioIsCombined")
    assert "set disaggregation to Always" in told["one"]["message"]
    assert told["two"]["status"] == "True"
    assert (len(uids(world, "prefill")), len(uids(world, "decode"))) == (0, 4)


def test_prefills_are_lent_to_nobody_who_has_none():
    world = World(
        scenarios=[code(replicas=1, disaggregation="Never")],
        allocation={"mode": "Auto", "slots": 1, "role": "prefill", "goodRequestsPerMinute": 60},
    )
    world.sizes = lambda _: {}  # the spec alone does not tell
    for _ in range(6):
        world.reconcile()
        for name in world.names("Pod"):
            world.run_pod(name)
    status = world.service["status"]
    assert [one["name"] for one in status["allocation"]["scenarios"]] == ["default"]
    assert status["scenarios"][1]["ratio"] == "0:1"


@pytest.mark.parametrize(
    ("prefill", "decode", "is_combined", "want"),
    [
        pytest.param(role(0, 0, 0), role(0, 1, 2), False, (0, 1), id="a new group serves with whom it has"),
        pytest.param(role(2, 2, 0), role(1, 1, 1), False, (0, 1), id="prefills leave in one step"),
        pytest.param(role(2, 2, 0), role(1, 1, 3), False, (2, 1), id="but not before decodes that come for them"),
        pytest.param(role(2, 2, 0), role(1, 2, 3), False, (2, 1), id="and until then no ratio moves"),
        pytest.param(
            role(2, 2, 0), role(1, 1, 3, coming=False), False, (0, 1), id="who finds no room is made room for"
        ),
        pytest.param(role(0, 0, 0), role(1, 1, 3), False, (0, 1), id="without prefills there is none to wait for"),
        pytest.param(role(0, 0, 0), role(4, 4, 2), True, (0, 2), id="a combined group shrinks as it shall"),
        pytest.param(role(0, 1, 2), role(4, 4, 2), True, (0, 4), id="nobody leaves before all prefills are ready"),
        pytest.param(role(0, 2, 2), role(4, 4, 2), True, (2, 2), id="then one map tells of all"),
        pytest.param(
            role(0, 0, 2, coming=False), role(4, 4, 2), True, (0, 2), id="prefills without room are made room for"
        ),
        pytest.param(
            role(0, 1, 2, coming=False), role(2, 2, 2), True, (1, 1), id="with fewer it starts as near as it can"
        ),
    ],
)  # fmt: skip
def test_a_group_is_combined_and_divided_in_one_map(prefill, decode, is_combined, want):
    assert step_combined(prefill, decode, is_combined=is_combined, max_skew=0.5) == want


@st.composite
def shall_be_none(draw) -> RoleState:
    routed = draw(st.integers(0, 6))
    return role(routed, routed + draw(st.integers(0, 3)), 0, coming=draw(st.booleans()))


@given(
    prefill=shall_be_none() | roles(),
    decode=roles(),
    is_combined=st.booleans(),
    skew=st.sampled_from([0.0, 0.5]),
)
def test_whoever_served_is_followed_by_somebody(prefill, decode, is_combined, skew):
    """A decode at every step if one is ready; in a group that is to be divided a prefill or nobody's loss."""
    if is_combined:
        prefill = role(0, prefill.ready, prefill.wanted, coming=prefill.coming)
    elif prefill.wanted:
        return  # that is `step_balance`
    found = step_combined(prefill, decode, is_combined=is_combined, max_skew=skew)
    assert 0 <= found[0] <= prefill.ready
    assert min(1, decode.ready) <= found[1] <= decode.ready
    if found[0] == 0:
        assert found[1] >= decode.goal
    if prefill.wanted == 0 and found[0]:
        assert found == (prefill.routed, decode.routed), "what is to be combined keeps its ratio until it is"


@given(wanted=st.integers(0, 6), decode=roles(), is_combined=st.booleans())
def test_once_all_are_ready_a_group_is_what_it_shall_be(wanted, decode, is_combined):
    prefill = role(0, wanted + 2, wanted)
    complete = RoleState(routed=decode.routed, ready=max(decode.ready, decode.wanted), wanted=decode.wanted)
    if not wanted or is_combined:
        found = step_combined(prefill, complete, is_combined=is_combined, max_skew=0.5)
        assert found == (wanted, decode.wanted)


def test_a_planner_that_asks_for_no_prefills_asks_for_combined_groups():
    found = target_for(0, 5, groups=2, reason="because", pods_per_group=4)
    assert (found.groups, found.prefill, found.decode, found.is_combined) == (2, 0, 5, True)
    assert found.bounded() == found
    assert target_for(0, 9, groups=1, reason="because", pods_per_group=4).groups == 3
    assert Target(groups=1, prefill=0, decode=1, reason="").bounded().prefill == 1, "it must be said"
