"""Ownership of fields after updates, with the sets that a real API server was seen to write."""

from __future__ import annotations

from copy import deepcopy

from hypothesis import given
from hypothesis import strategies as st

from tidewheel.local.apimachinery import fieldsets
from tidewheel.local.apimachinery.decoding import decode_builtin, decode_custom, empty_object
from tidewheel.local.apimachinery.defaulting import default_builtin
from tidewheel.local.apimachinery.fields import Gvk
from tidewheel.local.apimachinery.managedfields import is_unchanged, reset_fields, track_update
from tidewheel.local.apimachinery.schema import builtin_schema

NOW, LATER = "2026-11-22T08:52:01Z", "2026-11-22T08:53:00Z"
GADGET = Gvk("conformance.example.com", "v1alpha1", "Gadget")


def tracked(
    old, new, schema, gvk=GADGET, manager="python-requests", subresource="", now=NOW, has_status=True
):
    return track_update(
        old,
        new,
        manager=manager,
        api_version=gvk.api_version,
        subresource=subresource,
        schema=schema,
        now=now,
        reset=reset_fields(gvk, subresource, has_status=has_status),
    )


def stored(obj, schema, **how):
    """A gadget as the server holds it after its create."""
    decode_custom(obj, GADGET, schema)
    obj["metadata"]["managedFields"] = tracked(
        {"apiVersion": GADGET.api_version, "kind": "Gadget"}, obj, schema, **how
    )
    obj["metadata"]["uid"] = "u"
    return obj


def fields_of(obj_or_entries, manager="python-requests", subresource=None):
    entries = (
        obj_or_entries if isinstance(obj_or_entries, list) else obj_or_entries["metadata"]["managedFields"]
    )
    found = [
        each for each in entries if each["manager"] == manager and each.get("subresource") == subresource
    ]
    assert len(found) == 1
    return found[0]["fieldsV1"]


def test_a_created_gadget_is_owned_as_recorded(gadget_schema, make_gadget):
    gadget = stored(
        make_gadget("p", frozen="yes", ports=[{"name": "a", "port": 1}, {"name": "b"}]), gadget_schema
    )
    port = {".": {}, "f:name": {}, "f:port": {}}
    assert gadget["metadata"]["managedFields"] == [
        {
            "apiVersion": "conformance.example.com/v1alpha1",
            "fieldsType": "FieldsV1",
            "fieldsV1": {
                "f:spec": {
                    ".": {},
                    "f:frozen": {},
                    "f:mode": {},
                    "f:ports": {".": {}, 'k:{"name":"a"}': port, 'k:{"name":"b"}': port},
                    "f:size": {},
                    "f:tuning": {".": {}, "f:depth": {}},
                }
            },
            "manager": "python-requests",
            "operation": "Update",
            "time": NOW,
        }
    ]


def test_free_form_content_is_owned_field_by_field(gadget_schema, make_gadget):
    gadget = stored(make_gadget(free={"any": [1, 2]}), gadget_schema)
    assert fields_of(gadget)["f:spec"]["f:free"] == {".": {}, "f:any": {}}


def test_finalizers_and_owners_are_owned_item_by_item(gadget_schema, make_gadget):
    metadata = {
        "finalizers": ["conformance.example.com/hold"],
        "generateName": "gen-",
        "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "x", "uid": "u-1"}],
    }
    assert fields_of(stored(make_gadget(metadata=metadata), gadget_schema))["f:metadata"] == {
        "f:finalizers": {".": {}, 'v:"conformance.example.com/hold"': {}},
        "f:generateName": {},
        "f:ownerReferences": {".": {}, 'k:{"uid":"u-1"}': {}},
    }


