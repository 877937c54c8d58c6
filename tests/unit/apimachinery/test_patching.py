"""The three patch formats, with the laws that merge patches obey."""

from __future__ import annotations

from copy import deepcopy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidewheel.local.apimachinery.fields import BadRequest
from tidewheel.local.apimachinery.patching import PatchRefused, json_patch, merge_patch, strategic_merge_patch
from tidewheel.local.apimachinery.schema import builtin_schema

scalars = st.booleans() | st.integers() | st.text(max_size=3)
json_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abcd"), inner, max_size=4),
    max_leaves=12,
)
objects = st.dictionaries(st.sampled_from("abcd"), json_values, max_size=4)
patches = st.dictionaries(
    st.sampled_from("abcd"),
    st.recursive(
        scalars | st.none(),
        lambda inner: st.dictionaries(st.sampled_from("abcd"), inner, max_size=4),
        max_leaves=12,
    ),
    max_size=4,
)


@given(objects, patches)
def test_a_merge_patch_applied_twice_is_as_good_as_once(obj, patch):
    once = merge_patch(obj, patch)
    assert merge_patch(once, patch) == once


@given(objects, patches)
def test_a_merge_patch_changes_neither_the_object_nor_itself(obj, patch):
    before = deepcopy((obj, patch))
    merge_patch(obj, patch)
    assert (obj, patch) == before


@given(objects)
def test_an_empty_merge_patch_changes_nothing(obj):
    assert merge_patch(obj, {}) == obj


@given(objects, objects)
def test_the_difference_of_two_objects_leads_from_one_to_the_other(one, other):
    def difference(old, new):
        patch = {key: None for key in old if key not in new}
        for key, value in new.items():
            if isinstance(value, dict) and isinstance(old.get(key), dict):
                patch[key] = difference(old[key], value)
            elif key not in old or old[key] != value:
                patch[key] = value
        return patch

    assert merge_patch(one, difference(one, other)) == other


