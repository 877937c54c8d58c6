"""Carries a plan out: applies what differs, deletes what must go, and keeps what the API server refuses.

Three rules hold for every child. It is written only if it is not yet as wanted: the digest of the last apply stands
in an annotation, and our fields are compared with the live ones. It is written only if it is ours: its controller
ownerReference names our object's uid. And a write that was refused is not sent again at once: the refusal goes back
to the planner, which says it in a condition, and the write is tried again after a growing delay.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from opentelemetry import trace

from tidewheel.api.manifest import PODS, Manifest, Resource
from tidewheel.api.meta import ANNOTATION_APPLIED
from tidewheel.api.reasons import Reason
from tidewheel.controllers.cache import Cache, Owner, controller_of, version_of
from tidewheel.controllers.controller import Controller, Key
from tidewheel.controllers.drift import differences, digest_of
from tidewheel.controllers.queue import Backoff
from tidewheel.kube.client import Api
from tidewheel.kube.errors import AlreadyExists, ApiError, Conflict, Forbidden, Invalid, NotFound
from tidewheel.planning.plan import Annotation, Deletion, Plan, Refusal

logger = logging.getLogger(__name__)
tracer = trace.get_tracer("tidewheel.operator")

#: (kind, name) of a child in its owner's namespace.
Child: TypeAlias = tuple[str, str]
#: After so long without a repair, the next one is the first again.
_REPAIRS_FORGOTTEN_SECONDS = 600.0
_BAD_REQUESTS = (400, 405, 413, 415)


class NameTaken(Exception):
    """An object of a child's name exists and is not ours; it is never touched."""

    def __init__(self, kind: str, name: str, owner: Owner | None) -> None:
        belongs = f"it belongs to {owner.kind} {owner.name}" if owner else "nobody's controller owns it"
        super().__init__(f"{kind} {name} exists already and {belongs}; rename or delete it")


class Leaving(Exception):
    """An object of a child's name is still being deleted; its name is free once it is gone."""


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
    #: There is more to do than one reconcile may.
    is_part: bool = False
    #: Seconds until a refused or repeatedly repaired child may be written again.
    look_again_in: float | None = None

    def __bool__(self) -> bool:
        return bool(self.writes or self.annotations or self.deletions)


@dataclass(slots=True)
class Outcome:
    """What became of the changes."""

    applied: list[Write] = field(default_factory=list)
    deleted: list[Deletion] = field(default_factory=list)
    #: Worth another try soon.
    errors: list[ApiError] = field(default_factory=list)
    refused: int = 0
    waits: bool = False


@dataclass(slots=True)
class _Held:
    """A child that is not written before `until` unless something else is wanted."""

    digest: str
    times: int
    until: float
    refusal: Refusal | None


@dataclass(slots=True)
class _Memory:
    """What the executor remembers about one object's children. Losing it costs some no-op applies."""

    held: dict[Child, _Held] = field(default_factory=dict)
    #: The version of a child that was found, or made, as wanted: (uid, resourceVersion, digest).
    settled: dict[Child, tuple[str, int, str]] = field(default_factory=dict)
    #: How the server's own form of a child differs from what was sent, by the digest that was sent.
    accepted: dict[Child, tuple[str, dict[str, Any]]] = field(default_factory=dict)


