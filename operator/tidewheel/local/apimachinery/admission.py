"""What the API server adds to built-in objects after managed fields were recorded: admission, and what an endpoint resets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tidewheel.local.apimachinery.quantities import quantity

if TYPE_CHECKING:
    from tidewheel.local.apimachinery.fields import Gvk, Manifest

_GRACE_SECONDS: Final = 300
_SYSTEM_PRIORITIES: Final = {"system-cluster-critical": 2_000_000_000, "system-node-critical": 2_000_001_000}
# Kinds whose main endpoint ignores `status`, and whose status endpoint ignores all else.
_WITH_STATUS: Final = frozenset(
    {
        ("", "Namespace"), ("", "Node"), ("", "PersistentVolume"), ("", "PersistentVolumeClaim"), ("", "Pod"),
        ("", "ReplicationController"), ("", "ResourceQuota"), ("", "Service"),
        ("apiextensions.k8s.io", "CustomResourceDefinition"), ("apiregistration.k8s.io", "APIService"),
        ("apps", "DaemonSet"), ("apps", "Deployment"), ("apps", "ReplicaSet"), ("apps", "StatefulSet"),
        ("autoscaling", "HorizontalPodAutoscaler"), ("batch", "CronJob"), ("batch", "Job"),
        ("networking.k8s.io", "Ingress"), ("policy", "PodDisruptionBudget"),
    }
)  # fmt: skip


def admit(obj: Manifest, gvk: Gvk) -> None:
    """Do what the admission plugins that are on by default do to an object that is being created."""
    if gvk.group:
        return
    if gvk.kind == "Pod":
        _admit_pod(obj["spec"])
    elif gvk.kind == "Node":
        _add_taint(obj["spec"], {"effect": "NoSchedule", "key": "node.kubernetes.io/not-ready"})


def _admit_pod(spec: Manifest) -> None:
    account = spec.get("serviceAccountName") or "default"
    spec["serviceAccountName"] = spec["serviceAccount"] = account
    if "priority" not in spec:
        spec["priority"] = _SYSTEM_PRIORITIES.get(spec.get("priorityClassName", ""), 0)
    spec.setdefault("preemptionPolicy", "PreemptLowerPriority")
    tolerations: list[Manifest] = spec.get("tolerations") or []
    for key in ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"):
        if not any(_tolerates_eviction(each, key) for each in tolerations):
            added = {
                "effect": "NoExecute",
                "key": key,
                "operator": "Exists",
                "tolerationSeconds": _GRACE_SECONDS,
            }
            tolerations = [*tolerations, added]
    spec["tolerations"] = tolerations


def _tolerates_eviction(toleration: Manifest, key: str) -> bool:
    return toleration.get("key", "") in ("", key) and toleration.get("effect", "") in ("", "NoExecute")


def _add_taint(spec: Manifest, taint: Manifest) -> None:
    taints = spec.get("taints") or []
    if not any(each.get("key") == taint["key"] and each.get("effect") == taint["effect"] for each in taints):
        spec["taints"] = [*taints, taint]


def prepare_for_create(obj: Manifest, gvk: Gvk) -> None:
    """Reset what a client may not set on create, and give status its first value."""
    key = (gvk.group, gvk.kind)
    if key in _WITH_STATUS and key != ("", "Node"):
        obj["status"] = _first_status(obj, gvk)
    if key == ("", "Namespace"):
        spec = obj.setdefault("spec", {})
        if "kubernetes" not in spec.get("finalizers", ()):
            spec["finalizers"] = [*spec.get("finalizers", ()), "kubernetes"]
    elif key == ("", "Service"):
        _prepare_service(obj["spec"])
    elif key == ("batch", "Job"):
        _prepare_job(obj)


def _first_status(obj: Manifest, gvk: Gvk) -> Manifest:
    match gvk.kind:
        case "Pod":
            return {"phase": "Pending", "qosClass": quality_of_service(obj["spec"])}
        case "Namespace":
            return {"phase": "Active"}
        case "PersistentVolume" | "PersistentVolumeClaim":
            return {"phase": "Pending"}
        case "Service" | "Ingress":
            return {"loadBalancer": {}}
        case "ReplicaSet" | "ReplicationController":
            return {"replicas": 0}
        case "StatefulSet":
            return {"replicas": 0, "availableReplicas": 0}
        case "DaemonSet":
            counts = ("currentNumberScheduled", "desiredNumberScheduled", "numberMisscheduled", "numberReady")
            return dict.fromkeys(counts, 0)
        case "PodDisruptionBudget":
            counts = ("currentHealthy", "desiredHealthy", "disruptionsAllowed", "expectedPods")
            return dict.fromkeys(counts, 0)
        case "HorizontalPodAutoscaler":
            return {"currentMetrics": None, "desiredReplicas": 0}
        case "CustomResourceDefinition":
            stored = [
                version["name"] for version in obj["spec"].get("versions") or () if version.get("storage")
            ]
            return {"acceptedNames": {"kind": "", "plural": ""}, "conditions": None, "storedVersions": stored}
    return {}


def _prepare_service(spec: Manifest) -> None:
    """Families and the list of addresses; the first cluster address itself is allocated by the storage."""
    if spec.get("type") == "ExternalName":
        return
    spec.setdefault("ipFamilies", ["IPv4"])
    spec.setdefault("ipFamilyPolicy", "SingleStack")
    if spec.get("clusterIP"):
        spec.setdefault("clusterIPs", [spec["clusterIP"]])


def _prepare_job(job: Manifest) -> None:
    """A job without a manual selector selects its pods by its own uid, when it already has one."""
    uid = job["metadata"].get("uid")
    if uid and not job["spec"].get("manualSelector"):
        own = {"batch.kubernetes.io/controller-uid": uid}
        name = job["metadata"].get("name", "")
        job["spec"].setdefault("selector", {})["matchLabels"] = own
        labels = job["spec"]["template"].setdefault("metadata", {}).setdefault("labels", {})
        labels.update({**own, "controller-uid": uid, "batch.kubernetes.io/job-name": name, "job-name": name})


def prepare_for_update(new: Manifest, old: Manifest, gvk: Gvk, subresource: str = "") -> None:
    """Take from `old` what the endpoint does not let a client change."""
    key = (gvk.group, gvk.kind)
    if key not in _WITH_STATUS:
        return
    if subresource == "status":
        for field in new.keys() | old.keys():
            if field not in ("status", "metadata", "apiVersion", "kind"):
                _take(new, old, field)
        if key == ("", "Pod"):
            _take(new["metadata"], old["metadata"], "deletionTimestamp")
            _take(new["metadata"], old["metadata"], "ownerReferences")
            new["status"].setdefault("qosClass", old["status"].get("qosClass", "BestEffort"))
        elif key != ("", "Node"):
            _take(new["metadata"], old["metadata"], "labels")
        return
    _take(new, old, "status")
    if key == ("", "Service"):
        _keep_addresses(new["spec"], old["spec"])


def _keep_addresses(new: Manifest, old: Manifest) -> None:
    """An update that names no address keeps the one that was allocated, unless the service needs none any more."""
    if new.get("type") == "ExternalName" or old.get("type") == "ExternalName":
        return
    for field in ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"):
        if field in old:
            new.setdefault(field, old[field])
    if "healthCheckNodePort" in old and new.get("externalTrafficPolicy") == "Local":
        new.setdefault("healthCheckNodePort", old["healthCheckNodePort"])
    if new.get("type") in ("NodePort", "LoadBalancer"):
        taken = {
            (port.get("protocol"), port["port"]): port.get("nodePort") for port in old.get("ports") or ()
        }
        for port in new.get("ports") or ():
            known = taken.get((port.get("protocol"), port.get("port")))
            if not port.get("nodePort") and known:
                port["nodePort"] = known


def _take(new: Manifest, old: Manifest, field: str) -> None:
    if field in old:
        new[field] = old[field]
    else:
        new.pop(field, None)


def quality_of_service(spec: Manifest) -> str:
    """`Guaranteed`, `Burstable` or `BestEffort`, from the CPU and memory that the containers ask for."""
    containers = [*(spec.get("containers") or ()), *(spec.get("initContainers") or ())]
    is_guaranteed = bool(containers)
    asks = False
    for container in containers:
        resources: Manifest = container.get("resources") or {}
        requests, limits = _compute(resources.get("requests")), _compute(resources.get("limits"))
        asks = asks or bool(requests) or bool(limits)
        if limits.keys() != {"cpu", "memory"} or any(
            requests.get(name, limit) != limit for name, limit in limits.items()
        ):
            is_guaranteed = False
    if not asks:
        return "BestEffort"
    return "Guaranteed" if is_guaranteed else "Burstable"


def _compute(resources: Any) -> dict[str, Any]:
    """CPU and memory above zero."""
    return {
        name: number
        for name, text in (resources or {}).items()
        if name in ("cpu", "memory") and (number := quantity(text)) > 0
    }