@pytest.mark.parametrize(
    ("obj", "patch", "want"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_the_examples_of_rfc_7396(obj, patch, want):
    assert merge_patch(obj, patch) == want


def test_json_patch_operations_apply_in_order():
    ops = [
        {"op": "test", "path": "/spec/size", "value": 5},
        {"op": "replace", "path": "/spec/size", "value": 6},
        {"op": "add", "path": "/spec/list/-", "value": 2},
        {"op": "remove", "path": "/spec/gone"},
    ]
    obj = {"spec": {"size": 5, "list": [1], "gone": True}}
    assert json_patch(obj, ops) == {"spec": {"size": 6, "list": [1, 2]}}
    assert obj == {"spec": {"size": 5, "list": [1], "gone": True}}


@pytest.mark.parametrize(
    "op",
    [
        {"op": "test", "path": "/spec/size", "value": 5},
        {"op": "remove", "path": "/spec/none"},
        {"op": "replace", "path": "/spec/none", "value": 1},
        {"op": "add", "path": "/none/x", "value": 1},
        {"op": "replace", "path": "", "value": "text"},
    ],
)
def test_an_operation_that_does_not_fit_is_refused_in_the_recorded_words(op):
    with pytest.raises(
        PatchRefused, match=r"^the server rejected our request due to an error in our request$"
    ):
        json_patch({"spec": {"size": 7}}, [op])


@pytest.mark.parametrize(
    ("patch", "body"),
    [
        (json_patch, {"spec": {}}),
        (json_patch, ["x"]),
        (json_patch, [{"op": "frob", "path": "/a"}]),
        (merge_patch, []),
        (merge_patch, "x"),
    ],
)
def test_a_body_of_the_wrong_form_is_a_bad_request(patch, body):
    with pytest.raises(BadRequest):
        patch({}, body)


# --- strategic merge patch -------------------------------------------------------------------------------------------


def pod_patch(pod, patch):
    return strategic_merge_patch(pod, patch, builtin_schema("", "v1", "Pod"))


def test_conditions_merge_by_type_and_new_ones_come_first_as_recorded():
    pod = {"status": {"conditions": [{"type": "PodScheduled", "status": "True"}], "phase": "Pending"}}
    patch = {"status": {"conditions": [{"type": "Ready", "status": "True"}], "phase": "Running"}}
    assert pod_patch(pod, patch) == {
        "status": {
            "conditions": [{"type": "Ready", "status": "True"}, {"type": "PodScheduled", "status": "True"}],
            "phase": "Running",
        }
    }


def test_a_container_is_patched_by_its_name():
    pod = {
        "spec": {
            "containers": [{"name": "a", "image": "a:1", "env": [{"name": "X", "value": "1"}]}, {"name": "b"}]
        }
    }
    patch = {"spec": {"containers": [{"name": "a", "image": "a:2", "env": [{"name": "Y", "value": "2"}]}]}}
    (first, second) = pod_patch(pod, patch)["spec"]["containers"]
    assert first["image"] == "a:2"
    assert [each["name"] for each in first["env"]] == ["Y", "X"]
    assert second == {"name": "b"}
    assert pod["spec"]["containers"][0]["image"] == "a:1"


def test_items_are_deleted_and_lists_and_maps_replaced_by_directive():
    pod = {"metadata": {"labels": {"a": "1"}}, "spec": {"containers": [{"name": "a"}, {"name": "b"}]}}
    deleted = pod_patch(pod, {"spec": {"containers": [{"name": "a", "$patch": "delete"}]}})
    assert deleted["spec"]["containers"] == [{"name": "b"}]
    replaced = pod_patch(pod, {"spec": {"containers": [{"name": "c"}, {"$patch": "replace"}]}})
    assert replaced["spec"]["containers"] == [{"name": "c"}]
    assert pod_patch(pod, {"metadata": {"labels": {"$patch": "replace", "b": "2"}}})["metadata"][
        "labels"
    ] == {"b": "2"}
    assert pod_patch(pod, {"metadata": {"labels": {"$patch": "delete"}}})["metadata"]["labels"] == {}


def test_an_order_can_be_asked_for():
    pod = {"spec": {"containers": [{"name": "a"}, {"name": "b"}, {"name": "c"}]}}
    patch = {
        "spec": {
            "$setElementOrder/containers": [{"name": "c"}, {"name": "x"}, {"name": "a"}],
            "containers": [{"name": "x"}],
        }
    }
    names = [each["name"] for each in pod_patch(pod, patch)["spec"]["containers"]]
    assert [name for name in names if name != "b"] == ["c", "x", "a"]
    assert "b" in names


def test_primitive_lists_are_joined_and_taken_from():
    pod = {"metadata": {"finalizers": ["a", "b"]}}
    patch = {"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"], "finalizers": ["c"]}}
    assert sorted(pod_patch(pod, patch)["metadata"]["finalizers"]) == ["b", "c"]


def test_retained_keys_drop_the_others():
    pod = {"spec": {"volumes": [{"name": "v", "emptyDir": {}}]}}
    patch = {
        "spec": {"volumes": [{"name": "v", "$retainKeys": ["name", "configMap"], "configMap": {"name": "x"}}]}
    }
    assert pod_patch(pod, patch)["spec"]["volumes"] == [{"name": "v", "configMap": {"name": "x"}}]


def test_a_null_removes_and_atomic_lists_are_replaced():
    pod = {"spec": {"nodeName": "n", "tolerations": [{"key": "a"}]}}
    assert pod_patch(pod, {"spec": {"nodeName": None, "tolerations": [{"key": "b"}]}}) == {
        "spec": {"tolerations": [{"key": "b"}]}
    }


def test_an_item_without_its_merge_key_is_a_bad_request():
    with pytest.raises(BadRequest, match="does not contain declared merge key: name"):
        pod_patch({"spec": {"containers": []}}, {"spec": {"containers": [{"image": "x"}]}})
