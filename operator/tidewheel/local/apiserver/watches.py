"""Watches: a stream of JSON lines, with bookmarks, initial events and an end by timeout."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from tidewheel.local.apiserver import errors
from tidewheel.local.apiserver.changes import Event, Expired, Watch
from tidewheel.local.apiserver.encoding import dumps, encode_event, encode_object
from tidewheel.local.apiserver.negotiation import Form
from tidewheel.local.apiserver.reads import event_object, selection
from tidewheel.local.apiserver.registry import Resource
from tidewheel.local.apiserver.requests import is_true, seconds
from tidewheel.local.apiserver.store import Store
from tidewheel.local.apiserver.writes import Clock

Manifest = dict[str, Any]

# The real server ends a watch after 30 to 60 minutes when the client names no timeout.
SHORTEST, LONGEST = 1800.0, 3600.0
# Chunks of about this size keep one large answer from filling the socket buffer at once.
CHUNK_BYTES = 256 * 1024


class WatchStream:
    """One watch request.

    Args:
        bookmark_seconds: how often a quiet watch hears that the world goes on.
    """

    def __init__(
        self,
        store: Store,
        resource: Resource,
        namespace: str,
        name: str,
        form: Form,
        query: Mapping[str, str],
        clock: Clock,
        bookmark_seconds: float,
    ) -> None:
        self._store = store
        self._resource = resource
        self._form = form
        self._query = query
        self._clock = clock
        self._bookmark_seconds = bookmark_seconds
        self._selection = selection(resource, namespace, query, name)
        self._wants_bookmarks = is_true(query, "allowWatchBookmarks")
        self._is_first = True
        self._told = store.version

    async def respond(self, request: web.Request) -> web.StreamResponse:
        """Stream events until the timeout, the client's departure or the end of the watch."""
        seconds_left = float(seconds(self._query, "timeoutSeconds") or random.uniform(SHORTEST, LONGEST))  # noqa: S311
        first, watch = self._begin()
        response = web.StreamResponse(
            headers={"Content-Type": "application/json", "Cache-Control": "no-cache, private"}
        )
        response.enable_chunked_encoding()
        try:
            await response.prepare(request)
            await self._write(response, first)
            if watch is not None:
                await self._follow(response, watch, time.monotonic() + seconds_left)
            await response.write_eof()
        except (ConnectionError, OSError):
            pass  # the client has gone; there is nobody to tell
        finally:
            if watch is not None:
                watch.close()
        return response

    def _begin(self) -> tuple[list[bytes], Watch | None]:
        """The events a new watch starts with, and the watch that goes on from there."""
        version = self._query.get("resourceVersion") or ""
        streaming = is_true(self._query, "sendInitialEvents")
        collection = self._store.collection(self._resource.storage)
        if not streaming and version not in ("", "0"):
            since = seconds(self._query, "resourceVersion") or 0
            try:
                if since > self._store.version:
                    # The data behind this version are lost; the client must list again rather than wait for ever.
                    raise Expired(since, self._store.version)
                return [], collection.watch(self._selection.wants, since)
            except Expired as error:
                return [encode_event("ERROR", dumps(errors.expired(str(error)).status()))], None
        present = collection.select(namespace=self._selection.namespace, labels=self._selection.pairs)
        lines = [self._line(Event("ADDED", item)) for item in present if self._selection.wants(item)]
        if streaming and self._wants_bookmarks:
            lines.append(self._bookmark({"k8s.io/initial-events-end": "true"}))
        return lines, collection.watch(self._selection.wants, None)

    async def _follow(self, response: web.StreamResponse, watch: Watch, end: float) -> None:
        bookmark_at = time.monotonic() + self._bookmark_seconds
        while not watch.closed:
            now = time.monotonic()
            events = await watch.events(max(0.0, min(end, bookmark_at) - now))
            lines = [self._line(event) for event in events]
            now = time.monotonic()
            is_due = now >= bookmark_at or (now >= end and self._store.version > self._told)
            if is_due and self._wants_bookmarks:
                # Made in the same step in which the queue was emptied, so nothing before its version is still to come.
                lines += [self._line(event) for event in watch.take()] + [self._bookmark()]
            if now >= bookmark_at:
                bookmark_at = now + self._bookmark_seconds
            if lines:
                await self._write(response, lines)
            if now >= end:
                return

    def _line(self, event: Event) -> bytes:
        encoded = event_object(
            self._resource, event.item, self._form, self._query, self._clock, is_first=self._is_first
        )
        self._is_first = False
        return encode_event(event.type, encoded)

    def _bookmark(self, annotations: Mapping[str, str] | None = None) -> bytes:
        self._told = self._store.version
        metadata: Manifest = {"resourceVersion": str(self._told)}
        if annotations:
            metadata["annotations"] = dict(annotations)
        shown = {"kind": self._resource.kind, "apiVersion": self._resource.api_version, "metadata": metadata}
        return encode_event("BOOKMARK", encode_object(shown))

    async def _write(self, response: web.StreamResponse, lines: list[bytes]) -> None:
        start = 0
        while start < len(lines):
            size, stop = 0, start
            while stop < len(lines) and size < CHUNK_BYTES:
                size += len(lines[stop])
                stop += 1
            await response.write(b"".join(lines[start:stop]))
            start = stop
