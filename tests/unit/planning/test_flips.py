"""Pods that take the other role: who is chosen, in which steps, when it is given up, and what is never done."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.planning.seen import (
    DEFAULTS,
    NOW,
    gateway_pods,
    pod,
    ranks,
    revision_of,
    routes,
    service,
    spec,
)
from tests.unit.planning.world import World

from tidewheel.api.meta import ANNOTATION_FLIPS_TO, ANNOTATION_MAY_FLIP, LABEL_ROLE
from tidewheel.planning.flips import roles_match
from tidewheel.planning.intent import Intent
from tidewheel.planning.names import Place
from tidewheel.planning.observed import ObservedPod, PublishedMap
from tidewheel.planning.pdservice import plan_service

DEVICES = {"accelerator": "nvidia-gpu"}


def env(name: str, value: str = "1") -> dict[str, Any]:
    return {"spec": {"containers": [{"name": "worker", "env": [{"name": name, "value": value}]}]}}


@pytest.mark.parametrize(
    ("prefill", "decode", "want"),
    [
        pytest.param({}, {}, True, id="alike"),
        pytest.param(
            {"replicas": 3}, {"slots": 32, "kvCacheTokens": 4096}, True, id="numbers and sizes differ"
        ),
        pytest.param(DEVICES, {}, False, id="another accelerator"),
        pytest.param({"devicesPerPod": 2}, {}, False, id="more devices"),
        pytest.param({"resources": {"requests": {"cpu": "2"}}}, {}, False, id="other resources"),
        pytest.param({"template": env("A")}, {"template": env("A", "2")}, False, id="other templates"),
        pytest.param({"template": env("A")}, {"template": env("A")}, True, id="one template"),
        pytest.param(
            {"template": env("TIDEWHEEL_SLOTS")}, {"template": env("TIDEWHEEL_SLOTS")}, False, id="fixed size"
        ),
        pytest.param(
            *[{"template": {"spec": {"containers": [{"name": "worker", "image": "other-engine"}]}}}] * 2,
            False,
            id="another engine",
        ),
    ],
)
def test_roles_match_when_a_pod_of_one_could_do_for_the_other(prefill, decode, want):
    assert roles_match(spec(prefill=prefill, decode=decode)) is want


def group_of(prefill: int, decode: int, *, wanted: Any, **fields: Any) -> list[ObservedPod]:
    name = f"chat-{revision_of(wanted)}-0"
    fields = {"may_flip": True} | fields
    return [
        *(pod("prefill", place, group=name, **fields) for place in range(prefill)),
        *(pod("decode", place, group=name, **fields) for place in range(decode)),
    ]


def ratio(prefill: int, decode: int, **changes: Any):
    return spec(prefill={"replicas": prefill}, decode={"replicas": decode}, **changes)


def plan(wanted: Any, pods: list[ObservedPod], **fields: Any) -> Intent:
    return plan_service(service(wanted, *pods, *gateway_pods(wanted), **fields), now=NOW, defaults=DEFAULTS)


def created(intent: Intent) -> list[str]:
    return [order.name.split("-", 3)[-1] for order in intent.children.pods]


def marked(pods: list[ObservedPod], name: str, to: str, **fields: Any) -> list[ObservedPod]:
    """The same pods, of which one is to take another role; its mark is ten seconds old."""
    fields = {"flips_to": to, "flip_began": NOW - timedelta(seconds=10)} | fields
    return [replace(one, **fields) if one.name.endswith(name) else one for one in pods]


def test_a_surplus_pod_is_marked_to_take_the_place_of_the_one_that_lacks():
    wanted = ratio(2, 2)
    pods = group_of(1, 3, wanted=wanted)
    found = plan(wanted, pods)
    (marking,) = found.markings
    assert (marking.pod.name, marking.flips_to, marking.turned) == (pods[-1].name, "prefill", None)
    assert not found.children.pods
    assert not found.departures
    (group,) = found.children.routes.groups
    assert len(group.decode) == 3, "it serves until its mark is seen"
    (deed,) = [one for one in found.status.decisions if one.action == "FlipMember"]
    assert "saves the start-up" in deed.message


@pytest.mark.parametrize(
    ("have", "want", "comes", "goes", "flips"),
    [
        pytest.param((1, 3), (2, 2), 0, 0, 1, id="one for one"),
        pytest.param((3, 1), (2, 2), 0, 0, 1, id="the other way"),
        pytest.param((1, 3), (4, 2), 2, 0, 1, id="what it cannot give is created"),
        pytest.param((1, 3), (3, 3), 2, 0, 0, id="nobody to spare"),
        pytest.param((2, 3), (2, 2), 0, 1, 0, id="nobody is lacking"),
        pytest.param((1, 5), (3, 3), 0, 0, 1, id="one at a time"),
    ],
)
def test_flips_make_up_what_one_role_can_give_and_the_other_lacks(have, want, comes, goes, flips):
    wanted = ratio(*want)
    pods = group_of(*have, wanted=wanted)
    found = plan(wanted, pods)
    assert len(found.markings) == flips
    assert len(found.children.pods) == comes
    staying = len(found.children.rank_tables[0].members)
    assert sum(have) - staying == goes


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        pytest.param({"rollout": {"roleFlips": "Disabled"}}, {}, id="switched off"),
        pytest.param({}, {"may_flip": False}, id="not made for both roles"),
        pytest.param({}, {"ready": False}, id="not well"),
    ],
)
def test_without_a_pod_that_may_flip_one_is_created_and_another_leaves(changes, fields):
    wanted = ratio(2, 2, **changes)
    found = plan(wanted, group_of(1, 3, wanted=wanted, **fields))
    assert not found.markings
    assert created(found) == ["prefill-1"]


def test_a_pod_flips_only_if_as_many_as_asked_for_serve_without_it():
    wanted = ratio(2, 2)
    pods = group_of(1, 3, wanted=wanted)
    pods = marked(pods, "decode-0", None, ready=False, flip_began=None)
    found = plan(wanted, pods)
    assert not found.markings
    assert created(found) == ["prefill-1"]


def stepped(*, routed: bool, routes_age: float, ranked: bool, ranks_age: float, ready: bool) -> Intent:
    wanted = ratio(2, 2)
    pods = marked(group_of(1, 3, wanted=wanted), "decode-2", "prefill", ready=ready)
    others = pods[:-1]
    table = ranks(*(pods if ranked else others))
    table = PublishedMap(digest=table.digest, members=table.members, since=NOW - timedelta(seconds=ranks_age))
    return plan(
        wanted,
        pods,
        routes=routes(*(pods if routed else others), age=routes_age),
        ranks={pods[0].group: table},
    )


LEFT = {"routed": False, "routes_age": 30, "ranked": False, "ranks_age": 30, "ready": False}


@pytest.mark.parametrize(
    ("seen", "in_ranks", "turns"),
    [
        pytest.param(LEFT | {"routed": True, "ranked": True, "ready": True}, True, False, id="in the routes"),
        pytest.param(
            LEFT | {"routes_age": 1, "ranked": True, "ready": True}, True, False, id="routes just read"
        ),
        pytest.param(LEFT | {"ranked": True, "ready": True}, False, False, id="next, out of the rank table"),
        pytest.param(LEFT | {"ready": True}, False, False, id="ready as before"),
        pytest.param(LEFT | {"ranks_age": 1}, False, False, id="perhaps not ready for another reason"),
        pytest.param(LEFT, False, True, id="out of everything"),
    ],
)
def test_a_marked_pod_leaves_routes_then_ranks_then_its_role(seen, in_ranks, turns):
    found = stepped(**seen)
    (group,) = found.children.routes.groups
    assert [one.name[-8:] for one in group.decode] == ["decode-0", "decode-1"]
    assert any(one.name.endswith("decode-2") for one in found.children.rank_tables[0].members) is in_ranks
    assert [one.turned for one in found.markings] == ([("prefill", Place(1))] if turns else [])
    assert not found.children.pods
    assert not found.departures


def turned(wanted: Any, **fields: Any) -> list[ObservedPod]:
    """A group of 1:2 with a decode that is a prefill by its label."""
    pods = group_of(1, 2, wanted=wanted)
    began = {"flip_began": NOW - timedelta(seconds=20), "ready": False} | fields
    name = pods[0].group
    flipped = pod("decode", 2, group=name, may_flip=True)
    values = {"role": "prefill", "ordinal": 1, "born": ("decode", Place(2))} | began
    return [*pods, replace(flipped, **values)]


def test_a_turned_pod_joins_as_any_other_of_its_new_role():
    wanted = ratio(2, 2)
    pods = turned(wanted)
    found = plan(wanted, pods, routes=routes(*pods[:-1]), ranks={pods[0].group: ranks(*pods[:-1])})
    member = next(one for one in found.children.rank_tables[0].members if one.name == pods[-1].name)
    assert (member.role, member.rank) == ("prefill", 1)
    assert not found.markings
    assert not found.children.pods
    (group,) = found.children.routes.groups
    assert len(group.prefill) == 1, "not before it is ready"
    progressing = next(one for one in found.status.conditions if one.type == "Progressing")
    assert "joins as a prefill pod" in progressing.message


def test_a_pod_that_arrives_is_told_of_and_serves():
    wanted = ratio(2, 2)
    pods = turned(wanted, ready=True)
    found = plan(wanted, pods)
    (marking,) = found.markings
    assert (marking.flips_to, marking.began, marking.turned) == (None, None, None)
    assert len(found.children.routes.groups[0].prefill) == 2
    assert any("flipped decode pod" in event.message for event in found.events)


@pytest.mark.parametrize(
    ("pods", "why", "comes"),
    [
        pytest.param(
            lambda wanted: turned(wanted, flip_began=NOW - timedelta(hours=1)),
            "did not join",
            ["prefill-1-1"],
            id="that does not join",
        ),
        pytest.param(
            lambda wanted: marked(
                group_of(1, 3, wanted=wanted), "decode-2", "prefill", flip_began=NOW - timedelta(hours=1)
            ),
            "did not leave",
            ["prefill-1"],
            id="that does not leave",
        ),
    ],
)
def test_a_flip_that_takes_too_long_ends_with_a_new_pod(pods, why, comes):
    wanted = ratio(2, 2)
    seen = pods(wanted)
    found = plan(wanted, seen, routes=routes(*seen[:-1]), ranks={seen[0].group: ranks(*seen[:-1])})
    assert created(found) == comes
    (departure,) = found.departures
    assert departure.pod.name == seen[-1].name
    assert why in departure.why


def test_a_mark_whose_reason_is_gone_is_taken_back():
    wanted = ratio(1, 3)
    pods = marked(group_of(1, 3, wanted=wanted), "decode-2", "prefill", ready=False)
    found = plan(wanted, pods, routes=routes(*pods[:-1]), ranks={pods[0].group: ranks(*pods[:-1])})
    (marking,) = found.markings
    assert (marking.pod.name, marking.flips_to) == (pods[-1].name, None)
    assert pods[-1].name in {one.name for one in found.children.rank_tables[0].members}
    assert not found.departures


def test_a_new_pod_never_gets_the_name_of_one_that_flipped():
    wanted = ratio(2, 64)
    pods = turned(wanted, ready=True, flip_began=None)
    names = {order.name for order in plan(wanted, pods).children.pods}
    assert len(names) == 62
    assert pods[-1].name not in names


def flipped_world(**spec: Any) -> World:
    world = World(prefill={"replicas": 1}, decode={"replicas": 3}, **spec)
    world.settle()
    return world


def uids(world: World) -> dict[str, str]:
    return {one["metadata"]["uid"]: one["metadata"]["labels"][LABEL_ROLE] for one in world.pods}


def test_a_service_changes_its_ratio_without_a_new_pod_and_back():
    world = flipped_world()
    before = uids(world)
    world.change(prefill={"replicas": 2}, decode={"replicas": 2})
    world.settle()
    after = uids(world)
    assert after.keys() == before.keys()
    assert sorted(after.values()).count("prefill") == 2
    world.change(prefill={"replicas": 1}, decode={"replicas": 3})
    world.settle()
    assert uids(world) == before
    assert world.flips == 2
    flipped = [message for _, message in world.events if message.startswith("flipped")]
    assert len(flipped) == 2


def test_every_group_flips_its_own_and_several_one_after_the_other():
    world = World(groups=2, prefill={"replicas": 1}, decode={"replicas": 4})
    world.settle()
    before = uids(world)
    world.change(prefill={"replicas": 3}, decode={"replicas": 2})
    world.settle()
    assert uids(world).keys() == before.keys()
    assert world.flips == 4


def test_an_operator_that_starts_again_goes_on_where_the_flip_stands():
    world = flipped_world()
    before = uids(world)
    world.change(prefill={"replicas": 2}, decode={"replicas": 2})
    while not any(ANNOTATION_FLIPS_TO in (one["metadata"].get("annotations") or {}) for one in world.pods):
        world.reconcile()
    world.controller = type(world.controller)(DEFAULTS, watches_nodes=True)
    world.settle()
    assert uids(world).keys() == before.keys()
    assert world.flips == 1


def test_pods_say_that_they_are_made_for_both_roles():
    world = flipped_world()
    roles = {
        one["metadata"]["labels"][LABEL_ROLE]
        for one in world.pods
        if (one["metadata"].get("annotations") or {}).get(ANNOTATION_MAY_FLIP) == "true"
    }
    assert roles == {"prefill", "decode"}


counts = st.integers(1, 4)
mishaps = st.tuples(
    st.sampled_from(
        ["none", "fails", "stumbles", "is deleted", "vanishes", "crashes", "waits", "switch", "refuse"]
    ),
    st.integers(0, 7),
)


def happen(world: World, what: str, number: int) -> None:
    names = [one["metadata"]["name"] for one in world.pods]
    name = names[number % len(names)]
    match what:
        case "fails":
            world.fail_pod(name)
        case "stumbles":
            world.unready_pod(name)
        case "is deleted":
            world.delete_pod(name)
        case "vanishes":
            world.vanish(name)
        case "crashes":
            world.crash_pod(name, restarts=number)
        case "waits":
            world.now += timedelta(seconds=20 * number)
        case "switch":
            flips = "Enabled" if number % 2 else "Disabled"
            world.change(rollout={"roleFlips": flips})
        case "refuse":
            world.refuse = {"Pod": (403, "exceeded quota")} if number % 2 else {}


@given(
    groups=st.integers(1, 2),
    ratios=st.lists(st.tuples(counts, counts), min_size=2, max_size=4),
    story=st.lists(mishaps, max_size=30),
)
@settings(max_examples=60, deadline=None)
def test_whatever_happens_during_flips_no_place_is_held_twice_and_all_come_to_rest(groups, ratios, story):
    (prefill, decode), *later = ratios
    world = World(groups=groups, prefill={"replicas": prefill}, decode={"replicas": decode})
    world.settle()
    events = iter(story)
    for prefill, decode in later:
        world.change(prefill={"replicas": prefill}, decode={"replicas": decode})
        for what, number in itertools.islice(events, 10):
            for one in world.pods:
                world.run_pod(one["metadata"]["name"])
            world.look_at_ranks()
            world.reconcile()
            happen(world, what, number)
            world.now += timedelta(seconds=1)
            world.reconcile()
    world.refuse.clear()
    world.refusals.clear()
    for one in world.pods:
        if (one.get("status") or {}).get("phase") != "Failed":
            world.run_pod(one["metadata"]["name"])
    world.settle()
    roles = list(uids(world).values())
    assert (roles.count("prefill"), roles.count("decode")) == (groups * prefill, groups * decode)
    for one in world.seen.pods:
        assert one.flips_to is None
        assert one.flip_began is None
