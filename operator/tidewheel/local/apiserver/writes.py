"""Creates and updates of objects: the order of steps from a decoded body to the store."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from tidewheel.local.apimachinery import admission, managedfields
from tidewheel.local.apiserver import errors, lookups, shaping
from tidewheel.local.apiserver.changes import Item
from tidewheel.local.apiserver.conversion import (
    is_outdated,
    presented,
    presented_object,
    shown_as,
    stored_object,
)
from tidewheel.local.apiserver.encoding import encode_object
from tidewheel.local.apiserver.registry import Registry, Resource
from tidewheel.local.apiserver.requests import (
    Body,
    WriteOptions,
    check_name_of,
    check_namespace_of,
    checked_body,
    metadata_of,
)
from tidewheel.local.apiserver.services import ServiceAddresses
from tidewheel.local.apiserver.store import Store

Manifest = dict[str, Any]
Clock = Callable[[], datetime]

# What kube-apiserver appends to generateName: no vowels, so that no words come out.
NAME_LETTERS = "bcdfghjklmnpqrstvwxz2456789"
# Built-in resources that nobody may replace without saying which version was read.
NEEDS_VERSION_TO_UPDATE = frozenset({"customresourcedefinitions", "leases", "certificatesigningrequests"})
NOT_FOR_CLIENTS = (
    "selfLink",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "generation",
    "resourceVersion",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What a write led to, and warnings for the client."""

    stored: Item | None = None
    unstored: Manifest | None = None
    """The object when there is nothing stored: after a dry run, or when the write was the object's end."""
    created: bool = False
    warnings: tuple[str, ...] = ()

    def object(self, resource: Resource) -> Manifest:
        """The object in the resource's version; a copy that the caller may change."""
        if self.stored is not None:
            return presented_object(resource, self.stored)
        return shown_as(resource, dict(self.unstored or {}))

    def encoded(self, resource: Resource) -> bytes:
        """The same, as JSON."""
        if self.stored is not None:
            return presented(resource, self.stored)
        return encode_object(self.object(resource))


@dataclass(slots=True)
class Writer:
    """Writes objects as kube-apiserver does.

    No method awaits, so on its event loop every write is atomic.
    """

    store: Store
    registry: Registry
    clock: Clock
    services: ServiceAddresses

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
        metadata.pop("managedFields", None)
        warnings = shaping.decode(resource, obj, options, body.duplicates)
        shaping.track(resource, None, obj, manager=options.manager, subresource="", now=self.now())
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
        check_name_of(metadata, name)
        must_name_version = resource.custom or resource.plural in NEEDS_VERSION_TO_UPDATE
        if must_name_version and not metadata.get("resourceVersion"):
            text = "Invalid value: 0: must be specified for an update"
            problem = errors.cause("metadata.resourceVersion", text, "FieldValueInvalid")
            raise errors.invalid(resource.plural, resource.group, name, [problem])
        warnings = shaping.decode(resource, obj, options, body.duplicates)
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
        obj = shaping.patched(change, presented_object(resource, item))
        warnings = shaping.decode(resource, obj, options)
        check_name_of(metadata_of(obj), name)
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
        check_name_of(metadata, name)
        item = self.store.get(resource.storage, namespace, name)
        if item is None and subresource:
            raise errors.not_found(resource, name)
        live = None if item is None else presented_object(resource, item)
        merged = shaping.merge_applied(
            resource, live, applied, options, subresource=subresource, now=self.now()
        )
        if item is not None:
            return self._finish_update(resource, item, merged, options, subresource, (), is_apply=True)
        if merged["metadata"].get("uid"):
            # Who applies with a uid means an object that is no longer there.
            raise errors.conflict(resource, name)
        return self._finish_create(resource, namespace, merged, options, ())

    def replace(
        self, resource: Resource, item: Item, new: Manifest, *, manager: str, subresource: str = ""
    ) -> Item:
        """Write a new state that the server itself made, with its field owner; no validation, no conflict."""
        old = stored_object(resource, item)
        shaping.track(resource, old, new, manager=manager, subresource=subresource, now=self.now())
        if managedfields.is_unchanged(old, new):
            return item
        shaping.count_generation(resource, new, old, subresource)
        if is_finished(resource, new):
            return self.store.delete(resource.storage, item, new)
        return self.store.put(resource.storage, new)

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
            lookups.check_namespace(self.store, resource, namespace, metadata.get("name") or "")
        if not metadata.get("name") and metadata.get("generateName"):
            metadata["name"] = metadata["generateName"] + _suffix()
        for key in NOT_FOR_CLIENTS:
            metadata.pop(key, None)
        metadata["uid"] = str(uuid.uuid4())
        metadata["creationTimestamp"] = self.now()
        if resource.counts_generation:
            metadata["generation"] = 1
        if not resource.custom:
            lookups.admit(self.store, resource, obj)
            admission.admit(obj, shaping.gvk_of(resource))
            admission.prepare_for_create(obj, shaping.gvk_of(resource))
            lookups.follow_readiness(resource, obj)
        elif resource.has_status:
            obj.pop("status", None)
        shaping.check(resource, obj, None)
        if self.store.get(resource.storage, namespace, metadata["name"]) is not None:
            raise errors.already_exists(resource, metadata["name"])
        if resource.storage == "services":
            self.services.allocate(resource, obj, None)
        if options.dry_run:
            return Written(unstored=obj, created=True, warnings=warnings)
        item = self.store.put(resource.storage, obj)
        return Written(stored=item, created=True, warnings=warnings)

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
        shaping.keep_identity(resource, obj, old)
        is_service = resource.storage == "services" and not subresource
        if is_service:
            self.services.keep_allocated(obj, old)
        if resource.custom:
            obj = shaping.through_endpoint(resource, obj, old, subresource)
        if not is_apply:
            shaping.track(
                resource, old, obj, manager=options.manager, subresource=subresource, now=self.now()
            )
        if not resource.custom:
            admission.prepare_for_update(obj, old, shaping.gvk_of(resource), subresource)
            if subresource == "status":
                lookups.follow_readiness(resource, obj)
        shaping.count_generation(resource, obj, old, subresource)
        if managedfields.is_unchanged(old, obj) and not is_outdated(resource, item):
            return Written(stored=item, warnings=warnings)
        shaping.check(resource, obj, old, subresource)
        if is_service:
            self.services.allocate(resource, obj, item.object())
        if options.dry_run:
            return Written(unstored=obj, warnings=warnings)
        if is_finished(resource, obj):
            # Who removes the last finalizer sees the object once more, at the version it had, as in the real server.
            seen = {**obj, "metadata": dict(obj["metadata"])}
            self.store.delete(resource.storage, item, obj)
            return Written(unstored=seen, warnings=warnings)
        written = self.store.put(resource.storage, obj)
        return Written(stored=written, warnings=warnings)


def is_finished(resource: Resource, obj: Manifest) -> bool:
    """Whether nothing holds an object any more that is being deleted."""
    metadata = obj["metadata"]
    if not metadata.get("deletionTimestamp"):
        return False
    if metadata.get("finalizers") or metadata.get("deletionGracePeriodSeconds"):
        return False
    return not (resource.storage == "namespaces" and (obj.get("spec") or {}).get("finalizers"))


def rfc3339(moment: datetime) -> str:
    """UTC with whole seconds."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _suffix() -> str:
    return "".join(secrets.choice(NAME_LETTERS) for _ in range(5))
