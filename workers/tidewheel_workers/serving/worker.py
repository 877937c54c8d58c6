"""What prefill and decode servers have in common: loading the engine, the group's peers, health, and reading requests."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from aiohttp import web
from opentelemetry import trace
from prometheus_client import CollectorRegistry

from tidewheel.api.reasons import Reason
from tidewheel.telemetry import context_from_environment
from tidewheel_workers.llm.errors import InvalidRequest, NoCapacity, PromptTooLong, RequestFailed
from tidewheel_workers.serving.device_health import DeviceWatch, visible_devices
from tidewheel_workers.serving.engine import EngineLoad
from tidewheel_workers.serving.engine_loop import EngineFailed, EngineLoop, in_daemon_thread
from tidewheel_workers.serving.errors import ApiError, busy, invalid, unavailable
from tidewheel_workers.serving.http_server import AiohttpListener, read_body
from tidewheel_workers.serving.membership import Membership
from tidewheel_workers.serving.metrics import KVMetrics, WorkerMetrics
from tidewheel_workers.serving.openai_answers import models as models_answer
from tidewheel_workers.serving.openai_api import (
    CHAT,
    COMPLETIONS,
    ChatRequest,
    CompletionRequest,
    read_json_object,
    read_request,
    refuse_unsupported,
)
from tidewheel_workers.serving.peers import Peers
from tidewheel_workers.serving.service import Readiness
from tidewheel_workers.serving.slots import Slot, Slots
from tidewheel_workers.serving.stand_in import StandInEngine, is_stand_in

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from tidewheel_workers.serving.engine import ServingEngine
    from tidewheel_workers.serving.kv_client import KVClient
    from tidewheel_workers.serving.service import Listener, OpenRequests
    from tidewheel_workers.serving.settings import WorkerSettings

log = logging.getLogger(__name__)
tracer = trace.get_tracer(__name__)


class Worker(ABC):
    """The base of both roles; a subclass answers requests and brings its end of the KV transfer."""

    def __init__(self, settings: WorkerSettings, *, devices: DeviceWatch | None = None) -> None:
        """A server that has not begun.

        Args:
            settings: its own.
            devices: the watch over the process's devices, if there is one already.
        """
        self.settings: WorkerSettings = settings
        #: Set once the rank table gives this pod the other role.
        self.is_reassigned = asyncio.Event()
        self.registry = CollectorRegistry()
        self.slots = Slots(settings.slots)
        self.metrics = WorkerMetrics(self.registry, model_name=settings.model_name)
        self.kv_metrics = KVMetrics(self.registry, role=settings.role)
        self.metrics.watch_slots(used=lambda: self.slots.used, total=settings.slots)
        self.metrics.watch_engine(lambda: self.engine.load if self.engine is not None else EngineLoad())
        self.engine: EngineLoop | None = None
        self.peers: Peers | None = None
        self.is_draining = False
        self.devices = devices or watched_devices(settings)
        self._created = int(time.time())

    def listener(self, open_requests: OpenRequests) -> Listener:
        """As in `Service`."""
        return AiohttpListener(self, self.routes(), open_requests)

    def routes(self) -> Sequence[web.RouteDef]:
        """The paths beside health, metrics and version."""
        return (
            web.post(CHAT, self.complete),
            web.post(COMPLETIONS, self.complete),
            web.get("/v1/models", self.models),
        )

    @abstractmethod
    async def complete(self, request: web.Request) -> web.StreamResponse:
        """Answer a request to one of the two endpoints."""

    @abstractmethod
    def connect(self, engine: ServingEngine, membership: Membership) -> KVClient | None:
        """Set up this role's end of the KV transfer; a client holds connections to the peers."""

    async def start(self, fail: Callable[[BaseException], None]) -> None:
        """As in `Service`: load, then hold the group together until cancelled.

        Raises:
            ModelError: the model cannot be loaded, or a device is sick.
        """
        await while_healthy(self.devices, self._load_and_serve(fail))

    async def _load_and_serve(self, fail: Callable[[BaseException], None]) -> None:
        await self.serve(await load_engine(self.settings), fail)

    async def serve(self, engine: ServingEngine, fail: Callable[[BaseException], None]) -> None:
        """Hold the group together with a loaded engine until cancelled; `close` gives the engine back.

        Raises:
            ModelError: this role's end of the KV transfer cannot be set up.
        """
        self.engine = EngineLoop(engine, on_failure=fail)
        membership = Membership(self.settings, engine.identity)
        self.metrics.watch_peers(
            verified=lambda: len(membership.verified), total=lambda: len(membership.peers)
        )
        self.peers = Peers(
            membership,
            self.settings.ranks_file,
            client=self.connect(engine, membership),
            timeout_seconds=self.settings.peer_timeout_seconds,
            on_reassigned=self.is_reassigned.set,
        )
        await self.peers.run()

    def readiness(self) -> Readiness:
        """As in `Service`."""
        if self.is_draining:
            return Readiness(is_ready=False, reason="Draining", message="running requests finish")
        if self.peers is None:
            return Readiness(
                is_ready=False, reason=Reason.STARTING, message=f"loading {self.settings.model_source}"
            )
        if self.devices is not None and (health := self.devices.health).level != "Healthy":
            return Readiness(is_ready=False, reason=Reason.DEVICE_UNHEALTHY, message=health.message)
        membership = self.peers.membership
        return Readiness(
            is_ready=membership.is_ready,
            reason=Reason.SERVING if membership.is_ready else self.peers.reason,
            message=membership.explanation,
        )

    @property
    def is_alive(self) -> bool:
        """As in `Service`."""
        return self.engine is None or self.engine.is_alive

    def begin_drain(self) -> None:
        """As in `Service`."""
        self.is_draining = True

    @property
    def unfinished(self) -> int:
        """As in `Service`."""
        return self.slots.used

    async def close(self) -> None:
        """As in `Service`."""
        if self.engine is not None:
            await self.engine.stop()

    async def read(self, request: web.Request) -> tuple[EngineLoop, ChatRequest | CompletionRequest]:
        """The engine and a request that it can serve.

        Raises:
            ApiError: this server serves nobody now, or the request is at fault.
        """
        if self.engine is None or self.is_draining:
            raise unavailable(
                "not_ready", "this server is draining" if self.is_draining else "the model is loading"
            )
        body = read_json_object(await read_body(request))
        parsed = read_request(request.path, body, served_model=self.settings.model_name)
        refuse_unsupported(body)
        return self.engine, parsed

    def take_slot(self, count: int = 1) -> Slot:
        """So many slots, at once.

        Raises:
            ApiError: 429, not enough are free.
        """
        try:
            return self.slots.take(count)
        except ApiError as error:
            self.metrics.refused(error.code)
            raise

    async def encode(self, engine: EngineLoop, parsed: ChatRequest | CompletionRequest) -> list[int]:
        """The request's tokens, not computed on the event loop: a long text takes its time."""

        def work() -> list[int]:
            if isinstance(parsed, ChatRequest):
                return engine.engine.encode_chat([message.to_template() for message in parsed.messages])
            prompt = parsed.the_prompt
            return engine.engine.encode_text(prompt) if isinstance(prompt, str) else list(prompt)

        return await asyncio.to_thread(work)

    async def models(self, _: web.Request) -> web.Response:
        """What is served."""
        context = self.engine.engine.max_context if self.engine is not None else None
        return web.json_response(
            models_answer(self.settings.model_name, created=self._created, max_context=context)
        )


