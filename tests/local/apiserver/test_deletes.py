"""Deletes: grace, finalizers, owners, namespaces, definitions, budgets."""

from __future__ import annotations

import time
from typing import Any

import pytest
from tests.local.apiserver.conftest import CONFIG_MAPS, CRDS, GADGETS, MERGE, PODS, Client


def owned_by(*owners: dict[str, Any], block: bool = True) -> list[dict[str, Any]]:
    return [
        {
            "apiVersion": owner["apiVersion"],
            "kind": owner["kind"],
            "name": owner["metadata"]["name"],
            "uid": owner["metadata"]["uid"],
            "blockOwnerDeletion": block,
        }
        for owner in owners
    ]


async def test_a_bound_pod_waits_for_its_agent(client: Client):
    await client.create_pod("p", node="n")
    marked = await client.ok("DELETE", f"{PODS}/p?gracePeriodSeconds=7")
    assert marked["metadata"]["deletionGracePeriodSeconds"] == 7
    # A longer grace does not give time back; a shorter one takes it.
    assert (await client.ok("DELETE", f"{PODS}/p?gracePeriodSeconds=60"))["metadata"] == marked["metadata"]
    sooner = await client.ok("DELETE", f"{PODS}/p?gracePeriodSeconds=2")
    assert sooner["metadata"]["deletionGracePeriodSeconds"] == 2
    await client.ok("DELETE", f"{PODS}/p?gracePeriodSeconds=0")
    assert (await client.ask("GET", f"{PODS}/p"))[0] == 404


async def test_a_pod_on_no_node_goes_at_once(client: Client):
    await client.create_pod("p")
    await client.ok("DELETE", f"{PODS}/p")
    assert (await client.ask("GET", f"{PODS}/p"))[0] == 404


async def test_a_delete_can_name_the_one_it_means(client: Client):
    first = await client.create(CONFIG_MAPS, "a")
    for precondition in ({"uid": "other"}, {"resourceVersion": "1"}):
        status, answer = await client.ask("DELETE", f"{CONFIG_MAPS}/a", {"preconditions": precondition})
        assert (status, answer["reason"]) == (409, "Conflict")
    await client.ok("DELETE", f"{CONFIG_MAPS}/a", {"preconditions": {"uid": first["metadata"]["uid"]}})


async def test_an_object_goes_with_its_last_owner(gadgets: Client):
    one, two = await gadgets.create_gadget("one"), await gadgets.create_gadget("two")
    await gadgets.create(CONFIG_MAPS, "child", metadata={"ownerReferences": owned_by(one, two)})
    await gadgets.create(CONFIG_MAPS, "marker", metadata={"ownerReferences": owned_by(one)})
    await gadgets.ok("DELETE", f"{GADGETS}/one")
    await gadgets.gone(f"{CONFIG_MAPS}/marker")
    child = await gadgets.get(f"{CONFIG_MAPS}/child")
    assert [owner["name"] for owner in child["metadata"]["ownerReferences"]] == ["two"]
    await gadgets.ok("DELETE", f"{GADGETS}/two")
    await gadgets.gone(f"{CONFIG_MAPS}/child")


async def test_a_child_of_nobody_is_collected(gadgets: Client):
    owner = await gadgets.create_gadget("owner")
    owner["metadata"]["uid"] = "gone"
    await gadgets.create(CONFIG_MAPS, "child", metadata={"ownerReferences": owned_by(owner)})
    await gadgets.gone(f"{CONFIG_MAPS}/child")


async def test_foreground_goes_from_the_leaves_up(gadgets: Client):
    owner = await gadgets.create_gadget("owner")
    pod = await gadgets.create_pod("p", node="n", ownerReferences=owned_by(owner))
    await gadgets.create(CONFIG_MAPS, "leaf", metadata={"ownerReferences": owned_by(pod)})
    await gadgets.ok("DELETE", f"{GADGETS}/owner", {"propagationPolicy": "Foreground"})
    await gadgets.gone(f"{CONFIG_MAPS}/leaf")
    assert (await gadgets.get(f"{GADGETS}/owner"))["metadata"]["finalizers"] == ["foregroundDeletion"]
    await gadgets.ok("DELETE", f"{PODS}/p?gracePeriodSeconds=0")
    await gadgets.gone(f"{GADGETS}/owner")


