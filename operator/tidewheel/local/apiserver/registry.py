"""What this server serves: the resources it is born with and those that CustomResourceDefinitions add."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

Manifest = dict[str, Any]

STORAGE_VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")
CUSTOM_VERBS = ("delete", "deletecollection", "get", "list", "patch", "create", "update", "watch")


@dataclass(frozen=True, slots=True, kw_only=True)
class Subresource:
    """One path below an object, such as `pods/log`; `group` and `version` are set when its kind lives elsewhere."""

    name: str
    kind: str
    verbs: tuple[str, ...]
    group: str = ""
    version: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalePaths:
    """Where the scale subresource finds its numbers, as simple dotted paths."""

    spec_replicas: tuple[str, ...]
    status_replicas: tuple[str, ...]
    selector: tuple[str, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """One resource in one version."""

    group: str
    version: str
    plural: str
    kind: str
    singular: str
    namespaced: bool
    list_kind: str
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    verbs: tuple[str, ...] = STORAGE_VERBS
    subresources: tuple[Subresource, ...] = ()
    has_status: bool = False
    scale: ScalePaths | None = None
    storage: str = ""
    """The collection that holds the objects; versions of a resource, and both kinds of events, share one."""
    counts_generation: bool = False
    returns_deleted: bool = False
    custom: bool = False
    printer_columns: tuple[Manifest, ...] = field(default=(), hash=False)
    selectable: tuple[str, ...] = ()
    """Fields of a custom resource that field selectors may name, besides name and namespace."""
    schema: Any = field(default=None, compare=False, repr=False)
    schema_since: int = field(default=0, compare=False)
    """The store's version from which on custom resources were written under `schema`."""
    raw_schema: Manifest = field(default_factory=dict, compare=False, repr=False)

    @property
    def api_version(self) -> str:
        """`group/version`, or just the version in the core group."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def qualified(self) -> str:
        """`plural.group`, as error messages name a resource."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def is_stored(self) -> bool:
        """Whether objects of it are kept (reviews and bindings are only answered)."""
        return "get" in self.verbs and "create" in self.verbs

    @property
    def storage_version_hash(self) -> str:
        """The hash that discovery shows for a stored resource."""
        digest = hashlib.sha256(f"{self.group}/{self.version}/{self.kind}".encode()).digest()
        return base64.b64encode(digest[:8]).decode()

    def subresource(self, name: str) -> Subresource | None:
        """The subresource of this name, if there is one."""
        return next((found for found in self.subresources if found.name == name), None)


class Registry:
    """Resources by group, version and plural, in the order in which discovery shows them."""

    def __init__(self, resources: Iterable[Resource] = ()) -> None:
        self._resources: dict[tuple[str, str, str], Resource] = {}
        self.changes = 0
        """Goes up whenever a resource comes or goes; caches of discovery and OpenAPI hang on it."""
        for resource in resources:
            self.add(resource)

    def add(self, resource: Resource) -> None:
        """Serve `resource` from now on, in place of an older one of the same name."""
        self._resources[resource.group, resource.version, resource.plural] = resource
        self.changes += 1

    def remove_custom(self, group: str, plural: str) -> None:
        """Stop serving a custom resource in all its versions."""
        for key, resource in list(self._resources.items()):
            if resource.custom and resource.group == group and resource.plural == plural:
                del self._resources[key]
        self.changes += 1

    def find(self, group: str, version: str, plural: str) -> Resource | None:
        """The resource behind a path, or None."""
        return self._resources.get((group, version, plural))

    def builtin(self, plural: str, group: str = "") -> Resource:
        """A resource that every cluster has, in version v1.

        Raises:
            KeyError: there is none of this name.
        """
        return self._resources[group, "v1", plural]

    def of_storage(self, storage: str) -> Resource | None:
        """The first resource that is kept in this collection."""
        return next((one for one in self._resources.values() if one.storage == storage), None)

    def all(self) -> Iterator[Resource]:
        """Every resource in every version."""
        return iter(self._resources.values())

    def stored(self) -> list[Resource]:
        """One resource for each collection."""
        seen: dict[str, Resource] = {}
        for resource in self._resources.values():
            if resource.is_stored:
                seen.setdefault(resource.storage, resource)
        return list(seen.values())

    def groups(self) -> dict[str, list[str]]:
        """Named groups with their versions, preferred first, without the core group."""
        found: dict[str, list[str]] = {}
        for group, version, _ in self._resources:
            if group and version not in found.setdefault(group, []):
                found[group].append(version)
        return found

    def in_version(self, group: str, version: str) -> list[Resource]:
        """The resources of one group and version, in order."""
        return [one for one in self._resources.values() if one.group == group and one.version == version]
