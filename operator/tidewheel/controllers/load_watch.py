"""Looks at the metrics of services' pods, once a window each: the one place where the operator talks to workers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

import aiohttp

from tidewheel.api import meta
from tidewheel.api.manifest import PD_SERVICES, PODS, Manifest
from tidewheel.api.scaling import Scaling
from tidewheel.controllers.cache import Cache
from tidewheel.controllers.controller import Key
from tidewheel.planning.load.page import PodCounts, read_page
from tidewheel.planning.load.window import Look, Window

logger = logging.getLogger(__name__)

_WINDOW_SECONDS = Scaling().window_seconds
_TICK_SECONDS = 0.5
#: How soon a service that had no planner is looked at again.
_IDLE_SECONDS = 5.0
_PAGE_SECONDS = 3.0
_MOST_PAGE_BYTES = 4 * 1024 * 1024
_AT_A_TIME = 32


def window_seconds(manifest: Manifest) -> float | None:
    """How long the windows of a PDService are, or None if nobody plans by its load."""
    spec = manifest.get("spec") or {}
    scaling, allocation = spec.get("scaling") or {}, spec.get("allocation") or {}
    is_planned = any(one.get("mode", "Off") != "Off" for one in (scaling, allocation))
    if not is_planned or spec.get("suspend"):
        return None
    return float(scaling.get("windowSeconds", _WINDOW_SECONDS))


class LoadBook:
    """The last window of each service, for plans to read."""

    def __init__(self) -> None:
        self._windows: dict[Key, Window] = {}

    def window(self, key: Key) -> Window | None:
        """The last one that ended; None until there is one."""
        return self._windows.get(key)

    def write(self, key: Key, window: Window) -> None:
        """This one has ended."""
        self._windows[key] = window

    def forget(self, key: Key) -> None:
        """Nobody asks for it any more."""
        self._windows.pop(key, None)


class LoadWatch:
    """Keeps a `LoadBook` up to date.

    Args:
        cache: knows services and pods.
        book: takes the windows.
        seconds_of: the length of a service's windows, or None if its planner asks for none; given its manifest.
        has_ended: told of each window.
        clock: seconds since the Unix epoch.
    """

    def __init__(
        self,
        cache: Cache,
        book: LoadBook,
        *,
        seconds_of: Callable[[Manifest], float | None],
        has_ended: Callable[[Key], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._cache = cache
        self._book = book
        self._seconds_of = seconds_of
        self._has_ended = has_ended
        self._clock = clock
        self._due: dict[Key, float] = {}
        self._looks: dict[Key, Look] = {}
        self._session: aiohttp.ClientSession | None = None
        self._turns = asyncio.Semaphore(_AT_A_TIME)

    async def __aenter__(self) -> Self:
        # no proxies, no redirects, no cookies: it asks addresses that the kubelet told
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=_PAGE_SECONDS), cookie_jar=aiohttp.DummyCookieJar()
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def run(self) -> None:
        """Look whenever a window of a service ends, until cancelled."""
        while True:
            await self.look_at_those_due()
            await asyncio.sleep(_TICK_SECONDS)

    async def look_at_those_due(self) -> None:
        """One look at every service whose window has ended, and at those that are new."""
        now = self._clock()
        keys = {Key(*name) for name in self._cache.names(PD_SERVICES)}
        for key in self._due.keys() - keys:
            del self._due[key]
            self._stop(key)
        due = [key for key in sorted(keys) if self._due.get(key, now) <= now]
        await asyncio.gather(*(self._look_at(key, now) for key in due))

    async def _look_at(self, key: Key, now: float) -> None:
        manifest = self._cache.get(PD_SERVICES, *key)
        seconds = self._seconds_of(manifest) if manifest is not None else None
        if manifest is None or seconds is None:
            self._due[key] = now + _IDLE_SECONDS
            self._stop(key)
            return
        self._due[key] = now + seconds
        pods = self._cache.owned_by(manifest["metadata"]["uid"], PODS)
        pages = await asyncio.gather(*(self._page_of(pod) for pod in pods))
        look = Look(at=self._clock(), pods={uid: counts for uid, counts in pages if counts is not None})
        before = self._looks.get(key)
        self._looks[key] = look
        if before is not None and look.at > before.at:
            self._book.write(key, Window(first=before, last=look))
            self._has_ended(key)

    def _stop(self, key: Key) -> None:
        self._looks.pop(key, None)
        self._book.forget(key)

    async def _page_of(self, pod: Manifest) -> tuple[str, PodCounts | None]:
        """A pod's metrics; None if it has none to show now."""
        metadata, status = pod["metadata"], pod.get("status") or {}
        uid, address = metadata["uid"], status.get("podIP", "")
        if not address or status.get("phase") != "Running" or self._session is None:
            return uid, None
        url = f"http://{f'[{address}]' if ':' in address else address}:{meta.HTTP_PORT}/metrics"
        try:
            async with self._turns, self._session.get(url, allow_redirects=False) as answer:
                answer.raise_for_status()
                raw = await answer.content.read(_MOST_PAGE_BYTES + 1)
                while len(raw) <= _MOST_PAGE_BYTES and (more := await answer.content.read(_MOST_PAGE_BYTES)):
                    raw += more
            if len(raw) > _MOST_PAGE_BYTES:
                raise ValueError(f"it has more than {_MOST_PAGE_BYTES} bytes")
            return uid, read_page(raw.decode())
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            logger.info(
                "no metrics of %s/%s at %s: %s", metadata["namespace"], metadata["name"], url, error or "late"
            )
            return uid, None
