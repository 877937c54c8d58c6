"""Sick devices and lost nodes: who is substituted, when, and what becomes of those who may come back."""

from __future__ import annotations

from datetime import timedelta

import pytest
from tests.unit.planning.world import World

from tidewheel.api.manifest import NODES
from tidewheel.planning.faults import DEVICE_PATIENCE, NODE_PATIENCE

DEVICES = {"prefill": {"accelerator": "nvidia"}, "decode": {"accelerator": "nvidia", "replicas": 2}}


def placed(**changes) -> World:
    """A settled service: prefill and gateway on node a, decode 0 on b, decode 1 on c."""
    world = World(**DEVICES | changes)
    world.settle()
    for node in "abc":
        world.put_node(node)
    for name in world.names("Pod"):
        world.bind(name, {"0-decode-0": "b", "0-decode-1": "c"}.get(name[-10:], "a"))
    world.settle()
    return world


def named(world: World, part: str) -> list[str]:
    return [name for name in world.names("Pod") if part in name]


def settle_on(world: World, node: str) -> None:
    """New pods come to run on a node; those on lost nodes stay as they are."""
    for _ in range(6):
        for one in world.pods:
            if not one["spec"].get("nodeName"):
                world.bind(one["metadata"]["name"], node)
            if one["spec"].get("nodeName", node) == node:
                world.run_pod(one["metadata"]["name"])
        world.reconcile()
        world.now += timedelta(seconds=3)


def test_a_node_that_is_silent_for_a_moment_costs_nothing():
    world = placed()
    world.put_node("b", ready=False)
    world.unready_pod(named(world, "decode-0")[0])
    world.reconcile()
    assert world.plan().look_again_in <= NODE_PATIENCE.total_seconds()
    world.now += NODE_PATIENCE - timedelta(seconds=1)
    world.reconcile()
    assert len(named(world, "decode")) == 2
    assert world.condition("Degraded")["reason"] == "NodeLost"


def test_a_lost_nodes_pod_is_substituted_once_and_deleted_when_its_substitute_serves():
    world = placed()
    world.put_node("b", ready=False)
    world.unready_pod(named(world, "decode-0")[0])
    world.now += NODE_PATIENCE
    world.reconcile()
    assert len(named(world, "decode-0")) == 2
    assert not world.plan().delete
    settle_on(world, "a")
    assert [one["metadata"]["name"] for one in world.pods if "decode-0" in one["metadata"]["name"]] == [
        named(world, "decode-0-1")[0]
    ]
    assert len(named(world, "decode-1")) == len(named(world, "prefill-0")) == 1, "nobody else is touched"


def test_a_pod_on_a_lost_node_that_is_not_wanted_any_more_is_not_waited_for():
    world = placed(gateway={"replicas": 1})
    world.put_node("a", ready=False)
    world.now += NODE_PATIENCE
    world.change(image="two")
    for _ in range(8):
        world.reconcile()
        for one in world.pods:
            if not one["spec"].get("nodeName"):
                world.bind(one["metadata"]["name"], "b")
            if one["spec"].get("nodeName", "b") == "b":
                world.run_pod(one["metadata"]["name"])
        world.end_pods()
        world.now += timedelta(seconds=3)
    assert len(named(world, "gateway")) == 1


def test_a_node_that_comes_back_in_time_keeps_its_pod():
    world = placed()
    world.put_node("b", ready=False)
    first = named(world, "decode-0")[0]
    world.unready_pod(first)
    world.now += NODE_PATIENCE
    world.reconcile()
    world.put_node("b")
    world.run_pod(first)
    world.now += timedelta(seconds=5)
    world.settle()
    assert named(world, "decode-0") == [first]


def test_a_node_that_was_deleted_is_lost():
    world = placed()
    world.now += timedelta(hours=1)
    world.delete_node("c")
    world.unready_pod(named(world, "decode-1")[0])
    world.reconcile()
    assert len(named(world, "decode-1")) == 2


def test_a_pod_on_a_node_that_was_not_heard_of_yet_is_not_lost():
    world = placed(groups=2)
    world.now += timedelta(hours=1)
    world.bind(named(world, "1-decode-0")[0], "brand-new")
    world.reconcile()
    assert len(named(world, "1-decode-0")) == 1


@pytest.mark.parametrize(
    ("reason", "wait"),
    [("UncorrectableError", timedelta(0)), ("Recovering", DEVICE_PATIENCE)],
    ids=["at once", "what recovers by itself is given its time"],
)
def test_pods_on_sick_devices_are_substituted(reason, wait):
    world = placed()
    world.put_node("b", sick=reason, message="link down on all devices")
    if wait:
        world.now += wait - timedelta(seconds=1)
        world.reconcile()
        assert len(named(world, "decode-0")) == 1
        world.now += timedelta(seconds=1)
    world.reconcile()
    assert len(named(world, "decode-0")) == 2
    assert any(action == "DeviceUnhealthy" and "link down" in message for action, message in world.events)


def test_a_pod_without_devices_does_not_care_for_sick_ones():
    world = placed()
    world.put_node("a", sick="UncorrectableError")
    world.reconcile()
    assert len(named(world, "gateway")) == 1
    assert len(named(world, "prefill-0")) == 2


def test_a_worker_that_found_its_device_sick_is_substituted_at_once():
    world = placed()
    told = '{"reason": "DeviceUnhealthy", "message": "a device of this pod is sick: ECC"}'
    world.crash_pod(named(world, "decode-0")[0], restarts=1, message=told)
    world.reconcile()
    assert len(named(world, "decode-0")) == 2
    assert len(named(world, "decode-1")) == 1


def test_several_faults_at_once_cost_one_substitute_each():
    world = placed(groups=3)
    world.now += timedelta(hours=1)
    before = set(world.names("Pod"))
    lost = named(world, "0-decode-0") + named(world, "1-prefill-0") + named(world, "2-decode-1")
    for name in lost:
        world.fail_pod(name)
    for _ in range(4):
        world.reconcile()
        world.now += timedelta(seconds=3)
    new = set(world.names("Pod")) - before
    assert sorted(name.rpartition("-")[0] for name in new) == sorted(lost)


def test_healthy_nodes_wake_nobody_and_sick_ones_their_services():
    world = placed()

    def woken(name: str) -> set[str]:
        found = world.cache.get(NODES, "", name) or {"metadata": {"name": name}}
        return {key.name for key in world.controller.concerned_by(NODES, found, world.cache)}

    assert woken("b") == set()
    world.put_node("b", ready=False)
    assert woken("b") == {"chat"}
    world.put_node("b")
    assert woken("b") == {"chat"}, "that it is well again matters once"
    assert woken("b") == set()
