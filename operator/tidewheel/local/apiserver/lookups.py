"""Admission that depends on other objects: the namespace, the service account, the priority class, a node's readiness."""

from __future__ import annotations

from typing import Any

from tidewheel.local.apiserver import errors
from tidewheel.local.apiserver.changes import Item
from tidewheel.local.apiserver.registry import Resource
from tidewheel.local.apiserver.store import Store

Manifest = dict[str, Any]

SYSTEM_CLASSES = ("system-cluster-critical", "system-node-critical")
NOT_READY = "node.kubernetes.io/not-ready"


def check_namespace(store: Store, resource: Resource, namespace: str, name: str) -> None:
    """Refuse new content for a namespace that is not there or on its way out.

    Raises:
        ApiError: 404 or 403.
    """
    found = store.get("namespaces", "", namespace)
    if found is None:
        details = {"name": namespace, "kind": "namespaces"}
        raise errors.ApiError(404, "NotFound", f'namespaces "{namespace}" not found', details=details)
    if is_terminating(found):
        raise errors.forbidden(
            resource,
            name,
            f"unable to create new content in namespace {namespace} because it is being terminated",
            causes=[
                errors.cause(
                    "metadata.namespace", f"namespace {namespace} is being terminated", "NamespaceTerminating"
                )
            ],
        )


def is_terminating(namespace: Item) -> bool:
    """Whether a namespace is on its way out."""
    return bool((namespace.fields.get("status") or {}).get("phase") == "Terminating")


def admit(store: Store, resource: Resource, obj: Manifest) -> None:
    """Fill in what a new object takes from others.

    Raises:
        ApiError: 403 when a pod names a service account or a priority class that is not there.
    """
    if resource.storage == "pods":
        _admit_pod(store, resource, obj)


def follow_readiness(resource: Resource, node: Manifest) -> None:
    """Keep the not-ready taint of a node in step with its Ready condition, as the node lifecycle controller does."""
    if resource.storage != "nodes":
        return
    conditions = (node.get("status") or {}).get("conditions") or []
    ready = next((one["status"] for one in conditions if one.get("type") == "Ready"), None)
    if ready is None:
        return
    spec = node.setdefault("spec", {})
    taints = [one for one in spec.get("taints") or () if one.get("key") != NOT_READY]
    if ready != "True":
        taints.append({"key": NOT_READY, "effect": "NoSchedule"})
    if taints:
        spec["taints"] = taints
    else:
        spec.pop("taints", None)


def _admit_pod(store: Store, resource: Resource, pod: Manifest) -> None:
    spec, metadata = pod["spec"], pod["metadata"]
    name = metadata.get("name") or ""
    account = spec.get("serviceAccountName") or spec.get("serviceAccount") or "default"
    if store.get("serviceaccounts", metadata["namespace"], account) is None:
        raise errors.forbidden(
            resource,
            name,
            f"error looking up service account {metadata['namespace']}/{account}: "
            f'serviceaccount "{account}" not found',
        )
    wanted = spec.get("priorityClassName")
    if not wanted or wanted in SYSTEM_CLASSES:
        return
    found = store.get("priorityclasses.scheduling.k8s.io", "", wanted)
    if found is None:
        raise errors.forbidden(resource, name, f"no PriorityClass with name {wanted} was found")
    priority_class = found.object()
    spec["priority"] = priority_class.get("value", 0)
    spec["preemptionPolicy"] = priority_class.get("preemptionPolicy", "PreemptLowerPriority")
