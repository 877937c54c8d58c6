"""What is known of the cluster: objects by name and by owner, never older than what this process wrote.

An object is kept as compact JSON without managedFields and parsed when it is asked for. That takes a fifth of the
memory of the parsed form, and a reader may do with its copy what it likes.

One rule decides between versions: of what is known under a name the higher resourceVersion stays, so an answer to
our own write is not undone by a watch event that was under way; and what was seen to be gone at one version returns
only with a higher one (a watch also says DELETED when an object loses the label it is selected by, and may get it
back). Kubernetes lets clients compare versions of one resource as integers.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import inf
from typing import Protocol

from tidewheel.api.manifest import Manifest, Resource

_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
#: How many deleted objects are remembered. Only answers that are still under way need them.
_GRAVES = 20_000

#: (namespace, name); cluster-wide objects have the namespace "".
Name = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Owner:
    """The controller ownerReference of an object."""

    kind: str
    name: str
    uid: str


class Snapshot(Protocol):
    """The cache as a planner sees it: to read only."""

    def get(self, resource: Resource, namespace: str, name: str) -> Manifest | None:
        """The object, or None if it does not exist or is not watched."""
        ...

    def in_namespace(self, resource: Resource, namespace: str) -> list[Manifest]:
        """The objects of one kind in a namespace, by name."""
        ...

    def all_of(self, resource: Resource) -> Iterator[Manifest]:
        """All objects of one kind. It takes long where there are many."""
        ...

    def owned_by(self, uid: str, resource: Resource) -> list[Manifest]:
        """The objects of one kind whose controller ownerReference names `uid`, by name."""
        ...


@dataclass(slots=True)
class _Entry:
    uid: str
    version: int
    owner: Owner | None
    payload: bytes


class Cache:
    """The store behind `Snapshot`, fed by watches, lists and the answers to own writes."""

    def __init__(self) -> None:
        self._objects: dict[Resource, dict[Name, _Entry]] = {}
        self._owned: dict[str, dict[Resource, set[Name]]] = {}
        #: Up to which version each uid is known to be gone.
        self._graves: OrderedDict[str, float] = OrderedDict()

    def get(self, resource: Resource, namespace: str, name: str) -> Manifest | None:
        """See `Snapshot.get`."""
        entry = self._objects.get(resource, {}).get((namespace, name))
        return None if entry is None else json.loads(entry.payload)

    def in_namespace(self, resource: Resource, namespace: str) -> list[Manifest]:
        """See `Snapshot.in_namespace`."""
        objects = self._objects.get(resource, {})
        return [
            json.loads(objects[name].payload)
            for name in sorted(one for one in objects if one[0] == namespace)
        ]

    def all_of(self, resource: Resource) -> Iterator[Manifest]:
        """See `Snapshot.all_of`."""
        return (json.loads(entry.payload) for entry in tuple(self._objects.get(resource, {}).values()))

    def owned_by(self, uid: str, resource: Resource) -> list[Manifest]:
        """See `Snapshot.owned_by`."""
        objects = self._objects.get(resource, {})
        names = self._owned.get(uid, {}).get(resource, ())
        return [json.loads(objects[name].payload) for name in sorted(names)]

    def names(self, resource: Resource, namespace: str | None = None) -> Iterator[Name]:
        """The names of all objects of a kind, in one namespace or in all."""
        return (name for name in tuple(self._objects.get(resource, ())) if namespace in (None, name[0]))

    def owner(self, resource: Resource, namespace: str, name: str) -> Owner | None:
        """The controller ownerReference of a cached object."""
        entry = self._objects.get(resource, {}).get((namespace, name))
        return entry.owner if entry else None

    def version(self, resource: Resource, namespace: str, name: str, uid: str) -> int | None:
        """The version of a cached object if it still has this uid; None if it is not known."""
        entry = self._objects.get(resource, {}).get((namespace, name))
        return entry.version if entry is not None and entry.uid == uid else None

    def versions(self, resource: Resource, namespace: str | None = None) -> dict[Name, tuple[str, int]]:
        """Which object (uid) stands behind each name at this moment, and in which version."""
        objects = self._objects.get(resource, {})
        return {
            name: (entry.uid, entry.version)
            for name, entry in objects.items()
            if namespace in (None, name[0])
        }

    def is_gone(self, uid: str, version: int) -> bool:
        """Whether that version of an object, and every one before it, is known to be past."""
        return version <= self._graves.get(uid, -1)

    def put(self, resource: Resource, manifest: Manifest, *, rewound: bool = False) -> bool:
        """Takes in one version of an object; False if what is known is as new or newer.

        Args:
            resource: the object's kind.
            manifest: the object as the API server gave it; not kept and not changed.
            rewound: the server's history went back (a restored backup); believe it whatever the version says.
        """
        metadata = manifest["metadata"]
        name: Name = (metadata.get("namespace", ""), metadata["name"])
        uid, version = metadata.get("uid", ""), version_of(manifest)
        if self.is_gone(uid, version) and not rewound:
            return False
        objects = self._objects.setdefault(resource, {})
        known = objects.get(name)
        if known is not None:
            if version <= known.version and not rewound:
                return False
            self._disown(resource, name, known)
        owner = controller_of(manifest)
        objects[name] = _Entry(uid=uid, version=version, owner=owner, payload=_pack(manifest))
        if owner is not None:
            self._owned.setdefault(owner.uid, {}).setdefault(resource, set()).add(name)
        self._graves.pop(uid, None)
        return True

    def forget(
        self, resource: Resource, namespace: str, name: str, uid: str, *, version: float = inf
    ) -> bool:
        """The object is gone as of `version`, for ever by default; False if that was known or is outdated.

        Another object of its name stays.
        """
        self._graves[uid] = max(version, self._graves.get(uid, -1))
        self._graves.move_to_end(uid)
        if len(self._graves) > _GRAVES:
            self._graves.popitem(last=False)
        objects = self._objects.get(resource, {})
        entry = objects.get((namespace, name))
        if entry is None or entry.uid != uid or entry.version > version:
            return False
        del objects[namespace, name]
        self._disown(resource, (namespace, name), entry)
        return True

    def _disown(self, resource: Resource, name: Name, entry: _Entry) -> None:
        if entry.owner is None:
            return
        by_kind = self._owned[entry.owner.uid]
        by_kind[resource].discard(name)
        if not by_kind[resource]:
            del by_kind[resource]
        if not by_kind:
            del self._owned[entry.owner.uid]


def version_of(manifest: Manifest) -> int:
    """The resourceVersion as a number; 0 if the object has none, or one that is not a number."""
    return version_number(str(manifest["metadata"].get("resourceVersion", "")))


def version_number(version: str) -> int:
    """A resourceVersion as a number; 0 if it is none."""
    return int(version) if version.isdecimal() else 0


def controller_of(manifest: Manifest) -> Owner | None:
    """The ownerReference with `controller: true`."""
    for reference in manifest["metadata"].get("ownerReferences") or ():
        if reference.get("controller"):
            return Owner(reference["kind"], reference["name"], reference["uid"])
    return None


def uids_of(manifests: Iterable[Manifest]) -> dict[Name, str]:
    """Which object stands behind each name of a listing."""
    return {
        (item["metadata"].get("namespace", ""), item["metadata"]["name"]): item["metadata"]["uid"]
        for item in manifests
    }


def _pack(manifest: Manifest) -> bytes:
    metadata = {key: value for key, value in manifest["metadata"].items() if key != "managedFields"}
    annotations = metadata.get("annotations")
    if annotations and _LAST_APPLIED in annotations:
        metadata["annotations"] = {key: text for key, text in annotations.items() if key != _LAST_APPLIED}
    return json.dumps(manifest | {"metadata": metadata}, separators=(",", ":"), ensure_ascii=False).encode()