def translate(error: Exception, *, max_context: int) -> ApiError:
    """What the engine refused, for the client."""
    match error:
        case PromptTooLong():
            return invalid(
                "context_length_exceeded",
                f"this model's maximum context length is {max_context} tokens, and {error}",
            )
        case InvalidRequest():
            return invalid("invalid_value", str(error))
        case NoCapacity():
            return busy(str(error))
        case RequestFailed():
            return unavailable("request_failed", str(error))
        case EngineFailed():
            return unavailable("engine_failed", str(error))
        case _:
            raise error


def watched_devices(settings: WorkerSettings) -> DeviceWatch | None:
    """The watch over the devices of this process, where a detector tells of them."""
    if settings.device_health_file is None:
        return None
    return DeviceWatch(settings.device_health_file, visible_devices(settings.devices_variable))


async def while_healthy(devices: DeviceWatch | None, work: Coroutine[None, None, None]) -> None:
    """Do the work; a sick device ends it, a load that may take minutes, too.

    Raises:
        ModelError: a device is sick, or what the work raises.
    """
    if devices is None:
        await work
        return
    tasks = [asyncio.create_task(devices.watch()), asyncio.create_task(work)]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def load_engine(settings: WorkerSettings) -> ServingEngine:
    """The engine that the settings ask for, loaded beside the event loop.

    Raises:
        ModelError: the model cannot be loaded.
    """
    began = time.monotonic()
    cause = trace.get_current_span(context_from_environment()).get_span_context()
    with tracer.start_as_current_span(
        "load model",
        links=[trace.Link(cause)] if cause.is_valid else [],
        attributes={"gen_ai.request.model": settings.model_name},
    ):
        engine = await in_daemon_thread(lambda: _load(settings))
    log.info("loaded %s in %.1f s", settings.model_source, time.monotonic() - began)
    return engine


def _load(settings: WorkerSettings) -> ServingEngine:
    if is_stand_in(settings.model_source):
        log.warning("no model is loaded: the stand-in engine answers with the prompt")
        return StandInEngine.from_source(
            settings.model_source, max_context=settings.max_context_tokens, slots=settings.slots
        )
    # Threads that spin between two operations take the cores from the other server when both share a machine: prefill
    # and decode of SmolLM2 on two cores are several times faster without. It must be set before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # torch is slow to import, and the probes are answered meanwhile
    from tidewheel_workers.serving.torch_engine import TorchEngine

    return TorchEngine.load_for(settings)
