"""Worker pods: gateway, prefill and decode, hardened, probed and placed by their accelerator's row."""

from __future__ import annotations

from collections.abc import Mapping

from tidewheel.api import meta
from tidewheel.api.accelerators import Accelerator
from tidewheel.api.manifest import PODS, Manifest
from tidewheel.api.pdservice import ComputeRole, PDServiceSpec, PodRole, Resources
from tidewheel.api.scenarios import DEFAULT_SCENARIO
from tidewheel.building.labels import metadata_of
from tidewheel.building.merging import merged
from tidewheel.building.worker_environment import API_KEYS_PATH, SCRATCH_PATH, TERMINATION_LOG, environment
from tidewheel.planning.flips import roles_match
from tidewheel.planning.intent import PodOrder
from tidewheel.planning.names import ranks_name, routes_name
from tidewheel.planning.observed import ObservedService
from tidewheel.planning.settings import ServiceDefaults

#: The user and group that the images are built for.
USER = 65532
#: A worker that drained for as long as it may still needs a moment to say good-bye.
EXIT_SECONDS = 5
#: Loading hundreds of gigabytes from a slow volume takes long; only then does the kubelet give a worker up.
_STARTUP_PERIOD, _STARTUP_FAILURES = 2, 1800

_SECURITY: Manifest = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
    "capabilities": {"drop": ["ALL"]},
}


def worker_pod(seen: ObservedService, order: PodOrder, defaults: ServiceDefaults) -> Manifest:
    """The pod of an order, with the role's template merged in.

    What planning relies on is not the template's to change: name, namespace, owner, and Tidewheel's own labels.
    """
    spec = order.spec
    role = _role(spec, order)
    pod = {
        "metadata": {},
        "spec": {
            "restartPolicy": "Always",
            "enableServiceLinks": False,
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": spec.drain_seconds + EXIT_SECONDS,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": USER,
                "runAsGroup": USER,
                "fsGroup": USER,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [_container(seen, order, role, defaults)],
            "volumes": _volumes(seen, order, _health_file(role, defaults)),
        },
    }
    if spec.image_pull_secrets:
        pod["spec"]["imagePullSecrets"] = [{"name": name} for name in spec.image_pull_secrets]
    if isinstance(role, ComputeRole):
        pod["spec"] |= _placement(defaults.accelerators[role.accelerator])
        pod["spec"] |= _fetching(spec, defaults)
    if role.template:
        pod = merged(pod, role.template)
    labels = {meta.LABEL_ROLE: order.role, meta.LABEL_REVISION: order.revision}
    if order.group:
        labels[meta.LABEL_GROUP] = order.group
    if order.scenario != DEFAULT_SCENARIO:
        labels[meta.LABEL_SCENARIO] = order.scenario
    own = metadata_of(seen, order.name, order.role, labels=labels)
    extra = pod["metadata"]
    own["labels"] = (extra.get("labels") or {}) | own["labels"]
    if extra.get("annotations"):
        own["annotations"] = extra["annotations"]
    if order.group and roles_match(spec):
        own["annotations"] = {**own.get("annotations", {}), meta.ANNOTATION_MAY_FLIP: "true"}
    return {"apiVersion": PODS.api_version, "kind": PODS.kind, "metadata": own, "spec": pod["spec"]}


def _role(spec: PDServiceSpec, order: PodOrder) -> PodRole:
    roles: Mapping[str, PodRole] = {"gateway": spec.gateway, "prefill": spec.prefill, "decode": spec.decode}
    return roles[order.role]


def _container(seen: ObservedService, order: PodOrder, role: PodRole, defaults: ServiceDefaults) -> Manifest:
    ports = [{"name": "http", "containerPort": meta.HTTP_PORT, "protocol": "TCP"}]
    if order.role == "prefill" or (order.group and roles_match(order.spec)):
        ports.append({"name": "kv", "containerPort": meta.KV_PORT, "protocol": "TCP"})
    return {
        "name": meta.WORKER_CONTAINER,
        "image": order.spec.image or defaults.image,
        "imagePullPolicy": order.spec.image_pull_policy,
        "command": ["python", "-m", f"tidewheel_workers.serving.{order.role}"],
        "env": environment(seen, order, defaults),
        "ports": ports,
        "resources": _resources(role, defaults),
        "securityContext": _SECURITY,
        "volumeMounts": _mounts(order, _health_file(role, defaults)),
        "startupProbe": _probe("ready", period=_STARTUP_PERIOD, failures=_STARTUP_FAILURES),
        "readinessProbe": _probe("ready", period=2, failures=2),
        "livenessProbe": _probe("live", period=10, failures=3),
        "terminationMessagePath": TERMINATION_LOG,
        "terminationMessagePolicy": "File",
    }


def _probe(what: str, *, period: int, failures: int) -> Manifest:
    return {
        "httpGet": {"path": f"/health/{what}", "port": meta.HTTP_PORT},
        "periodSeconds": period,
        "timeoutSeconds": 2,
        "failureThreshold": failures,
    }


