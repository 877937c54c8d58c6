"""What kube-apiserver's hand-written validation refuses for the built-in kinds that operators use."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any, Final

from tidewheel.local.apimachinery import names
from tidewheel.local.apimachinery.fields import (
    FieldError,
    duplicate,
    forbidden,
    invalid,
    not_supported,
    required,
    too_long,
)
from tidewheel.local.apimachinery.metadata_rules import (
    validate_labels,
    validate_metadata,
    validate_metadata_update,
)
from tidewheel.local.apimachinery.pod_rules import validate_pod_spec, validate_pod_update
from tidewheel.local.apimachinery.selectors import LabelSelector, selector_errors
from tidewheel.local.apimachinery.service_rules import validate_service, validate_service_change
from tidewheel.local.apimachinery.structural import crd_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tidewheel.local.apimachinery.fields import Gvk, Manifest

_MOST_BYTES: Final = 1024 * 1024
_CLUSTER_SCOPED: Final = frozenset(
    {
        "APIService", "ClusterRole", "ClusterRoleBinding", "CSIDriver", "CSINode", "CustomResourceDefinition", "DeviceClass",
        "IngressClass", "MutatingWebhookConfiguration", "Namespace", "Node", "PersistentVolume", "PriorityClass",
        "RuntimeClass", "StorageClass", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding",
        "ValidatingWebhookConfiguration", "VolumeAttachment",
    }
)  # fmt: skip
_NAME_RULES: Final[dict[str, Callable[[str], list[str]]]] = {
    "Namespace": names.label_complaints,
    "Service": names.label_1035_complaints,
    "Role": names.path_segment_complaints,
    "RoleBinding": names.path_segment_complaints,
    "ClusterRole": names.path_segment_complaints,
    "ClusterRoleBinding": names.path_segment_complaints,
}
_TAINT_EFFECTS: Final = ("NoSchedule", "PreferNoSchedule", "NoExecute")
_WORKLOADS: Final = frozenset({"DaemonSet", "Deployment", "ReplicaSet", "StatefulSet"})
_SECRET_KEYS: Final = {
    "kubernetes.io/tls": ("tls.crt", "tls.key"),
    "kubernetes.io/dockerconfigjson": (".dockerconfigjson",),
    "kubernetes.io/dockercfg": (".dockercfg",),
    "kubernetes.io/ssh-auth": ("ssh-privatekey",),
}


def validate_create(obj: Manifest, gvk: Gvk) -> list[FieldError]:
    """Check an object of a built-in kind that is to be created; it was decoded and defaulted before."""
    errors = _metadata_errors(obj, gvk)
    rule = _RULES.get(gvk.kind)
    if rule is not None:
        errors += rule(obj)
    return errors


def validate_update(new: Manifest, old: Manifest, gvk: Gvk, subresource: str = "") -> list[FieldError]:
    """Check an object of a built-in kind that is to replace `old`."""
    # The registry and the strategy both check, and the real server reports both.
    errors = validate_metadata_update(new["metadata"], old["metadata"]) * 2
    immutable = ("metadata.name", "metadata.generateName", "metadata.namespace")
    errors += [error for error in _metadata_errors(new, gvk) if error.field not in immutable]
    if subresource:
        return errors
    if gvk.kind == "Pod":
        return errors + validate_pod_update(new, old)
    rule = _RULES.get(gvk.kind)
    if rule is not None:
        errors += rule(new)
    change = _CHANGES.get(gvk.kind)
    if change is not None:
        errors += change(new, old)
    return errors


def _metadata_errors(obj: Manifest, gvk: Gvk) -> list[FieldError]:
    return validate_metadata(
        obj.get("metadata") or {},
        namespaced=gvk.kind not in _CLUSTER_SCOPED,
        name_complaints=_NAME_RULES.get(gvk.kind, names.subdomain_complaints),
    )


def _pod(obj: Manifest) -> Iterator[FieldError]:
    yield from validate_pod_spec(obj["spec"])


def _config_map(obj: Manifest) -> Iterator[FieldError]:
    size = 0
    for field in ("data", "binaryData"):
        for key, value in (obj.get(field) or {}).items():
            for text in names.config_key_complaints(key):
                yield invalid(f"{field}[{key}]", key, text)
            if field == "binaryData" and key in (obj.get("data") or {}):
                yield invalid(f"{field}[{key}]", key, "duplicate of key present in data")
            size += len(value.encode()) if field == "data" else len(base64.b64decode(value))
    if size > _MOST_BYTES:
        yield too_long("", _MOST_BYTES)


def _secret(obj: Manifest) -> Iterator[FieldError]:
    contents = obj.get("data") or {}
    for key in contents:
        for text in names.config_key_complaints(key):
            yield invalid(f"data[{key}]", key, text)
    if sum(len(base64.b64decode(value)) for value in contents.values()) > _MOST_BYTES:
        yield too_long("data", _MOST_BYTES)
    for key in _SECRET_KEYS.get(obj.get("type", ""), ()):
        if key not in contents:
            yield required(f"data[{key}]")


def _immutable_contents(new: Manifest, old: Manifest) -> Iterator[FieldError]:
    if new.get("type") != old.get("type"):
        yield invalid("type", new.get("type"), "field is immutable")
    if not old.get("immutable"):
        return
    if not new.get("immutable"):
        yield forbidden("immutable", "field is immutable when `immutable` is set")
    for field in ("data", "binaryData"):
        if new.get(field) != old.get(field):
            yield forbidden(field, "field is immutable when `immutable` is set")


def _node(obj: Manifest) -> Iterator[FieldError]:
    seen: set[tuple[Any, Any]] = set()
    for index, taint in enumerate(obj["spec"].get("taints") or ()):
        path = f"spec.taints[{index}]"
        for text in names.qualified_name_complaints(taint.get("key", "")):
            yield invalid(f"{path}.key", taint.get("key", ""), text)
        for text in names.label_value_complaints(taint.get("value", "")):
            yield invalid(f"{path}.value", taint.get("value", ""), text)
        effect = taint.get("effect", "")
        if not effect:
            yield required(f"{path}.effect")
        elif effect not in _TAINT_EFFECTS:
            yield not_supported(f"{path}.effect", effect, _TAINT_EFFECTS)
        if (taint.get("key"), effect) in seen:
            yield duplicate(path, taint)
        seen.add((taint.get("key"), effect))


def _workload(obj: Manifest) -> Iterator[FieldError]:
    spec = obj["spec"]
    for field in ("replicas", "minReadySeconds", "revisionHistoryLimit"):
        if (spec.get(field) or 0) < 0:
            yield invalid(f"spec.{field}", spec[field], "must be greater than or equal to 0")
    selector = spec.get("selector")
    template = spec["template"]
    labels = (template.get("metadata") or {}).get("labels") or {}
    if not selector:
        yield required("spec.selector")
        if selector is not None:
            text = f"empty selector is invalid for {obj['kind'].lower()}"
            yield invalid("spec.selector", selector, text)
    else:
        errors = list(selector_errors(selector, "spec.selector"))
        yield from errors
        if not errors and not LabelSelector.from_object(selector).matches(labels):
            yield invalid(
                "spec.template.metadata.labels", labels, "`selector` does not match template `labels`"
            )
    yield from validate_labels(labels, "spec.template.metadata.labels")
    yield from validate_pod_spec(template["spec"], "spec.template.spec")
    if template["spec"].get("restartPolicy") in ("OnFailure", "Never"):
        yield not_supported(
            "spec.template.spec.restartPolicy", template["spec"]["restartPolicy"], ("Always",)
        )
    if obj["kind"] == "Deployment":
        yield from _deployment_strategy(spec)


def _deployment_strategy(spec: Manifest) -> Iterator[FieldError]:
    strategy = spec.get("strategy") or {}
    kind, rolling = strategy.get("type"), strategy.get("rollingUpdate")
    if kind not in ("Recreate", "RollingUpdate"):
        yield not_supported("spec.strategy.type", kind, ("Recreate", "RollingUpdate"))
    elif kind == "Recreate" and rolling is not None:
        text = "may not be specified when strategy `type` is 'Recreate'"
        yield forbidden("spec.strategy.rollingUpdate", text)
    elif kind == "RollingUpdate" and rolling:
        zero = (0, "0", "0%")
        if rolling.get("maxUnavailable") in zero and rolling.get("maxSurge") in zero:
            text = "may not be 0 when `maxSurge` is 0"
            yield invalid("spec.strategy.rollingUpdate.maxUnavailable", rolling["maxUnavailable"], text)
    deadline = spec.get("progressDeadlineSeconds")
    if deadline is not None and deadline <= spec.get("minReadySeconds", 0):
        yield invalid("spec.progressDeadlineSeconds", deadline, "must be greater than minReadySeconds")


def _workload_change(new: Manifest, old: Manifest) -> Iterator[FieldError]:
    if new["kind"] == "StatefulSet":
        may_change = {
            "replicas", "ordinals", "template", "updateStrategy", "revisionHistoryLimit",
            "persistentVolumeClaimRetentionPolicy", "minReadySeconds",
        }  # fmt: skip
        before, after = old["spec"], new["spec"]
        if any(before.get(key) != after.get(key) for key in (before.keys() | after.keys()) - may_change):
            text = (
                "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', "
                "'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden"
            )
            yield forbidden("spec", text)
    elif new["spec"].get("selector") != old["spec"].get("selector"):
        yield invalid("spec.selector", new["spec"].get("selector"), "field is immutable")


def _job(obj: Manifest) -> Iterator[FieldError]:
    spec = obj["spec"]
    for field in (
        "parallelism",
        "completions",
        "backoffLimit",
        "activeDeadlineSeconds",
        "ttlSecondsAfterFinished",
    ):
        if (spec.get(field) or 0) < 0:
            yield invalid(f"spec.{field}", spec[field], "must be greater than or equal to 0")
    yield from validate_pod_spec(spec["template"]["spec"], "spec.template.spec")
    if spec["template"]["spec"].get("restartPolicy") == "Always":
        path = "spec.template.spec.restartPolicy"
        yield FieldError(path, "FieldValueRequired", 'Required value: valid values: "OnFailure", "Never"')


def _job_change(new: Manifest, old: Manifest) -> Iterator[FieldError]:
    for field in ("selector", "template", "completionMode", "podFailurePolicy", "backoffLimitPerIndex"):
        if new["spec"].get(field) != old["spec"].get(field):
            yield invalid(f"spec.{field}", new["spec"].get(field), "field is immutable")
    is_indexed = new["spec"].get("completionMode") == "Indexed"
    if not is_indexed and new["spec"].get("completions") != old["spec"].get("completions"):
        yield invalid("spec.completions", new["spec"].get("completions"), "field is immutable")


def _lease(obj: Manifest) -> Iterator[FieldError]:
    spec = obj["spec"]
    if spec.get("leaseDurationSeconds") is not None and spec["leaseDurationSeconds"] <= 0:
        yield invalid("spec.leaseDurationSeconds", spec["leaseDurationSeconds"], "must be greater than 0")
    if (spec.get("leaseTransitions") or 0) < 0:
        yield invalid("spec.leaseTransitions", spec["leaseTransitions"], "must be greater than or equal to 0")


def _event(obj: Manifest) -> Iterator[FieldError]:
    about = obj.get("involvedObject") or obj.get("regarding") or {}
    namespace = obj["metadata"].get("namespace", "")
    expected = about.get("namespace") or "default"
    if namespace != expected:
        text = (
            "does not match event.namespace"
            if about.get("namespace")
            else "event.namespace must be 'default'"
        )
        yield invalid("involvedObject.namespace", about.get("namespace", ""), text)


def _disruption_budget(obj: Manifest) -> Iterator[FieldError]:
    spec = obj["spec"]
    if spec.get("minAvailable") is not None and spec.get("maxUnavailable") is not None:
        yield invalid("spec", spec, "minAvailable and maxUnavailable cannot be both set")
    if spec.get("selector"):
        yield from selector_errors(spec["selector"], "spec.selector")


def _autoscaler(obj: Manifest) -> Iterator[FieldError]:
    spec = obj["spec"]
    least, most = spec.get("minReplicas", 1), spec.get("maxReplicas", 0)
    if most < 1:
        yield invalid("spec.maxReplicas", most, "must be greater than 0")
    elif most < least:
        yield invalid("spec.maxReplicas", most, "must be greater than or equal to `minReplicas`")
    for field in ("kind", "name"):
        if not spec["scaleTargetRef"].get(field):
            yield required(f"spec.scaleTargetRef.{field}")


def _claim(obj: Manifest) -> Iterator[FieldError]:
    spec = obj["spec"]
    if not spec.get("accessModes"):
        yield required("spec.accessModes", "at least 1 access mode is required")
    if not (spec["resources"].get("requests") or {}).get("storage"):
        yield required("spec.resources[storage]")


def _role_binding(obj: Manifest) -> Iterator[FieldError]:
    role = obj["roleRef"]
    if role.get("apiGroup") != "rbac.authorization.k8s.io":
        yield not_supported("roleRef.apiGroup", role.get("apiGroup"), ("rbac.authorization.k8s.io",))
    kinds = ("ClusterRole",) if obj["kind"] == "ClusterRoleBinding" else ("Role", "ClusterRole")
    if role.get("kind") not in kinds:
        yield not_supported("roleRef.kind", role.get("kind"), kinds)
    if not role.get("name"):
        yield required("roleRef.name")
    for index, subject in enumerate(obj.get("subjects") or ()):
        if not subject.get("name"):
            yield required(f"subjects[{index}].name")
        if subject.get("kind") not in ("ServiceAccount", "User", "Group"):
            yield not_supported(
                f"subjects[{index}].kind", subject.get("kind"), ("ServiceAccount", "User", "Group")
            )
        elif subject["kind"] == "ServiceAccount" and not subject.get("namespace"):
            yield required(f"subjects[{index}].namespace")


def _role_binding_change(new: Manifest, old: Manifest) -> Iterator[FieldError]:
    if new["roleRef"] != old["roleRef"]:
        yield invalid("roleRef", new["roleRef"], "cannot change roleRef")


def _role(obj: Manifest) -> Iterator[FieldError]:
    for index, rule in enumerate(obj.get("rules") or ()):
        if not rule.get("verbs"):
            yield required(f"rules[{index}].verbs", "verbs must contain at least one value")
        if rule.get("nonResourceURLs"):
            continue
        if not rule.get("apiGroups"):
            yield required(f"rules[{index}].apiGroups", "resource rules must supply at least one api group")
        if not rule.get("resources"):
            yield required(f"rules[{index}].resources", "resource rules must supply at least one resource")


def _definition(obj: Manifest) -> Iterator[FieldError]:
    yield from crd_errors(obj)


def _definition_change(new: Manifest, old: Manifest) -> Iterator[FieldError]:
    for path in (("group",), ("names", "plural"), ("names", "kind"), ("scope",)):
        after: Any = new["spec"]
        before: Any = old["spec"]
        for name in path:
            after, before = after.get(name), before.get(name)
        if after != before:
            yield invalid("spec." + ".".join(path), after, "field is immutable")


_RULES: Final[dict[str, Callable[[Manifest], Iterator[FieldError]]]] = {
    "ClusterRole": _role,
    "ClusterRoleBinding": _role_binding,
    "ConfigMap": _config_map,
    "CustomResourceDefinition": _definition,
    "Event": _event,
    "HorizontalPodAutoscaler": _autoscaler,
    "Job": _job,
    "Lease": _lease,
    "Node": _node,
    "PersistentVolumeClaim": _claim,
    "Pod": _pod,
    "PodDisruptionBudget": _disruption_budget,
    "Role": _role,
    "RoleBinding": _role_binding,
    "Secret": _secret,
    "Service": validate_service,
    **dict.fromkeys(_WORKLOADS, _workload),
}
_CHANGES: Final[dict[str, Callable[[Manifest, Manifest], Iterator[FieldError]]]] = {
    "ClusterRoleBinding": _role_binding_change,
    "ConfigMap": _immutable_contents,
    "CustomResourceDefinition": _definition_change,
    "Job": _job_change,
    "RoleBinding": _role_binding_change,
    "Secret": _immutable_contents,
    "Service": validate_service_change,
    **dict.fromkeys(_WORKLOADS, _workload_change),
}
