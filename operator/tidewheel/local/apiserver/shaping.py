"""The steps of a write that need no store: types, defaults, field owners, endpoints and validation of one object."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tidewheel.local.apimachinery import (
    builtin_rules,
    decoding,
    defaulting,
    managedfields,
    patching,
    pruning,
    validation,
)
from tidewheel.local.apimachinery.fields import BadRequest, FieldError, Gvk
from tidewheel.local.apiserver import errors
from tidewheel.local.apiserver.registry import Resource
from tidewheel.local.apiserver.requests import WriteOptions

Manifest = dict[str, Any]

# Metadata that only the server writes; an update keeps what is stored.
SERVER_METADATA = (
    "uid",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "generation",
    "namespace",
)


def gvk_of(resource: Resource) -> Gvk:
    """The resource's group, version and kind."""
    return Gvk(resource.group, resource.version, resource.kind)


def decode(
    resource: Resource, obj: Manifest, options: WriteOptions, duplicates: tuple[str, ...] = ()
) -> tuple[str, ...]:
    """Read a client's object, in place; gives warnings about fields that it should not have.

    Raises:
        ApiError: 400 for wrong types, and for such fields when the client is strict.
    """
    warnings = _complaints(resource, obj, options, duplicates)
    fill(resource, obj)
    return warnings


def fill(resource: Resource, obj: Manifest) -> None:
    """Types and defaults, in place; a custom resource loses its unknown fields too.

    Raises:
        ApiError: 400 for wrong types.
    """
    gvk = gvk_of(resource)
    try:
        if resource.custom:
            decoding.decode_custom(obj, gvk, resource.schema)
            obj.setdefault("metadata", {})
        else:
            decoding.decode_builtin(obj, gvk)
            defaulting.default_builtin(obj, gvk)
    except BadRequest as error:
        raise errors.bad_request(str(error)) from None


def typed(value: Any, group: str, version: str, kind: str) -> Manifest:
    """A body that is no stored object, such as a Binding or DeleteOptions, with the types that its kind asks for.

    Raises:
        ApiError: 400 when it is something else.
    """
    if not isinstance(value, dict):
        raise errors.bad_request(f"the body must be a {kind} object")
    try:
        decoding.decode_builtin(value, Gvk(group, version, kind))
    except BadRequest as error:
        raise errors.bad_request(str(error)) from None
    return value


def track(
    resource: Resource, old: Manifest | None, new: Manifest, *, manager: str, subresource: str, now: str
) -> None:
    """Write down in `new` that `manager` owns what it changed since `old`, which is None for a new object."""
    before = old
    if before is None:
        before = (
            {"apiVersion": resource.api_version, "kind": resource.kind}
            if resource.custom
            else decoding.empty_object(gvk_of(resource))
        )
    owners = managedfields.track_update(
        before,
        new,
        manager=manager,
        api_version=resource.api_version,
        subresource=subresource,
        schema=resource.schema,
        # The real server forgets the time of changes made through scale.
        now=None if subresource == "scale" else now,
        reset=_ignored(resource, subresource),
    )
    if owners:
        new["metadata"]["managedFields"] = owners
    else:
        new["metadata"].pop("managedFields", None)


def merge_applied(
    resource: Resource,
    live: Manifest | None,
    applied: Manifest,
    options: WriteOptions,
    *,
    subresource: str,
    now: str,
) -> Manifest:
    """The object after a server-side apply, with types and defaults.

    Raises:
        ApiError: 409 when others own what the apply changes, 400 or 500 when the applied object does not fit.
    """
    try:
        merged = managedfields.server_side_apply(
            live,
            applied,
            manager=options.manager,
            force=options.force,
            api_version=resource.api_version,
            subresource=subresource,
            schema=resource.schema,
            now=now,
            reset=_ignored(resource, subresource),
        )
    except managedfields.ApplyConflict as conflict:
        details = {"causes": conflict.causes}
        raise errors.ApiError(409, "Conflict", str(conflict), details=details) from None
    except managedfields.UntypedPatch as error:
        raise errors.ApiError(500, "", str(error)) from None
    except BadRequest as error:
        raise errors.bad_request(str(error)) from None
    fill(resource, merged)
    return merged


