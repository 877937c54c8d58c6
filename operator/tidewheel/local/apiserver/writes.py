"""Creates and updates of objects: the order of steps from a decoded body to the store."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from tidewheel.local.apimachinery import (
    admission,
    builtin_rules,
    decoding,
    defaulting,
    managedfields,
    patching,
    pruning,
    structural,
    validation,
)
from tidewheel.local.apimachinery.fields import BadRequest, FieldError, Gvk
from tidewheel.local.apiserver import errors, lookups
from tidewheel.local.apiserver.conversion import presented_object, to_storage
from tidewheel.local.apiserver.registry import Registry, Resource
from tidewheel.local.apiserver.requests import (
    Body,
    WriteOptions,
    check_namespace_of,
    checked_body,
    metadata_of,
)
from tidewheel.local.apiserver.services import ServiceAddresses
from tidewheel.local.apiserver.store import Item, Store

Manifest = dict[str, Any]
Clock = Callable[[], datetime]

# What kube-apiserver appends to generateName: no vowels, so that no words come out.
NAME_LETTERS = "bcdfghjklmnpqrstvwxz2456789"
NEEDS_VERSION_TO_UPDATE = frozenset({"customresourcedefinitions", "leases", "certificatesigningrequests"})
# Metadata that only the server writes; an update keeps what is stored.
SERVER_METADATA = (
    "uid",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "generation",
    "namespace",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What a write led to: the object as its resource shows it, and warnings for the client."""

    object: Manifest
    created: bool = False
    warnings: tuple[str, ...] = ()


