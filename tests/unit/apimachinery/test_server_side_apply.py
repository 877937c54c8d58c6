"""Server-side apply: merging, conflicts, shared and given-up fields, as a real API server was seen to do it."""

from __future__ import annotations

import json
from copy import deepcopy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidewheel.local.apimachinery.decoding import decode_custom
from tidewheel.local.apimachinery.fields import BadRequest, Gvk
from tidewheel.local.apimachinery.managedfields import (
    ApplyConflict,
    UntypedPatch,
    reset_fields,
    server_side_apply,
    track_update,
)
from tidewheel.local.apimachinery.schema import Schema

NOW, LATER = "2026-11-22T08:52:01Z", "2026-11-22T08:53:00Z"
GADGET = Gvk("conformance.example.com", "v1alpha1", "Gadget")


@pytest.fixture
def apply(gadget_schema):
    def apply(live, manager, *, force=False, subresource="", now=NOW, status=None, metadata=None, **spec):
        intent = {
            "apiVersion": GADGET.api_version,
            "kind": "Gadget",
            "metadata": {"name": "ssa", **(metadata or {})},
            **({"spec": spec} if spec else {}),
            **({"status": status} if status else {}),
        }
        result = server_side_apply(
            live,
            intent,
            manager=manager,
            force=force,
            api_version=GADGET.api_version,
            subresource=subresource,
            schema=gadget_schema,
            now=now,
            reset=reset_fields(GADGET, subresource, has_status=True),
        )
        if result is live:
            return live
        result = deepcopy(result)
        decode_custom(result, GADGET, gadget_schema)
        result["metadata"]["uid"] = "u"
        return result

    return apply


def owners(obj):
    return {
        (entry["manager"], entry["operation"], entry.get("subresource", "")): entry["fieldsV1"]
        for entry in obj["metadata"]["managedFields"]
    }


PORT = {".": {}, "f:name": {}, "f:port": {}}


def test_the_recorded_story(apply):
    live = apply(None, "one", size=1, ports=[{"name": "a", "port": 1}])
    assert live["spec"] == {
        "mode": "Safe",
        "ports": [{"name": "a", "port": 1}],
        "size": 1,
        "tuning": {"depth": 3},
    }
    mine = {"f:spec": {"f:ports": {'k:{"name":"a"}': PORT}, "f:size": {}}}
    assert owners(live) == {("one", "Apply", ""): mine}

    assert apply(live, "one", size=1, ports=[{"name": "a", "port": 1}], now=LATER) is live

    with pytest.raises(ApplyConflict) as conflict:
        apply(live, "two", size=2)
    assert str(conflict.value) == 'Apply failed with 1 conflict: conflict with "one": .spec.size'
    assert conflict.value.causes == [
        {"field": ".spec.size", "message": 'conflict with "one"', "reason": "FieldManagerConflict"}
    ]

    live = apply(live, "two", size=2, ports=[{"name": "b", "port": 2}], force=True)
    assert live["spec"]["ports"] == [{"name": "a", "port": 1}, {"name": "b", "port": 2}]
    theirs = {"f:spec": {"f:ports": {'k:{"name":"b"}': PORT}, "f:size": {}}}
    assert owners(live) == {
        ("one", "Apply", ""): {"f:spec": {"f:ports": {'k:{"name":"a"}': PORT}}},
        ("two", "Apply", ""): theirs,
    }

    live = apply(live, "one", size=2)
    assert live["spec"]["ports"] == [{"name": "b", "port": 2}]
    assert owners(live) == {("one", "Apply", ""): {"f:spec": {"f:size": {}}}, ("two", "Apply", ""): theirs}


def test_conditions_of_two_managers_merge_by_type(apply):
    live = apply(None, "one", size=1)
    live = apply(
        live,
        "st",
        subresource="status",
        status={"conditions": [{"type": "Ready", "status": "False"}]},
        force=True,
    )
    live = apply(
        live,
        "st2",
        subresource="status",
        status={"conditions": [{"type": "Progressing", "status": "True"}]},
        force=True,
    )
    assert [each["type"] for each in live["status"]["conditions"]] == ["Ready", "Progressing"]
    assert owners(live)["st2", "Apply", "status"] == {
        "f:status": {"f:conditions": {'k:{"type":"Progressing"}': {".": {}, "f:status": {}, "f:type": {}}}}
    }


def test_several_conflicts_are_told_by_manager(apply):
    live = apply(None, "one", size=1, label="a")
    live = apply(live, "two", mode="Fast", size=1, force=True)
    with pytest.raises(ApplyConflict) as conflict:
        apply(live, "three", size=3, label="b", mode="Safe")
    assert str(conflict.value) == (
        'Apply failed with 4 conflicts: conflicts with "one":\n- .spec.label\n- .spec.size\n'
        'conflicts with "two":\n- .spec.mode\n- .spec.size'
    )


