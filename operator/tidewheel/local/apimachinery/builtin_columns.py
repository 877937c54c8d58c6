"""The columns in which kube-apiserver prints the built-in kinds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from tidewheel.local.apimachinery.durations import ages, human_duration
from tidewheel.local.apimachinery.fields import Manifest
from tidewheel.local.apimachinery.pod_columns import pod_ready, pod_restarts, pod_status

_CORE: Final = "io.k8s.api.core.v1."
_META: Final = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
_NONE: Final = "<none>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column: its cell is computed from the object and the present time.

    `documents` is a definition and a field of the OpenAPI, with a space between, whose description is the column's.
    """

    name: str
    cell: Callable[[Manifest, datetime], Any]
    type: str = "string"
    format: str = ""
    priority: int = 0
    description: str = ""
    documents: str = ""


def _at(obj: Manifest, path: str, default: Any = None) -> Any:
    value: Any = obj
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return default if value is None else value


def _column(name: str, path: str, **more: Any) -> Column:
    """A column that prints one field."""
    default = more.pop("default", 0 if more.get("type") == "integer" else "")
    return Column(name=name, cell=lambda obj, _: _at(obj, path, default), **more)


def _wide(name: str, cell: Callable[[Manifest, datetime], Any], **more: Any) -> Column:
    return Column(name=name, cell=cell, priority=1, **more)


_NAME: Final = _column("Name", "metadata.name", format="name")
_AGE: Final = Column(
    name="Age",
    cell=lambda obj, now: ages(_at(obj, "metadata.creationTimestamp"), now),
    documents=f"{_META} creationTimestamp",
)
_CREATED_AT: Final = Column(
    name="Created At",
    cell=lambda obj, _: _at(obj, "metadata.creationTimestamp", ""),
    type="date",
    documents=f"{_META} creationTimestamp",
)


def _selector(labels: Any) -> str:
    selector = labels or {}
    if "matchLabels" in selector or "matchExpressions" in selector:
        parts = [f"{key}={value}" for key, value in sorted((selector.get("matchLabels") or {}).items())]
        for each in selector.get("matchExpressions") or ():
            values = f" ({','.join(each['values'])})" if each.get("values") else ""
            operator = {"In": " in", "NotIn": " notin", "Exists": "", "DoesNotExist": "!"}[each["operator"]]
            parts.append(f"!{each['key']}" if operator == "!" else f"{each['key']}{operator}{values}")
        return ",".join(parts) or _NONE
    return ",".join(f"{key}={value}" for key, value in sorted(selector.items())) or _NONE


def _template(field: str) -> Callable[[Manifest, datetime], str]:
    def cell(obj: Manifest, _: datetime) -> str:
        return ",".join(
            container.get(field, "") for container in _at(obj, "spec.template.spec.containers", ())
        )

    return cell


_TEMPLATE_COLUMNS: Final = (
    _wide("Containers", _template("name"), description="Names of each container in the template."),
    _wide("Images", _template("image"), description="Images referenced by each container in the template."),
    _wide("Selector", lambda obj, _: _selector(_at(obj, "spec.selector"))),
)


def _ready_of(total: str) -> Callable[[Manifest, datetime], str]:
    return lambda obj, _: f"{_at(obj, 'status.readyReplicas', 0)}/{_at(obj, total, 0)}"


# --- nodes -----------------------------------------------------------------------------------------------------------


def _node_status(node: Manifest, _: datetime) -> str:
    ready = next((each for each in _at(node, "status.conditions", ()) if each["type"] == "Ready"), None)
    words = ["Unknown" if ready is None else "Ready" if ready["status"] == "True" else "NotReady"]
    if _at(node, "spec.unschedulable"):
        words.append("SchedulingDisabled")
    return ",".join(words)


def _node_roles(node: Manifest, _: datetime) -> str:
    prefix = "node-role.kubernetes.io/"
    labels = _at(node, "metadata.labels", {})
    roles = {key.removeprefix(prefix) for key in labels if key.startswith(prefix)}
    return ",".join(sorted(filter(None, roles))) or _NONE


