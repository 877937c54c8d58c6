"""Scenarios with groups of their own: how many, of what size, who is sent there, and what is said of it."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.planning.seen import DEFAULTS, NOW, group_pods, revision_of, routes, service, spec
from tests.unit.planning.world import World

from tidewheel.api.manifest import CONFIG_MAPS
from tidewheel.api.ranktable import RankTable
from tidewheel.planning.pdservice import plan_service
from tidewheel.planning.targets import Size, Target, shares, target_for, targets_of


def code(**groups) -> dict:
    return {"name": "code", "match": {"modelAliases": ["coder"]}, "groups": groups}


CHAT = {"name": "chat", "match": {"promptLength": {"min": 10}}}


def settled(**changes) -> World:
    world = World(**changes)
    world.settle()
    return world


def pods_of(world: World, scenario: str) -> list[str]:
    label = "tidewheel.dev/scenario"
    return [
        one["metadata"]["name"]
        for one in world.pods
        if one["metadata"]["labels"].get(label, "default") == scenario
        and one["metadata"]["labels"]["tidewheel.dev/role"] != "gateway"
    ]


def test_a_scenario_has_groups_of_its_own_size():
    world = settled(scenarios=[code(replicas=2, prefill=2, decode=1)])
    assert len(pods_of(world, "code")) == 6
    assert len(pods_of(world, "default")) == 2


def test_its_requests_go_to_its_groups_and_all_others_to_everybodys():
    world = settled(scenarios=[code(replicas=1), CHAT])
    routes = world.routes()
    by_scenario = {one.name: one.groups for one in routes.scenarios}
    assert by_scenario["chat"] == routes.default_groups
    assert len(routes.default_groups) == len(by_scenario["code"]) == 1
    assert not set(by_scenario["code"]) & set(routes.default_groups)


def test_a_mesh_ends_at_the_group():
    world = settled(groups=2, scenarios=[code(replicas=2, decode=2)])
    tables = [
        RankTable.model_validate_json(one["data"]["ranktable.json"])
        for name in world.names("ConfigMap")
        if name.endswith("-ranks") and (one := world.cache.get(CONFIG_MAPS, "ns", name)) is not None
    ]
    assert len(tables) == 4
    members = [member.name for table in tables for member in table.members]
    assert len(members) == len(set(members)), "nobody is in two meshes"
    assert all(member.name.startswith(table.group) for table in tables for member in table.members)


@pytest.mark.parametrize(
    ("when_down", "served_by"),
    [("UseDefault", "everybody's groups"), ("Wait", "nobody")],
)
def test_what_happens_while_none_of_its_groups_serves(when_down, served_by):
    world = settled(scenarios=[code(replicas=1, whenDown=when_down)])
    for name in pods_of(world, "code"):
        world.unready_pod(name)
    world.reconcile()
    (told,) = world.routes().scenarios
    assert told.groups == (world.routes().default_groups if served_by == "everybody's groups" else ())
    world.reconcile()
    degraded = world.condition("Degraded")
    assert (degraded["reason"], "scenario code" in degraded["message"]) == ("ScenarioDown", True)
    assert world.condition("Ready")["status"] == "True", "the others are served"


def test_a_scenario_that_is_removed_gives_its_groups_back():
    world = settled(scenarios=[code(replicas=1)])
    world.change(scenarios=[])
    world.settle()
    assert pods_of(world, "code") == []
    assert any("no groups for scenario code" in message for _, message in world.events)


def test_the_status_tells_of_each_scenario_and_of_its_sources():
    world = settled(groups=1, scenarios=[code(replicas=2, prefill=3)])
    status = world.service["status"]
    assert [
        (one["name"], one["groups"], one["readyGroups"], one["ratio"]) for one in status["scenarios"]
    ] == [
        ("default", 1, 1, "1:1"),
        ("code", 2, 2, "6:2"),
    ]
    assert status["scenarios"][1]["prefill"]["summary"] == "6/6"
    assert status["scenarios"][1]["reason"] == "spec.scenarios[code].groups.replicas is 2"
    assert (status["groups"], status["readyGroups"], status["defaultGroups"]) == (3, 3, 1)
    assert status["prefill"]["summary"] == "7/7"


def test_a_service_without_groups_by_scenario_says_nothing_of_them():
    assert settled(scenarios=[CHAT]).service["status"]["scenarios"] == []


def test_a_rollout_in_one_scenario_does_not_wait_for_another_that_cannot_be_placed():
    world = settled(groups=1, scenarios=[code(replicas=1)])
    stuck = set()
    world.change(image="two")
    for _ in range(30):
        world.reconcile()
        for name in pods_of(world, "code"):
            if name not in stuck and not world.is_ready(name):
                stuck.add(name)
                world.update_pod(name, UNSCHEDULABLE)
        for name in set(world.names("Pod")) - stuck:
            world.run_pod(name)
        world.end_pods()
        world.now += timedelta(seconds=1)
    revision = world.service["status"]["revision"]
    assert all(revision in name for name in pods_of(world, "default"))
    assert any(revision not in name for name in pods_of(world, "code")), "its old group serves on"


UNSCHEDULABLE = {
    "conditions": [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no room"},
        {"type": "Ready", "status": "False"},
    ]
}


def test_a_planners_target_replaces_the_numbers_of_the_spec():
    wanted = spec(groups=1)
    asked = {"default": Target(groups=2, prefill=3, decode=2, reason="T_p's share rose to 0.7")}
    found = plan_service(service(wanted), now=NOW, defaults=DEFAULTS, targets=asked)
    roles = [order.role for order in found.children.pods if order.role != "gateway"]
    assert (roles.count("prefill"), roles.count("decode")) == (3, 2)
    assert any("T_p's share rose to 0.7" in decision.message for decision in found.status.decisions)
    assert (found.status.prefill.desired, found.status.decode.desired) == (3, 2)


def planned(wanted, *pods, groups: int, prefill: int, decode: int):
    asked = {"default": Target(groups=groups, prefill=prefill, decode=decode, reason="because")}
    found = plan_service(service(wanted, *pods), now=NOW, defaults=DEFAULTS, targets=asked)
    routed = {one.name for group in found.children.routes.groups for one in (*group.prefill, *group.decode)}
    return found, routed


def test_pods_that_move_to_another_group_stay_until_it_serves():
    wanted = spec(groups=1, prefill={"replicas": 2}, decode={"replicas": 4})
    one = group_pods(wanted)
    found, routed = planned(wanted, *one, groups=2, prefill=2, decode=4)
    assert len(found.children.pods) == 1 + 3, "a gateway, and a group of 1:2"
    assert routed == {pod.name for pod in one}, "nobody leaves yet"
    other = [pod for pod in group_pods(wanted, 1) if pod.ordinal < (1 if pod.role == "prefill" else 2)]
    _, routed = planned(wanted, *one, *other, groups=2, prefill=2, decode=4)
    assert len(routed) == 6


def test_who_left_the_routes_is_not_called_back_while_another_group_is_awaited():
    wanted = spec(groups=2, prefill={"replicas": 1}, decode={"replicas": 3})
    sizes = spec(prefill={"replicas": 2}, decode={"replicas": 2})
    pods = [*group_pods(sizes, 0, revision=revision_of(wanted)), *group_pods(wanted, 1, ready=False)]
    left = next(pod for pod in pods if pod.role == "prefill" and pod.ordinal == 1)
    seen = service(wanted, *pods, routes=routes(*(pod for pod in pods if pod.ready and pod != left)))
    (group,) = plan_service(seen, now=NOW, defaults=DEFAULTS).children.routes.groups
    assert (len(group.prefill), len(group.decode)) == (1, 2)


def test_a_group_that_is_not_needed_stays_until_the_others_have_grown():
    wanted = spec(groups=2)
    pods = [*group_pods(wanted, 0), *group_pods(wanted, 1)]
    found, routed = planned(wanted, *pods, groups=1, prefill=2, decode=2)
    assert routed == {pod.name for pod in pods}
    assert [order.name[-9:] for order in found.children.pods][:2] == ["prefill-1", "-decode-1"]
    grown = [*group_pods(spec(prefill={"replicas": 2}, decode={"replicas": 2})), *group_pods(wanted, 1)]
    _, routed = planned(wanted, *grown, groups=1, prefill=2, decode=2)
    assert routed == {pod.name for pod in grown[:4]}


def test_who_cannot_be_placed_is_not_waited_for():
    wanted = spec(groups=2)
    stuck = [
        replace(pod, ready=False, phase="Pending", ip="", unschedulable="no gpu")
        for pod in group_pods(spec(prefill={"replicas": 2}, decode={"replicas": 2}))
        if pod.ordinal == 1
    ]
    pods = [*group_pods(wanted, 0), *stuck, *group_pods(wanted, 1)]
    _, routed = planned(wanted, *pods, groups=1, prefill=2, decode=2)
    assert routed == {pod.name for pod in group_pods(wanted, 0)}, "what goes makes room"


def test_a_planner_does_not_wake_a_suspended_service():
    asked = {"default": Target(groups=2, prefill=2, decode=2, reason="because")}
    assert targets_of(spec(suspend=True), asked)["default"].groups == 0


@pytest.mark.parametrize(
    ("asked", "want"),
    [((2, 1, 1), (2, 2)), ((1, 100, 0), (64, 1)), ((0, 3, 3), (0, 0)), ((-1, 1, 1), (0, 0))],
    ids=["each group needs one of each", "and has at most 64", "no groups, no pods", "nor less than none"],
)
def test_a_target_beyond_what_groups_can_be_is_brought_within(asked, want):
    groups, prefill, decode = asked
    found = Target(groups=groups, prefill=prefill, decode=decode, reason="").bounded()
    assert (found.prefill, found.decode) == want


@pytest.mark.parametrize(
    ("prefill", "decode", "groups", "want"),
    [
        pytest.param(3, 5, 1, 1, id="within its group"),
        pytest.param(3, 9, 1, 2, id="by a whole group, when one has no room"),
        pytest.param(3, 5, 4, 3, id="each group needs one of each"),
        pytest.param(1, 30, 1, 1, id="even if it is then too large"),
        pytest.param(0, 5, 2, 2, id="no prefill, combined groups"),
        pytest.param(2, 0, 2, 0, id="no decode, no groups"),
        pytest.param(6, 6, 1, 2, id="both roles count"),
    ],
)
def test_a_planners_pods_find_their_groups(prefill, decode, groups, want):
    found = target_for(prefill, decode, groups=groups, reason="because", pods_per_group=8)
    assert found.groups == want


def test_what_does_not_divide_evenly_stays_where_it_is():
    target = Target(groups=3, prefill=4, decode=3, reason="")
    present = {"a": Size(prefill=1, decode=1), "b": Size(prefill=2, decode=1), "c": Size(prefill=1, decode=1)}
    assert {name: size.prefill for name, size in shares(target, present).items()} == {"a": 1, "b": 2, "c": 1}


@given(
    groups=st.integers(1, 6),
    prefill=st.integers(0, 30),
    decode=st.integers(0, 30),
    present=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=6, max_size=6),
)
def test_shares_add_up_and_differ_by_one_at_most(groups, prefill, decode, present):
    target = Target(groups=groups, prefill=prefill, decode=decode, reason="").bounded()
    names = {
        f"g{index}": Size(prefill=one, decode=other) for index, (one, other) in enumerate(present[:groups])
    }
    found = shares(target, names)
    for role in ("prefill", "decode"):
        each = [size.of(role) for size in found.values()]
        assert sum(each) == target.of(role)
        assert max(each) - min(each) <= 1
        assert min(each) >= 1
    assert shares(target, found) == found, "nobody moves once it is so"


def test_a_published_document_says_all_or_none():
    """A gateway of this version reads `no groups` and `all groups` apart."""
    world = settled(scenarios=[code(replicas=1, whenDown="Wait")])
    for name in pods_of(world, "code"):
        world.unready_pod(name)
    world.reconcile()
    wire = json.loads(world.routes().to_text())
    assert wire["scenarios"][0]["groups"] == []
    assert "defaultGroups" not in json.loads(settled().routes().to_text())


@pytest.mark.parametrize(
    ("flips", "told"),
    [
        ("Disabled", "pods leave when those that come for them are ready"),
        ("Enabled", "leaves the role decode to become a prefill pod"),
    ],
)
def test_a_ratio_is_not_settled_before_it_is_reached(flips, told):
    world = settled(decode={"replicas": 2}, rollout={"roleFlips": flips})
    world.change(prefill={"replicas": 2}, decode={"replicas": 1})
    world.reconcile()
    world.reconcile()
    progressing = world.condition("Progressing")
    assert progressing["status"] == "True", "as many pods as are wanted are ready, but not the right ones"
    assert told in progressing["message"]
    world.settle()
    assert world.condition("Progressing")["reason"] == "Settled"


def test_growing_a_ratio_adds_to_the_group_and_touches_nobody():
    wanted = spec(prefill={"replicas": 2})
    seen = service(wanted, *group_pods(spec()))
    found = plan_service(seen, now=NOW, defaults=DEFAULTS)
    assert not found.departures
    assert [order.name[-9:] for order in found.children.pods if order.role != "gateway"] == ["prefill-1"]
