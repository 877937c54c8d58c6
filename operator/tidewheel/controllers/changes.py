"""What of a plan is not yet so: a judgement by the cache and by what is remembered of earlier writes, without I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from tidewheel.api.manifest import Manifest, Resource
from tidewheel.api.meta import ANNOTATION_APPLIED
from tidewheel.controllers.cache import Cache, controller_of, version_of
from tidewheel.controllers.controller import Key
from tidewheel.controllers.drift import differences, digest_of
from tidewheel.planning.plan import Annotation, Deletion, Plan, Refusal

#: (kind, name) of a child in its owner's namespace.
Child: TypeAlias = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """One child to apply."""

    resource: Resource
    manifest: Manifest
    digest: str
    why: Literal["missing", "changed", "drifted"]
    #: The object that must still be there; None if it is to be created.
    uid: str | None = None
    #: Where others changed our fields.
    drifted: tuple[str, ...] = ()

    @property
    def child(self) -> Child:
        """Kind and name."""
        return self.resource.kind, self.manifest["metadata"]["name"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What of a plan is not yet so."""

    writes: tuple[Write, ...] = ()
    annotations: tuple[Annotation, ...] = ()
    deletions: tuple[Deletion, ...] = ()
    #: Seconds until a refused or repeatedly repaired child may be written again.
    look_again_in: float | None = None

    def __bool__(self) -> bool:
        return bool(self.writes or self.annotations or self.deletions)


@dataclass(slots=True)
class Held:
    """A child that is not written before `until` unless something else is wanted."""

    digest: str
    times: int
    until: float
    refusal: Refusal | None


@dataclass(slots=True)
class Memory:
    """What the executor remembers about one object's children. Losing it costs some no-op applies."""

    held: dict[Child, Held] = field(default_factory=dict)
    #: The version of a child that was found, or made, as wanted: (uid, resourceVersion, digest).
    settled: dict[Child, tuple[str, int, str]] = field(default_factory=dict)
    #: How the server's own form of a child differs from what was sent, by the digest that was sent.
    accepted: dict[Child, tuple[str, dict[str, Any]]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """Compares plans with the cache.

    Attributes:
        kind: what the children belong to.
        children: the kinds a plan may apply, by apiVersion and kind.
        cache: what is known.
        most_changes: how much one reconcile may write, and how much delete.
    """

    kind: Resource
    children: Mapping[tuple[str, str], Resource]
    cache: Cache
    most_changes: int

    def changes(self, key: Key, owner_uid: str, plan: Plan, memory: Memory, now: float) -> Changes:
        """What of `plan` is not yet so; forgets of `memory` what the plan no longer wants.

        Raises:
            ValueError: the plan applies a kind that the controller does not declare as its child.
        """
        wanted: set[Child] = set()
        writes: list[Write] = []
        # Pods mount config maps and are reached through services: those come first.
        for manifest in sorted(plan.apply, key=lambda manifest: manifest["kind"] == "Pod"):
            write = self._write_of(key, owner_uid, manifest, memory, now)
            wanted.add((manifest["kind"], manifest["metadata"]["name"]))
            if write is not None:
                writes.append(write)
        deletions = list(self._deletions(plan.delete, memory, now))
        wanted |= {(deletion.resource.kind, deletion.name) for deletion in plan.delete}
        for book in (memory.held, memory.settled, memory.accepted):
            for child in book.keys() - wanted:
                del book[child]
        waits = [held.until - now for held in memory.held.values() if held.until > now]
        most = self.most_changes
        return Changes(
            writes=tuple(writes[:most]),
            annotations=tuple(one for one in plan.annotate if self._lacks(one)),
            deletions=tuple(deletions[:most]),
            look_again_in=min(waits, default=None),
        )

    def _write_of(
        self, key: Key, owner_uid: str, manifest: Manifest, memory: Memory, now: float
    ) -> Write | None:
        resource = self.children.get((manifest["apiVersion"], manifest["kind"]))
        if resource is None:
            raise ValueError(
                f"{manifest['apiVersion']} {manifest['kind']} is not among the children that the controller of "
                f"{self.kind.kind} declares; nobody would watch it"
            )
        name = manifest["metadata"]["name"]
        child = (resource.kind, name)
        digest = digest_of(manifest)
        held = memory.held.get(child)
        if held is not None and held.digest != digest:
            del memory.held[child]
            held = None
        if held is not None and now < held.until:
            return None
        settled = memory.settled.get(child)
        if settled is not None and settled[2] == digest:
            uid, version, _ = settled
            if self.cache.version(resource, key.namespace, name, uid) == version:
                return None
        live = self.cache.get(resource, key.namespace, name)
        if live is None:
            return Write(resource=resource, manifest=manifest, digest=digest, why="missing")
        owner = controller_of(live)
        if owner is None or owner.uid != owner_uid:
            # Sent on to carry_out, which reads the object itself before it judges.
            return Write(resource=resource, manifest=manifest, digest=digest, why="missing")
        metadata = live["metadata"]
        if metadata.get("deletionTimestamp"):
            return None
        if metadata.get("annotations", {}).get(ANNOTATION_APPLIED) != digest:
            return Write(
                resource=resource, manifest=manifest, digest=digest, why="changed", uid=metadata["uid"]
            )
        found = differences(manifest, live)
        accepted = memory.accepted.get(child)
        if found and accepted is not None and accepted[0] == digest:
            found = {path: value for path, value in found.items() if (path, value) not in accepted[1].items()}
        if found:
            return Write(
                resource=resource,
                manifest=manifest,
                digest=digest,
                why="drifted",
                uid=metadata["uid"],
                drifted=tuple(path.lstrip(".") for path in found),
            )
        memory.settled[child] = (metadata["uid"], version_of(live), digest)
        return None

    def _deletions(self, deletions: Iterable[Deletion], memory: Memory, now: float) -> Iterator[Deletion]:
        for deletion in deletions:
            held = memory.held.get((deletion.resource.kind, deletion.name))
            if held is not None and held.digest == deletion.uid and now < held.until:
                continue
            live = self.cache.get(deletion.resource, deletion.namespace, deletion.name)
            if live is None or live["metadata"]["uid"] != deletion.uid:
                continue
            if live["metadata"].get("deletionTimestamp") and not _ends_sooner(deletion, live):
                continue
            yield deletion

    def _lacks(self, annotation: Annotation) -> bool:
        live = self.cache.get(annotation.resource, annotation.namespace, annotation.name)
        if live is None or live["metadata"]["uid"] != annotation.uid:
            return False
        has, labels = (live["metadata"].get(part) or {} for part in ("annotations", "labels"))
        return any(has.get(key) != value for key, value in annotation.annotations.items()) or any(
            labels.get(key) != value for key, value in annotation.labels.items()
        )


def _ends_sooner(deletion: Deletion, leaving: Manifest) -> bool:
    allowed = leaving["metadata"].get("deletionGracePeriodSeconds")
    return deletion.grace_seconds is not None and allowed is not None and deletion.grace_seconds < allowed
