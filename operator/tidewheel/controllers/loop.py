"""Drives one controller: workers take keys from its queue and bring each object to what its plan says.

Observe, plan, execute, report, events; the same for every kind. Only `plan` knows the kind.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import Context
from datetime import UTC, datetime

from opentelemetry import trace
from opentelemetry.trace import Span, Status, StatusCode

from tidewheel.api.manifest import Manifest
from tidewheel.controllers.cache import Cache
from tidewheel.controllers.changes import Changes
from tidewheel.controllers.controller import Controller, Key
from tidewheel.controllers.execute import Executor, Outcome
from tidewheel.controllers.metrics import ControllerMetrics
from tidewheel.controllers.queue import WorkQueue
from tidewheel.controllers.report import new_status, write_status
from tidewheel.kube.client import Api
from tidewheel.kube.errors import ApiError, Conflict, NotFound
from tidewheel.kube.events import Recorder
from tidewheel.planning.plan import EventNote, Plan
from tidewheel.telemetry import link_from_annotations

logger = logging.getLogger(__name__)
tracer = trace.get_tracer("tidewheel.operator")


class ControllerLoop:
    """One controller's queue, workers and executor."""

    def __init__(
        self,
        controller: Controller,
        *,
        api: Api,
        cache: Cache,
        recorder: Recorder,
        metrics: ControllerMetrics,
        concurrency: int = 8,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.controller = controller
        self.name = controller.kind.kind.lower()
        self.queue: WorkQueue[Key] = WorkQueue(observer=metrics.queue(self.name, self.busy_seconds))
        self._api = api
        self._cache = cache
        self._recorder = recorder
        self._metrics = metrics
        self._concurrency = concurrency
        self._now = now
        self._executor = Executor(controller, api, cache)
        metrics.workers.labels(self.name).set(concurrency)

    def busy_seconds(self) -> list[float]:
        """For how long each running reconcile has run."""
        return self.queue.busy_seconds()

    def enqueue_all(self) -> None:
        """Looks at every object again."""
        for namespace, name in self._cache.names(self.controller.kind):
            self.queue.add(Key(namespace, name))

    async def run(self, *, grace_seconds: float) -> None:
        """Works until the queue is closed or this is cancelled; then running reconciles get `grace_seconds`."""
        # An empty context: a span that is current here must not become the parent of every reconcile.
        workers = [
            asyncio.create_task(self._work(), name=f"{self.name} worker {number}", context=Context())
            for number in range(self._concurrency)
        ]
        try:
            done, _ = await asyncio.wait(workers, return_when=asyncio.FIRST_COMPLETED)
            for worker in done:
                worker.result()
        finally:
            self.queue.close()
            _, late = await asyncio.wait(workers, timeout=grace_seconds)
            for worker in late:
                worker.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _work(self) -> None:
        while (key := await self.queue.get()) is not None:
            started = time.perf_counter()
            self._metrics.active.labels(self.name).inc()
            try:
                result = await self._reconcile_or_retry(key)
                self._metrics.reconciles.labels(self.name, result).inc()
            finally:
                self._metrics.active.labels(self.name).dec()
                self._metrics.reconcile_seconds.labels(self.name).observe(time.perf_counter() - started)
                self.queue.done(key)

    async def _reconcile_or_retry(self, key: Key) -> str:
        try:
            look_again_in = await self.reconcile(key)
        except Conflict as error:
            # Someone was faster. The watch brings what they wrote; nothing is wrong.
            delay = self.queue.retry(key)
            logger.info("%s %s: %s; again in %.2f s", self.name, key, error, delay)
            return "requeue"
        except ApiError as error:
            delay = self.queue.retry(key, at_least=error.retry_after_seconds or 0.0)
            logger.warning("%s %s: %s; again in %.2f s", self.name, key, error, delay)
        except Exception:
            # One object that cannot be reconciled must not stop the others.
            delay = self.queue.retry(key)
            logger.exception("%s %s could not be reconciled; again in %.2f s", self.name, key, delay)
        else:
            self.queue.forget(key)
            if look_again_in is None:
                return "success"
            self.queue.add_after(key, look_again_in)
            return "requeue_after"
        self._metrics.reconcile_errors.labels(self.name).inc()
        return "error"

    async def reconcile(self, key: Key) -> float | None:
        """Brings one object one step nearer to its plan; returns the seconds after which to look again, if any.

        Raises:
            ApiError: something failed that may pass; whatever else could be done was done.
        """
        began = time.time_ns()
        kind = self.controller.kind
        seen = self._cache.get(kind, key.namespace, key.name)
        if seen is None:
            self._executor.forget(key)
            return None
        try:
            plan = self.controller.plan(key, self._cache, self._now(), self._executor.refusals(key))
            if plan is None:
                self._executor.forget(key)
                return None
            uid = str(seen["metadata"]["uid"])
            changes = self._executor.changes(key, uid, plan)
        except Exception as error:
            with self._span(seen, began) as span:
                span.record_exception(error)
                span.set_status(Status(StatusCode.ERROR, str(error)))
            raise
        status = new_status(seen, plan.status)
        look_again_in = _earliest(plan.look_again_in, changes.look_again_in)
        if not changes and status is None and not plan.events:
            # Nothing to do is the usual case and leaves no span, only metrics.
            return look_again_in
        with self._span(seen, began) as span:
            planned = tracer.start_span("plan", start_time=began)
            planned.set_attribute("tidewheel.plan.writes", len(changes.writes))
            planned.set_attribute("tidewheel.plan.deletions", len(changes.deletions))
            planned.end()
            outcome = await self._execute(key, uid, changes)
            if outcome.applied or outcome.deleted:
                # It gets on: a failure now is the first again, or a shaky API server would slow it down to a halt.
                self.queue.forget(key)
            await self._report(seen, status)
            self._tell(seen, plan, outcome)
            span.set_attribute("tidewheel.reconcile.result", "error" if outcome.errors else "success")
            if look_again_in is not None:
                span.set_attribute("tidewheel.reconcile.requeue_seconds", look_again_in)
        if outcome.errors:
            raise outcome.errors[0]
        if changes:
            # Plan on what was just written until a plan changes nothing.
            self.queue.add(key)
        return 1.0 if outcome.waits and look_again_in is None else look_again_in

    async def _execute(self, key: Key, uid: str, changes: Changes) -> Outcome:
        if not changes:
            return Outcome()
        for write in changes.writes:
            if write.drifted:
                logger.info(
                    "%s %s: %s %s drifted at %s", self.name, key, *write.child, ", ".join(write.drifted)
                )
        return await self._executor.carry_out(key, uid, changes)

    async def _report(self, seen: Manifest, status: Manifest | None) -> None:
        if status is None:
            return
        with tracer.start_as_current_span("status", record_exception=False):
            try:
                await write_status(self._api, self._cache, self.controller, seen, status)
            except NotFound:
                # Deleted meanwhile; its DELETED event is on its way.
                return

    def _tell(self, seen: Manifest, plan: Plan, outcome: Outcome) -> None:
        for note in plan.events:
            self._recorder.record(seen, note)
        for write in outcome.applied:
            if write.why == "drifted":
                kind, name = write.child
                where = ", ".join(write.drifted)
                message = f"{kind} {name} had been changed by someone else at {where}; restored"
                self._recorder.record(
                    seen, EventNote(type="Normal", reason="DriftRepaired", action="Apply", message=message)
                )

    def _span(self, seen: Manifest, began: int) -> AbstractContextManager[Span]:
        """A root span per reconcile, linked to the trace of whoever applied the object."""
        metadata = seen["metadata"]
        applied = link_from_annotations(metadata.get("annotations"))
        kind = self.controller.kind.kind
        return tracer.start_as_current_span(
            f"reconcile {kind}",
            links=[applied] if applied is not None else [],
            attributes={
                "k8s.namespace.name": metadata["namespace"],
                "tidewheel.resource.kind": kind,
                "tidewheel.resource.name": metadata["name"],
                "tidewheel.resource.uid": metadata["uid"],
                "tidewheel.resource.generation": metadata.get("generation", 0),
            },
            start_time=began,
        )


def _earliest(*seconds: float | None) -> float | None:
    return min((value for value in seconds if value is not None), default=None)
