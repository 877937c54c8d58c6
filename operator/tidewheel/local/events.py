"""Events of the scheduler, the controllers and the node agent, in the core API's form: repeats are counted, not repeated."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from tidewheel.api.manifest import Manifest, Resource
from tidewheel.kube.client import Api
from tidewheel.kube.errors import ApiError, NotFound

logger = logging.getLogger(__name__)

_CORE_EVENTS = Resource("", "v1", "events", "Event")
_REMEMBERED = 2000
_WAITING = 10_000

Severity = Literal["Normal", "Warning"]
_Key = tuple[str, str, str, str]


@dataclass(slots=True)
class _Written:
    name: str
    count: int


class EventRecorder:
    """Writes events in the background, in order. Events tell people what happened; when the API is away they are lost."""

    def __init__(self, api: Api, *, component: str, host: str = "") -> None:
        self._api = api
        self._component = component
        self._host = host
        self._queue: asyncio.Queue[tuple[Manifest, Severity, str, str, str]] = asyncio.Queue(_WAITING)
        self._dropped = 0
        self._written: OrderedDict[_Key, _Written] = OrderedDict()

    def event(
        self, about: Manifest, severity: Severity, reason: str, message: str, *, field_path: str = ""
    ) -> None:
        """Notes an event about an object; `field_path` names the part of it, such as a container."""
        try:
            self._queue.put_nowait((about, severity, reason, message, field_path))
        except asyncio.QueueFull:
            self._dropped += 1

    async def run(self) -> None:
        """Writes until cancelled."""
        while True:
            about, severity, reason, message, field_path = await self._queue.get()
            if self._dropped:
                logger.warning("%d events were lost: more came than could be written", self._dropped)
                self._dropped = 0
            try:
                await self._write(about, severity, reason, message[:1024], field_path)
            except ApiError as error:
                logger.debug("Event %s on %s was not written: %s", reason, about["metadata"]["name"], error)

    async def _write(
        self, about: Manifest, severity: Severity, reason: str, message: str, field_path: str
    ) -> None:
        metadata = about["metadata"]
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        namespace = metadata.get("namespace") or "default"
        key = (metadata.get("uid", metadata["name"]), reason, message, field_path)
        known = self._written.get(key)
        if known is not None:
            known.count += 1
            self._written.move_to_end(key)
            patch = {"count": known.count, "lastTimestamp": now}
            try:
                await self._api.patch(_CORE_EVENTS, known.name, patch, namespace)
            except NotFound:
                del self._written[key]
            else:
                return
        name = f"{metadata['name']}.{uuid.uuid4().hex[:16]}"
        involved = {
            "apiVersion": about.get("apiVersion", "v1"),
            "kind": about.get("kind", "Pod"),
            "name": metadata["name"],
            "uid": metadata.get("uid", metadata["name"]),
            "resourceVersion": metadata.get("resourceVersion"),
            "namespace": metadata.get("namespace"),
            "fieldPath": field_path or None,
        }
        await self._api.create(
            _CORE_EVENTS,
            {
                "apiVersion": "v1",
                "kind": "Event",
                "metadata": {"name": name, "namespace": namespace},
                "involvedObject": {field: value for field, value in involved.items() if value},
                "type": severity,
                "reason": reason,
                "message": message,
                "count": 1,
                "firstTimestamp": now,
                "lastTimestamp": now,
                "source": {"component": self._component} | ({"host": self._host} if self._host else {}),
                "reportingComponent": self._component,
                "reportingInstance": self._host,
            },
        )
        self._written[key] = _Written(name, 1)
        while len(self._written) > _REMEMBERED:
            self._written.popitem(last=False)
