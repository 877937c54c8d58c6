"""Versioned objects in memory: one counter, a bounded history for watches, indexes for selectors and owners."""

from __future__ import annotations

import bisect
import itertools
import json
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from tidewheel.local.apiserver.changes import Change, Expired, Item, Key, Watch
from tidewheel.local.apiserver.encoding import encode_object

Manifest = dict[str, Any]
FieldsOf = Callable[[str, Manifest], Manifest]
"""Cuts out of an object, by its collection, the parts that field selectors look at."""

# A new cluster starts above 1, so that "watch from version 1" is too old, as on any real cluster.
FIRST_VERSION = 1000


class Journal(Protocol):
    """Where a store writes through, to survive a restart."""

    def version(self) -> int:
        """The last version that was given out."""

    def objects(self, storage: str | None = None) -> Iterable[tuple[str, bytes]]:
        """Every object with its collection, or those of one collection."""

    def put(self, storage: str, key: Key, version: int, encoded: bytes) -> None:
        """Keep an object."""

    def delete(self, storage: str, key: Key, version: int) -> None:
        """Forget an object."""

    def close(self) -> None:
        """Release the file."""


class Collection:
    """All objects of one resource."""

    def __init__(self, *, floor: int, history: int) -> None:
        self.floor = floor
        """The oldest version from which the history is complete."""
        self.changed_at = floor
        self.items: dict[Key, Item] = {}
        self.watches: set[Watch] = set()
        self._order: list[Key] = []
        self._labelled: dict[tuple[str, str], set[Key]] = {}
        self._history: deque[Change] = deque()
        self._kept = history

    def apply(self, change: Change) -> None:
        """Take one step; watchers hear of it."""
        key = change.item.key
        self.changed_at = max(self.changed_at, change.version)
        if change.previous is not None:
            for label in change.previous.labels.items():
                holders = self._labelled[label]
                holders.discard(key)
                if not holders:
                    del self._labelled[label]
        if change.type == "DELETED":
            del self.items[key]
            del self._order[bisect.bisect_left(self._order, key)]
        else:
            if change.previous is None:
                bisect.insort(self._order, key)
            self.items[key] = change.item
            for label in change.item.labels.items():
                self._labelled.setdefault(label, set()).add(key)
        self._history.append(change)
        if len(self._history) > self._kept:
            self.floor = self._history.popleft().version
        for watch in list(self.watches):
            watch.offer(change)

    def select(
        self,
        *,
        namespace: str | None = None,
        labels: Iterable[tuple[str, str]] = (),
        after: Key | None = None,
        version: int | None = None,
    ) -> list[Item]:
        """Objects in order of namespace and name, now or as they were at `version`, beginning behind `after`.

        `labels` are pairs that every object must carry; the smallest index decides what is looked at.

        Raises:
            Expired: the history does not reach back to `version`.
        """
        items = self.items if version is None or version >= self.changed_at else self._at(version)
        holders: list[set[Key]] = [self._labelled.get(pair, set()) for pair in labels]
        if items is not self.items:
            keys = sorted(items)
        elif holders:
            fewest: set[Key] = min(holders, key=len)
            keys = sorted(fewest)
        else:
            keys = self._order
        start, end = _range(keys, namespace, after)
        return [items[key] for key in keys[start:end]]

    def watch(self, wants: Callable[[Item], bool], since: int | None) -> Watch:
        """A watch that begins with what happened after `since`, or with now when that is None.

        Raises:
            Expired: the history does not reach back to `since`.
        """
        watch = Watch(wants, self.watches.discard)
        if since is not None:
            if since < self.floor:
                raise Expired(since, self.floor)
            for change in self._changes_after(since):
                watch.offer(change)
        self.watches.add(watch)
        return watch

    def forget_history(self, version: int) -> None:
        """Begin the history at `version`."""
        self._history.clear()
        self.floor = self.changed_at = version

    def _changes_after(self, version: int) -> list[Change]:
        recent = itertools.takewhile(lambda change: change.version > version, reversed(self._history))
        return list(recent)[::-1]

    def _at(self, version: int) -> dict[Key, Item]:
        if version < self.floor:
            raise Expired(version, self.floor)
        items = dict(self.items)
        for change in reversed(self._changes_after(version)):
            if change.previous is None:
                items.pop(change.item.key, None)
            else:
                items[change.item.key] = change.previous
        return items