async def test_foreground_does_not_wait_for_those_that_do_not_block(gadgets: Client):
    owner = await gadgets.create_gadget("owner")
    await gadgets.create_pod("p", node="n", ownerReferences=owned_by(owner, block=False))
    await gadgets.ok("DELETE", f"{GADGETS}/owner", {"propagationPolicy": "Foreground"})
    await gadgets.gone(f"{GADGETS}/owner")


async def test_a_namespace_takes_its_contents_along(gadgets: Client):
    await gadgets.create("/api/v1/namespaces", "doomed")
    below = "/api/v1/namespaces/doomed"
    await gadgets.create(f"{below}/configmaps", "held", metadata={"finalizers": ["example.com/hold"]})
    await gadgets.create(f"{below}/secrets", "s")
    answer = await gadgets.ok("DELETE", below)
    assert answer["status"]["phase"] == "Terminating"
    await gadgets.gone(f"{below}/secrets/s")
    status, refused = await gadgets.ask("POST", f"{below}/configmaps", {"metadata": {"name": "late"}})
    assert (status, refused["details"]["causes"][0]["reason"]) == (403, "NamespaceTerminating")
    await gadgets.ok(
        "PATCH", f"{below}/configmaps/held", {"metadata": {"finalizers": None}}, content_type=MERGE
    )
    await gadgets.gone(below)


async def test_a_definition_takes_its_objects_along(gadgets: Client):
    await gadgets.create_gadget("g", finalizers=["example.com/hold"])
    await gadgets.create_gadget("h")
    await gadgets.ok("DELETE", f"{CRDS}/gadgets.test.example.com")
    await gadgets.gone(f"{GADGETS}/h")
    await gadgets.get(f"{CRDS}/gadgets.test.example.com")
    await gadgets.ok("PATCH", f"{GADGETS}/g", {"metadata": {"finalizers": None}}, content_type=MERGE)
    await gadgets.gone(f"{CRDS}/gadgets.test.example.com")
    assert await gadgets.ask("GET", GADGETS) == (404, "404 page not found\n")


async def test_a_collection_is_deleted_by_selector(client: Client):
    for name, labels in (("a", {"app": "x"}), ("b", {"app": "x"}), ("c", {"app": "y"})):
        await client.create(CONFIG_MAPS, name, metadata={"labels": labels})
    await client.ok("DELETE", f"{CONFIG_MAPS}?labelSelector=app%3Dx")
    left = await client.get(CONFIG_MAPS)
    assert [one["metadata"]["name"] for one in left["items"]] == ["c"]


@pytest.mark.parametrize(("allowed", "status"), [(0, 429), (1, 201)])
async def test_an_eviction_spends_the_disruption_budget(client: Client, allowed: int, status: int):
    budgets = "/apis/policy/v1/namespaces/default/poddisruptionbudgets"
    await client.create_pod("p", labels={"app": "x"}, node="n")
    await client.ok("PATCH", f"{PODS}/p/status", {"status": {"phase": "Running"}}, content_type=MERGE)
    await client.create(budgets, "b", spec={"minAvailable": 1, "selector": {"matchLabels": {"app": "x"}}})
    await client.ok(
        "PATCH", f"{budgets}/b/status", {"status": {"disruptionsAllowed": allowed}}, content_type=MERGE
    )
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p"}}
    assert (await client.ask("POST", f"{PODS}/p/eviction", eviction))[0] == status
    assert ("deletionTimestamp" in (await client.get(f"{PODS}/p"))["metadata"]) == bool(allowed)
    assert (await client.get(f"{budgets}/b"))["status"]["disruptionsAllowed"] == 0


async def test_a_pod_is_bound_once(client: Client):
    await client.create_pod("p", node="n")
    status, answer = await client.ask("POST", f"{PODS}/p/binding", {"target": {"name": "m"}})
    assert (status, answer["reason"]) == (409, "Conflict")


async def test_events_are_forgotten_after_an_hour_without_news(client: Client):
    events = "/api/v1/namespaces/default/events"
    about = {"involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"}}
    await client.create(events, "e", **about)
    assert client.server.collector.expire_events(time.monotonic() + 3500) == 0
    assert client.server.collector.expire_events(time.monotonic() + 3700) == 1
    assert (await client.get(events))["items"] == []