def test_a_conflict_with_an_updater_names_its_version(apply, gadget_schema):
    live = updated(apply(None, "one", size=1), gadget_schema, lambda spec: spec.update(size=4))
    with pytest.raises(
        ApplyConflict, match=r'conflict with "kubectl" using conformance.example.com/v1alpha1'
    ):
        apply(live, "one", size=1)


def test_the_same_value_is_shared_without_conflict(apply):
    live = apply(None, "one", size=1)
    live = apply(live, "two", size=1, now=LATER)
    fields = {"f:spec": {"f:size": {}}}
    assert owners(live) == {("one", "Apply", ""): fields, ("two", "Apply", ""): fields}
    assert [entry["time"] for entry in live["metadata"]["managedFields"]] == [NOW, LATER]


def test_a_shared_field_stays_until_its_last_owner_gives_it_up(apply):
    live = apply(None, "one", size=1, label="x")
    live = apply(live, "two", size=1, label="x")
    live = apply(live, "one", size=1)
    assert live["spec"]["label"] == "x"
    live = apply(live, "two", size=1)
    assert "label" not in live["spec"]


def test_a_list_goes_with_its_last_item(apply):
    live = apply(None, "one", size=1, ports=[{"name": "a"}])
    live = apply(live, "one", size=1)
    assert "ports" not in live["spec"]


def updated(live, schema, change):
    """The object after `kubectl` changed it by an update."""
    new = deepcopy(live)
    change(new["spec"])
    how = {"api_version": GADGET.api_version, "subresource": "", "schema": schema, "now": NOW}
    new["metadata"]["managedFields"] = track_update(live, new, manager="kubectl", **how)
    return new


def test_a_field_that_an_updater_took_survives_what_the_applier_gives_up(apply, gadget_schema):
    live = apply(None, "one", size=1, label="a", frozen="f")
    live = updated(live, gadget_schema, lambda spec: spec.update(label="b"))
    live = apply(live, "one", size=1)
    assert live["spec"]["label"] == "b"
    assert "frozen" not in live["spec"]


def test_an_item_goes_with_its_key_even_if_an_updater_set_a_field_in_it(apply, gadget_schema):
    live = apply(None, "one", size=1, ports=[{"name": "a", "port": 1}])
    live = updated(live, gadget_schema, lambda spec: spec["ports"][0].update(port=9))
    live = apply(live, "one", size=1)
    assert not live["spec"].get("ports")
    assert ("kubectl", "Update", "") not in owners(live)


def test_an_object_that_nobody_owns_gets_an_owner_before_its_first_apply(apply, make_gadget):
    live = make_gadget("ssa", label="old")
    live["metadata"]["uid"] = "u"
    with pytest.raises(ApplyConflict, match="before-first-apply"):
        apply(live, "one", label="new")


LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


@pytest.fixture
def client_side(gadget_schema, make_gadget):
    """A gadget as `kubectl apply` leaves it."""
    gadget = make_gadget("ssa", label="a", size=1)
    applied = json.dumps({**gadget, "metadata": {"name": "ssa", "namespace": "conformance"}})
    gadget["metadata"]["annotations"] = {LAST_APPLIED: applied}
    decode_custom(gadget, GADGET, gadget_schema)
    how = {"api_version": GADGET.api_version, "subresource": "", "schema": gadget_schema, "now": NOW}
    empty = {"apiVersion": GADGET.api_version, "kind": "Gadget"}
    gadget["metadata"]["managedFields"] = track_update(
        empty, gadget, manager="kubectl-client-side-apply", **how
    )
    gadget["metadata"]["uid"] = "u"
    return gadget


def test_kubectl_takes_over_what_it_applied_from_the_client(apply, client_side):
    live = apply(client_side, "kubectl", size=2, label="a")
    assert live["spec"]["size"] == 2
    remembered = json.loads(live["metadata"]["annotations"][LAST_APPLIED])
    assert remembered["spec"] == {"label": "a", "size": 2}
    with pytest.raises(ApplyConflict):
        apply(client_side, "another", size=2)


def test_kubectl_does_not_take_over_what_changed_since(apply, client_side, gadget_schema):
    live = updated(client_side, gadget_schema, lambda spec: spec.update(size=5))
    with pytest.raises(ApplyConflict, match=r"\.spec\.size"):
        apply(live, "kubectl", size=2, label="a")


def test_a_status_is_not_owned_through_the_main_endpoint(apply):
    live = apply(None, "one", size=1, status={"replicas": 3})
    assert owners(live)["one", "Apply", ""] == {"f:spec": {"f:size": {}}}


