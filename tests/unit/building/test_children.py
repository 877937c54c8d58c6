"""The children that are not pods, the merge of templates, and the plan that all of it becomes."""

from __future__ import annotations

import json

import pytest
from tests.unit.planning.seen import service, spec
from tests.unit.planning.world import World

from tidewheel.api.ranktable import RankTable, Routes
from tidewheel.building.merging import merged
from tidewheel.building.services import gateway_service
from tidewheel.local.apimachinery.builtin_rules import validate_create
from tidewheel.local.apimachinery.decoding import decode_builtin
from tidewheel.local.apimachinery.defaulting import default_builtin
from tidewheel.local.apimachinery.fields import Gvk


@pytest.mark.parametrize(
    ("base", "patch", "want"),
    [
        pytest.param(
            {"a": 1, "b": {"c": 2}}, {"b": {"d": 3}}, {"a": 1, "b": {"c": 2, "d": 3}}, id="objects merge"
        ),
        pytest.param({"a": 1, "b": 2}, {"a": None}, {"b": 2}, id="null removes"),
        pytest.param({"args": ["x", "y"]}, {"args": ["z"]}, {"args": ["z"]}, id="plain lists are replaced"),
        pytest.param(
            {"env": [{"name": "A", "value": "1"}]},
            {"env": [{"name": "B", "value": "2"}, {"name": "A", "value": "3"}]},
            {"env": [{"name": "A", "value": "3"}, {"name": "B", "value": "2"}]},
            id="items of a name merge",
        ),
        pytest.param(
            {"volumes": [{"name": "v", "emptyDir": {}}]},
            {"volumes": [{"name": "v", "configMap": {"name": "c"}}]},
            {"volumes": [{"name": "v", "configMap": {"name": "c"}}]},
            id="a volume has one source",
        ),
        pytest.param(
            {"containers": [{"name": "a"}, {"name": "b"}]},
            {"containers": [{"name": "b", "$patch": "delete"}]},
            {"containers": [{"name": "a"}]},
            id="an item can be deleted",
        ),
        pytest.param(
            {"affinity": {"nodeAffinity": {}}},
            {"affinity": {"$patch": "replace", "podAffinity": {}}},
            {"affinity": {"podAffinity": {}}},
            id="an object can be replaced",
        ),
        pytest.param(
            {"ports": [{"containerPort": 1, "protocol": "TCP", "name": "a"}]},
            {"ports": [{"containerPort": 1, "name": "b"}, {"containerPort": 1, "protocol": "UDP"}]},
            {
                "ports": [
                    {"containerPort": 1, "protocol": "TCP", "name": "b"},
                    {"containerPort": 1, "protocol": "UDP"},
                ]
            },
            id="a port without a protocol is TCP",
        ),
    ],
)
def test_a_template_merges_strategically(base, patch, want):
    before = json.dumps([base, patch])
    assert merged(base, patch) == want
    assert json.dumps([base, patch]) == before, "neither is changed"


def test_the_service_leads_to_the_gateways():
    wanted = spec(gateway={"service": {"type": "NodePort", "port": 8080, "nodePort": 30080}})
    port = gateway_service(service(wanted), wanted.gateway.service)["spec"]["ports"][0]
    assert (port["port"], port["targetPort"], port["nodePort"]) == (8080, 8000, 30080)
    assert "nodePort" not in gateway_service(service(spec()), spec().gateway.service)["spec"]["ports"][0]


@pytest.mark.parametrize(
    ("wanted", "want"),
    [
        (spec(), {}),
        (spec(groups=3, decode={"replicas": 2}), {"chat-compute": 8}),
        (spec(gateway={"replicas": 3}), {"chat-gateway": 2}),
        (spec(groups=3, gateway={"replicas": 3}, suspend=True), {}),
    ],
    ids=["nothing to spare", "groups", "gateways", "suspended"],
)
def test_a_drain_takes_one_pod_at_a_time_where_one_can_be_spared(wanted, want):
    world = World(**wanted.to_wire())
    plan = world.plan()
    found = {
        one["metadata"]["name"]: one["spec"]["minAvailable"]
        for one in plan.apply
        if one["kind"] == "PodDisruptionBudget"
    }
    assert found == want


def test_every_child_is_ours_named_and_valid():
    world = World(groups=2, gateway={"replicas": 2})
    world.settle()
    plan = world.plan()
    world.delete_pod(world.names("Pod")[0])
    for manifest in (*plan.apply, *world.plan().apply):
        metadata = manifest["metadata"]
        assert [owner["uid"] for owner in metadata["ownerReferences"]] == ["uid-chat"]
        assert metadata["ownerReferences"][0]["controller"] is True
        assert metadata["labels"]["tidewheel.dev/service"] == "chat"
        assert metadata["labels"]["app.kubernetes.io/managed-by"] == "tidewheel"
        gvk = Gvk.of(manifest)
        decode_builtin(manifest, gvk)
        default_builtin(manifest, gvk)
        assert validate_create(manifest, gvk) == []


def test_what_is_published_can_be_read_by_those_it_is_for():
    world = World(decode={"replicas": 2})
    world.settle()
    texts = {one["metadata"]["name"]: one["data"] for one in world.plan().apply if one["kind"] == "ConfigMap"}
    found = Routes.model_validate_json(texts["chat-routes"]["routes.json"])
    table = RankTable.model_validate_json(
        next(data["ranktable.json"] for data in texts.values() if "ranktable.json" in data)
    )
    assert [backend.name for backend in found.groups[0].decode] == [
        member.name for member in table.of_role("decode")
    ]
    assert found.model == "smol"


def test_a_pod_is_told_of_a_new_map_once():
    world = World()
    world.settle()
    assert not world.plan().annotate
    world.unready_pod(world.names("Pod")[0])
    world.reconcile()
    told = world.plan().annotate
    assert [one.name for one in told] == [name for name in world.names("Pod") if "gateway" in name]


def test_nothing_is_left_of_a_group_or_revision_that_is_gone():
    world = World(groups=2)
    world.settle()
    before = set(world.names("ConfigMap"))
    world.change(image="registry.example/worker:2", groups=1)
    world.settle()
    after = set(world.names("ConfigMap"))
    assert after & before == {"chat-routes"}
    assert len(after) == 3