def _resources(role: PodRole, defaults: ServiceDefaults) -> Manifest:
    requests, limits = _amounts(role.resources)
    if isinstance(role, ComputeRole):
        device = defaults.accelerators[role.accelerator].resource
        if device is not None:
            # Extended resources take no overcommitment: requests equal limits.
            requests[device] = limits[device] = str(role.devices_per_pod)
    return {key: amounts for key, amounts in (("requests", requests), ("limits", limits)) if amounts}


def _amounts(resources: Resources) -> tuple[dict[str, str], dict[str, str]]:
    return (
        {name: str(amount) for name, amount in resources.requests.items()},
        {name: str(amount) for name, amount in resources.limits.items()},
    )


def _placement(accelerator: Accelerator) -> Manifest:
    placement: Manifest = {}
    if accelerator.node_selector:
        placement["nodeSelector"] = dict(accelerator.node_selector)
    if accelerator.tolerations:
        placement["tolerations"] = [toleration.to_wire() for toleration in accelerator.tolerations]
    if accelerator.runtime_class_name:
        placement["runtimeClassName"] = accelerator.runtime_class_name
    return placement


def _health_file(role: PodRole, defaults: ServiceDefaults) -> str | None:
    """Where on the node a detector tells of the devices."""
    return defaults.accelerators[role.accelerator].health_file if isinstance(role, ComputeRole) else None


def _mounts(order: PodOrder, health_file: str | None) -> list[Manifest]:
    mounts: list[Manifest] = [{"name": "scratch", "mountPath": SCRATCH_PATH}]
    if order.role == "gateway":
        mounts.append({"name": "routes", "mountPath": _folder(meta.ROUTES_PATH), "readOnly": True})
        if order.spec.gateway.api_keys_secret_ref is not None:
            mounts.append({"name": "api-keys", "mountPath": _folder(API_KEYS_PATH), "readOnly": True})
        return mounts
    mounts.append({"name": "ranks", "mountPath": _folder(meta.RANKS_PATH), "readOnly": True})
    if order.spec.model.source.package is None:
        mounts.append({"name": "model", "mountPath": meta.MODEL_PATH, "readOnly": True})
    if health_file is not None:
        # The directory: a file that is replaced by a rename would stay the old one in its own mount.
        mounts.append({"name": "device-health", "mountPath": meta.DEVICE_HEALTH_DIRECTORY, "readOnly": True})
    return mounts


def _volumes(seen: ObservedService, order: PodOrder, health_file: str | None) -> list[Manifest]:
    volumes: list[Manifest] = [{"name": "scratch", "emptyDir": {}}]
    if order.role == "gateway":
        volumes.append(_map_volume("routes", routes_name(seen.name)))
        if (keys := order.spec.gateway.api_keys_secret_ref) is not None:
            items = [{"key": keys.key, "path": API_KEYS_PATH.rpartition("/")[2]}]
            volumes.append({"name": "api-keys", "secret": {"secretName": keys.name, "items": items}})
        return volumes
    volumes.append(_map_volume("ranks", ranks_name(order.group)))
    source = order.spec.model.source
    if source.volume is not None:
        claim = {"claimName": source.volume.claim_name, "readOnly": True}
        volumes.append({"name": "model", "persistentVolumeClaim": claim})
    elif source.hugging_face is not None:
        volumes.append({"name": "model", "emptyDir": {}})
    if health_file is not None:
        volumes.append({"name": "device-health", "hostPath": {"path": _folder(health_file)}})
    return volumes


def _map_volume(name: str, config_map: str) -> Manifest:
    """Optional, because pods start before the map they wait for is published."""
    return {"name": name, "configMap": {"name": config_map, "optional": True}}


def _fetching(spec: PDServiceSpec, defaults: ServiceDefaults) -> Manifest:
    """The init container that downloads the model, for a model on the hub."""
    source = spec.model.source.hugging_face
    if source is None:
        return {}
    values = {
        **defaults.environment,
        "HOME": SCRATCH_PATH,
        "TMPDIR": SCRATCH_PATH,
        "TIDEWHEEL_TERMINATION_LOG": TERMINATION_LOG,
    }
    env: list[Manifest] = [{"name": name, "value": value} for name, value in values.items()]
    if (token := source.token_secret_ref) is not None:
        reference = {"name": token.name, "key": token.key}
        env.append({"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": reference}})
    command = ["python", "-m", "tidewheel_workers.llm.fetch", source.id, meta.MODEL_PATH]
    container = {
        "name": "fetch-model",
        "image": spec.image or defaults.image,
        "imagePullPolicy": spec.image_pull_policy,
        "command": [*command, "--revision", source.revision],
        "env": env,
        "securityContext": _SECURITY,
        "volumeMounts": [
            {"name": "scratch", "mountPath": SCRATCH_PATH},
            {"name": "model", "mountPath": meta.MODEL_PATH},
        ],
        "terminationMessagePath": TERMINATION_LOG,
        "terminationMessagePolicy": "File",
    }
    return {"initContainers": [container]}


def _folder(path: str) -> str:
    return path.rpartition("/")[0]