def patched(change: Callable[[Manifest], Manifest], current: Manifest) -> Manifest:
    """The outcome of a patch function.

    Raises:
        ApiError: 400 or 422, as the patch fails.
    """
    try:
        return change(current)
    except BadRequest as error:
        raise errors.bad_request(str(error)) from None
    except patching.PatchRefused:
        raise errors.ApiError(
            422, "Invalid", "the server rejected our request due to an error in our request", details={}
        ) from None


def keep_identity(resource: Resource, obj: Manifest, old: Manifest) -> None:
    """Give an update the metadata that only the server writes.

    Raises:
        ApiError: 409 when the client means another object or an older version of it.
    """
    metadata, kept = obj["metadata"], old["metadata"]
    if metadata.get("uid") not in (None, "", kept["uid"]):
        raise errors.precondition_failed(
            resource.qualified,
            kept["name"],
            f"Precondition failed: UID in precondition: {metadata['uid']}, UID in object meta: {kept['uid']}",
        )
    if metadata.get("resourceVersion") not in (None, "", "0", kept["resourceVersion"]):
        raise errors.conflict(resource, kept["name"])
    metadata["resourceVersion"] = kept["resourceVersion"]
    for key in SERVER_METADATA:
        if key in kept:
            metadata[key] = kept[key]
        else:
            metadata.pop(key, None)


def through_endpoint(resource: Resource, obj: Manifest, old: Manifest, subresource: str) -> Manifest:
    """What an endpoint of a custom resource may change: all but the status, or only the status."""
    if subresource == "status":
        kept = {key: value for key, value in old.items() if key != "status"}
        if "status" in obj:
            kept["status"] = obj["status"]
        kept["metadata"] = {**old["metadata"]}
        if "managedFields" in obj["metadata"]:
            kept["metadata"]["managedFields"] = obj["metadata"]["managedFields"]
        return kept
    if resource.has_status:
        obj.pop("status", None)
        if "status" in old:
            obj["status"] = old["status"]
    return obj


def count_generation(resource: Resource, obj: Manifest, old: Manifest, subresource: str) -> None:
    """A change of what is desired is a new generation."""
    if resource.counts_generation and subresource != "status" and _desired(obj) != _desired(old):
        obj["metadata"]["generation"] = old["metadata"].get("generation", 0) + 1


def check(resource: Resource, obj: Manifest, old: Manifest | None, subresource: str = "") -> None:
    """Validate a new object, or one that is to replace `old`.

    Raises:
        ApiError: 422 with every field that is wrong.
    """
    gvk = gvk_of(resource)
    if resource.custom:
        scale = resource.scale
        problems: list[FieldError] = validation.validate_custom_resource(
            obj,
            gvk=gvk,
            schema=resource.schema,
            namespaced=resource.namespaced,
            old=old,
            integer_paths=() if scale is None else (scale.spec_replicas, scale.status_replicas),
        )
    elif old is None:
        problems = builtin_rules.validate_create(obj, gvk)
    else:
        problems = builtin_rules.validate_update(obj, old, gvk, subresource)
    if problems:
        name = obj["metadata"].get("name") or ""
        raise errors.invalid(resource.kind, resource.group, name, [problem.cause() for problem in problems])


def _complaints(
    resource: Resource, obj: Manifest, options: WriteOptions, duplicates: tuple[str, ...]
) -> tuple[str, ...]:
    if options.field_validation == "Ignore":
        return ()
    problems = [f'duplicate field "{name}"' for name in duplicates]
    problems += pruning.unknown_fields(obj, resource.schema)
    if problems and options.field_validation == "Strict":
        raise errors.bad_request(
            f'{resource.kind} in version "{resource.version}" cannot be handled as a {resource.kind}: '
            f"strict decoding error: {', '.join(problems)}"
        )
    return tuple(problems)


def _ignored(resource: Resource, subresource: str) -> tuple[str, ...]:
    return managedfields.reset_fields(gvk_of(resource), subresource, has_status=resource.has_status)


def _desired(obj: Manifest) -> Manifest:
    return {
        key: value for key, value in obj.items() if key not in ("apiVersion", "kind", "metadata", "status")
    }
