"""kopf's part: it discovers, lists, watches and reconnects, and hands every event to the feed. Nothing else.

There are only `on.event` handlers, so kopf writes nothing: no finalizer, no annotation, no Event, no status.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
from collections.abc import Callable, Collection, Iterator
from contextvars import Context
from pathlib import Path
from typing import Any

import aiohttp
import kopf

from tidewheel.api.manifest import Resource
from tidewheel.api.meta import GROUP
from tidewheel.controllers.feed import Feed
from tidewheel.kube.connection import Connection

logger = logging.getLogger(__name__)

_KOPF = str(Path(kopf.__file__).parent)
#: The server ends a watch after this time; the client's bounds lie above it.
_WATCH_SECONDS = 300
#: Bookmarks come every minute. A watch without one is opened anew.
_SILENT_SECONDS = 70.0


class WatchEnded(Exception):
    """kopf stopped watching though nobody asked it to; the process must be started anew."""


class Watching:
    """All watches of one operator process.

    Args:
        connection: the API server.
        feed: where events go.
        namespaces: what to watch; empty means the whole cluster.
        relisted: called when a watch has listed, at first or anew, and goes on from there.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        connection: Connection,
        feed: Feed,
        *,
        namespaces: tuple[str, ...],
        relisted: Callable[[Resource, str | None], None],
        clock: Callable[[], float],
    ) -> None:
        self._connection = connection
        self._feed = feed
        self._namespaces = namespaces
        self._relisted = relisted
        self._clock = clock
        self._stop = asyncio.Event()
        self._started = asyncio.Event()
        self._asked_to_stop = False
        self._session: aiohttp.ClientSession | None = None
        self._paths: dict[str, tuple[Resource, str | None]] = {}
        for resource in (*feed.parents, *feed.children, *feed.others):
            for namespace in (namespaces if resource.namespaced else ()) or (None,):
                self._paths[resource.path(namespace)] = (resource, namespace)
        now = clock()
        self._heard = dict.fromkeys(self._paths, now)
        self._listing: set[str] = set()

    @property
    def scopes(self) -> tuple[tuple[Resource, str | None], ...]:
        """Every kind and namespace (None: all) that is watched."""
        return tuple(self._paths.values())

    def silent_seconds(self) -> float:
        """For how long the most silent watch has neither brought an event nor been opened anew with success."""
        return self._clock() - min(self._heard.values())

    def start(self) -> asyncio.Task[None]:
        """Watches until `stop`; the task fails with `WatchEnded` if kopf gives up."""
        return asyncio.create_task(self._run(), name="watches", context=Context())

    async def wait_started(self) -> None:
        """Returns when kopf has set itself up. It has then taken the signal handlers, which may be set anew."""
        await self._started.wait()

    def stop(self) -> None:
        """Asks kopf to end."""
        self._asked_to_stop = True
        self._stop.set()

    async def _run(self) -> None:
        # Not kopf.operator(): when it ends, it also cancels every task that others started after it.
        tasks = await kopf.spawn_tasks(
            registry=self._registry(),
            settings=self._settings(),
            memo=(),
            standalone=True,
            clusterwide=not self._namespaces,
            namespaces=self._namespaces,
            stop_flag=self._stop,
        )
        self._started.set()
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._stop.set()
            await _end(tasks)
            if self._session is not None:
                await self._session.close()
        if not self._asked_to_stop:
            error = next((task.exception() for task in done if not task.cancelled()), None)
            raise WatchEnded(f"the watches ended: {error or 'kopf stopped by itself'}") from error

    def _registry(self) -> kopf.OperatorRegistry:
        registry = kopf.OperatorRegistry()
        for resource in (*self._feed.parents, *self._feed.children, *self._feed.others):
            kopf.on.event(
                resource.group, resource.version, resource.plural, id=resource.plural, registry=registry
            )(self._handler(resource))
        kopf.on.login(id="connection", registry=registry)(self._login)
        return registry

    def _handler(self, resource: Resource) -> Callable[..., Any]:
        async def take(event: Any, namespace: str | None, **_: object) -> None:
            path = resource.path(namespace if self._namespaces and resource.namespaced else None)
            self._heard[path] = self._clock()
            self._feed.take(resource, event["type"], event["object"])

        return take

    def _settings(self) -> kopf.OperatorSettings:
        settings = kopf.OperatorSettings()
        settings.persistence.finalizer = f"{GROUP}/finalizer"
        settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=GROUP)
        settings.persistence.diffbase_storage = NoDiffBase()
        settings.posting.enabled = False
        settings.watching.server_timeout = _WATCH_SECONDS
        settings.watching.client_timeout = _WATCH_SECONDS + 30
        settings.watching.connect_timeout = 5
        settings.watching.inactivity_timeout = _SILENT_SECONDS
        settings.watching.reconnect_backoff = 0.1
        settings.networking.request_timeout = 30
        settings.networking.connect_timeout = 5
        settings.networking.error_backoffs = ForEver()
        settings.networking.enforce_retry_after = True
        # A worker per object; they must not pile up while ten thousand pods are listed.
        settings.queueing.idle_timeout = 0.1
        settings.queueing.exit_timeout = 1.0
        settings.scanning.disabled = True
        # The operator ends its process itself.
        settings.process.ultimate_exiting_timeout = None
        if hasattr(settings.watching, "chunk_size"):  # kopf 1.45
            settings.watching.chunk_size = 500
            for child in self._feed.children:
                selector = self._feed.selector(child)
                if selector is not None:
                    settings.watching.label_selectors[child.group, child.version, child.plural] = selector
        return settings

    async def _login(self, **_: object) -> kopf.AiohttpSession:
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=self._connection.ssl_context or True),
            middlewares=(self._observed,),
            headers={"User-Agent": "tidewheel-operator (kopf)"},
        )
        self._session = session
        return kopf.AiohttpSession(
            server=self._connection.server,
            default_namespace=self._connection.namespace,
            aiohttp_session=session,
        )

    async def _observed(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        """Adds the token of this moment, and notes when a watch lists and when it listens."""
        authorization = self._connection.authorization()
        if authorization:
            request.headers["Authorization"] = authorization
        response = await handler(request)
        path = request.url.path
        if path in self._paths and response.status < 400:
            self._heard[path] = self._clock()
            if request.url.query.get("watch") != "true":
                self._listing.add(path)
            elif path in self._listing:
                self._listing.discard(path)
                self._relisted(*self._paths[path])
        return response


async def _end(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Cancels kopf's root tasks, and then whatever of kopf's is left until nothing is.

    A watcher of kopf 1.45 goes on for ever if it is cancelled just as it waits for its pause-waiter to end
    (`streaming_block`), or together with it (`api.stream`). Left alone it would keep the process from ending.
    """
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks, timeout=2.0)
    while left := {task for task in asyncio.all_tasks() if _is_kopfs(task)}:
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=0.1)


def _is_kopfs(task: asyncio.Task[Any]) -> bool:
    code = getattr(task.get_coro(), "cr_code", None)
    ours_to_end = code is not None and code.co_filename.startswith(_KOPF)
    return ours_to_end and not task.get_name().startswith("pause-waiter")


class ForEver:
    """Seconds between attempts of one request, without end: kopf stops the operator when they run out."""

    def __iter__(self) -> Iterator[float]:
        for seconds in itertools.chain((0.1, 0.25, 0.5, 1.0, 2.0), itertools.repeat(4.0)):
            yield seconds * (0.5 + random.random())  # noqa: S311


class NoDiffBase(kopf.DiffBaseStorage):
    """Remembers nothing of the objects: only handlers of changes would need it, and it costs a copy per event."""

    def build(self, **_: Any) -> Any:
        """Nothing is worth comparing."""
        return {}

    def fetch(self, **_: Any) -> Any:
        """Nothing was stored."""
        return None

    def store(self, **_: Any) -> None:
        """Stores nothing."""
