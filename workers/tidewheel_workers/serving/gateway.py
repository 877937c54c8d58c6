"""The gateway: takes clients' requests, finds each a prefill and a decode, and passes the answer on."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import time
from typing import TYPE_CHECKING, NoReturn

from opentelemetry import metrics, trace
from prometheus_client import CollectorRegistry

from tidewheel.api.reasons import Reason
from tidewheel.telemetry import GenAiInstruments, configure_logging, gen_ai_attributes, is_sent
from tidewheel_workers.serving.api_keys import ApiKeys
from tidewheel_workers.serving.backends import Backends
from tidewheel_workers.serving.cpu_limit import processes
from tidewheel_workers.serving.errors import ApiError
from tidewheel_workers.serving.exchange import Exchange
from tidewheel_workers.serving.family import Member
from tidewheel_workers.serving.forwarding import LATE_CODES
from tidewheel_workers.serving.front import Front, Route
from tidewheel_workers.serving.gateway_metrics import GatewayMetrics
from tidewheel_workers.serving.http1.messages import Response
from tidewheel_workers.serving.openai_answers import models
from tidewheel_workers.serving.openai_api import (
    CHAT,
    COMPLETIONS,
    read_json_object,
    read_request,
    unknown_model,
)
from tidewheel_workers.serving.process import log_level, reporting, run
from tidewheel_workers.serving.routes import routes_file, usable_groups
from tidewheel_workers.serving.service import Readiness
from tidewheel_workers.serving.settings import GatewaySettings
from tidewheel_workers.serving.spans import Spans
from tidewheel_workers.serving.supervisor import Supervisor, listen_together

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tidewheel.api.ranktable import RouteGroup, Routes
    from tidewheel_workers.serving.family import Place
    from tidewheel_workers.serving.http1.server import Answer, Incoming
    from tidewheel_workers.serving.service import OpenRequests

log = logging.getLogger("tidewheel_workers.serving.gateway")

#: How long a leaving gateway still takes requests: as long as its address may still be handed out.
LAME_DUCK_SECONDS = 1.0


class Gateway:
    """The gateway role, or one process of it."""

    def __init__(self, settings: GatewaySettings, member: Member | None = None) -> None:
        self.settings: GatewaySettings = settings
        self._member = member
        self.registry = CollectorRegistry()
        self.spans = Spans()
        self.backends = Backends(self.spans)
        self.random = random.Random()  # noqa: S311 - spreads load
        self._routes = routes_file(settings.routes_file)
        self._seen_routes: Routes | None = None
        self._groups: tuple[RouteGroup, ...] = ()
        self._keys = ApiKeys(settings.api_keys_file)
        self._open = 0
        self._draining_since: float | None = None
        self._created = int(time.time())
        self._tasks: set[asyncio.Task[None]] = set()
        self.metrics = GatewayMetrics(
            self.registry, open_requests=lambda: self._open, groups=lambda: len(self.groups)
        )
        self.gen_ai: GenAiInstruments | None = None
        if is_sent("metrics"):
            self.gen_ai = GenAiInstruments.of(metrics.get_meter("tidewheel_workers.serving.gateway"))

    @property
    def groups(self) -> tuple[RouteGroup, ...]:
        """The groups that requests may be sent to now."""
        if self._routes.current is not self._seen_routes:
            self._seen_routes = self._routes.current
            self._groups = usable_groups(self._seen_routes)
        return self._groups

    def listener(self, open_requests: OpenRequests) -> Front:
        """As in `Service`."""
        return Front(
            self,
            self.routes(),
            open_requests,
            spans=self.spans,
            member=self._member,
            on_refusal=lambda status: self.metrics.request(str(status)).inc(),
        )

    def routes(self) -> Sequence[Route]:
        """The paths beside health, metrics and version."""
        return (
            Route("POST", CHAT, self._complete),
            Route("POST", COMPLETIONS, self._complete),
            Route("GET", "/v1/models", self._models),
            Route("GET", "/v1/models/*", self._model),
        )

    async def start(self, fail: Callable[[BaseException], None]) -> None:
        """As in `Service`: keep routes and keys fresh until cancelled."""
        del fail
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._routes.watch(_say))
            if self._keys.file is not None:
                tasks.create_task(self._keys.file.watch(lambda keys: log.info("%d API keys", len(keys))))

    def readiness(self) -> Readiness:
        """As in `Service`."""
        if self._draining_since is not None:
            return Readiness(is_ready=False, reason="Draining", message="running requests finish")
        if not self.groups:
            known = "no routes yet" if self._routes.current is None else "the routes name no usable group"
            return Readiness(is_ready=False, reason=Reason.NO_GROUP_READY, message=known)
        return Readiness(is_ready=True, reason=Reason.SERVING, message=f"{len(self.groups)} groups")

    @property
    def is_alive(self) -> bool:
        """As in `Service`."""
        return True

    def begin_drain(self) -> None:
        """As in `Service`: requests are still taken for a moment, as clients may not know yet."""
        self._draining_since = time.monotonic()

    @property
    def unfinished(self) -> int:
        """As in `Service`."""
        since = self._draining_since
        return int(since is not None and time.monotonic() < since + LAME_DUCK_SECONDS)

    async def close(self) -> None:
        """As in `Service`."""
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.backends.close()

    def in_background(self, work: asyncio._CoroutineLike[None]) -> None:
        """Do something that no request waits for."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _complete(self, incoming: Incoming) -> Answer:
        began = time.monotonic()
        request = incoming.request
        try:
            self._keys.check(request.headers.get("authorization"))
            body = read_json_object(request.body)
            parsed = read_request(request.path, body, served_model=self.settings.model_name)
        except ApiError as error:
            self.metrics.request(str(error.status)).inc()
            raise
        # what a client says of KV is not for our servers
        body.pop("kv_transfer_params", None)
        labels = gen_ai_attributes(
            operation="chat" if request.path == CHAT else "text_completion", request_model=parsed.model
        )
        trace.get_current_span().set_attributes(labels)
        exchange = Exchange(self, incoming, body)
        self._open += 1
        try:
            answer = await exchange.run()
        except BaseException:
            self._observe(exchange, began, labels, "client_disconnected", "499")
            raise
        finally:
            self._open -= 1
        code = exchange.error.code if exchange.error is not None else ""
        self._observe(exchange, began, labels, code, str(answer.status))
        return answer

    def _observe(
        self, exchange: Exchange, began: float, labels: dict[str, str], error_code: str, status: str
    ) -> None:
        taken = time.monotonic() - began
        self.metrics.request(status).inc()
        self.metrics.duration.observe(taken)
        if error_code:
            labels = labels | {"error.type": error_code}
            trace.get_current_span().set_attribute("error.type", error_code)
        if error_code in LATE_CODES:
            self.metrics.early_terminations.labels(error_code).inc()
        first = exchange.first_token_seconds
        if first is not None:
            self.metrics.ttft.observe(first)
        if self.gen_ai is not None:
            self.gen_ai.server_request_duration.record(taken, labels)
            if first is not None:
                self.gen_ai.server_time_to_first_token.record(first, labels)

    async def _models(self, incoming: Incoming) -> Response:
        self._keys.check(incoming.request.headers.get("authorization"))
        return Response.of_json(models(self.settings.model_name, created=self._created))

    async def _model(self, incoming: Incoming) -> Response:
        self._keys.check(incoming.request.headers.get("authorization"))
        name = incoming.request.path.removeprefix("/v1/models/")
        if name != self.settings.model_name:
            raise unknown_model(name, served=self.settings.model_name)
        return Response.of_json(models(name, created=self._created)["data"][0])


def _say(routes: Routes) -> None:
    log.info("routes %s: %d groups", routes.digest(), len(routes.groups))


def main() -> None:
    """The program: one process, or several that share the port."""
    reporting("gateway", _supervise)


def _supervise() -> None:
    settings = GatewaySettings.from_environment()
    count = processes(settings.gateway_processes)
    if count == 1:
        run("gateway", lambda: Gateway(settings))
    configure_logging(level=log_level())
    log.info("%d processes share port %d", count, settings.http_port)

    def work(place: Place) -> NoReturn:
        member = Member(place)
        run("gateway", lambda: Gateway(settings, member), member)

    listening = listen_together(settings.pod_ip, settings.http_port, count)
    gc.freeze()  # what is shared with the processes to come stays shared
    Supervisor(listening, work, drain_seconds=settings.drain_seconds).run()


if __name__ == "__main__":
    main()
