"""Posts Kubernetes Events: the same thing again counts up, too many are held back, and nothing waits for them.

Names are deterministic, so a restarted operator counts on instead of starting over.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from contextvars import Context
from dataclasses import dataclass, field
from datetime import UTC, datetime

from tidewheel.api.manifest import EVENTS, Manifest
from tidewheel.kube.client import Api
from tidewheel.kube.errors import AlreadyExists, ApiError, NotFound, TooManyRequests, Unavailable
from tidewheel.planning.plan import EventNote

logger = logging.getLogger(__name__)

_LONGEST_NOTE = 1024
#: So many different messages of one object and reason within the time are told one by one; then they are combined.
_SIMILAR_TOLD = 10
_SIMILAR_SECONDS = 600.0
#: As client-go: a burst of 25 per object, then one in five minutes.
_BURST = 25.0
_REFILL_SECONDS = 300.0
_OBJECTS_REMEMBERED = 4096
_WAITING_AT_MOST = 1000
_ATTEMPTS = 4


@dataclass(slots=True)
class _Told:
    """What one object's Events have been so far."""

    tokens: float = _BURST
    refilled_at: float = 0.0
    #: Per reason: when its window began, and the messages in it.
    similar: dict[str, tuple[float, set[str]]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Occurrence:
    """One Event as it should stand, or whose count should rise."""

    name: str
    body: Manifest
    at: str


class EventBook:
    """Which notes become Events: aggregation and rate, without I/O."""

    def __init__(
        self,
        *,
        controller: str,
        instance: str,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._controller = controller
        self._instance = instance[:128]
        self._clock = clock
        self._now = now
        self._told: OrderedDict[str, _Told] = OrderedDict()

    def enter(self, about: Manifest, note: EventNote) -> Occurrence | None:
        """The Event for one note about an object; None if the object has had too many."""
        metadata = about["metadata"]
        uid = metadata.get("uid", "")
        told = self._told.setdefault(uid, _Told(refilled_at=self._clock()))
        self._told.move_to_end(uid)
        if len(self._told) > _OBJECTS_REMEMBERED:
            self._told.popitem(last=False)
        if not self._take_token(told):
            return None
        message, told_apart_by = note.message, note.message
        if self._is_one_of_many(told, note):
            message, told_apart_by = f"(combined from similar events): {note.message}", "combined"
        identity = "\0".join((uid, note.type, note.reason, note.action, told_apart_by))
        name = f"{metadata['name'][:200]}.{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
        at = self._now().strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        namespace = metadata.get("namespace", "default")
        body: Manifest = {
            "apiVersion": EVENTS.api_version,
            "kind": EVENTS.kind,
            "metadata": {"name": name, "namespace": namespace},
            "eventTime": at,
            "reportingController": self._controller,
            "reportingInstance": self._instance,
            "type": note.type,
            "reason": note.reason[:128],
            "action": note.action[:128],
            "note": message if len(message) <= _LONGEST_NOTE else message[: _LONGEST_NOTE - 1] + "…",
            "regarding": {
                "apiVersion": about["apiVersion"],
                "kind": about["kind"],
                "namespace": namespace,
                "name": metadata["name"],
                "uid": uid,
            },
        }
        return Occurrence(name=name, body=body, at=at)

    def _take_token(self, told: _Told) -> bool:
        now = self._clock()
        told.tokens = min(_BURST, told.tokens + (now - told.refilled_at) / _REFILL_SECONDS)
        told.refilled_at = now
        if told.tokens < 1.0:
            return False
        told.tokens -= 1.0
        return True

    def _is_one_of_many(self, told: _Told, note: EventNote) -> bool:
        now = self._clock()
        began, messages = told.similar.get(note.reason, (now, set()))
        if now - began > _SIMILAR_SECONDS:
            began, messages = now, set()
        told.similar[note.reason] = (began, messages)
        if note.message in messages:
            return False
        if len(messages) >= _SIMILAR_TOLD:
            return True
        messages.add(note.message)
        return False


class Recorder:
    """Posts what the book lets through, in the background. `record` never waits and never fails."""

    def __init__(self, api: Api, book: EventBook, *, dropped: Callable[[], None] = lambda: None) -> None:
        self._api = api
        self._book = book
        self._dropped = dropped
        self._waiting: asyncio.Queue[Occurrence] = asyncio.Queue(maxsize=_WAITING_AT_MOST)

    def record(self, about: Manifest, note: EventNote) -> None:
        """One thing that happened to `about`; call it after the write it tells of has succeeded."""
        occurrence = self._book.enter(about, note)
        try:
            if occurrence is None:
                self._dropped()
            else:
                self._waiting.put_nowait(occurrence)
        except asyncio.QueueFull:
            self._dropped()

    async def run(self) -> None:
        """Posts until cancelled."""
        while True:
            occurrence = await self._waiting.get()
            try:
                await self._post_or_drop(occurrence)
            finally:
                self._waiting.task_done()

    async def flush(self, *, at_most_seconds: float) -> None:
        """Waits until all that waits is posted, but not longer than that; `run` must be running."""
        try:
            async with asyncio.timeout(at_most_seconds):
                await self._waiting.join()
        except TimeoutError:
            logger.warning("%d events were not posted before the end", self._waiting.qsize())

    async def _post_or_drop(self, occurrence: Occurrence) -> None:
        for attempt in range(_ATTEMPTS):
            try:
                await self._post(occurrence)
            except (Unavailable, TooManyRequests) as error:
                await asyncio.sleep(error.retry_after_seconds or 0.5 * 2**attempt)
            except ApiError as error:
                logger.info("an event was not posted: %s", error)
                break
            else:
                return
        self._dropped()

    async def _post(self, occurrence: Occurrence) -> None:
        body = occurrence.body
        try:
            await self._api.create(EVENTS, body)
        except AlreadyExists:
            namespace = body["metadata"]["namespace"]
            try:
                standing = await self._api.get(EVENTS, occurrence.name, namespace)
            except NotFound:
                # It expired in between.
                await self._api.create(EVENTS, body)
                return
            count = (standing.get("series") or {}).get("count", 1) + 1
            series = {"series": {"count": count, "lastObservedTime": occurrence.at}}
            await self._api.patch(EVENTS, occurrence.name, series, namespace)


def start(recorder: Recorder) -> asyncio.Task[None]:
    """The recorder's task, outside of any span."""
    return asyncio.create_task(recorder.run(), name="event recorder", context=Context())
