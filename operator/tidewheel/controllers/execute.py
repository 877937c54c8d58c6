"""Carries changes out: applies what differs, deletes what must go, and keeps what the API server refuses.

Three rules hold for every child. It is written only if it is not yet as wanted: the digest of the last apply stands
in an annotation, and our fields are compared with the live ones. It is written only if it is ours: its controller
ownerReference names our object's uid. And a write that was refused is not sent again at once: the refusal goes back
to the planner, which says it in a condition, and the write is tried again after a growing delay.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from opentelemetry import trace

from tidewheel.api.manifest import PODS, Manifest, Resource
from tidewheel.api.meta import ANNOTATION_APPLIED
from tidewheel.api.reasons import Reason
from tidewheel.controllers.cache import Cache, Owner, controller_of, version_of
from tidewheel.controllers.changes import Changes, Child, Held, Judge, Memory, Write
from tidewheel.controllers.controller import Controller, Key
from tidewheel.controllers.drift import differences
from tidewheel.controllers.queue import Backoff
from tidewheel.kube.client import Api
from tidewheel.kube.errors import AlreadyExists, ApiError, Conflict, Forbidden, Invalid, NotFound
from tidewheel.planning.plan import Annotation, Deletion, Plan, Refusal

logger = logging.getLogger(__name__)
tracer = trace.get_tracer("tidewheel.operator")

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


@dataclass(slots=True)
class Outcome:
    """What became of the changes."""

    applied: list[Write] = field(default_factory=list)
    deleted: list[Deletion] = field(default_factory=list)
    #: Worth another try soon.
    errors: list[ApiError] = field(default_factory=list)
    refused: int = 0
    waits: bool = False


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
        most_changes: int = 64,
        clock: Callable[[], float] = time.monotonic,
        backoff: Backoff | None = None,
    ) -> None:
        self._controller = controller
        self._api = api
        self._cache = cache
        self._clock = clock
        self._backoff = backoff or Backoff(first=2.0, most=300.0)
        self._memories: dict[Key, Memory] = {}
        self._judge = Judge(
            kind=controller.kind,
            children={(child.api_version, child.kind): child for child in controller.children},
            cache=cache,
            most_changes=most_changes,
        )

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
        memory = self._memories.setdefault(key, Memory())
        return self._judge.changes(key, owner_uid, plan, memory, self._clock())

    async def carry_out(self, key: Key, owner_uid: str, changes: Changes) -> Outcome:
        """Writes and deletes. One failure does not keep the rest from being done; see the outcome's errors."""
        outcome = Outcome()
        memory = self._memories.setdefault(key, Memory())
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

    async def _apply(self, owner_uid: str, write: Write, memory: Memory, outcome: Outcome) -> None:
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

    async def _annotate(self, annotation: Annotation, outcome: Outcome) -> None:
        resource, namespace, name = annotation.resource, annotation.namespace, annotation.name
        metadata: Manifest = {"uid": annotation.uid, "annotations": dict(annotation.annotations)}
        if annotation.labels:
            metadata["labels"] = dict(annotation.labels)
        patch = {"metadata": metadata}
        try:
            self._cache.put(resource, await self._api.patch(resource, name, patch, namespace))
        except NotFound:
            self._cache.forget(resource, namespace, name, annotation.uid)
        except Conflict:
            # Another object has the name by now; the watch will show it.
            pass
        except ApiError as error:
            outcome.errors.append(error)

    async def _delete(self, deletion: Deletion, memory: Memory, outcome: Outcome) -> None:
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
        self, memory: Memory, child: Child, digest: str, refusal: Refusal | None, outcome: Outcome
    ) -> None:
        held = memory.held.get(child)
        times = held.times + 1 if held is not None else 1
        until = self._clock() + self._backoff.seconds(times)
        if refusal is not None:
            outcome.refused += 1
            if held is None or held.refusal != refusal:
                logger.warning("%s %s was refused: %s", *child, refusal.message)
        memory.held[child] = Held(digest=digest, times=times, until=until, refusal=refusal)

    def _remember(self, memory: Memory, write: Write, answer: Manifest) -> None:
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
