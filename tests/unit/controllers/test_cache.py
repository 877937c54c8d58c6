"""The cache's one rule: what is known is never older than what was known, and what is gone stays gone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidewheel.api.manifest import PODS, Manifest
from tidewheel.controllers.cache import Cache, Owner


def pod(version: int, *, uid: str = "u1", name: str = "p", owner: str | None = "o1", **metadata) -> Manifest:
    references = [{"kind": "Fleet", "name": "f", "uid": owner, "controller": True}] if owner else []
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": "ns",
            "name": name,
            "uid": uid,
            "resourceVersion": str(version),
            "ownerReferences": references,
            **metadata,
        },
        "status": {"version": version},
    }


def version_in(cache: Cache, name: str = "p") -> int | None:
    found = cache.get(PODS, "ns", name)
    return found and found["status"]["version"]


def test_an_older_version_does_not_replace_a_newer_one():
    cache = Cache()
    assert cache.put(PODS, pod(5))
    assert not cache.put(PODS, pod(4)), "an event that was under way while we wrote"
    assert not cache.put(PODS, pod(5)), "the event of our own write"
    assert version_in(cache) == 5


def test_the_answer_to_a_write_does_not_bring_back_what_was_deleted_meanwhile():
    cache = Cache()
    cache.put(PODS, pod(5))
    assert cache.forget(PODS, "ns", "p", "u1", version=7)
    assert not cache.put(PODS, pod(6))
    assert version_in(cache) is None


def test_an_object_that_left_the_watch_and_came_back_is_known_again():
    cache = Cache()
    cache.put(PODS, pod(5))
    cache.forget(PODS, "ns", "p", "u1", version=7)
    assert cache.put(PODS, pod(8)), "it had lost the label it is selected by, and has it again"


def test_the_late_end_of_an_object_does_not_take_its_successor_along():
    cache = Cache()
    cache.put(PODS, pod(5, uid="u1"))
    cache.put(PODS, pod(9, uid="u2"))
    assert not cache.forget(PODS, "ns", "p", "u1", version=8)
    assert version_in(cache) == 9


def test_an_outdated_end_is_not_believed():
    cache = Cache()
    cache.put(PODS, pod(9))
    assert not cache.forget(PODS, "ns", "p", "u1", version=8)
    assert version_in(cache) == 9


def test_a_server_whose_history_went_back_is_believed_when_asked_for():
    cache = Cache()
    cache.put(PODS, pod(50))
    assert cache.put(PODS, pod(3), rewound=True)
    assert version_in(cache) == 3


def test_children_are_found_by_their_controller_in_the_order_of_their_names():
    cache = Cache()
    for name, owner in (("b", "o1"), ("a", "o1"), ("c", "o2"), ("d", None)):
        cache.put(PODS, pod(1, uid=f"u-{name}", name=name, owner=owner))
    assert [found["metadata"]["name"] for found in cache.owned_by("o1", PODS)] == ["a", "b"]
    assert cache.owner(PODS, "ns", "c") == Owner("Fleet", "f", "o2")
    cache.put(PODS, pod(2, uid="u-a", name="a", owner=None))
    assert [found["metadata"]["name"] for found in cache.owned_by("o1", PODS)] == ["b"]
    cache.forget(PODS, "ns", "b", "u-b")
    assert cache.owned_by("o1", PODS) == []


def test_bookkeeping_of_the_server_is_not_kept_and_the_given_object_not_changed():
    cache = Cache()
    annotations = {"kubectl.kubernetes.io/last-applied-configuration": "{}", "mine": "x"}
    given_object = pod(1, managedFields=[{"manager": "m"}], annotations=annotations)
    cache.put(PODS, given_object)
    kept = cache.get(PODS, "ns", "p")
    assert kept is not None
    assert "managedFields" not in kept["metadata"]
    assert kept["metadata"]["annotations"] == {"mine": "x"}
    assert given_object["metadata"]["annotations"] == annotations
    assert given_object["metadata"]["managedFields"]


def test_who_changes_what_was_read_changes_only_a_copy():
    cache = Cache()
    cache.put(PODS, pod(1))
    first = cache.get(PODS, "ns", "p")
    assert first is not None
    first["status"]["version"] = 99
    assert version_in(cache) == 1


events = st.lists(
    st.tuples(st.sampled_from(("put", "forget")), st.sampled_from(("u1", "u2")), st.integers(1, 30)),
    max_size=40,
)


@given(events=events)
def test_in_whatever_order_versions_arrive_the_known_one_never_goes_back(events):
    cache, before = Cache(), 0
    for what, uid, version in events:
        if what == "put":
            cache.put(PODS, pod(version, uid=uid))
        else:
            cache.forget(PODS, "ns", "p", uid, version=version)
        known = version_in(cache)
        if known is not None:
            assert known >= before or before == 0
            assert len(cache.owned_by("o1", PODS)) == 1
        else:
            assert cache.owned_by("o1", PODS) == []
        before = known or 0


@pytest.mark.parametrize("namespace", [None, "ns", "other"])
def test_names_are_listed_by_namespace(namespace):
    cache = Cache()
    cache.put(PODS, pod(1))
    assert list(cache.names(PODS, namespace)) == ([] if namespace == "other" else [("ns", "p")])
