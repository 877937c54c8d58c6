"""What the workload controllers share: a queue of keys with delays, and one sync at a time per key."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from tidewheel.api.manifest import Manifest
from tidewheel.kube.errors import ApiError, Conflict, NotFound
from tidewheel.local.informer import Key

logger = logging.getLogger(__name__)

_RETRY_SECONDS = 1.0
#: Writes of a moment ago reach the informers a little later; changes are looked at together.
_SETTLE_SECONDS = 0.05


class Loop:
    """Calls `sync(key)` after each `enqueue(key)`, never twice at a time for one key; retries when the API refuses."""

    def __init__(self, name: str, sync: Callable[[Key], Awaitable[None]]) -> None:
        self._name = name
        self._sync = sync
        self._due: dict[Key, asyncio.TimerHandle | None] = {}
        self._busy: set[Key] = set()
        self._again: set[Key] = set()
        self._more = asyncio.Event()

    def enqueue(self, key: Key, *, after_seconds: float = _SETTLE_SECONDS) -> None:
        """Has the key looked at soon; of several wishes for the same key the earliest counts."""
        loop = asyncio.get_running_loop()
        if key in self._due:
            timer = self._due[key]
            if timer is None or timer.when() <= loop.time() + after_seconds:
                return
            timer.cancel()
        self._due[key] = loop.call_later(after_seconds, self._ripen, key)

    def enqueue_owner(self, obj: Manifest, kind: str) -> None:
        """Has the controlling owner of an object looked at, if it is of this kind."""
        owner = controller_of(obj)
        if owner is not None and owner["kind"] == kind:
            self.enqueue((obj["metadata"]["namespace"], owner["name"]))

    async def run(self) -> None:
        """Works until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                await self._more.wait()
                self._more.clear()
                for key in [key for key, timer in self._due.items() if timer is None]:
                    del self._due[key]
                    if key in self._busy:
                        self._again.add(key)
                    else:
                        self._busy.add(key)
                        group.create_task(self._once(key), name=f"{self._name} {'/'.join(key)}")

    async def _once(self, key: Key) -> None:
        try:
            await self._sync(key)
        except (Conflict, NotFound):
            self._again.add(key)
        except ApiError as error:
            logger.warning("%s %s: %s; trying again", self._name, "/".join(key), error)
            self.enqueue(key, after_seconds=_RETRY_SECONDS)
        finally:
            self._busy.discard(key)
            if key in self._again:
                self._again.discard(key)
                self.enqueue(key)

    def _ripen(self, key: Key) -> None:
        self._due[key] = None
        self._more.set()


def controller_of(obj: Manifest) -> Manifest | None:
    """The owner reference of the object's controller."""
    references = obj["metadata"].get("ownerReferences") or []
    return next((reference for reference in references if reference.get("controller")), None)


def is_controlled_by(obj: Manifest, owner: Manifest) -> bool:
    """Whether the object's controller is this very owner."""
    reference = controller_of(obj)
    return reference is not None and reference["uid"] == owner["metadata"]["uid"]


def owner_reference(owner: Manifest, api_version: str, kind: str) -> Manifest:
    """The reference by which `owner` controls an object."""
    return {
        "apiVersion": api_version,
        "kind": kind,
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def is_ready(pod: Manifest) -> bool:
    """Whether the pod's Ready condition holds."""
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def is_active(pod: Manifest) -> bool:
    """Whether the pod neither ended nor is about to."""
    return (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed") and not pod["metadata"].get(
        "deletionTimestamp"
    )
