"""A group's member: the process of a prefill or decode pod, which changes its role when the rank table says so.

The weights stay loaded. The server of the old role drains as before an end; then the engine takes the size that the new
role asks for, and the server of that role joins the group as a new pod does. Probes and requests are answered on the same
port throughout: not ready, but alive, until the new role's peers are verified.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, NoReturn

from aiohttp import web

from tidewheel_workers.serving.decode import DecodeServer
from tidewheel_workers.serving.engine_loop import in_daemon_thread
from tidewheel_workers.serving.errors import ApiError
from tidewheel_workers.serving.http_server import AiohttpListener
from tidewheel_workers.serving.kv_transport import RELEASE_PATH
from tidewheel_workers.serving.openai_api import CHAT, COMPLETIONS
from tidewheel_workers.serving.prefill import PrefillServer
from tidewheel_workers.serving.process import run, wait_until_drained
from tidewheel_workers.serving.settings import WorkerSettings
from tidewheel_workers.serving.worker import load_engine, watched_devices, while_healthy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prometheus_client import CollectorRegistry

    from tidewheel_workers.serving.engine import ServingEngine
    from tidewheel_workers.serving.service import Listener, OpenRequests, Readiness
    from tidewheel_workers.serving.worker import Worker

log = logging.getLogger(__name__)


class MemberServer:
    """A `Service` that is the server of one role, and then perhaps of the other."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._devices = watched_devices(settings)
        self._server = self._serving(settings)
        self._is_ending = False
        #: Of the requests to the server of the present role.
        self._answering: set[asyncio.Task[object]] = set()

    @property
    def settings(self) -> WorkerSettings:
        """What the environment said, in the present role."""
        return self._server.settings

    @property
    def registry(self) -> CollectorRegistry:
        """The metrics of the present role; what was counted in another is gone, as with another pod."""
        return self._server.registry

    def listener(self, open_requests: OpenRequests) -> Listener:
        """As in `Service`; the paths are those of both roles."""
        routes = (
            web.post(CHAT, self._complete),
            web.post(COMPLETIONS, self._complete),
            web.get("/v1/models", self._models),
            web.post(RELEASE_PATH, self._release),
        )
        return AiohttpListener(self, routes, open_requests)

    async def start(self, fail: Callable[[BaseException], None]) -> None:
        """As in `Service`: load once, then serve in whatever role the rank table gives, until cancelled.

        Raises:
            ModelError: the model cannot be loaded, a role cannot be served, or a device is sick.
        """
        await while_healthy(self._devices, self._serve(fail))

    async def _serve(self, fail: Callable[[BaseException], None]) -> None:
        engine = await load_engine(self.settings)
        while True:
            await self._serve_until_reassigned(engine, fail)
            began = time.monotonic()
            old, settings = self._server, self.settings.flipped()
            await old.close()
            await in_daemon_thread(partial(engine.fit, settings))
            self._server = self._serving(settings)
            if self._is_ending:
                self._server.begin_drain()
            log.info(
                "changed from %s to %s in %.2f s; the model stayed loaded",
                old.settings.role,
                settings.role,
                time.monotonic() - began,
            )

    async def _serve_until_reassigned(
        self, engine: ServingEngine, fail: Callable[[BaseException], None]
    ) -> None:
        """Serve in the present role; returns once it has drained for the other."""
        server = self._server
        serving = asyncio.create_task(server.serve(engine, fail))
        told = asyncio.create_task(server.is_reassigned.wait())
        try:
            await asyncio.wait((serving, told), return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                serving.result()
            await self._drain(server)
        finally:
            for task in (serving, told):
                task.cancel()
            await asyncio.gather(serving, told, return_exceptions=True)

    async def _drain(self, server: Worker) -> None:
        """What runs may finish, as long as it may at the end of a process; then it is cut off, and goes on elsewhere."""
        server.begin_drain()
        log.info("leaving the role %s: %d requests are open", server.settings.role, len(self._answering))
        await wait_until_drained(server, lambda: len(self._answering))
        left = tuple(self._answering)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    def readiness(self) -> Readiness:
        """As in `Service`."""
        return self._server.readiness()

    @property
    def is_alive(self) -> bool:
        """As in `Service`; a server that is being left has stopped its engine and lives."""
        return self._server.is_reassigned.is_set() or self._server.is_alive

    def begin_drain(self) -> None:
        """As in `Service`."""
        self._is_ending = True
        self._server.begin_drain()

    @property
    def unfinished(self) -> int:
        """As in `Service`."""
        return self._server.unfinished

    async def close(self) -> None:
        """As in `Service`."""
        await self._server.close()

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        with self._counted():
            return await self._server.complete(request)

    async def _models(self, request: web.Request) -> web.Response:
        return await self._server.models(request)

    async def _release(self, request: web.Request) -> web.Response:
        if isinstance(self._server, PrefillServer):
            return await self._server.release(request)
        raise ApiError(404, "unknown_url", f"{request.path} is a prefill's; this server decodes now")

    @contextmanager
    def _counted(self) -> Iterator[None]:
        task = asyncio.current_task()
        if task is None:  # pragma: no cover
            raise RuntimeError("requests are answered in tasks")
        self._answering.add(task)
        try:
            yield
        finally:
            self._answering.discard(task)

    def _serving(self, settings: WorkerSettings) -> Worker:
        server = PrefillServer if settings.role == "prefill" else DecodeServer
        return server(settings, devices=self._devices)


def run_member(role: str) -> NoReturn:
    """The program of a pod that begins in this role."""
    run(role, lambda: MemberServer(WorkerSettings.for_role(role)))
