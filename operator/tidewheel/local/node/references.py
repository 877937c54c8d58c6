"""Live copies of the ConfigMaps, Secrets and Services of those namespaces whose pods refer to them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from tidewheel.api.manifest import CONFIG_MAPS, SECRETS, SERVICES, Manifest, Resource
from tidewheel.kube.client import Api
from tidewheel.local.informer import Informer

#: Told the kind, namespace and name of what changed.
OnChange = Callable[[str, str, str], None]


@dataclass(slots=True)
class _Followed:
    informer: Informer
    task: asyncio.Task[None]
    users: int = 0


class References:
    """Follows a namespace's ConfigMaps, Secrets or Services from the first pod that names some to the last."""

    def __init__(self, api: Api, on_change: OnChange) -> None:
        self._api = api
        self._on_change = on_change
        self._followed: dict[tuple[Resource, str], _Followed] = {}

    async def acquire(self, resource: Resource, namespace: str) -> None:
        """Follows from now on; returns when what is there is known."""
        followed = self._followed.get((resource, namespace))
        if followed is None:
            informer = Informer(self._api, resource, namespace=namespace)
            informer.subscribe(lambda before, after: self._tell(resource, before, after))
            task = asyncio.create_task(informer.run(), name=f"{resource.plural} of {namespace}")
            followed = self._followed[resource, namespace] = _Followed(informer, task)
        followed.users += 1
        await followed.informer.synced.wait()

    def release(self, resource: Resource, namespace: str) -> None:
        """Undoes one `acquire`."""
        followed = self._followed[resource, namespace]
        followed.users -= 1
        if not followed.users:
            followed.task.cancel()
            del self._followed[resource, namespace]

    def of_namespace(self, namespace: str) -> NamespaceSources:
        """What a pod of this namespace can refer to."""
        return NamespaceSources(self, namespace)

    def find(self, resource: Resource, namespace: str, name: str) -> Manifest | None:
        """An object of a followed namespace."""
        followed = self._followed.get((resource, namespace))
        return followed.informer.get(namespace, name) if followed is not None else None

    def find_all(self, resource: Resource, namespace: str) -> tuple[Manifest, ...]:
        """All objects of a followed namespace; none of one that is not."""
        followed = self._followed.get((resource, namespace))
        return tuple(followed.informer.in_namespace(namespace)) if followed is not None else ()

    def close(self) -> None:
        """Stops following anything."""
        for followed in self._followed.values():
            followed.task.cancel()
        self._followed.clear()

    def _tell(self, resource: Resource, before: Manifest | None, after: Manifest | None) -> None:
        obj = after or before
        if obj is not None:
            self._on_change(resource.kind, obj["metadata"]["namespace"], obj["metadata"]["name"])


@dataclass(frozen=True, slots=True)
class NamespaceSources:
    """What the pods of one namespace refer to."""

    references: References
    namespace: str

    def config_map(self, name: str) -> Manifest | None:
        """See `Sources.config_map`."""
        return _typed(self.references.find(CONFIG_MAPS, self.namespace, name), "ConfigMap")

    def secret(self, name: str) -> Manifest | None:
        """See `Sources.secret`."""
        return _typed(self.references.find(SECRETS, self.namespace, name), "Secret")

    def services(self) -> tuple[Manifest, ...]:
        """See `Sources.services`."""
        return self.references.find_all(SERVICES, self.namespace)


def _typed(obj: Manifest | None, kind: str) -> Manifest | None:
    # Items of a list carry no kind of their own.
    return {**obj, "kind": kind} if obj is not None else None
