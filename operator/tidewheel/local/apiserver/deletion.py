"""Deletes: preconditions, grace periods, finalizers and propagation, up to the point where the collector goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from tidewheel.local.apiserver import errors
from tidewheel.local.apiserver.changes import Item
from tidewheel.local.apiserver.conversion import presented_object, stored_object
from tidewheel.local.apiserver.crds import CLEANUP_FINALIZER, CRD_STORAGE
from tidewheel.local.apiserver.registry import Resource
from tidewheel.local.apiserver.requests import is_true, seconds
from tidewheel.local.apiserver.shaping import typed
from tidewheel.local.apiserver.writes import Writer, is_finished, rfc3339

Manifest = dict[str, Any]

ORPHAN = "orphan"
FOREGROUND = "foregroundDeletion"
PROPAGATION = ("Background", "Foreground", "Orphan")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteOptions:
    """How an object is to be deleted; times in seconds."""

    grace_seconds: int | None = None
    propagation: str | None = None
    uid: str | None = None
    version: str | None = None
    dry_run: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Deleted:
    """What a delete led to: the object's last or present state, and whether it is gone."""

    object: Manifest
    gone: bool


def delete_options(query: Mapping[str, str], body: Any) -> DeleteOptions:
    """Options from a DeleteOptions body, or else from the query.

    Raises:
        ApiError: 400 or 422 for options that do not exist or contradict each other.
    """
    given = {} if body is None else typed(body, "", "v1", "DeleteOptions")
    policy = given.get("propagationPolicy") or query.get("propagationPolicy")
    orphan = given.get("orphanDependents")
    if orphan is None and "orphanDependents" in query:
        orphan = is_true(query, "orphanDependents")
    if policy is not None and policy not in PROPAGATION:
        text = f'Invalid value: "{policy}": DeletionPropagation need to be one of "Foreground", "Background", "Orphan" or nil'
        problem = errors.cause("propagationPolicy", text, "FieldValueInvalid")
        raise errors.invalid("DeleteOptions", "meta.k8s.io", "", [problem])
    if policy is None and orphan is not None:
        policy = "Orphan" if orphan else "Background"
    grace = given.get("gracePeriodSeconds")
    if grace is None:
        grace = seconds(query, "gracePeriodSeconds")
    preconditions = given.get("preconditions") or {}
    return DeleteOptions(
        grace_seconds=grace,
        propagation=policy,
        uid=preconditions.get("uid"),
        version=preconditions.get("resourceVersion"),
        dry_run=bool(given.get("dryRun") or query.get("dryRun")),
    )


def delete(writer: Writer, resource: Resource, item: Item, options: DeleteOptions) -> Deleted:
    """Delete an object, or mark it as being deleted.

    Raises:
        ApiError: 409 when it is not the object the client meant.
    """
    _check_preconditions(resource, item, options)
    obj = stored_object(resource, item)
    metadata = obj["metadata"]
    grace = _grace(resource, obj, options)
    _set_propagation(metadata, options.propagation)
    if resource.storage == CRD_STORAGE and not metadata.get("deletionTimestamp"):
        metadata["finalizers"] = [*(metadata.get("finalizers") or ()), CLEANUP_FINALIZER]
    waits = bool(grace) or bool(metadata.get("finalizers"))
    if resource.storage == "namespaces":
        waits = waits or bool((obj.get("spec") or {}).get("finalizers"))
    if waits or resource.storage == "pods":
        _mark(writer, resource, obj, grace)
    if options.dry_run:
        return Deleted(object=obj, gone=not waits)
    if waits and not is_finished(resource, obj):
        if obj == stored_object(resource, item):
            return Deleted(object=presented_object(resource, item), gone=False)
        return Deleted(object=presented_object(resource, writer.store.put(resource.storage, obj)), gone=False)
    gone = writer.store.delete(resource.storage, item, obj)
    return Deleted(object=presented_object(resource, gone), gone=True)


def success(resource: Resource, deleted: Deleted) -> Manifest:
    """The answer to a DELETE."""
    if not deleted.gone or resource.returns_deleted:
        return deleted.object
    metadata = deleted.object["metadata"]
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
        "details": {**errors.details_of(resource, metadata["name"]), "uid": metadata["uid"]},
    }


def _check_preconditions(resource: Resource, item: Item, options: DeleteOptions) -> None:
    name = item.key[1]
    if options.uid is not None and options.uid != item.uid:
        raise errors.precondition_failed(
            resource.kind,
            name,
            f"the UID in the precondition ({options.uid}) does not match the UID in record ({item.uid}). "
            "The object might have been deleted and then recreated",
        )
    if options.version is not None and options.version != str(item.version):
        raise errors.precondition_failed(
            resource.kind,
            name,
            f"the ResourceVersion in the precondition ({options.version}) does not match the ResourceVersion in "
            f"record ({item.version}). The object might have been modified",
        )


def _grace(resource: Resource, obj: Manifest, options: DeleteOptions) -> int:
    """Seconds a pod gets to end by itself; nothing else has any."""
    if resource.storage != "pods":
        return 0
    spec = obj.get("spec") or {}
    if not spec.get("nodeName") or (obj.get("status") or {}).get("phase") in ("Failed", "Succeeded"):
        return 0
    grace = options.grace_seconds
    if grace is None:
        grace = spec.get("terminationGracePeriodSeconds", 30)
    grace = max(grace, 1) if grace < 0 else grace
    running = obj["metadata"].get("deletionGracePeriodSeconds")
    # A second delete may shorten the time that is left, never lengthen it.
    return int(grace) if running is None else min(int(grace), int(running))


def _set_propagation(metadata: Manifest, policy: str | None) -> None:
    if policy is None:
        return
    kept = [name for name in metadata.get("finalizers") or () if name not in (ORPHAN, FOREGROUND)]
    if policy == "Orphan":
        kept.append(ORPHAN)
    if policy == "Foreground":
        kept.append(FOREGROUND)
    if kept:
        metadata["finalizers"] = kept
    else:
        metadata.pop("finalizers", None)


def _mark(writer: Writer, resource: Resource, obj: Manifest, grace: int) -> None:
    metadata = obj["metadata"]
    now = writer.clock()
    if metadata.get("deletionTimestamp"):
        if resource.storage == "pods" and grace < metadata.get("deletionGracePeriodSeconds", 0):
            metadata["deletionTimestamp"] = rfc3339(now + timedelta(seconds=grace))
            metadata["deletionGracePeriodSeconds"] = grace
        return
    metadata["deletionTimestamp"] = rfc3339(now + timedelta(seconds=grace))
    if metadata.get("generation"):
        metadata["generation"] += 1
    if resource.storage == "namespaces":
        obj.setdefault("status", {})["phase"] = "Terminating"
        return
    metadata["deletionGracePeriodSeconds"] = grace
    if resource.storage == CRD_STORAGE:
        conditions = obj.setdefault("status", {}).setdefault("conditions", [])
        conditions.append(
            {
                "type": "Terminating",
                "status": "True",
                "lastTransitionTime": rfc3339(now),
                "reason": "InstanceDeletionPending",
                "message": "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon",
            }
        )