def test_a_created_pod_is_owned_as_recorded(pod_schema, make_pod):
    gvk = Gvk("", "v1", "Pod")
    container = {"command": ["x"], "ports": [{"containerPort": 80}], "resources": {"limits": {"cpu": "1"}}}
    pod = make_pod(labels={"app": "w"}, container=container, restartPolicy="Never")
    decode_builtin(pod, gvk)
    default_builtin(pod, gvk)
    assert fields_of(tracked(empty_object(gvk), pod, pod_schema, gvk)) == {
        "f:metadata": {"f:labels": {".": {}, "f:app": {}}},
        "f:spec": {
            "f:containers": {
                'k:{"name":"main"}': {
                    ".": {},
                    "f:command": {},
                    "f:image": {},
                    "f:imagePullPolicy": {},
                    "f:name": {},
                    "f:ports": {
                        ".": {},
                        'k:{"containerPort":80,"protocol":"TCP"}': {
                            ".": {},
                            "f:containerPort": {},
                            "f:protocol": {},
                        },
                    },
                    "f:resources": {
                        ".": {},
                        "f:limits": {".": {}, "f:cpu": {}},
                        "f:requests": {".": {}, "f:cpu": {}},
                    },
                    "f:terminationMessagePath": {},
                    "f:terminationMessagePolicy": {},
                }
            },
            "f:dnsPolicy": {},
            "f:enableServiceLinks": {},
            "f:restartPolicy": {},
            "f:schedulerName": {},
            "f:securityContext": {},
            "f:terminationGracePeriodSeconds": {},
        },
    }


def test_atomic_maps_are_owned_whole():
    gvk = Gvk("", "v1", "Service")
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "svc"},
        "spec": {"ports": [{"port": 80, "targetPort": 8000}], "selector": {"app": "w"}},
    }
    decode_builtin(service, gvk)
    default_builtin(service, gvk)
    assert fields_of(tracked(empty_object(gvk), service, builtin_schema("", "v1", "Service"), gvk)) == {
        "f:spec": {
            "f:internalTrafficPolicy": {},
            "f:ports": {
                ".": {},
                'k:{"port":80,"protocol":"TCP"}': {
                    "f:port": {},
                    ".": {},
                    "f:protocol": {},
                    "f:targetPort": {},
                },
            },
            "f:selector": {},
            "f:sessionAffinity": {},
            "f:type": {},
        }
    }


def test_another_manager_takes_the_fields_it_changes(gadget_schema, make_gadget):
    old = stored(make_gadget(), gadget_schema)
    new = deepcopy(old)
    new["spec"]["size"] = 5
    new["metadata"]["labels"] = {"x": "y"}
    entries = tracked(old, new, gadget_schema, manager="kubectl", now=LATER)
    assert "f:size" not in fields_of(entries)["f:spec"]
    assert fields_of(entries, "kubectl") == {
        "f:metadata": {"f:labels": {".": {}, "f:x": {}}},
        "f:spec": {"f:size": {}},
    }
    assert [entry["time"] for entry in entries] == [NOW, LATER]


def test_removed_fields_are_owned_by_nobody_and_move_no_time(gadget_schema, make_gadget):
    old = stored(make_gadget(metadata={"labels": {"x": "y"}}, label="abc"), gadget_schema)
    new = deepcopy(old)
    del new["spec"]["label"], new["metadata"]["labels"]
    (entry,) = tracked(old, new, gadget_schema, now=LATER)
    assert entry["time"] == NOW
    assert "f:label" not in entry["fieldsV1"]["f:spec"]
    assert "f:metadata" not in entry["fieldsV1"]


def test_an_entry_that_owns_nothing_any_more_is_removed(gadget_schema, make_gadget):
    old = stored(make_gadget(), gadget_schema)
    labelled = deepcopy(old)
    labelled["metadata"]["labels"] = {"x": "y"}
    labelled["metadata"]["managedFields"] = tracked(old, labelled, gadget_schema, manager="labeller")
    bare = deepcopy(labelled)
    del bare["metadata"]["labels"]
    assert [entry["manager"] for entry in tracked(labelled, bare, gadget_schema)] == ["python-requests"]


