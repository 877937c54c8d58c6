"""Unknown fields go or are named, defaults come, and doing it twice changes nothing."""

from __future__ import annotations

from copy import deepcopy

from hypothesis import given
from hypothesis import strategies as st

from tidewheel.local.apimachinery.defaulting import apply_defaults
from tidewheel.local.apimachinery.pruning import prune, unknown_fields
from tidewheel.local.apimachinery.schema import Schema, crd_schema

SCHEMA = Schema(
    {
        "type": "object",
        "properties": {
            "a": {"type": "string", "default": "x"},
            "b": {
                "type": "object",
                "default": {},
                "properties": {
                    "a": {"type": "integer", "default": 3},
                    "n": {"type": "string", "nullable": True},
                },
            },
            "c": {
                "type": "array",
                "items": {"type": "object", "properties": {"b": {"type": "string", "default": "y"}}},
            },
            "d": {
                "type": "object",
                "additionalProperties": {"type": "object", "properties": {"a": {"type": "string"}}},
            },
            "e": {
                "type": "object",
                "x-kubernetes-preserve-unknown-fields": True,
                "properties": {"b": {"type": "object"}},
            },
        },
    }
)
keys = st.sampled_from("abcde")
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(keys, values))
def test_pruning_and_defaulting_twice_is_as_good_as_once(obj):
    prune(obj, SCHEMA)
    apply_defaults(obj, SCHEMA)
    once = deepcopy(obj)
    prune(obj, SCHEMA)
    apply_defaults(obj, SCHEMA)
    assert obj == once


@given(st.dictionaries(keys, values))
def test_a_pruned_object_has_no_unknown_fields(obj):
    prune(obj, SCHEMA)
    assert unknown_fields(obj, SCHEMA) == []


def test_unknown_fields_are_named_with_their_path(gadget_schema, make_gadget):
    gadget = make_gadget(unknown=True, ports=[{"name": "x"}, {"name": "y", "z": 1}], free={"any": 1})
    assert unknown_fields(gadget, gadget_schema) == [
        'unknown field "spec.ports[1].z"',
        'unknown field "spec.unknown"',
    ]


def test_unknown_fields_of_built_in_kinds_are_named(pod_schema, make_pod):
    assert unknown_fields(make_pod(container={"imag": "x"}), pod_schema) == [
        'unknown field "spec.containers[0].imag"'
    ]


def test_known_fields_below_preserved_ones_are_pruned_too():
    obj = {"e": {"other": {"x": 1}, "b": {"x": 1}}}
    prune(obj, SCHEMA)
    assert obj == {"e": {"other": {"x": 1}, "b": {}}}


def test_a_null_that_may_not_be_null_counts_as_absent():
    obj = {"a": None, "b": {"n": None, "a": None}, "c": None}
    apply_defaults(obj, SCHEMA)
    assert obj == {"a": "x", "b": {"n": None, "a": 3}}


def test_a_default_is_copied_for_each_object():
    first, second = {}, {}
    apply_defaults(first, SCHEMA)
    first["b"]["a"] = 9
    apply_defaults(second, SCHEMA)
    assert second["b"] == {"a": 3}


def test_embedded_objects_keep_their_type_and_metadata():
    schema = crd_schema(
        {
            "type": "object",
            "properties": {
                "template": {
                    "type": "object",
                    "x-kubernetes-embedded-resource": True,
                    "properties": {"spec": {"type": "object"}},
                }
            },
        }
    )
    obj = {
        "template": {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "x", "junk": 1},
            "junk": 1,
            "spec": {},
        }
    }
    prune(obj, schema)
    assert obj == {"template": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": {}}}