def _node_address(kind: str) -> Callable[[Manifest, datetime], str]:
    def cell(node: Manifest, _: datetime) -> str:
        addresses = _at(node, "status.addresses", ())
        return next((each["address"] for each in addresses if each["type"] == kind), _NONE)

    return cell


# --- services --------------------------------------------------------------------------------------------------------


def _external_ip(service: Manifest, _: datetime) -> str:
    spec = service["spec"]
    external = list(spec.get("externalIPs") or ())
    match spec.get("type"):
        case "ExternalName":
            return str(spec.get("externalName", _NONE))
        case "LoadBalancer":
            ingress = _at(service, "status.loadBalancer.ingress", ())
            external = [each.get("ip") or each.get("hostname", "") for each in ingress] + external
            return ",".join(external) or "<pending>"
    return ",".join(external) or _NONE


def _service_ports(service: Manifest, _: datetime) -> str:
    ports = service["spec"].get("ports") or ()
    texts = []
    for port in ports:
        node_port = f":{port['nodePort']}" if port.get("nodePort") else ""
        texts.append(f"{port['port']}{node_port}/{port.get('protocol', 'TCP')}")
    return ",".join(texts) or _NONE


# --- events, jobs and the rest ---------------------------------------------------------------------------------------


def _event_object(event: Manifest, _: datetime) -> str:
    about = event.get("involvedObject") or {}
    return f"{about.get('kind', '').lower()}/{about.get('name', '')}"


def _first_seen(event: Manifest, now: datetime) -> str:
    return ages(event.get("firstTimestamp") or event.get("eventTime"), now)


def _last_seen(event: Manifest, now: datetime) -> str:
    series = _at(event, "series.lastObservedTime")
    return ages(
        series or event.get("lastTimestamp") or event.get("firstTimestamp") or event.get("eventTime"), now
    )


def _event_source(event: Manifest, _: datetime) -> str:
    component = _at(event, "source.component") or event.get("reportingComponent", "")
    host = _at(event, "source.host") or event.get("reportingInstance", "")
    return f"{component}, {host}" if host else str(component)


def _count(*fields: str) -> Callable[[Manifest, datetime], int]:
    return lambda obj, _: sum(len(obj.get(field) or {}) for field in fields)


def _job_status(job: Manifest, _: datetime) -> str:
    for condition in _at(job, "status.conditions", ()):
        if condition["status"] == "True" and condition["type"] in ("Complete", "Failed", "Suspended"):
            return str(condition["type"])
    return "Terminating" if _at(job, "metadata.deletionTimestamp") else "Running"


def _job_duration(job: Manifest, now: datetime) -> str:
    start, end = _at(job, "status.startTime"), _at(job, "status.completionTime")
    if start is None:
        return ""
    until = datetime.fromisoformat(end) if end else now
    return human_duration((until - datetime.fromisoformat(start)).total_seconds())


def _claim_capacity(claim: Manifest, _: datetime) -> str:
    return str(_at(claim, "status.capacity.storage", ""))


def _budget(field: str) -> Callable[[Manifest, datetime], str]:
    return lambda obj, _: str(_at(obj, f"spec.{field}", "N/A"))


def _subjects(kind: str) -> Callable[[Manifest, datetime], str]:
    def cell(binding: Manifest, _: datetime) -> str:
        named = [each for each in binding.get("subjects") or () if each.get("kind") == kind]
        return ", ".join(
            f"{each['namespace']}/{each['name']}" if each.get("namespace") else each["name"] for each in named
        )

    return cell


def _binding_columns() -> tuple[Column, ...]:
    return (
        _NAME,
        Column(name="Role", cell=lambda obj, _: f"{obj['roleRef'].get('kind')}/{obj['roleRef'].get('name')}"),
        _AGE,
        _wide("Users", _subjects("User")),
        _wide("Groups", _subjects("Group")),
        _wide("ServiceAccounts", _subjects("ServiceAccount")),
    )


