"""What lies below an object: scale, binding, eviction, tokens of service accounts."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from tidewheel.local.apimachinery import selectors
from tidewheel.local.apiserver import errors
from tidewheel.local.apiserver.changes import Item
from tidewheel.local.apiserver.conversion import presented_object
from tidewheel.local.apiserver.deletion import delete, delete_options
from tidewheel.local.apiserver.registry import Resource
from tidewheel.local.apiserver.requests import Body, Target, WriteOptions
from tidewheel.local.apiserver.shaping import patched, typed
from tidewheel.local.apiserver.writes import Writer, rfc3339

Manifest = dict[str, Any]

CREATED: Manifest = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}
PDB_STORAGE = "poddisruptionbudgets.policy"


def read_scale(resource: Resource, obj: Manifest) -> Manifest:
    """The Scale of an object.

    Raises:
        ApiError: 404 when the resource has no scale, 500 when the object has no replicas where the CRD says.
    """
    paths = resource.scale
    if paths is None:
        raise errors.not_found(resource, obj["metadata"]["name"])
    metadata = obj["metadata"]
    kept = {
        name: metadata[name]
        for name in ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
        if name in metadata
    }
    replicas = _at(obj, paths.spec_replicas)
    if replicas is None and resource.custom:
        dotted = "." + ".".join(paths.spec_replicas)
        raise errors.ApiError(
            500,
            "InternalError",
            f'Internal error occurred: the spec replicas field "{dotted}" does not exist',
        )
    scale: Manifest = {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": kept,
        "spec": {"replicas": replicas} if replicas else {},
        "status": {"replicas": _at(obj, paths.status_replicas) or 0},
    }
    selector = (
        _at(obj, paths.selector)
        if paths.selector
        else _selector_text((obj.get("spec") or {}).get("selector"))
    )
    if selector:
        scale["status"]["selector"] = selector
    return scale


def write_scale(
    writer: Writer, target: Target, change: Callable[[Manifest], Manifest], options: WriteOptions
) -> Manifest:
    """Change the replicas of an object through its Scale.

    Raises:
        ApiError: as an update of the object itself.
    """
    resource, paths = target.resource, target.resource.scale
    current = presented_object(resource, writer.find(resource, target.namespace, target.name))
    if paths is None:
        raise errors.not_found(resource, target.name)
    wanted = typed(patched(change, read_scale(resource, current)), "autoscaling", "v1", "Scale")
    metadata = wanted.get("metadata") or {}
    replicas = (wanted.get("spec") or {}).get("replicas", 0)
    if replicas < 0:
        problem = errors.cause(
            "spec.replicas",
            f"Invalid value: {replicas}: must be greater than or equal to 0",
            "FieldValueInvalid",
        )
        raise errors.invalid("Scale", "autoscaling", target.name, [problem])

    def scaled(obj: Manifest) -> Manifest:
        _put(obj, paths.spec_replicas, replicas)
        if metadata.get("resourceVersion"):
            obj["metadata"]["resourceVersion"] = metadata["resourceVersion"]
        return obj

    written = writer.patch(resource, target.namespace, target.name, scaled, options, "scale")
    return read_scale(resource, written.object(resource))


def bind(writer: Writer, target: Target, body: Body, options: WriteOptions) -> Manifest:
    """Put a pod on a node.

    Raises:
        ApiError: 404 when there is no such pod, 409 when it is on a node already or going away.
    """
    binding = typed(body.value, "", "v1", "Binding")
    node = (binding.get("target") or {}).get("name")
    name = target.name or (binding.get("metadata") or {}).get("name") or ""
    pods = writer.registry.builtin("pods")
    if not node:
        problem = errors.cause("target.name", "Required value", "FieldValueRequired")
        raise errors.invalid("Binding", "", name, [problem])
    item = writer.find(pods, target.namespace, name)
    pod = item.object()
    if pod["metadata"].get("deletionTimestamp"):
        raise errors.ApiError(
            409,
            "Conflict",
            f"pod {name} is being deleted, cannot be assigned to a host",
            details={"name": name, "kind": "pods/binding"},
        )
    if pod["spec"].get("nodeName"):
        raise errors.ApiError(
            409,
            "Conflict",
            f'Operation cannot be fulfilled on pods/binding "{name}": pod {name} is already assigned to node '
            f'"{pod["spec"]["nodeName"]}"',
            details={"name": name, "kind": "pods/binding"},
        )
    if options.dry_run:
        return CREATED
    pod["spec"]["nodeName"] = node
    annotations = (binding.get("metadata") or {}).get("annotations")
    if annotations:
        pod["metadata"].setdefault("annotations", {}).update(annotations)
    conditions = pod.setdefault("status", {}).setdefault("conditions", [])
    conditions[:] = [one for one in conditions if one["type"] != "PodScheduled"]
    conditions.append(
        {"type": "PodScheduled", "status": "True", "lastProbeTime": None, "lastTransitionTime": writer.now()}
    )
    writer.store.put(pods.storage, pod)
    return CREATED


def evict(writer: Writer, target: Target, body: Body) -> Manifest:
    """Delete a pod if its disruption budgets allow it.

    Raises:
        ApiError: 429 when a budget is used up, 500 when several budgets claim the pod.
    """
    resource = target.resource
    item = writer.find(resource, target.namespace, target.name)
    pod = item.object()
    options = delete_options({}, typed(body.value, "policy", "v1", "Eviction").get("deleteOptions"))
    phase = (pod.get("status") or {}).get("phase")
    if phase not in ("Succeeded", "Failed", "Pending") and not pod["metadata"].get("deletionTimestamp"):
        budgets = _budgets(writer, item)
        if len(budgets) > 1:
            raise errors.ApiError(
                500,
                "InternalError",
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
            )
        if budgets:
            _spend(writer, budgets[0], item, dry_run=options.dry_run)
    delete(writer, resource, item, options)
    return CREATED


def issue_token(writer: Writer, target: Target, body: Body) -> Manifest:
    """A token for a service account: random, and accepted like every other token by this server.

    Raises:
        ApiError: 404 when there is no such account.
    """
    account = writer.find(target.resource, target.namespace, target.name)
    request = typed(body.value, "authentication.k8s.io", "v1", "TokenRequest")
    spec: Manifest = {
        "audiences": ["https://kubernetes.default.svc"],
        "expirationSeconds": 3600,
        "boundObjectRef": None,
    }
    spec |= {key: value for key, value in (request.get("spec") or {}).items() if value}
    expires = writer.clock() + timedelta(seconds=int(spec["expirationSeconds"]))
    return {
        "kind": "TokenRequest",
        "apiVersion": "authentication.k8s.io/v1",
        "metadata": {"name": account.key[1], "namespace": account.key[0], "creationTimestamp": writer.now()},
        "spec": spec,
        "status": {"token": secrets.token_urlsafe(48), "expirationTimestamp": rfc3339(expires)},
    }


def _budgets(writer: Writer, pod: Item) -> list[Item]:
    found = []
    for item in writer.store.collection(PDB_STORAGE).select(namespace=pod.key[0]):
        selector = (item.object().get("spec") or {}).get("selector")
        if selector is not None and selectors.LabelSelector.from_object(selector).matches(pod.labels):
            found.append(item)
    return found


def _spend(writer: Writer, budget: Item, pod: Item, *, dry_run: bool) -> None:
    """Take one disruption off a budget; its controller counts again when the pod has gone."""
    obj = budget.object()
    status = obj.setdefault("status", {})
    if status.get("disruptionsAllowed", 0) <= 0:
        name = budget.key[1]
        healthy, desired = status.get("currentHealthy", 0), status.get("desiredHealthy", 0)
        text = f"The disruption budget {name} needs {desired} healthy pods and has {healthy} currently"
        raise errors.too_many_requests(
            "Cannot evict pod as it would violate the pod's disruption budget.",
            causes=[{"reason": "DisruptionBudget", "message": text}],
        )
    if dry_run:
        return
    status["disruptionsAllowed"] -= 1
    status.setdefault("disruptedPods", {})[pod.key[1]] = writer.now()
    writer.store.put(PDB_STORAGE, obj)


def _selector_text(selector: Any) -> str:
    """A LabelSelector object as the text form of a selector."""
    if not isinstance(selector, dict):
        return ""
    parts = [f"{key}={value}" for key, value in sorted((selector.get("matchLabels") or {}).items())]
    for one in selector.get("matchExpressions") or ():
        key, values = one["key"], ",".join(one.get("values") or ())
        match one["operator"]:
            case "In":
                parts.append(f"{key} in ({values})")
            case "NotIn":
                parts.append(f"{key} notin ({values})")
            case "Exists":
                parts.append(key)
            case "DoesNotExist":
                parts.append(f"!{key}")
    return ",".join(parts)


def _at(obj: Any, path: tuple[str, ...] | None) -> Any:
    for key in path or ():
        if not isinstance(obj, dict):
            return None
        obj = obj.get(key)
    return obj


def _put(obj: Manifest, path: tuple[str, ...], value: Any) -> None:
    for key in path[:-1]:
        obj = obj.setdefault(key, {})
    obj[path[-1]] = value
