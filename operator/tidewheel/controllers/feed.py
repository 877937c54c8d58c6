"""Keeps the cache true and says whose children changed: fed by watches, and checked against lists.

A watch that lost its place lists anew and says nothing of what vanished in between; and any watch may, one day, miss
something. So after each such relist, and at every resync, a list of names and versions is laid beside the cache:
what it does not name is gone, and what is newer there is fetched if no watch brings it soon.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from math import inf
from typing import Final

from tidewheel.api.manifest import Manifest, Resource
from tidewheel.api.meta import LABEL_SERVICE
from tidewheel.controllers.cache import Cache, Name, controller_of, uids_of, version_number, version_of
from tidewheel.controllers.controller import Controller, Key
from tidewheel.kube.client import Api, ObjectVersion, Versions
from tidewheel.kube.errors import NotFound

logger = logging.getLogger(__name__)

#: Finds the children of all kinds.
CHILD_SELECTOR: Final = LABEL_SERVICE
_POLL_SECONDS = 0.05


class Feed:
    """Takes objects in and puts the keys of those they concern into the controllers' queues."""

    def __init__(
        self,
        cache: Cache,
        controllers: Iterable[Controller],
        enqueue: Callable[[Resource, Key], None],
    ) -> None:
        self._cache = cache
        self._enqueue = enqueue
        self._controllers = tuple(controllers)
        self._kinds = {controller.kind.kind: controller.kind for controller in self._controllers}
        self.parents: tuple[Resource, ...] = tuple(self._kinds.values())
        self.children: tuple[Resource, ...] = tuple(
            sorted({child for controller in self._controllers for child in controller.children})
        )
        #: Kinds that plans depend on and that nobody owns.
        self.others: tuple[Resource, ...] = tuple(
            sorted(
                {other for controller in self._controllers for other in controller.looks_at}
                - {*self.parents, *self.children}
            )
        )

    def selector(self, resource: Resource) -> str | None:
        """The label selector under which a kind is watched and listed."""
        return CHILD_SELECTOR if resource in self.children else None

    def take(self, resource: Resource, type_: str | None, manifest: Manifest) -> None:
        """One event of a watch; `type_` None is an object of a list."""
        metadata = manifest["metadata"]
        namespace, name = metadata.get("namespace", ""), metadata["name"]
        before = self._concerned(resource, namespace, name, None)
        if type_ == "DELETED":
            changed = self._cache.forget(
                resource, namespace, name, metadata["uid"], version=version_of(manifest)
            )
        else:
            changed = self._cache.put(resource, manifest)
        if changed:
            concerned = before | self._concerned(resource, namespace, name, manifest)
            self._tell(concerned | self._related(resource, manifest))

    async def settle(
        self, api: Api, resource: Resource, namespace: str | None, *, patience_seconds: float = 10.0
    ) -> None:
        """Returns once the cache is no older than a list of this moment.

        Raises:
            ApiError: the list, or an object that no watch brought within `patience_seconds`, could not be read.
        """
        before = self._cache.versions(resource, namespace)
        listing = await api.list_versions(resource, namespace, label_selector=self.selector(resource))
        as_of = float(listing.resource_version) if listing.resource_version.isdecimal() else inf
        if any(version > as_of for _, version in before.values()) or _has_older(before, listing):
            await self._believe(api, resource, namespace)
            return
        listed = {(item.namespace, item.name): item.uid for item in listing.items}
        for name, (uid, _) in before.items():
            # What was known before the list began and is not in it is gone as of the list's version.
            if listed.get(name) != uid:
                self._drop(resource, name, uid, version=as_of)
        behind = [item for item in listing.items if self._is_behind(resource, item)]
        patience_ends = asyncio.get_running_loop().time() + patience_seconds
        while behind and asyncio.get_running_loop().time() < patience_ends:
            await asyncio.sleep(_POLL_SECONDS)
            behind = [item for item in behind if self._is_behind(resource, item)]
        if behind:
            logger.warning("no watch brought %d changed %s; fetching them", len(behind), resource.plural)
        for item in behind:
            await self._fetch(api, resource, item)

    def _concerned(
        self, resource: Resource, namespace: str, name: str, manifest: Manifest | None
    ) -> set[tuple[Resource, Key]]:
        """Whose object this is: its own key, or that of its controller, or the one its label names."""
        if resource in self.parents:
            return {(resource, Key(namespace, name))}
        owner = self._cache.owner(resource, namespace, name)
        if owner is None and manifest is not None:
            owner = controller_of(manifest)
        if owner is not None:
            return {(kind, Key(namespace, owner.name)) for kind in self._kind(owner.kind)}
        label = manifest["metadata"].get("labels", {}).get(LABEL_SERVICE) if manifest else None
        return {(kind, Key(namespace, label)) for kind in self.parents} if label else set()

    def _related(self, resource: Resource, manifest: Manifest) -> set[tuple[Resource, Key]]:
        """Those whose plans depend on the object though it is not theirs."""
        return {
            (controller.kind, key)
            for controller in self._controllers
            if resource == controller.kind or resource in controller.looks_at
            for key in controller.concerned_by(resource, manifest, self._cache)
        }

    def _kind(self, kind: str) -> tuple[Resource, ...]:
        return (self._kinds[kind],) if kind in self._kinds else ()

    def _tell(self, concerned: set[tuple[Resource, Key]]) -> None:
        for kind, key in concerned:
            self._enqueue(kind, key)

    def _drop(self, resource: Resource, name: Name, uid: str, *, version: float = inf) -> None:
        concerned = self._concerned(resource, *name, None)
        if (known := self._cache.get(resource, *name)) is not None:
            concerned |= self._related(resource, known)
        if self._cache.forget(resource, *name, uid, version=version):
            logger.info("%s %s/%s vanished without an event", resource.kind, *name)
            self._tell(concerned)

    def _is_behind(self, resource: Resource, item: ObjectVersion) -> bool:
        version = version_number(item.resource_version)
        if self._cache.is_gone(item.uid, version):
            return False
        known = self._cache.version(resource, item.namespace, item.name, item.uid)
        return known is None or known < version

    async def _fetch(self, api: Api, resource: Resource, item: ObjectVersion) -> None:
        try:
            live = await api.get(resource, item.name, item.namespace or None)
        except NotFound:
            self._drop(resource, (item.namespace, item.name), item.uid)
        else:
            self.take(resource, None, live)

    async def _believe(self, api: Api, resource: Resource, namespace: str | None) -> None:
        """Takes the server's state for true whatever the cache knows: its history went back, by a restored backup."""
        logger.warning("the API server's %s are older than before; taking them as they are", resource.plural)
        listing = await api.list(resource, namespace, label_selector=self.selector(resource))
        listed = uids_of(listing.items)
        for name, (uid, _) in self._cache.versions(resource, namespace).items():
            if listed.get(name) != uid:
                self._drop(resource, name, uid)
        for item in listing.items:
            self._cache.put(resource, item, rewound=True)
            metadata = item["metadata"]
            concerned = self._concerned(resource, metadata.get("namespace", ""), metadata["name"], item)
            self._tell(concerned | self._related(resource, item))
        # What a watch brought since that list was overwritten by it.
        await self.settle(api, resource, namespace)


def _has_older(before: Mapping[Name, tuple[str, int]], listing: Versions) -> bool:
    """Whether the list has an object in an older version than was known before the list was asked for.

    What watches brought while the list was under way may well be newer than the list; that is no sign of anything.
    """
    for item in listing.items:
        uid, version = before.get((item.namespace, item.name), ("", -1))
        if uid == item.uid and version_number(item.resource_version) < version:
            return True
    return False
