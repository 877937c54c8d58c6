"""Container logs over HTTP on loopback, with the paths of the kubelet's own log endpoint."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from aiohttp import web

from tidewheel.local.node.container import Container
from tidewheel.local.node.logs import ContainerLog, LogQuery, since_seconds

#: Finds a container by namespace, pod and name; None if this agent has none.
FindContainer = Callable[[str, str, str], Container | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEndpoint:
    """Where an agent's logs are: by plain HTTP for our API server, by TLS for kube-apiserver."""

    url: str
    tls_port: int


class LogServer:
    """Serves `GET /containerLogs/{namespace}/{pod}/{container}` with the API's log options as query."""

    def __init__(self, find: FindContainer, *, tls: ssl.SSLContext, host: str = "127.0.0.1") -> None:
        self._find = find
        self._tls = tls
        self._host = host
        self._runner: web.AppRunner | None = None

    async def start(self) -> LogEndpoint:
        """Listens on two free ports."""
        app = web.Application()
        app.router.add_get("/containerLogs/{namespace}/{pod}/{container}", self._serve)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5, handler_cancellation=True)
        await self._runner.setup()
        await web.TCPSite(self._runner, self._host, 0).start()
        await web.TCPSite(self._runner, self._host, 0, ssl_context=self._tls).start()
        plain, tls = (address[1] for address in self._runner.addresses)
        return LogEndpoint(url=f"http://{self._host}:{plain}", tls_port=tls)

    async def stop(self) -> None:
        """Ends all answers and the server."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        namespace, pod, name = (request.match_info[key] for key in ("namespace", "pod", "container"))
        query = _query_of(request)
        log = self._log(namespace, pod, name, previous=query.previous)
        response = web.StreamResponse(headers={"Content-Type": "text/plain; charset=utf-8"})
        await response.prepare(request)
        async for chunk in log.read(query):
            await response.write(chunk)
        await response.write_eof()
        return response

    def _log(self, namespace: str, pod: str, name: str, *, previous: bool) -> ContainerLog:
        container = self._find(namespace, pod, name)
        if container is None:
            raise web.HTTPBadRequest(text=f'container "{name}" in pod "{pod}" is waiting to start')
        log = container.previous_log if previous else container.log
        if log is None and previous:
            raise web.HTTPBadRequest(text=f'previous terminated container "{name}" in pod "{pod}" not found')
        if log is None:
            raise web.HTTPBadRequest(text=f'container "{name}" in pod "{pod}" is waiting to start')
        return log


def _query_of(request: web.Request) -> LogQuery:
    query = request.query
    try:
        since = datetime.fromisoformat(query["sinceTime"]) if "sinceTime" in query else None
        if "sinceSeconds" in query:
            since = since_seconds(int(query["sinceSeconds"]))
        return LogQuery(
            follow=_flag(query.get("follow")),
            previous=_flag(query.get("previous")),
            timestamps=_flag(query.get("timestamps")),
            tail_lines=int(query["tailLines"]) if "tailLines" in query else None,
            limit_bytes=int(query["limitBytes"]) if "limitBytes" in query else None,
            since=since,
        )
    except ValueError as error:
        raise web.HTTPBadRequest(text=f"log options: {error}") from error


def _flag(text: str | None) -> bool:
    return text in ("true", "1", "")
