"""Puts the operator together and runs it: who talks to whom, what starts first, and in which order it all ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import secrets
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from contextvars import Context
from functools import partial
from typing import Any

import uvloop
from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector

from tidewheel.api.manifest import PD_SERVICES, Resource
from tidewheel.controllers.cache import Cache
from tidewheel.controllers.controller import Controller, Key
from tidewheel.controllers.defaults import service_defaults
from tidewheel.controllers.feed import Feed
from tidewheel.controllers.health import HealthServer, Heartbeat
from tidewheel.controllers.load_watch import LoadBook, LoadWatch, window_seconds
from tidewheel.controllers.loop import ControllerLoop
from tidewheel.controllers.metrics import ControllerMetrics
from tidewheel.controllers.settings import OperatorSettings
from tidewheel.controllers.watching import Watching
from tidewheel.kube import events
from tidewheel.kube.client import Api, HttpApi
from tidewheel.kube.connection import Connection, connect
from tidewheel.kube.errors import ApiError, NotFound
from tidewheel.kube.lease import Elector, LeaseLost, LeaseTimes
from tidewheel.telemetry import configure

logger = logging.getLogger(__name__)

#: A reconcile that takes longer hangs: every request in it has a bound.
_HUNG_SECONDS = 600.0
#: A watch is opened anew every five minutes at the latest; longer silence is not the cluster's quiet.
_SILENT_SECONDS = 420.0
_BLOCKED_SECONDS = 30.0
_EVENTS_SECONDS = 1.0
_WATCH_END_SECONDS = 3.0
_TELEMETRY_SECONDS = 3.0


def run(settings: OperatorSettings) -> int:
    """The whole process of `tidewheel operator`: its exit status.

    0 after SIGTERM or SIGINT, 1 when it lost its lease or its watches and wants to be started anew.

    Raises:
        NoConnection: there is no cluster to talk to.
        TelemetryMisconfigured: an OTEL_* variable says what cannot be.
    """
    telemetry = configure("tidewheel-operator", log_format=settings.log_format, log_level=settings.log_level)
    # kopf tells every handler call and every failed request; what matters of it we log ourselves.
    logging.getLogger("kopf").setLevel(logging.CRITICAL if settings.log_level != "debug" else logging.DEBUG)
    try:
        uvloop.run(run_operator(settings))
    except LeaseLost as error:
        logger.error("%s", error)
        return 1
    except Exception:
        logger.exception("the operator ends and wants to be started anew")
        return 1
    finally:
        telemetry.shutdown(_TELEMETRY_SECONDS)
    return 0


async def run_operator(
    settings: OperatorSettings,
    *,
    stop: asyncio.Event | None = None,
    controllers: Sequence[Controller] | None = None,
    started: Callable[[Operator], None] = lambda _: None,
) -> None:
    """Runs until `stop` is set, or SIGTERM or SIGINT comes.

    Args:
        settings: see `OperatorSettings`.
        stop: ends it in order; without it only a signal does.
        controllers: what to drive; the built-in ones if left out.
        started: told of the operator once its probes are served.

    Raises:
        NoConnection: there is no cluster to talk to.
        LeaseLost: another replica may act; the process must end.
        WatchEnded: kopf gave up; the process must be started anew.
    """
    stop = stop or asyncio.Event()
    connection = connect(settings.kubeconfig)
    metrics = ControllerMetrics(_registry())
    loads = LoadBook()
    async with HttpApi(connection, user_agent="tidewheel-operator", observer=metrics.request_answered) as api:
        operator = Operator(
            settings,
            connection=connection,
            api=api,
            metrics=metrics,
            controllers=built_in_controllers(settings, loads) if controllers is None else controllers,
            loads=loads,
        )
        await operator.run(stop, started)


def built_in_controllers(settings: OperatorSettings, loads: LoadBook) -> tuple[Controller, ...]:
    """All kinds this release knows."""
    from tidewheel.controllers.pdservice import PDServiceController
    from tidewheel.controllers.scaler import PDServiceScalerController

    return (
        # Nodes can be read by who may read the whole cluster.
        PDServiceController(service_defaults(settings), loads, watches_nodes=not settings.namespaces),
        PDServiceScalerController(),
    )


class Operator:
    """One replica: cache, watches, controllers' loops, election and probes."""

    def __init__(
        self,
        settings: OperatorSettings,
        *,
        connection: Connection,
        api: Api,
        metrics: ControllerMetrics,
        controllers: Iterable[Controller],
        loads: LoadBook | None = None,
    ) -> None:
        self.settings = settings
        self.metrics = metrics
        self.cache = Cache()
        self.leads = False
        self.connected = False
        self._connection = connection
        self._api = api
        identity = f"{os.environ.get('POD_NAME') or socket.gethostname()}_{secrets.token_hex(4)}"
        book = events.EventBook(controller="tidewheel.dev/operator", instance=identity)
        self._recorder = events.Recorder(api, book, dropped=metrics.events_dropped.inc)
        controllers = tuple(controllers)
        self._loops = {
            controller.kind: ControllerLoop(
                controller,
                api=api,
                cache=self.cache,
                recorder=self._recorder,
                metrics=metrics,
                concurrency=settings.concurrency,
            )
            for controller in controllers
        }
        self._load_watch = LoadWatch(
            self.cache,
            loads or LoadBook(),
            seconds_of=window_seconds,
            has_ended=partial(self._enqueue, PD_SERVICES),
        )
        self._feed = Feed(self.cache, controllers, self._enqueue)
        self._watching = Watching(
            connection,
            self._feed,
            namespaces=settings.namespaces,
            relisted=self._relisted,
            clock=time.monotonic,
        )
        lease = settings.lease
        self._elector = Elector(
            api,
            namespace=lease.namespace or connection.namespace,
            name=lease.name,
            identity=identity,
            times=LeaseTimes(
                duration=lease.duration_seconds,
                renew_deadline=lease.renew_deadline_seconds,
                retry=lease.retry_seconds,
            ),
            changed=self._leadership_changed,
        )
        self._heartbeat = Heartbeat(clock=time.monotonic)
        self.health = HealthServer(
            health=settings.health_address,
            metrics=settings.metrics_address,
            registry=metrics.registry,
            live={
                "event-loop": self._check_heartbeat,
                "watches": self._check_watches,
                "reconciles": self._check_reconciles,
            },
            ready={"caches": self._check_connected},
        )
        #: Relists that are being checked against a list.
        self._settling: set[asyncio.Task[None]] = set()
        #: What the server said when it was last asked in vain.
        self._waiting_for = ""
        for kind in (*self._feed.parents, *self._feed.children, *self._feed.others):
            metrics.objects.labels(kind.kind).set_function(partial(self._count, kind))
        metrics.leader.labels(lease.name).set(0)

    async def run(self, stop: asyncio.Event, started: Callable[[Operator], None]) -> None:
        """Runs until `stop`; see `run_operator`.

        The end is the beginning backwards, by cancellation from within: the workers stop taking keys and finish
        or are cancelled, then the lease is given back, then the watches end, then the last events are posted.
        """
        _on_signals(stop.set)
        background = [
            asyncio.create_task(self._heartbeat.run(), name="heartbeat", context=Context()),
            events.start(self._recorder),
        ]
        stopped = asyncio.create_task(stop.wait(), name="stop")
        try:
            async with self.health:
                started(self)
                await _while(stopped, self._watch(stop))
                await self._recorder.flush(at_most_seconds=_EVENTS_SECONDS)
        finally:
            await _cancel(stopped, *background)

    async def _watch(self, stop: asyncio.Event) -> None:
        await self._wait_served()
        watches = self._watching.start()
        try:
            await _while(watches, self._watching.wait_started())
            _on_signals(stop.set)  # kopf has just set its own
            await _while(watches, self._settle_all())
            self.connected = True
            for kind in self._feed.parents:
                logger.info("connected; %d %s", self._count(kind), kind.plural)
            resync = asyncio.create_task(self._resync_for_ever(), name="resync", context=Context())
            try:
                await _while(watches, self._lead())
            finally:
                await _cancel(resync, *self._settling)
        finally:
            self._watching.stop()
            await asyncio.wait({watches}, timeout=_WATCH_END_SECONDS)
            await _cancel(watches)

    async def _lead(self) -> None:
        if not self.settings.leader_election:
            self._leadership_changed(leads=True)
            await self._reconcile()
            return
        await self._elector.acquire()
        lease = self._elector.start_holding()
        try:
            await _while(lease, self._reconcile())
        finally:
            await _cancel(lease)
            # All our workers have ended: another one may act.
            await self._elector.release()

    async def _reconcile(self) -> None:
        async with self._load_watch:
            watch = asyncio.create_task(self._load_watch.run(), name="load watch", context=Context())
            try:
                await _while(watch, self._run_loops())
            finally:
                await _cancel(watch)

    async def _run_loops(self) -> None:
        async with asyncio.TaskGroup() as group:
            for loop in self._loops.values():
                loop.enqueue_all()
                group.create_task(loop.run(grace_seconds=self.settings.shutdown_seconds))

    async def resync(self) -> None:
        """Compares everything with the server and plans it again, event or not."""
        await self._settle_all()
        if self.leads:
            for loop in self._loops.values():
                loop.enqueue_all()

    async def _resync_for_ever(self) -> None:
        while True:
            # Spread, so that replicas and operators do not list at the same moment.
            await asyncio.sleep(self.settings.resync_seconds * (0.9 + 0.2 * random.random()))  # noqa: S311
            await self.resync()

    async def _wait_served(self) -> None:
        """Waits for the API server and for our CRDs: kopf would not notice kinds that come later."""
        for kind in self._feed.parents:
            await self._persist(lambda kind=kind: self._ask_for(kind))  # type: ignore[misc]

    async def _ask_for(self, kind: Resource) -> None:
        try:
            await self._api.list_versions(kind, next(iter(self.settings.namespaces), None))
        except NotFound as error:
            message = f"{kind.plural}.{kind.group} is not served; install the CRDs: kubectl apply -f crds/"
            raise NotFound(message, status=404) from error

    async def _settle_all(self) -> None:
        await asyncio.gather(*(self._settle(*scope) for scope in self._watching.scopes))

    async def _settle(self, resource: Resource, namespace: str | None) -> None:
        await self._persist(lambda: self._feed.settle(self._api, resource, namespace))

    async def _persist(self, ask: Callable[[], Awaitable[None]]) -> None:
        """Asks until the server answers, and lets `/readyz` say what keeps it from being ready."""
        while True:
            try:
                await ask()
            except ApiError as error:
                if str(error) != self._waiting_for:
                    logger.warning("waiting: %s", error)
                self._waiting_for = str(error)
                await asyncio.sleep(error.retry_after_seconds or 1.0)
            else:
                return

    def _relisted(self, resource: Resource, namespace: str | None) -> None:
        """A watch lost its place. It told of what there is, but not of what is gone."""
        if not self.connected:
            return
        self.metrics.watch_relists.labels(resource.kind).inc()
        task = asyncio.create_task(self._settle(resource, namespace), context=Context())
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)

    def _enqueue(self, kind: Resource, key: Key) -> None:
        # A standby plans nothing; when it begins to lead it looks at everything.
        if self.leads:
            self._loops[kind].queue.add(key)

    def _leadership_changed(self, leads: bool) -> None:
        self.leads = leads
        self.metrics.leader.labels(self.settings.lease.name).set(1 if leads else 0)

    def _count(self, kind: Resource) -> int:
        return sum(1 for _ in self.cache.names(kind))

    def _check_heartbeat(self) -> str | None:
        age = self._heartbeat.age_seconds()
        return f"it stood still for {age:.0f} s" if age > _BLOCKED_SECONDS else None

    def _check_watches(self) -> str | None:
        silent = self._watching.silent_seconds()
        if self.connected and silent > _SILENT_SECONDS:
            return f"a watch has brought nothing and could not be opened anew for {silent:.0f} s"
        return None

    def _check_reconciles(self) -> str | None:
        longest = max((s for loop in self._loops.values() for s in loop.busy_seconds()), default=0.0)
        return f"one has run for {longest:.0f} s" if longest > _HUNG_SECONDS else None

    def _check_connected(self) -> str | None:
        return None if self.connected else f"not yet known what there is: {self._waiting_for or 'listing'}"


async def _while(guard: asyncio.Task[Any], work: Coroutine[Any, Any, None]) -> None:
    """Does `work` unless `guard` ends first: then `work` is cancelled, may end in order, and `guard` has its say."""
    task = asyncio.create_task(work)
    try:
        await asyncio.wait({guard, task}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        if not task.done():
            await _cancel(task)
    if guard.done():
        guard.result()
    if not task.cancelled():
        task.result()


async def _cancel(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _on_signals(stop: Callable[[], None]) -> None:
    """SIGTERM and SIGINT end the operator in order; outside of the main thread whoever is there must do it."""
    with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop)


def _registry() -> CollectorRegistry:
    """A registry of its own, so that a process may hold more than one operator, as tests do."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    return registry
