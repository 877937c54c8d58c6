"""Fills in what a client left out: schema defaults of custom resources, and the defaults Go code gives to built-in kinds."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any

from tidewheel.local.apimachinery import pod_defaults

if TYPE_CHECKING:
    from collections.abc import Callable

    from tidewheel.local.apimachinery.fields import Gvk, Manifest
    from tidewheel.local.apimachinery.schema import Schema


def apply_defaults(obj: Manifest, schema: Schema) -> None:
    """Default a custom resource: nulls that may not be null count as absent, then defaults are filled in, nested ones too."""
    _default(obj, schema)


def _default(value: Any, schema: Schema) -> None:
    if isinstance(value, dict):
        properties = schema.properties
        for key, prop in properties.items():
            if prop.has_default and (key not in value or (value[key] is None and not prop.nullable)):
                value[key] = deepcopy(prop.default)
        doomed: list[str] = []
        for key, child in value.items():
            known = properties.get(key) or schema.additional
            if known is None:
                continue
            if child is None:
                if not known.nullable:
                    doomed.append(key)
            elif isinstance(child, dict | list):
                _default(child, known)
        for key in doomed:
            del value[key]
    elif schema.items is not None:
        items = schema.items
        for index, child in enumerate(value):
            if child is None and items.has_default and not items.nullable:
                value[index] = deepcopy(items.default)
            if isinstance(value[index], dict | list):
                _default(value[index], items)


def default_builtin(obj: Manifest, gvk: Gvk) -> None:
    """Default an object of a built-in kind as its versioned Go defaults do; admission's additions are in `admission`."""
    default = _BUILTIN.get((gvk.group, gvk.kind))
    if default is not None:
        default(obj)


def _spec(obj: Manifest) -> Manifest:
    spec: Manifest = obj.setdefault("spec", {})
    return spec


def _deployment(obj: Manifest) -> None:
    spec = _spec(obj)
    spec.setdefault("replicas", 1)
    spec.setdefault("revisionHistoryLimit", 10)
    spec.setdefault("progressDeadlineSeconds", 600)
    strategy = spec.setdefault("strategy", {})
    if strategy.setdefault("type", "RollingUpdate") == "RollingUpdate":
        rolling = strategy.setdefault("rollingUpdate", {})
        rolling.setdefault("maxUnavailable", "25%")
        rolling.setdefault("maxSurge", "25%")
    pod_defaults.default_template(spec)


def _replica_set(obj: Manifest) -> None:
    spec = _spec(obj)
    spec.setdefault("replicas", 1)
    pod_defaults.default_template(spec)


def _stateful_set(obj: Manifest) -> None:
    spec = _spec(obj)
    spec.setdefault("podManagementPolicy", "OrderedReady")
    spec.setdefault("replicas", 1)
    spec.setdefault("revisionHistoryLimit", 10)
    strategy = spec.setdefault("updateStrategy", {})
    if strategy.setdefault("type", "RollingUpdate") == "RollingUpdate":
        strategy.setdefault("rollingUpdate", {}).setdefault("partition", 0)
    retention = spec.setdefault("persistentVolumeClaimRetentionPolicy", {})
    retention.setdefault("whenDeleted", "Retain")
    retention.setdefault("whenScaled", "Retain")
    for claim in spec.get("volumeClaimTemplates") or ():
        claim.setdefault("apiVersion", "v1")
        claim.setdefault("kind", "PersistentVolumeClaim")
        _persistent_volume_claim(claim)
        claim.setdefault("status", {}).setdefault("phase", "Pending")
    pod_defaults.default_template(spec)


def _daemon_set(obj: Manifest) -> None:
    spec = _spec(obj)
    spec.setdefault("revisionHistoryLimit", 10)
    strategy = spec.setdefault("updateStrategy", {})
    if strategy.setdefault("type", "RollingUpdate") == "RollingUpdate":
        rolling = strategy.setdefault("rollingUpdate", {})
        rolling.setdefault("maxUnavailable", 1)
        rolling.setdefault("maxSurge", 0)
    pod_defaults.default_template(spec)