@dataclass(slots=True)
class Writer:
    """Writes objects as kube-apiserver does: decoding, defaults, field owners, admission, validation, storage."""

    store: Store
    registry: Registry
    clock: Clock
    services: ServiceAddresses
    new_uid: Callable[[], str] = field(default=lambda: str(uuid.uuid4()))

    def create(self, resource: Resource, namespace: str, body: Body, options: WriteOptions) -> Written:
        """Make a new object.

        Raises:
            ApiError: as the real server refuses it: 400, 403, 404 (namespace), 409, 422.
        """
        obj = checked_body(resource, body)
        metadata = metadata_of(obj)
        check_namespace_of(resource, metadata, namespace)
        if metadata.get("resourceVersion"):
            raise errors.bad_request("resourceVersion should not be set on objects to be created")
        warnings = self._decode(resource, obj, options, body.duplicates)
        metadata = metadata_of(obj)
        metadata.pop("managedFields", None)
        self._track(resource, _empty(resource), obj, options, "")
        return self._finish_create(resource, namespace, obj, options, warnings)

    def update(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        body: Body,
        options: WriteOptions,
        subresource: str = "",
    ) -> Written:
        """Replace an object, or its status.

        Raises:
            ApiError: as the real server refuses it: 400, 404, 409, 422.
        """
        item = self.find(resource, namespace, name)
        obj = checked_body(resource, body)
        metadata = metadata_of(obj)
        check_namespace_of(resource, metadata, namespace)
        if metadata.setdefault("name", name) != name:
            raise errors.bad_request(
                f"the name of the object ({metadata['name']}) does not match the name on the URL ({name})"
            )
        if not metadata.get("resourceVersion") and (
            resource.custom or resource.plural in NEEDS_VERSION_TO_UPDATE
        ):
            problem = errors.cause(
                "metadata.resourceVersion",
                "Invalid value: 0: must be specified for an update",
                "FieldValueInvalid",
            )
            raise errors.invalid(resource.plural, resource.group, name, [problem])
        warnings = self._decode(resource, obj, options, body.duplicates)
        return self._finish_update(resource, item, obj, options, subresource, warnings)

    def patch(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        change: Callable[[Manifest], Manifest],
        options: WriteOptions,
        subresource: str = "",
    ) -> Written:
        """Change an object by a function of its current state.

        Raises:
            ApiError: as the real server refuses it: 400, 404, 409, 422.
        """
        item = self.find(resource, namespace, name)
        obj = patched(change, presented_object(resource, item))
        warnings = self._decode(resource, obj, options, ())
        metadata = metadata_of(obj)
        if metadata.get("name") != name:
            raise errors.bad_request(
                f"the name of the object ({metadata.get('name')}) does not match the name on the URL ({name})"
            )
        return self._finish_update(resource, item, obj, options, subresource, warnings)

    def apply(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        body: Body,
        options: WriteOptions,
        subresource: str = "",
    ) -> Written:
        """Server-side apply.

        Raises:
            ApiError: as the real server refuses it: 400, 404 (status of nothing), 409, 422.
        """
        applied = checked_body(resource, body)
        metadata = metadata_of(applied)
        check_namespace_of(resource, metadata, namespace)
        if metadata.setdefault("name", name) != name:
            raise errors.bad_request(
                f"the name of the object ({metadata['name']}) does not match the name on the URL ({name})"
            )
        item = self.store.get(resource.storage, namespace, name)
        if item is None and subresource:
            raise errors.not_found(resource, name)
        live = None if item is None else presented_object(resource, item)
        try:
            merged = managedfields.server_side_apply(
                live,
                applied,
                manager=options.manager,
                force=options.force,
                api_version=resource.api_version,
                subresource=subresource,
                schema=resource.schema,
                now=self.now(),
                reset=managedfields.reset_fields(
                    gvk_of(resource), subresource, has_status=resource.has_status
                ),
            )
        except managedfields.ApplyConflict as conflict:
            raise errors.ApiError(
                409, "Conflict", str(conflict), details={"causes": conflict.causes}
            ) from None
        except managedfields.UntypedPatch as error:
            raise errors.ApiError(500, "", str(error)) from None
        except BadRequest as error:
            raise errors.bad_request(str(error)) from None
        if item is None:
            if merged["metadata"].get("uid"):
                raise errors.conflict(resource, name)
            self._fill(resource, merged)
            return self._finish_create(resource, namespace, merged, options, ())
        self._fill(resource, merged)
        return self._finish_update(resource, item, merged, options, subresource, (), is_apply=True)

    def find(self, resource: Resource, namespace: str, name: str) -> Item:
        """The stored object.

        Raises:
            ApiError: 404 when there is none.
        """
        item = self.store.get(resource.storage, namespace, name)
        if item is None:
            raise errors.not_found(resource, name)
        return item

    def now(self) -> str:
        """The time as metadata gives it: UTC, whole seconds."""
        return rfc3339(self.clock())

    def replace(
        self, resource: Resource, item: Item, new: Manifest, *, manager: str, subresource: str = ""
    ) -> Item:
        """Write a new state that the server itself made, with its field owner; no validation, no conflict."""
        old = item.object()
        self._track(resource, old, new, WriteOptions(manager=manager), subresource)
        if managedfields.is_unchanged(old, new):
            return item
        if resource.counts_generation and subresource != "status" and _desired(new) != _desired(old):
            new["metadata"]["generation"] = old["metadata"].get("generation", 0) + 1
        if is_finished(resource, new):
            return self.store.delete(resource.storage, item, new)
        return self.store.put(resource.storage, new)

    # Steps

    def _decode(
        self, resource: Resource, obj: Manifest, options: WriteOptions, duplicates: tuple[str, ...]
    ) -> tuple[str, ...]:
        warnings = self._unknown_fields(resource, obj, options, duplicates)
        self._fill(resource, obj)
        return warnings

    def _unknown_fields(
        self, resource: Resource, obj: Manifest, options: WriteOptions, duplicates: tuple[str, ...]
    ) -> tuple[str, ...]:
        if options.field_validation == "Ignore":
            return ()
        problems = [f'duplicate field "{name}"' for name in duplicates]
        if resource.schema is not None:
            problems += pruning.unknown_fields(obj, resource.schema)
        if problems and options.field_validation == "Strict":
            raise errors.bad_request(
                f'{resource.kind} in version "{resource.version}" cannot be handled as a {resource.kind}: '
                f"strict decoding error: {', '.join(problems)}"
            )
        return tuple(problems)

    def _fill(self, resource: Resource, obj: Manifest) -> None:
        """Types and defaults; a custom resource loses its unknown fields too."""
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

    def _track(
        self, resource: Resource, old: Manifest, new: Manifest, options: WriteOptions, subresource: str
    ) -> None:
        owners = managedfields.track_update(
            old,
            new,
            manager=options.manager,
            api_version=resource.api_version,
            subresource=subresource,
            schema=resource.schema,
            # The real server forgets the time of changes made through scale.
            now=None if subresource == "scale" else self.now(),
            reset=managedfields.reset_fields(gvk_of(resource), subresource, has_status=resource.has_status),
        )
        if owners:
            new["metadata"]["managedFields"] = owners
        else:
            new["metadata"].pop("managedFields", None)

    def _finish_create(
        self,
        resource: Resource,
        namespace: str,
        obj: Manifest,
        options: WriteOptions,
        warnings: tuple[str, ...],
    ) -> Written:
        metadata = obj["metadata"]
        if resource.namespaced:
            metadata["namespace"] = namespace
            lookups.check_namespace(self.store, resource, namespace, metadata.get("name") or "")
        if not metadata.get("name") and metadata.get("generateName"):
            metadata["name"] = metadata["generateName"] + "".join(
                secrets.choice(NAME_LETTERS) for _ in range(5)
            )
        for name in (
            "selfLink",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "generation",
            "resourceVersion",
        ):
            metadata.pop(name, None)
        metadata["uid"] = self.new_uid()
        metadata["creationTimestamp"] = self.now()
        if resource.counts_generation:
            metadata["generation"] = 1
        gvk = gvk_of(resource)
        if resource.custom:
            if resource.has_status:
                obj.pop("status", None)
            problems = validation.validate_custom_resource(
                obj,
                gvk=gvk,
                schema=resource.schema,
                namespaced=resource.namespaced,
                old=None,
                integer_paths=_integer_paths(resource),
            )
        else:
            lookups.admit(self.store, resource, obj)
            admission.admit(obj, gvk)
            admission.prepare_for_create(obj, gvk)
            if resource.storage == "nodes":
                lookups.follow_readiness(obj)
            problems = builtin_rules.validate_create(obj, gvk)
            if resource.kind == "CustomResourceDefinition":
                problems = [*problems, *structural.crd_errors(obj)]
        raise_problems(resource, metadata.get("name") or "", problems)
        stored = to_storage(resource, obj)
        if self.store.get(resource.storage, namespace, metadata["name"]) is not None:
            raise errors.already_exists(resource, metadata["name"])
        if resource.storage == "services":
            self.services.allocate(resource, stored, None)
        if not options.dry_run:
            item = self.store.put(resource.storage, stored)
            obj = presented_object(resource, item)
        return Written(object=obj, created=True, warnings=warnings)

    def _finish_update(
        self,
        resource: Resource,
        item: Item,
        obj: Manifest,
        options: WriteOptions,
        subresource: str,
        warnings: tuple[str, ...],
        *,
        is_apply: bool = False,
    ) -> Written:
        old = presented_object(resource, item)
        name = item.key[1]
        metadata, old_metadata = obj["metadata"], old["metadata"]
        if metadata.get("uid") not in (None, "", old_metadata["uid"]):
            raise errors.precondition_failed(
                resource.qualified,
                name,
                f"Precondition failed: UID in precondition: {metadata['uid']}, UID in object meta: {old_metadata['uid']}",
            )
        if metadata.get("resourceVersion") not in (None, "", "0", old_metadata["resourceVersion"]):
            raise errors.conflict(resource, name)
        metadata["resourceVersion"] = old_metadata["resourceVersion"]
        for key in SERVER_METADATA:
            if key in old_metadata:
                metadata[key] = old_metadata[key]
            else:
                metadata.pop(key, None)
        gvk = gvk_of(resource)
        if resource.storage == "services" and not subresource:
            self.services.keep_allocated(obj, old)
        if resource.custom:
            obj = _custom_endpoint(resource, obj, old, subresource)
        if not is_apply:
            self._track(resource, old, obj, options, subresource)
        if not resource.custom:
            admission.prepare_for_update(obj, old, gvk, subresource)
            if resource.storage == "nodes" and subresource == "status":
                lookups.follow_readiness(obj)
        if resource.counts_generation and subresource != "status" and _desired(obj) != _desired(old):
            obj["metadata"]["generation"] = old_metadata.get("generation", 0) + 1
        if managedfields.is_unchanged(old, obj):
            return Written(object=old, warnings=warnings)
        self._validate_update(resource, name, obj, old, subresource)
        stored = to_storage(resource, obj)
        if resource.storage == "services" and not subresource:
            self.services.allocate(resource, stored, item.object())
        if options.dry_run:
            return Written(object=obj, warnings=warnings)
        if is_finished(resource, stored):
            # As in the real server, who removes the last finalizer sees the object one last time, unchanged in version.
            seen = {
                **obj,
                "metadata": {**obj["metadata"], "resourceVersion": old_metadata["resourceVersion"]},
            }
            self.store.delete(resource.storage, item, stored)
            return Written(object=seen, warnings=warnings)
        written = self.store.put(resource.storage, stored)
        return Written(object=presented_object(resource, written), warnings=warnings)

    def _validate_update(
        self, resource: Resource, name: str, obj: Manifest, old: Manifest, subresource: str
    ) -> None:
        gvk = gvk_of(resource)
        if resource.custom:
            problems = validation.validate_custom_resource(
                obj,
                gvk=gvk,
                schema=resource.schema,
                namespaced=resource.namespaced,
                old=old,
                integer_paths=_integer_paths(resource),
            )
        else:
            problems = builtin_rules.validate_update(obj, old, gvk, subresource)
            if resource.kind == "CustomResourceDefinition":
                problems = [*problems, *structural.crd_errors(obj)]
        raise_problems(resource, name, problems)


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