class Executor:
    """The hands of one controller. It keeps the cache up to date with what it writes.

    Args:
        controller: whose plans it carries out.
        api: the API server.
        cache: what is known, to be kept up to date.
        most_changes: how much one reconcile may write, and how much delete. An object that needs more comes back
            after the others had their turn, so one of a thousand pods does not hold up a hundred of ten.
        clock: monotonic seconds.
        backoff: when to try again what was refused.
    """

    def __init__(
        self,
        controller: Controller,
        api: Api,
        cache: Cache,
        *,
        most_changes: int = 8,
        clock: Callable[[], float] = time.monotonic,
        backoff: Backoff | None = None,
    ) -> None:
        self._controller = controller
        self._api = api
        self._cache = cache
        self._most_changes = most_changes
        self._clock = clock
        self._backoff = backoff or Backoff(first=2.0, most=300.0)
        self._memories: dict[Key, _Memory] = {}
        self._resources = {(child.api_version, child.kind): child for child in controller.children}

    def refusals(self, key: Key) -> tuple[Refusal, ...]:
        """What was refused for `key` and still stands, by kind and name."""
        memory = self._memories.get(key)
        if memory is None:
            return ()
        return tuple(held.refusal for _, held in sorted(memory.held.items()) if held.refusal is not None)

    def forget(self, key: Key) -> None:
        """The object is gone."""
        self._memories.pop(key, None)

    def changes(self, key: Key, owner_uid: str, plan: Plan) -> Changes:
        """What of `plan` is not yet so, judged by the cache alone.

        Raises:
            ValueError: the plan applies a kind that the controller does not declare as its child.
        """
        memory = self._memories.setdefault(key, _Memory())
        now = self._clock()
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
        most = self._most_changes
        return Changes(
            writes=tuple(writes[:most]),
            annotations=tuple(one for one in plan.annotate if self._lacks(one)),
            deletions=tuple(deletions[:most]),
            is_part=len(writes) > most or len(deletions) > most,
            look_again_in=min(waits, default=None),
        )

    async def carry_out(self, key: Key, owner_uid: str, changes: Changes) -> Outcome:
        """Writes and deletes. One failure does not keep the rest from being done; see the outcome's errors."""
        outcome = Outcome()
        memory = self._memories.setdefault(key, _Memory())
        pods = [write for write in changes.writes if write.resource == PODS]
        others = [write for write in changes.writes if write.resource != PODS]
        for wave in (others, pods):
            async with asyncio.TaskGroup() as group:
                for write in wave:
                    group.create_task(self._apply(owner_uid, write, memory, outcome))
        async with asyncio.TaskGroup() as group:
            for annotation in changes.annotations:
                group.create_task(self._annotate(annotation, outcome))
            for deletion in changes.deletions:
                group.create_task(self._delete(deletion, memory, outcome))
        return outcome

    def _write_of(
        self, key: Key, owner_uid: str, manifest: Manifest, memory: _Memory, now: float
    ) -> Write | None:
        resource = self._resources.get((manifest["apiVersion"], manifest["kind"]))
        if resource is None:
            raise ValueError(
                f"{manifest['apiVersion']} {manifest['kind']} is not among the children that the controller of "
                f"{self._controller.kind.kind} declares; nobody would watch it"
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
            if self._cache.version(resource, key.namespace, name, uid) == version:
                return None
        live = self._cache.get(resource, key.namespace, name)
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

    def _deletions(self, deletions: Iterable[Deletion], memory: _Memory, now: float) -> Iterable[Deletion]:
        for deletion in deletions:
            held = memory.held.get((deletion.resource.kind, deletion.name))
            if held is not None and held.digest == deletion.uid and now < held.until:
                continue
            live = self._cache.get(deletion.resource, deletion.namespace, deletion.name)
            if live is None or live["metadata"]["uid"] != deletion.uid:
                continue
            if live["metadata"].get("deletionTimestamp") and not _ends_sooner(deletion, live):
                continue
            yield deletion

    async def _apply(self, owner_uid: str, write: Write, memory: _Memory, outcome: Outcome) -> None:
        kind, name = write.child
        namespace = write.manifest["metadata"]["namespace"]
        with tracer.start_as_current_span(
            f"apply {kind}",
            attributes={
                "k8s.namespace.name": namespace,
                "tidewheel.child.name": name,
                "tidewheel.apply.why": write.why,
            },
            record_exception=False,
        ) as span:
            try:
                answer = await self._write(owner_uid, write, namespace, name)
            except Leaving:
                outcome.waits = True
                return
            except NameTaken as error:
                refusal = Refusal(
                    kind=kind, name=name, status=409, reason=Reason.NAME_TAKEN, message=str(error)
                )
                self._hold(memory, write.child, write.digest, refusal, outcome)
                return
            except ApiError as error:
                span.set_attribute("error.type", type(error).__name__)
                if _is_refusal(error):
                    self._hold(memory, write.child, write.digest, _refusal(write.child, error), outcome)
                else:
                    outcome.errors.append(error)
                return
        self._cache.put(write.resource, answer)
        self._remember(memory, write, answer)
        outcome.applied.append(write)

    async def _write(self, owner_uid: str, write: Write, namespace: str, name: str) -> Manifest:
        manager, uid = self._controller.manager, write.uid
        if uid is None and write.resource == PODS:
            # POST cannot take over what is there. Only for pods: fields that were not applied in the first place
            # could not be removed by a later apply, and a pod's fields hardly change.
            try:
                return await self._api.create(
                    PODS, _with_marks(write.manifest, write.digest, None), manager=manager
                )
            except AlreadyExists:
                pass
        if uid is None:
            uid = await self._uid_if_ours(owner_uid, write.resource, namespace, name)
        body = _with_marks(write.manifest, write.digest, uid)
        try:
            return await self._api.apply(write.resource, body, manager=manager)
        except Invalid:
            if write.why != "drifted":
                raise
        # Whoever changed the key of a list item, a port's number say, made it another item beside which ours
        # cannot stand. A merge patch puts whole lists back; the apply after it makes the fields ours again.
        await self._api.patch(write.resource, name, body, namespace)
        return await self._api.apply(write.resource, body, manager=manager)

    async def _uid_if_ours(self, owner_uid: str, resource: Resource, namespace: str, name: str) -> str | None:
        """The uid of the object of this name, None if there is none.

        Apply would take any object of the name over, so the server is asked before the first write.

        Raises:
            NameTaken: it is not ours.
            Leaving: it is on its way out.
        """
        try:
            live = await self._api.get(resource, name, namespace)
        except NotFound:
            return None
        metadata = live["metadata"]
        owner = controller_of(live)
        if owner is not None and owner.uid == owner_uid:
            self._cache.put(resource, live)
            if metadata.get("deletionTimestamp"):
                raise Leaving
            return str(metadata["uid"])
        ours_once = owner is not None and owner.kind == self._controller.kind.kind
        if metadata.get("deletionTimestamp") or ours_once:
            # Of a former object of our name, say: the garbage collector has yet to come round.
            raise Leaving
        raise NameTaken(resource.kind, name, owner)

    def _lacks(self, annotation: Annotation) -> bool:
        live = self._cache.get(annotation.resource, annotation.namespace, annotation.name)
        if live is None or live["metadata"]["uid"] != annotation.uid:
            return False
        has = live["metadata"].get("annotations") or {}
        return any(has.get(key) != value for key, value in annotation.annotations.items())

    async def _annotate(self, annotation: Annotation, outcome: Outcome) -> None:
        resource, namespace, name = annotation.resource, annotation.namespace, annotation.name
        patch = {"metadata": {"uid": annotation.uid, "annotations": dict(annotation.annotations)}}
        try:
            self._cache.put(resource, await self._api.patch(resource, name, patch, namespace))
        except NotFound:
            self._cache.forget(resource, namespace, name, annotation.uid)
        except Conflict:
            # Another object has the name by now; the watch will show it.
            pass
        except ApiError as error:
            outcome.errors.append(error)

    async def _delete(self, deletion: Deletion, memory: _Memory, outcome: Outcome) -> None:
        resource, namespace, name = deletion.resource, deletion.namespace, deletion.name
        with tracer.start_as_current_span(
            f"delete {resource.kind}",
            attributes={
                "k8s.namespace.name": namespace,
                "tidewheel.child.name": name,
                "tidewheel.delete.why": deletion.reason,
            },
            record_exception=False,
        ) as span:
            try:
                answer = await self._delete_or_find_gone(deletion)
            except ApiError as error:
                span.set_attribute("error.type", type(error).__name__)
                if _is_refusal(error):
                    child = (resource.kind, name)
                    self._hold(memory, child, deletion.uid, _refusal(child, error), outcome)
                else:
                    outcome.errors.append(error)
                return
        if answer is not None and answer.get("kind") == resource.kind:
            self._cache.put(resource, answer)
        else:
            self._cache.forget(resource, namespace, name, deletion.uid)
        outcome.deleted.append(deletion)

    async def _delete_or_find_gone(self, deletion: Deletion) -> Manifest | None:
        """The server's answer; None if the object, or another one of its name, had been faster."""
        resource, namespace, name = deletion.resource, deletion.namespace, deletion.name
        try:
            return await self._api.delete(
                resource, name, namespace, uid=deletion.uid, grace_seconds=deletion.grace_seconds
            )
        except NotFound:
            return None
        except Conflict:
            try:
                live = await self._api.get(resource, name, namespace)
            except NotFound:
                return None
            if live["metadata"]["uid"] != deletion.uid:
                return None
            raise

    def _hold(
        self, memory: _Memory, child: Child, digest: str, refusal: Refusal | None, outcome: Outcome
    ) -> None:
        held = memory.held.get(child)
        times = held.times + 1 if held is not None else 1
        until = self._clock() + self._backoff.seconds(times)
        if refusal is not None:
            outcome.refused += 1
            if held is None or held.refusal != refusal:
                logger.warning("%s %s was refused: %s", *child, refusal.message)
        memory.held[child] = _Held(digest=digest, times=times, until=until, refusal=refusal)

    def _remember(self, memory: _Memory, write: Write, answer: Manifest) -> None:
        child, metadata = write.child, answer["metadata"]
        memory.settled[child] = (metadata["uid"], version_of(answer), write.digest)
        left = differences(write.manifest, answer)
        if left:
            memory.accepted[child] = (write.digest, left)
        else:
            memory.accepted.pop(child, None)
        held = memory.held.get(child)
        if write.why != "drifted":
            memory.held.pop(child, None)
            return
        # Whoever changes our fields again and again must not make us write as fast as we can.
        if held is not None and self._clock() - held.until > _REPAIRS_FORGOTTEN_SECONDS:
            del memory.held[child]
        self._hold(memory, child, write.digest, None, Outcome())


def _with_marks(manifest: Manifest, digest: str, uid: str | None) -> Manifest:
    metadata = manifest["metadata"]
    marked = metadata | {"annotations": metadata.get("annotations", {}) | {ANNOTATION_APPLIED: digest}}
    if uid is not None:
        # The server answers 409 if the object is another one by now.
        marked["uid"] = uid
    return manifest | {"metadata": marked}


def _ends_sooner(deletion: Deletion, leaving: Manifest) -> bool:
    allowed = leaving["metadata"].get("deletionGracePeriodSeconds")
    return deletion.grace_seconds is not None and allowed is not None and deletion.grace_seconds < allowed


def _is_refusal(error: ApiError) -> bool:
    return isinstance(error, Invalid | Forbidden) or error.status in _BAD_REQUESTS


def _refusal(child: Child, error: ApiError) -> Refusal:
    kind, name = child
    return Refusal(
        kind=kind,
        name=name,
        status=error.status,
        reason=error.reason or type(error).__name__,
        message=str(error),
        causes=error.causes,
    )
