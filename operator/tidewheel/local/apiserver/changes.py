"""Steps in the life of stored objects, and the watches that tell clients of them."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tidewheel.local.apiserver.encoding import encode_object

Manifest = dict[str, Any]
Key = tuple[str, str]
"""Namespace (empty for cluster-scoped objects) and name."""
EventType = Literal["ADDED", "MODIFIED", "DELETED"]


class Expired(Exception):
    """The version asked for is older than the history."""

    def __init__(self, asked: int, oldest: int) -> None:
        super().__init__(f"too old resource version: {asked} ({oldest})")
        self.asked = asked
        self.oldest = oldest


@dataclass(frozen=True, slots=True)
class Item:
    """One state of one object: its JSON, and the few things by which it is found."""

    key: Key
    version: int
    encoded: bytes
    uid: str
    labels: Mapping[str, str]
    fields: Manifest
    """The parts of the object that field selectors look at."""
    owners: tuple[str, ...]

    def object(self) -> Manifest:
        """A copy of the object that the caller may change."""
        parsed: Manifest = json.loads(self.encoded)
        return parsed


@dataclass(frozen=True, slots=True)
class Event:
    """What a watch yields."""

    type: EventType
    item: Item


@dataclass(frozen=True, slots=True)
class Change:
    """One step of the history of a collection.

    Attributes:
        item: the new state; for DELETED the last one, stamped with the version of the deletion.
        previous: the state before, None for ADDED.
    """

    version: int
    type: EventType
    item: Item
    previous: Item | None

    def seen_by(self, wants: Callable[[Item], bool]) -> Event | None:
        """How a client that only sees what it `wants` learns of this change."""
        before = self.previous is not None and wants(self.previous)
        after = self.type != "DELETED" and wants(self.item)
        if after:
            return Event("MODIFIED" if before else "ADDED", self.item)
        if self.previous is None or not before:
            return None
        left = self.item if self.type == "DELETED" else _restamped(self.previous, self.version)
        return Event("DELETED", left)


class Watch:
    """The events of one collection that one client wants, in order."""

    def __init__(
        self, wants: Callable[[Item], bool], on_close: Callable[[Watch], None], *, limit: int = 50_000
    ) -> None:
        self._on_close = on_close
        self._wants = wants
        self._pending: deque[Event] = deque()
        self._woken = asyncio.Event()
        self.limit = limit
        self.closed = False

    def offer(self, change: Change) -> None:
        """Queue a change if the client sees it; a client that never reads is cut off."""
        seen = change.seen_by(self._wants)
        if seen is None:
            return
        self._pending.append(seen)
        self._woken.set()
        if len(self._pending) > self.limit:
            self.close()

    async def events(self, timeout: float) -> list[Event]:  # noqa: ASYNC109 - silence is an answer here, not an error
        """What has happened since the last call; waits up to `timeout` seconds and may be empty."""
        if not self._pending and not self.closed:
            try:
                async with asyncio.timeout(timeout):
                    await self._woken.wait()
            except TimeoutError:
                return []
        return self.take()

    def take(self) -> list[Event]:
        """What has happened since the last call, without waiting."""
        self._woken.clear()
        taken = list(self._pending)
        self._pending.clear()
        return taken

    def close(self) -> None:
        """End the watch; the reader still gets what was queued."""
        self.closed = True
        self._woken.set()
        self._on_close(self)


def _restamped(item: Item, version: int) -> Item:
    """The old state with the version at which it left a client's view."""
    obj = item.object()
    obj["metadata"]["resourceVersion"] = str(version)
    return Item(item.key, version, encode_object(obj), item.uid, item.labels, item.fields, item.owners)