class Store:
    """Every object of the cluster.

    All calls happen on one event loop and do not await, so each is atomic.

    Args:
        journal: where to write through; None keeps everything in memory.
        history: how many changes of each collection a watch can catch up on.
        fields_of: what field selectors see of an object.
    """

    def __init__(
        self, *, journal: Journal | None = None, history: int = 10_000, fields_of: FieldsOf | None = None
    ) -> None:
        self.version = FIRST_VERSION
        self._journal = journal
        self._kept = history
        self._fields_of = fields_of or (lambda _storage, _obj: {})
        self._collections: dict[str, Collection] = {}
        self._by_uid: dict[str, tuple[str, Key]] = {}
        self._dependents: dict[str, set[tuple[str, Key]]] = {}
        self._listeners: list[Callable[[str, Change], None]] = []
        if journal is not None:
            self._load(journal)

    def collection(self, storage: str) -> Collection:
        """The collection of this name; it begins empty."""
        found = self._collections.get(storage)
        if found is None:
            found = self._collections[storage] = Collection(floor=self.version, history=self._kept)
        return found

    def drop_collection(self, storage: str) -> None:
        """Forget an empty collection with its history, and end its watches."""
        found = self._collections.pop(storage, None)
        if found is not None:
            for watch in list(found.watches):
                watch.close()

    def listen(self, listener: Callable[[str, Change], None]) -> None:
        """Call `listener(storage, change)` after every change."""
        self._listeners.append(listener)

    def get(self, storage: str, namespace: str, name: str) -> Item | None:
        """The current state of an object, or None."""
        return self.collection(storage).items.get((namespace, name))

    def by_uid(self, uid: str) -> tuple[str, Item] | None:
        """The object of this uid with its collection, or None."""
        found = self._by_uid.get(uid)
        return None if found is None else (found[0], self._collections[found[0]].items[found[1]])

    def dependents(self, uid: str) -> list[tuple[str, Item]]:
        """The objects that name `uid` among their owners, with their collections."""
        found = sorted(self._dependents.get(uid, ()))
        return [(storage, self._collections[storage].items[key]) for storage, key in found]

    def put(self, storage: str, obj: Manifest) -> Item:
        """Create or replace an object, which the store now owns; it gets the next resourceVersion."""
        self.version += 1
        metadata = obj["metadata"]
        metadata["resourceVersion"] = str(self.version)
        item = self._item(storage, obj, self.version)
        previous = self.collection(storage).items.get(item.key)
        if self._journal is not None:
            self._journal.put(storage, item.key, item.version, item.encoded)
        self._apply(
            storage, Change(self.version, "ADDED" if previous is None else "MODIFIED", item, previous)
        )
        return item

    def delete(self, storage: str, item: Item, last: Manifest | None = None) -> Item:
        """Remove an object; `last` is its final state when it differs from the stored one."""
        self.version += 1
        final = item.object() if last is None else last
        final["metadata"]["resourceVersion"] = str(self.version)
        gone = self._item(storage, final, self.version)
        if self._journal is not None:
            self._journal.delete(storage, item.key, self.version)
        current = self.collection(storage).items[item.key]
        self._apply(storage, Change(self.version, "DELETED", gone, current))
        return gone

    def cut_watches(self) -> int:
        """End every watch, as a restart of a load balancer would; says how many there were."""
        watches = [watch for one in self._collections.values() for watch in one.watches]
        for watch in watches:
            watch.close()
        return len(watches)

    def close(self) -> None:
        """End the watches and release the journal."""
        self.cut_watches()
        if self._journal is not None:
            self._journal.close()

    def _apply(self, storage: str, change: Change) -> None:
        place = (storage, change.item.key)
        if change.previous is not None:
            for owner in change.previous.owners:
                holders = self._dependents.get(owner)
                if holders is not None:
                    holders.discard(place)
                    if not holders:
                        del self._dependents[owner]
        if change.type == "DELETED":
            self._by_uid.pop(change.item.uid, None)
        else:
            self._by_uid[change.item.uid] = place
            for owner in change.item.owners:
                self._dependents.setdefault(owner, set()).add(place)
        self.collection(storage).apply(change)
        for listener in self._listeners:
            listener(storage, change)

    def _item(self, storage: str, obj: Manifest, version: int) -> Item:
        metadata = obj["metadata"]
        return Item(
            key=(metadata.get("namespace") or "", metadata["name"]),
            version=version,
            encoded=encode_object(obj),
            uid=metadata["uid"],
            labels=metadata.get("labels") or {},
            fields=self._fields_of(storage, obj),
            owners=tuple(owner["uid"] for owner in metadata.get("ownerReferences") or ()),
        )

    def _load(self, journal: Journal) -> None:
        # One above the last: whoever watched before the restart has to list again.
        self.version = max(journal.version() + 1, FIRST_VERSION)
        for storage, encoded in journal.objects():
            obj = json.loads(encoded)
            item = self._item(storage, obj, int(obj["metadata"]["resourceVersion"]))
            self._apply(storage, Change(item.version, "ADDED", item, None))
        for collection in self._collections.values():
            collection.forget_history(self.version)


def _range(keys: list[Key], namespace: str | None, after: Key | None) -> tuple[int, int]:
    """The part of sorted keys that lies in a namespace and behind a key."""
    start, end = 0, len(keys)
    if namespace is not None:
        start = bisect.bisect_left(keys, (namespace, ""))
        end = bisect.bisect_left(keys, (namespace + "\0", ""))
    if after is not None:
        start = max(start, bisect.bisect_right(keys, after))
    return start, max(start, end)
