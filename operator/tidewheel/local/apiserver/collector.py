"""Garbage collection: dependents of deleted owners, contents of deleted namespaces and CRDs, events that have aged."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from typing import Any

from tidewheel.local.apiserver.changes import Change, Item, Key
from tidewheel.local.apiserver.conversion import stored_object
from tidewheel.local.apiserver.crds import CLEANUP_FINALIZER, CRD_STORAGE
from tidewheel.local.apiserver.deletion import FOREGROUND, ORPHAN, DeleteOptions, delete
from tidewheel.local.apiserver.lookups import is_terminating
from tidewheel.local.apiserver.registry import Resource
from tidewheel.local.apiserver.store import Store
from tidewheel.local.apiserver.writes import Writer

Manifest = dict[str, Any]
Place = tuple[str, Key]

log = logging.getLogger(__name__)

MANAGER = "kube-controller-manager"
# Requests go first: after this many objects the collector lets the loop serve them.
BATCH = 50
# Nobody asks what happened an hour ago; kube-apiserver forgets events then too.
EVENT_LIFE_SECONDS = 3600.0


class Collector:
    """Follows the store and brings every delete to its end.

    The work queue holds places of objects that may need a step. A step looks at the present state only, so a place
    may be queued twice, or after its object is gone, without harm.
    """

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._store: Store = writer.store
        self._queue: deque[Place] = deque()
        self._queued: set[Place] = set()
        self._woken = asyncio.Event()
        self._events: deque[tuple[float, Key, int]] = deque()
        """When each state of an event ends, oldest first."""
        self._store.listen(self._follow)

    def check_everything(self) -> None:
        """Queue all objects, for the start after a restart."""
        for resource in self._writer.registry.stored():
            for item in self._store.collection(resource.storage).select():
                if item.owners or b'"deletionTimestamp"' in item.encoded:
                    self._add((resource.storage, item.key))
        for event in self._store.collection("events").select():
            self._age(event)

    def expire_events(self, now: float) -> int:
        """Delete events that nobody has written to for an hour by the monotonic clock; says how many."""
        expired = 0
        while self._events and self._events[0][0] <= now:
            _, key, version = self._events.popleft()
            item = self._store.collection("events").items.get(key)
            if item is not None and item.version == version:
                self._store.delete("events", item)
                expired += 1
        return expired

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(60):
                    await self._woken.wait()
            self._woken.clear()
            self.expire_events(time.monotonic())
            while self._queue:
                for _ in range(min(BATCH, len(self._queue))):
                    place = self._queue.popleft()
                    self._queued.discard(place)
                    try:
                        self._step(place)
                    except Exception:
                        # One odd object must not stop the collection of all others.
                        log.exception("collecting %s %s failed; it is left as it is", place[0], place[1])
                await asyncio.sleep(0)

    def _follow(self, storage: str, change: Change) -> None:
        item = change.item
        if storage == "events" and change.type != "DELETED":
            self._age(item)
        if change.type == "DELETED":
            for dependent_storage, dependent in self._store.dependents(item.uid):
                self._add((dependent_storage, dependent.key))
            for owner in item.owners:
                self._add_uid(owner)
            if item.key[0] and self._is_terminating(item.key[0]):
                self._add(("namespaces", ("", item.key[0])))
            self._add_definition(storage)
        elif b'"deletionTimestamp"' in item.encoded:
            self._add((storage, item.key))
            for owner in item.owners:
                self._add_uid(owner)
        elif item.owners and (change.previous is None or change.previous.owners != item.owners):
            self._add((storage, item.key))

    def _age(self, event: Item) -> None:
        self._events.append((time.monotonic() + EVENT_LIFE_SECONDS, event.key, event.version))

    def _add(self, place: Place) -> None:
        if place not in self._queued:
            self._queued.add(place)
            self._queue.append(place)
            self._woken.set()

    def _add_uid(self, uid: str) -> None:
        found = self._store.by_uid(uid)
        if found is not None:
            self._add((found[0], found[1].key))

    def _add_definition(self, storage: str) -> None:
        definition = self._store.collection(CRD_STORAGE).items.get(("", storage))
        if definition is not None and b'"deletionTimestamp"' in definition.encoded:
            self._add((CRD_STORAGE, definition.key))

    def _is_terminating(self, namespace: str) -> bool:
        found = self._store.get("namespaces", "", namespace)
        return found is not None and is_terminating(found)

    def _step(self, place: Place) -> None:
        storage, key = place
        item = self._store.collection(storage).items.get(key)
        resource = self._writer.registry.of_storage(storage)
        if item is None or resource is None:
            return
        if item.owners and not self._keep_for_owners(resource, item):
            return
        obj = item.object()
        if not obj["metadata"].get("deletionTimestamp"):
            return
        finalizers = obj["metadata"].get("finalizers") or []
        if ORPHAN in finalizers:
            self._orphan_dependents(item)
            self._drop_finalizer(resource, item, ORPHAN)
        elif FOREGROUND in finalizers:
            self._delete_dependents_first(resource, item)
        elif storage == "namespaces":
            self._empty_namespace(resource, item)
        elif CLEANUP_FINALIZER in finalizers:
            self._empty_definition(resource, item)

    def _keep_for_owners(self, resource: Resource, item: Item) -> bool:
        """Whether the object may stay; deletes it when none of its owners exists, cuts references to those gone."""
        gone = [uid for uid in item.owners if self._store.by_uid(uid) is None]
        if not gone:
            return True
        if len(gone) == len(item.owners):
            self._delete(resource, item, "Background")
        else:
            self._drop_owners(resource, item, set(gone))
        return False

    def _orphan_dependents(self, owner: Item) -> None:
        for storage, dependent in self._store.dependents(owner.uid):
            resource = self._writer.registry.of_storage(storage)
            if resource is not None:
                self._drop_owners(resource, dependent, {owner.uid})

    def _drop_owners(self, resource: Resource, item: Item, uids: set[str]) -> None:
        obj = stored_object(resource, item)
        metadata = obj["metadata"]
        kept = [owner for owner in metadata.get("ownerReferences") or () if owner["uid"] not in uids]
        if kept:
            metadata["ownerReferences"] = kept
        else:
            metadata.pop("ownerReferences", None)
        self._writer.replace(resource, item, obj, manager=MANAGER)

    def _delete_dependents_first(self, resource: Resource, owner: Item) -> None:
        blocking = False
        for storage, dependent in self._store.dependents(owner.uid):
            reference = next(
                one for one in dependent.object()["metadata"]["ownerReferences"] if one["uid"] == owner.uid
            )
            kind = self._writer.registry.of_storage(storage)
            if kind is None:
                continue
            if any(uid != owner.uid and self._store.by_uid(uid) for uid in dependent.owners):
                self._drop_owners(kind, dependent, {owner.uid})
                continue
            policy = "Foreground" if self._store.dependents(dependent.uid) else "Background"
            still_there = not self._delete(kind, dependent, policy)
            blocking = blocking or (still_there and bool(reference.get("blockOwnerDeletion")))
        if not blocking:
            self._drop_finalizer(resource, owner, FOREGROUND)

    def _empty_namespace(self, resource: Resource, namespace: Item) -> None:
        name = namespace.key[1]
        left = False
        for kind in self._writer.registry.stored():
            if kind.namespaced:
                for item in self._store.collection(kind.storage).select(namespace=name):
                    left = not self._delete(kind, item, "Background") or left
        if left:
            return
        current = self._store.get("namespaces", "", name)
        if current is not None:
            obj = current.object()
            obj["spec"] = {}
            self._writer.replace(resource, current, obj, manager=MANAGER, subresource="finalize")

    def _empty_definition(self, resource: Resource, definition: Item) -> None:
        storage = definition.key[1]
        kind = self._writer.registry.of_storage(storage)
        items = [] if kind is None else self._store.collection(storage).select()
        gone = [self._delete(kind, item, "Background") for item in items if kind is not None]
        if all(gone):
            self._drop_finalizer(resource, definition, CLEANUP_FINALIZER)

    def _delete(self, resource: Resource, item: Item, propagation: str) -> bool:
        """Delete unless that is under way; says whether the object is gone."""
        current = self._store.collection(resource.storage).items.get(item.key)
        if current is None or current.uid != item.uid:
            return True
        if b'"deletionTimestamp"' in current.encoded and current.object()["metadata"].get(
            "deletionTimestamp"
        ):
            return False
        return delete(self._writer, resource, current, DeleteOptions(propagation=propagation)).gone

    def _drop_finalizer(self, resource: Resource, item: Item, finalizer: str) -> None:
        current = self._store.collection(resource.storage).items.get(item.key)
        if current is None:
            return
        obj = stored_object(resource, current)
        kept = [one for one in obj["metadata"].get("finalizers") or () if one != finalizer]
        if kept:
            obj["metadata"]["finalizers"] = kept
        else:
            obj["metadata"].pop("finalizers", None)
        self._writer.replace(resource, current, obj, manager=MANAGER)