def test_no_change_leaves_the_entries_alone(gadget_schema, make_gadget):
    old = stored(make_gadget(), gadget_schema)
    assert tracked(old, deepcopy(old), gadget_schema, now=LATER) == old["metadata"]["managedFields"]


def test_status_is_owned_through_its_own_endpoint_only(gadget_schema, make_gadget):
    old = stored(make_gadget(), gadget_schema)
    new = deepcopy(old)
    new["status"] = {"conditions": [{"status": "True", "type": "Ready"}], "replicas": 4}
    new["spec"]["size"] = 99
    status = fields_of(tracked(old, new, gadget_schema, subresource="status"), subresource="status")
    assert status == {
        "f:status": {
            ".": {},
            "f:conditions": {".": {}, 'k:{"type":"Ready"}': {".": {}, "f:status": {}, "f:type": {}}},
            "f:replicas": {},
        }
    }
    assert "f:status" not in fields_of(tracked(old, new, gadget_schema))


def test_the_scale_subresource_takes_the_replicas_without_a_time(gadget_schema, make_gadget):
    old = stored(make_gadget(), gadget_schema)
    new = deepcopy(old)
    new["spec"]["size"] = 11
    scale, main = tracked(old, new, gadget_schema, subresource="scale", now=None)
    assert scale == {
        "apiVersion": "conformance.example.com/v1alpha1",
        "fieldsType": "FieldsV1",
        "fieldsV1": {"f:spec": {"f:size": {}}},
        "manager": "python-requests",
        "operation": "Update",
        "subresource": "scale",
    }
    assert "f:size" not in main["fieldsV1"]["f:spec"]


def test_entries_that_a_client_sends_replace_the_live_ones(gadget_schema, make_gadget):
    old = stored(make_gadget(), gadget_schema)
    new = deepcopy(old)
    new["metadata"]["managedFields"][0]["manager"] = "renamed"
    assert [entry["manager"] for entry in tracked(old, new, gadget_schema)] == ["renamed"]


def test_a_client_that_drops_the_entries_does_not_lose_them(gadget_schema, make_gadget):
    old = stored(make_gadget(), gadget_schema)
    new = deepcopy(old)
    del new["metadata"]["managedFields"]
    assert tracked(old, new, gadget_schema) == old["metadata"]["managedFields"]


def test_entries_can_be_reset_and_are_not_begun_again_by_an_update(gadget_schema, make_gadget):
    old = stored(make_gadget(), gadget_schema)
    new = deepcopy(old)
    new["metadata"]["managedFields"] = [{}]
    new["spec"]["size"] = 7
    assert tracked(old, new, gadget_schema) == []


def test_a_write_that_only_moves_times_is_no_change(gadget_schema, make_gadget):
    old = stored(make_gadget(), gadget_schema)
    new = deepcopy(old)
    new["metadata"]["managedFields"][0]["time"] = LATER
    assert is_unchanged(old, new)
    new["spec"]["size"] = 2
    assert not is_unchanged(old, new)


fieldset_elements = st.sampled_from(["f:a", "f:b", 'k:{"n":"x"}', 'v:"y"'])


def nodes(children):
    inner = st.dictionaries(fieldset_elements, children, min_size=1, max_size=3)
    return inner | inner.map(lambda node: {".": {}, **node})


sets = st.dictionaries(fieldset_elements, st.recursive(st.just({}), nodes, max_leaves=8), max_size=4)


def members(fields, prefix=()):
    found = set()
    for element, node in fields.items():
        if element != ".":
            path = (*prefix, element)
            if fieldsets.is_member(node):
                found.add(path)
            found |= members(node, path)
    return found


@given(sets, sets)
def test_the_algebra_is_that_of_sets_of_paths(one, other):
    assert members(fieldsets.union(one, other)) == members(one) | members(other)
    assert members(fieldsets.difference(one, other)) == members(one) - members(other)
    assert members(fieldsets.intersection(one, other)) == members(one) & members(other)
