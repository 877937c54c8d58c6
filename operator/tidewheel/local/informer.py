"""A live copy of one resource's objects: list, then watch, for the parts of the local cluster that decide."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from tidewheel.api.manifest import Manifest, Resource
from tidewheel.kube.client import Api
from tidewheel.kube.errors import ApiError, Gone, TooManyRequests, Unavailable

logger = logging.getLogger(__name__)

#: Namespace ("" for cluster-wide resources) and name.
Key = tuple[str, str]
#: Told the object before and after a change; None where there was or is none.
Handler = Callable[[Manifest | None, Manifest | None], None]


def key_of(obj: Manifest) -> Key:
    """Where an object stands in an informer."""
    metadata = obj["metadata"]
    return metadata.get("namespace", ""), metadata["name"]


class Informer:
    """The objects of one resource as the server last told. Run `run` as a task; read `objects` at any time."""

    def __init__(
        self, api: Api, resource: Resource, *, namespace: str | None = None, field_selector: str | None = None
    ) -> None:
        self.objects: dict[Key, Manifest] = {}
        self.synced = asyncio.Event()
        self._api = api
        self._resource = resource
        self._namespace = namespace
        self._field_selector = field_selector
        self._handlers: list[Handler] = []

    def subscribe(self, handler: Handler) -> None:
        """Has `handler` called for every change from now on; subscribe before `run`."""
        self._handlers.append(handler)

    def get(self, namespace: str, name: str) -> Manifest | None:
        """One object, None if it is not there."""
        return self.objects.get((namespace, name))

    def in_namespace(self, namespace: str) -> list[Manifest]:
        """The objects of one namespace."""
        return [obj for (where, _), obj in self.objects.items() if where == namespace]

    async def run(self) -> None:
        """Follows the server until cancelled; a lost connection is taken up again, a lost history listed anew."""
        while True:
            try:
                listing = await self._api.list(
                    self._resource, self._namespace, field_selector=self._field_selector
                )
                self._replace(listing.items)
                self.synced.set()
                await self._watch(listing.resource_version)
            except Gone:
                continue
            except (Unavailable, TooManyRequests) as error:
                await asyncio.sleep(error.retry_after_seconds or 0.5)
            except ApiError as error:
                logger.warning("Cannot list %s: %s; trying again in 5 s", self._resource.plural, error)
                await asyncio.sleep(5.0)

    async def _watch(self, version: str) -> None:
        while True:
            try:
                async for event in self._api.watch(
                    self._resource,
                    self._namespace,
                    resource_version=version,
                    field_selector=self._field_selector,
                ):
                    version = event.object["metadata"]["resourceVersion"]
                    if event.type == "DELETED":
                        self._set(key_of(event.object), None, last=event.object)
                    elif event.type != "BOOKMARK":
                        self._set(key_of(event.object), event.object)
            except Unavailable:
                await asyncio.sleep(0.5)

    def _replace(self, items: Iterable[Manifest]) -> None:
        listed = {key_of(item): item for item in items}
        for key in [key for key in self.objects if key not in listed]:
            self._set(key, None)
        for key, item in listed.items():
            known = self.objects.get(key)
            if known is None or known["metadata"]["resourceVersion"] != item["metadata"]["resourceVersion"]:
                self._set(key, item)

    def _set(self, key: Key, obj: Manifest | None, *, last: Manifest | None = None) -> None:
        before = self.objects.get(key)
        if before is not None and obj is not None and before["metadata"]["uid"] != obj["metadata"]["uid"]:
            # A relist can show a namesake: the old object's end must not be missed.
            self._tell(before, None)
            before = None
        if obj is None:
            self.objects.pop(key, None)
            before = last if before is not None and last is not None else before
        else:
            self.objects[key] = obj
        if before is not None or obj is not None:
            self._tell(before, obj)

    def _tell(self, before: Manifest | None, after: Manifest | None) -> None:
        for handler in self._handlers:
            handler(before, after)