def test_managed_fields_may_not_be_applied(apply):
    with pytest.raises(BadRequest, match=r"metadata\.managedFields must be nil"):
        apply(None, "one", size=1, metadata={"managedFields": [{"manager": "x"}]})


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        pytest.param({"sise": 1}, r"\.spec\.sise: field not declared in schema", id="unknown field"),
        pytest.param(
            {"ports": [{"name": "a"}, {"name": "a"}]}, 'duplicate entries for key .name="a"', id="duplicate"
        ),
        pytest.param({"ports": [{"port": 1}]}, 'lacks its key "name"', id="no key"),
    ],
)
def test_what_does_not_fit_the_schema_is_refused(apply, spec, complaint):
    with pytest.raises(UntypedPatch, match=complaint) as refused:
        apply(None, "one", **spec)
    assert str(refused.value).startswith(
        "failed to create typed patch object (ssa; conformance.example.com/v1alpha1, Kind=Gadget): "
    )


def test_applied_items_keep_their_order_and_live_ones_their_place(apply):
    live = apply(None, "one", size=1, ports=[{"name": name} for name in "abc"])
    live = apply(live, "two", ports=[{"name": "c"}, {"name": "x"}, {"name": "a"}])
    names = [port["name"] for port in live["spec"]["ports"]]
    assert [name for name in names if name in "cxa"] == ["c", "x", "a"]
    assert sorted(names) == ["a", "b", "c", "x"]


# --- properties ------------------------------------------------------------------------------------------------------

TREE = Schema(
    {
        "type": "object",
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {
                "type": "object",
                "properties": {"name": {"type": "string"}, "managedFields": {"type": "array"}},
            },
            "spec": {
                "type": "object",
                "properties": {
                    "number": {"type": "integer"},
                    "map": {"type": "object", "additionalProperties": {"type": "integer"}},
                    "atoms": {"type": "array", "items": {"type": "integer"}},
                    "set": {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"},
                    "items": {
                        "type": "array",
                        "x-kubernetes-list-type": "map",
                        "x-kubernetes-list-map-keys": ["name"],
                        "items": {
                            "type": "object",
                            "properties": {"name": {"type": "string"}, "value": {"type": "integer"}},
                        },
                    },
                },
            },
        },
    }
)
small = st.integers(0, 2)
items = st.lists(
    st.builds(
        lambda name, value: {"name": name, **({} if value is None else {"value": value})},
        st.sampled_from("ab"),
        st.none() | small,
    ),
    min_size=1,
    max_size=2,
    unique_by=lambda item: item["name"],
)
specs = st.fixed_dictionaries(
    {},
    optional={
        "number": small,
        "map": st.dictionaries(st.sampled_from("xy"), small, min_size=1, max_size=2),
        "atoms": st.lists(small, min_size=1, max_size=2),
        "set": st.lists(st.sampled_from("pq"), min_size=1, max_size=2, unique=True),
        "items": items,
    },
)
applies = st.lists(st.tuples(st.sampled_from(["one", "two", "three"]), specs), min_size=1, max_size=6)


def run(live, manager, spec):
    intent = {"apiVersion": "v1", "kind": "T", "metadata": {"name": "t"}, "spec": spec}
    return server_side_apply(
        live, intent, manager=manager, force=True, api_version="v1", subresource="", schema=TREE, now=NOW
    )


def contains(value, part):
    if isinstance(part, dict):
        return isinstance(value, dict) and all(
            key in value and contains(value[key], part[key]) for key in part
        )
    if isinstance(part, list) and part and isinstance(part[0], dict):
        by_name = {each["name"]: each for each in value}
        return all(each["name"] in by_name and contains(by_name[each["name"]], each) for each in part)
    if isinstance(part, list) and part and isinstance(part[0], str):
        return set(part) <= set(value)
    return value == part


@given(applies)
def test_what_was_applied_last_is_there_and_applying_it_again_changes_nothing(story):
    live = None
    for manager, spec in story:
        live = run(live, manager, spec)
    manager, spec = story[-1]
    assert contains(live.get("spec") or {}, spec)
    again = run(live, manager, spec)
    assert again == live
    if spec:
        assert again is live


@given(applies)
def test_a_manager_never_loses_a_field_that_neither_it_gave_up_nor_another_took(story):
    live, last = None, {}
    for manager, spec in story:
        live = run(live, manager, spec)
        last[manager] = spec
        for other, wanted in last.items():
            if all(each == wanted for each in last.values()):
                assert contains(live.get("spec") or {}, wanted), other


@given(applies)
def test_nothing_is_left_when_all_managers_have_given_up(story):
    live = None
    for manager, spec in story:
        live = run(live, manager, spec)
    for manager in ("one", "two", "three"):
        live = run(live, manager, {})
    left = live.get("spec") or {}
    assert left == {}
    assert not [
        entry for entry in live["metadata"].get("managedFields", ()) if entry["fieldsV1"].get("f:spec")
    ]


@given(specs, specs)
def test_one_manager_holds_exactly_what_it_applied_last(first, second):
    live = run(run(None, "one", first), "one", second)
    assert contains(live.get("spec") or {}, second)
    assert contains(second, live.get("spec") or {})