def raise_problems(resource: Resource, name: str, problems: list[FieldError]) -> None:
    """Raise 422 with all field errors, if there are any."""
    if problems:
        raise errors.invalid(resource.kind, resource.group, name, [problem.cause() for problem in problems])


def is_finished(resource: Resource, obj: Manifest) -> bool:
    """Whether nothing holds an object any more that is being deleted."""
    metadata = obj["metadata"]
    if (
        not metadata.get("deletionTimestamp")
        or metadata.get("finalizers")
        or metadata.get("deletionGracePeriodSeconds")
    ):
        return False
    return not (resource.storage == "namespaces" and (obj.get("spec") or {}).get("finalizers"))


def gvk_of(resource: Resource) -> Gvk:
    """The resource's group, version and kind."""
    return Gvk(resource.group, resource.version, resource.kind)


def rfc3339(moment: datetime) -> str:
    """UTC with whole seconds."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _empty(resource: Resource) -> Manifest:
    if resource.custom:
        return {"apiVersion": resource.api_version, "kind": resource.kind}
    return decoding.empty_object(gvk_of(resource))


def _custom_endpoint(resource: Resource, obj: Manifest, old: Manifest, subresource: str) -> Manifest:
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


def _desired(obj: Manifest) -> Manifest:
    return {
        key: value for key, value in obj.items() if key not in ("apiVersion", "kind", "metadata", "status")
    }


def _integer_paths(resource: Resource) -> tuple[tuple[str, ...], ...]:
    """Where the scale subresource of a custom resource reads numbers."""
    scale = resource.scale
    return () if scale is None else (scale.spec_replicas, scale.status_replicas)
