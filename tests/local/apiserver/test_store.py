"""The store: versions, history, indexes and watches, without HTTP."""

from __future__ import annotations

from typing import Any

import pytest

from tidewheel.local.apiserver.changes import Expired
from tidewheel.local.apiserver.store import Store


def thing(
    name: str, *, namespace: str = "ns", labels: dict[str, str] | None = None, value: int = 0
) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "name": name,
        "namespace": namespace,
        "uid": f"uid-{namespace}-{name}",
        "labels": labels or {},
    }
    return {"apiVersion": "v1", "kind": "Thing", "metadata": metadata, "value": value}


def names(items: Any) -> list[str]:
    return [item.key[1] for item in items]


def everything(_: Any) -> bool:
    return True


def test_every_write_gets_the_next_version():
    store = Store()
    first, second = store.put("things", thing("a")), store.put("others", thing("a"))
    assert second.version == first.version + 1
    assert second.object()["metadata"]["resourceVersion"] == str(second.version)


def test_a_read_object_can_be_changed_without_changing_the_store():
    store = Store()
    item = store.put("things", thing("a", value=1))
    item.object()["value"] = 2
    assert store.get("things", "ns", "a").object()["value"] == 1


def test_lists_come_in_order_of_namespace_and_name():
    store = Store()
    for namespace, name in (("b", "x"), ("a", "z"), ("a", "y")):
        store.put("things", thing(name, namespace=namespace))
    assert [item.key for item in store.collection("things").select()] == [("a", "y"), ("a", "z"), ("b", "x")]
    assert names(store.collection("things").select(namespace="a")) == ["y", "z"]


def test_the_label_index_follows_changes_and_deletes():
    store = Store()
    store.put("things", thing("a", labels={"app": "x"}))
    store.put("things", thing("b", labels={"app": "x"}))
    store.put("things", thing("a", labels={"app": "y"}))
    assert names(store.collection("things").select(labels=[("app", "x")])) == ["b"]
    store.delete("things", store.get("things", "ns", "b"))
    assert names(store.collection("things").select(labels=[("app", "x")])) == []


def test_an_old_version_can_still_be_listed():
    store = Store()
    store.put("things", thing("a", value=1))
    then = store.put("things", thing("b")).version
    store.put("things", thing("a", value=2))
    store.put("things", thing("c"))
    store.delete("things", store.get("things", "ns", "b"))
    seen = list(store.collection("things").select(version=then))
    assert names(seen) == ["a", "b"]
    assert seen[0].object()["value"] == 1


async def test_a_watch_catches_up_and_then_follows():
    store = Store()
    since = store.put("things", thing("a")).version
    store.put("things", thing("b"))
    watch = store.collection("things").watch(everything, since)
    store.put("things", thing("a", value=1))
    store.delete("things", store.get("things", "ns", "b"))
    seen = [(event.type, event.item.key[1]) for event in await watch.events(0)]
    assert seen == [("ADDED", "b"), ("MODIFIED", "a"), ("DELETED", "b")]


async def test_a_filtered_watch_sees_objects_enter_and_leave_its_view():
    store = Store()
    watch = store.collection("things").watch(lambda item: item.labels.get("on") == "yes", None)
    store.put("things", thing("a"))
    store.put("things", thing("a", labels={"on": "yes"}))
    left = store.put("things", thing("a", value=7))
    seen = await watch.events(0)
    assert [event.type for event in seen] == ["ADDED", "DELETED"]
    # What is shown is the last state that the client could see, at the version at which it left.
    assert seen[1].item.object()["value"] == 0
    assert seen[1].item.object()["metadata"]["resourceVersion"] == str(left.version)


def test_a_version_behind_the_history_has_expired():
    store = Store(history=2)
    old = store.put("things", thing("a")).version
    for value in range(4):
        store.put("things", thing("a", value=value))
    with pytest.raises(Expired, match=f"too old resource version: {old}"):
        store.collection("things").watch(everything, old)


async def test_a_client_that_never_reads_is_cut_off():
    store = Store()
    watch = store.collection("things").watch(everything, None)
    for value in range(watch.limit + 1):
        store.put("things", thing("a", value=value))
    assert watch.closed


def test_dependents_are_found_by_the_uid_of_their_owner():
    store = Store()
    child = thing("child")
    child["metadata"]["ownerReferences"] = [
        {"uid": "owner", "kind": "Thing", "name": "o", "apiVersion": "v1"}
    ]
    store.put("things", child)
    assert [item.key[1] for _, item in store.dependents("owner")] == ["child"]
    store.put("things", thing("child"))
    assert store.dependents("owner") == []