def _job_spec(spec: Manifest) -> None:
    if "completions" not in spec and "parallelism" not in spec:
        spec["completions"] = 1
    spec.setdefault("parallelism", 1)
    spec.setdefault("backoffLimit", 6)
    spec.setdefault("completionMode", "NonIndexed")
    spec.setdefault("suspend", False)
    spec.setdefault("podReplacementPolicy", "Failed" if "podFailurePolicy" in spec else "TerminatingOrFailed")
    pod_defaults.default_template(spec)


def _job(obj: Manifest) -> None:
    _job_spec(_spec(obj))


def _cron_job(obj: Manifest) -> None:
    spec = _spec(obj)
    spec.setdefault("concurrencyPolicy", "Allow")
    spec.setdefault("suspend", False)
    spec.setdefault("successfulJobsHistoryLimit", 3)
    spec.setdefault("failedJobsHistoryLimit", 1)
    _job_spec(spec.setdefault("jobTemplate", {}).setdefault("spec", {}))


def _service(obj: Manifest) -> None:
    spec = _spec(obj)
    if spec.setdefault("sessionAffinity", "None") == "ClientIP":
        client = spec.setdefault("sessionAffinityConfig", {}).setdefault("clientIP", {})
        client.setdefault("timeoutSeconds", 10800)
    exposure = spec.setdefault("type", "ClusterIP")
    for port in spec.get("ports") or ():
        port.setdefault("protocol", "TCP")
        if port.get("targetPort") in (None, 0, "") and "port" in port:
            port["targetPort"] = port["port"]
    if exposure in ("NodePort", "LoadBalancer"):
        spec.setdefault("externalTrafficPolicy", "Cluster")
    if exposure == "LoadBalancer":
        spec.setdefault("allocateLoadBalancerNodePorts", True)
    if exposure != "ExternalName":
        spec.setdefault("internalTrafficPolicy", "Cluster")


def _endpoints(obj: Manifest) -> None:
    for subset in obj.get("subsets") or ():
        for port in subset.get("ports") or ():
            port.setdefault("protocol", "TCP")


def _endpoint_slice(obj: Manifest) -> None:
    for port in obj.get("ports") or ():
        port.setdefault("name", "")
        port.setdefault("protocol", "TCP")


def _namespace(obj: Manifest) -> None:
    metadata = obj.setdefault("metadata", {})
    if metadata.get("name"):
        metadata["labels"] = {
            **(metadata.get("labels") or {}),
            "kubernetes.io/metadata.name": metadata["name"],
        }


def _secret(obj: Manifest) -> None:
    obj.setdefault("type", "Opaque")


def _persistent_volume_claim(obj: Manifest) -> None:
    _spec(obj).setdefault("volumeMode", "Filesystem")


def _persistent_volume(obj: Manifest) -> None:
    spec = _spec(obj)
    spec.setdefault("persistentVolumeReclaimPolicy", "Retain")
    spec.setdefault("volumeMode", "Filesystem")


def _role_binding(obj: Manifest) -> None:
    rbac = "rbac.authorization.k8s.io"
    obj.setdefault("roleRef", {}).setdefault("apiGroup", rbac)
    for subject in obj.get("subjects") or ():
        if subject.get("kind") in ("User", "Group"):
            subject.setdefault("apiGroup", rbac)


def _network_policy(obj: Manifest) -> None:
    spec = _spec(obj)
    for rule in [*(spec.get("ingress") or ()), *(spec.get("egress") or ())]:
        for port in rule.get("ports") or ():
            port.setdefault("protocol", "TCP")
    if not spec.get("policyTypes"):
        spec["policyTypes"] = ["Ingress", "Egress"] if spec.get("egress") else ["Ingress"]