COLUMNS: Final[dict[tuple[str, str], tuple[Column, ...]]] = {
    ("", ""): (_NAME, _CREATED_AT),
    ("", "Pod"): (
        _NAME,
        Column(
            name="Ready",
            cell=pod_ready,
            description="The aggregate readiness state of this pod for accepting traffic.",
        ),
        Column(
            name="Status", cell=pod_status, description="The aggregate status of the containers in this pod."
        ),
        Column(
            name="Restarts",
            cell=lambda pod, now: pod_restarts(pod, lambda time: ages(time, now)),
            description="The number of times the containers in this pod have been restarted and when the last container "
            "in this pod has restarted.",
        ),
        _AGE,
        _column("IP", "status.podIP", default=_NONE, priority=1, documents=f"{_CORE}PodStatus podIP"),
        _column("Node", "spec.nodeName", default=_NONE, priority=1, documents=f"{_CORE}PodSpec nodeName"),
        _column(
            "Nominated Node",
            "status.nominatedNodeName",
            default=_NONE,
            priority=1,
            documents=f"{_CORE}PodStatus nominatedNodeName",
        ),
        _wide(
            "Readiness Gates",
            lambda pod, _: _readiness_gates(pod),
            documents=f"{_CORE}PodSpec readinessGates",
        ),
    ),
    ("", "Node"): (
        _NAME,
        Column(name="Status", cell=_node_status, description="The status of the node"),
        Column(name="Roles", cell=_node_roles, description="The roles of the node"),
        _AGE,
        _column(
            "Version", "status.nodeInfo.kubeletVersion", documents=f"{_CORE}NodeSystemInfo kubeletVersion"
        ),
        _wide("Internal-IP", _node_address("InternalIP"), documents=f"{_CORE}NodeStatus addresses"),
        _wide("External-IP", _node_address("ExternalIP"), documents=f"{_CORE}NodeStatus addresses"),
        _column("OS-Image", "status.nodeInfo.osImage", default="<unknown>", priority=1),
        _column("Kernel-Version", "status.nodeInfo.kernelVersion", default="<unknown>", priority=1),
        _column(
            "Container-Runtime", "status.nodeInfo.containerRuntimeVersion", default="<unknown>", priority=1
        ),
    ),
    ("", "Service"): (
        _NAME,
        _column("Type", "spec.type", documents=f"{_CORE}ServiceSpec type"),
        _column("Cluster-IP", "spec.clusterIP", default=_NONE, documents=f"{_CORE}ServiceSpec clusterIP"),
        Column(name="External-IP", cell=_external_ip, documents=f"{_CORE}ServiceSpec externalIPs"),
        Column(name="Port(s)", cell=_service_ports, documents=f"{_CORE}ServiceSpec ports"),
        _AGE,
        _wide(
            "Selector",
            lambda obj, _: _selector(_at(obj, "spec.selector")),
            documents=f"{_CORE}ServiceSpec selector",
        ),
    ),
    ("", "ConfigMap"): (_NAME, Column(name="Data", cell=_count("data", "binaryData"), type="integer"), _AGE),
    ("", "Secret"): (
        _NAME,
        _column("Type", "type"),
        Column(name="Data", cell=_count("data"), type="integer"),
        _AGE,
    ),
    ("", "Namespace"): (
        _NAME,
        _column("Status", "status.phase", description="The status of the namespace"),
        _AGE,
    ),
    ("", "ServiceAccount"): (_NAME, Column(name="Secrets", cell=_count("secrets"), type="integer"), _AGE),
    ("", "Event"): (
        Column(name="Last Seen", cell=_last_seen),
        _column("Type", "type"),
        _column("Reason", "reason"),
        Column(name="Object", cell=_event_object),
        _column("Subobject", "involvedObject.fieldPath", priority=1),
        _wide("Source", _event_source),
        Column(name="Message", cell=lambda event, _: event.get("message", "").strip()),
        _wide("First Seen", _first_seen),
        _column("Count", "count", default=1, priority=1),
        _column("Name", "metadata.name", format="name", priority=1),
    ),
    ("", "PersistentVolumeClaim"): (
        _NAME,
        _column("Status", "status.phase"),
        _column("Volume", "spec.volumeName"),
        Column(name="Capacity", cell=_claim_capacity),
        Column(name="Access Modes", cell=lambda obj, _: ",".join(_at(obj, "status.accessModes", ()))),
        _column("StorageClass", "spec.storageClassName"),
        _AGE,
        _column("VolumeMode", "spec.volumeMode", priority=1),
    ),
    ("apps", "Deployment"): (
        _NAME,
        Column(
            name="Ready", cell=_ready_of("spec.replicas"), description="Number of the pod with ready state"
        ),
        _column("Up-to-date", "status.updatedReplicas", type="integer"),
        _column("Available", "status.availableReplicas", type="integer"),
        _AGE,
        *_TEMPLATE_COLUMNS,
    ),
    ("apps", "ReplicaSet"): (
        _NAME,
        _column("Desired", "spec.replicas", type="integer"),
        _column("Current", "status.replicas", type="integer"),
        _column("Ready", "status.readyReplicas", type="integer"),
        _AGE,
        *_TEMPLATE_COLUMNS,
    ),
    ("apps", "StatefulSet"): (
        _NAME,
        Column(
            name="Ready", cell=_ready_of("spec.replicas"), description="Number of the pod with ready state"
        ),
        _AGE,
        *_TEMPLATE_COLUMNS[:2],
    ),
    ("apps", "DaemonSet"): (
        _NAME,
        _column("Desired", "status.desiredNumberScheduled", type="integer"),
        _column("Current", "status.currentNumberScheduled", type="integer"),
        _column("Ready", "status.numberReady", type="integer"),
        _column("Up-to-date", "status.updatedNumberScheduled", type="integer"),
        _column("Available", "status.numberAvailable", type="integer"),
        Column(
            name="Node Selector", cell=lambda obj, _: _selector(_at(obj, "spec.template.spec.nodeSelector"))
        ),
        _AGE,
        *_TEMPLATE_COLUMNS,
    ),
    ("batch", "Job"): (
        _NAME,
        Column(name="Status", cell=_job_status),
        Column(
            name="Completions",
            cell=lambda job, _: f"{_at(job, 'status.succeeded', 0)}/{_at(job, 'spec.completions', 1)}",
        ),
        Column(name="Duration", cell=_job_duration),
        _AGE,
        *_TEMPLATE_COLUMNS,
    ),
    ("coordination.k8s.io", "Lease"): (_NAME, _column("Holder", "spec.holderIdentity"), _AGE),
    ("policy", "PodDisruptionBudget"): (
        _NAME,
        Column(name="Min Available", cell=_budget("minAvailable")),
        Column(name="Max Unavailable", cell=_budget("maxUnavailable")),
        _column("Allowed Disruptions", "status.disruptionsAllowed", type="integer"),
        _AGE,
    ),
    ("networking.k8s.io", "NetworkPolicy"): (
        _NAME,
        Column(name="Pod-Selector", cell=lambda obj, _: _selector(_at(obj, "spec.podSelector"))),
        _AGE,
    ),
    ("scheduling.k8s.io", "PriorityClass"): (
        _NAME,
        _column("Value", "value", type="integer"),
        _column("Global-Default", "globalDefault", type="boolean", default=False),
        _AGE,
        _column("PreemptionPolicy", "preemptionPolicy"),
    ),
    ("rbac.authorization.k8s.io", "RoleBinding"): _binding_columns(),
    ("rbac.authorization.k8s.io", "ClusterRoleBinding"): _binding_columns(),
}


def _readiness_gates(pod: Manifest) -> str:
    gates = _at(pod, "spec.readinessGates", ())
    if not gates:
        return _NONE
    conditions = {each["type"]: each["status"] for each in _at(pod, "status.conditions", ())}
    ready = sum(conditions.get(gate["conditionType"]) == "True" for gate in gates)
    return f"{ready}/{len(gates)}"