def _autoscaler(obj: Manifest) -> None:
    spec = _spec(obj)
    spec.setdefault("minReplicas", 1)
    if not spec.get("metrics"):
        cpu = {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}
        spec["metrics"] = [{"type": "Resource", "resource": cpu}]


def _priority_class(obj: Manifest) -> None:
    obj.setdefault("preemptionPolicy", "PreemptLowerPriority")


def _storage_class(obj: Manifest) -> None:
    obj.setdefault("reclaimPolicy", "Delete")
    obj.setdefault("volumeBindingMode", "Immediate")


def _webhooks(obj: Manifest) -> None:
    for hook in obj.get("webhooks") or ():
        hook.setdefault("failurePolicy", "Fail")
        hook.setdefault("matchPolicy", "Equivalent")
        hook.setdefault("namespaceSelector", {})
        hook.setdefault("objectSelector", {})
        hook.setdefault("timeoutSeconds", 10)
        if obj.get("kind") == "MutatingWebhookConfiguration":
            hook.setdefault("reinvocationPolicy", "Never")
        if isinstance(hook.get("clientConfig", {}).get("service"), dict):
            hook["clientConfig"]["service"].setdefault("port", 443)
        for rule in hook.get("rules") or ():
            rule.setdefault("scope", "*")


def _api_service(obj: Manifest) -> None:
    if isinstance(_spec(obj).get("service"), dict):
        obj["spec"]["service"].setdefault("port", 443)


def _custom_resource_definition(obj: Manifest) -> None:
    spec = _spec(obj)
    names = spec.setdefault("names", {})
    if names.get("kind"):
        names["singular"] = names.get("singular") or names["kind"].lower()
        names["listKind"] = names.get("listKind") or f"{names['kind']}List"
    spec["conversion"] = spec.get("conversion") or {"strategy": "None"}
    webhook = spec["conversion"].get("webhook") or {}
    if isinstance(webhook.get("clientConfig", {}).get("service"), dict):
        webhook["clientConfig"]["service"].setdefault("port", 443)


_BUILTIN: dict[tuple[str, str], Callable[[Manifest], None]] = {
    ("", "Pod"): pod_defaults.default_pod,
    ("", "PodTemplate"): pod_defaults.default_template,
    ("", "Service"): _service,
    ("", "Endpoints"): _endpoints,
    ("", "Namespace"): _namespace,
    ("", "Secret"): _secret,
    ("", "PersistentVolumeClaim"): _persistent_volume_claim,
    ("", "PersistentVolume"): _persistent_volume,
    ("", "ReplicationController"): _replica_set,
    ("apps", "Deployment"): _deployment,
    ("apps", "ReplicaSet"): _replica_set,
    ("apps", "StatefulSet"): _stateful_set,
    ("apps", "DaemonSet"): _daemon_set,
    ("batch", "Job"): _job,
    ("batch", "CronJob"): _cron_job,
    ("discovery.k8s.io", "EndpointSlice"): _endpoint_slice,
    ("rbac.authorization.k8s.io", "RoleBinding"): _role_binding,
    ("rbac.authorization.k8s.io", "ClusterRoleBinding"): _role_binding,
    ("networking.k8s.io", "NetworkPolicy"): _network_policy,
    ("autoscaling", "HorizontalPodAutoscaler"): _autoscaler,
    ("scheduling.k8s.io", "PriorityClass"): _priority_class,
    ("storage.k8s.io", "StorageClass"): _storage_class,
    ("admissionregistration.k8s.io", "ValidatingWebhookConfiguration"): _webhooks,
    ("admissionregistration.k8s.io", "MutatingWebhookConfiguration"): _webhooks,
    ("apiregistration.k8s.io", "APIService"): _api_service,
    ("apiextensions.k8s.io", "CustomResourceDefinition"): _custom_resource_definition,
}
