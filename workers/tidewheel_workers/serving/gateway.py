"""The gateway: takes clients' requests, finds each a prefill and a decode, and passes the answer on."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from typing import TYPE_CHECKING, Any, NoReturn

from opentelemetry import metrics
from prometheus_client import CollectorRegistry

from tidewheel.api.reasons import Reason
from tidewheel.api.scenarios import DEFAULT_SCENARIO
from tidewheel.telemetry import GenAiInstruments, configure_logging, gen_ai_attributes, is_sent
from tidewheel_workers.serving.admission import Admission
from tidewheel_workers.serving.api_keys import ApiKeys
from tidewheel_workers.serving.backends import Backends
from tidewheel_workers.serving.cpu_limit import processes
from tidewheel_workers.serving.errors import ApiError
from tidewheel_workers.serving.exchange import Exchange
from tidewheel_workers.serving.family import Member
from tidewheel_workers.serving.figures import SAMPLE_SECONDS, History, figures, take_sample
from tidewheel_workers.serving.forwarder import Forwarder
from tidewheel_workers.serving.forwarding import LATE_CODES
from tidewheel_workers.serving.front import Front, Route
from tidewheel_workers.serving.gateway_metrics import GatewayMetrics
from tidewheel_workers.serving.http1.messages import Response
from tidewheel_workers.serving.key_use import KeyUse
from tidewheel_workers.serving.openai_answers import models
from tidewheel_workers.serving.openai_api import (
    CHAT,
    COMPLETIONS,
    CompletionRequest,
    read_json_object,
    read_request,
    unknown_model,
)
from tidewheel_workers.serving.page import FIGURES, page_files
from tidewheel_workers.serving.process import log_level, reporting, run
from tidewheel_workers.serving.replies import Reply, usage_of
from tidewheel_workers.serving.routes import routes_file
from tidewheel_workers.serving.service import Readiness
from tidewheel_workers.serving.settings import GatewaySettings
from tidewheel_workers.serving.spans import Spans
from tidewheel_workers.serving.stream_meter import StreamMeter
from tidewheel_workers.serving.supervisor import Supervisor, listen_together
from tidewheel_workers.serving.together import Together

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tidewheel.api.ranktable import RouteGroup, Routes
    from tidewheel_workers.serving.api_keys import ApiKey
    from tidewheel_workers.serving.family import Place
    from tidewheel_workers.serving.front import Handler
    from tidewheel_workers.serving.http1.server import Answer, Incoming
    from tidewheel_workers.serving.openai_api import ChatRequest
    from tidewheel_workers.serving.page import PageFile
    from tidewheel_workers.serving.replies import Caller
    from tidewheel_workers.serving.service import OpenRequests

log = logging.getLogger("tidewheel_workers.serving.gateway")

#: How long a leaving gateway still takes requests: as long as its address may still be handed out.
LAME_DUCK_SECONDS = 1.0
#: Objects made, less those given back, before the youngest are searched for cycles.
COLLECT_AFTER = 10_000


class Gateway:
    """The gateway role, or one process of it."""

    def __init__(
        self, settings: GatewaySettings, member: Member | None = None, key_use: KeyUse | None = None
    ) -> None:
        self.settings: GatewaySettings = settings
        self._member = member
        self.registry = CollectorRegistry()
        self.spans = Spans()
        self.backends = Backends(self.spans, asks_early=settings.kv_mode == "PerLayer")
        self.forwarder = Forwarder(
            settings, processes=1 if member is None else processes(settings.gateway_processes)
        )
        self._routes = routes_file(settings.routes_file)
        self._keys = ApiKeys(settings.api_keys_file, key_use)
        self._open = 0
        self._draining_since: float | None = None
        self._created = int(time.time())
        self._tasks: set[asyncio.Task[None]] = set()
        self.metrics = GatewayMetrics(
            self.registry,
            open_requests=lambda: self._open,
            groups=lambda: len(self.groups),
            waiting=lambda: self.forwarder.dispatch.waiting,
        )
        self._admission = Admission(self._keys, self.metrics)
        self._history = History()
        self.gen_ai: GenAiInstruments | None = None
        if is_sent("metrics"):
            self.gen_ai = GenAiInstruments.of(metrics.get_meter("tidewheel_workers.serving.gateway"))

    @property
    def groups(self) -> tuple[RouteGroup, ...]:
        """The groups that requests may be sent to now."""
        return self.forwarder.groups

    def listener(self, open_requests: OpenRequests) -> Front:
        """As in `Service`."""
        return Front(
            self,
            self.routes(),
            open_requests,
            spans=self.spans,
            member=self._member,
            on_refusal=lambda status: self.metrics.request(str(status), DEFAULT_SCENARIO).inc(),
        )

    def routes(self) -> Sequence[Route]:
        """The paths beside health, metrics and version."""
        return (
            Route("POST", CHAT, self._complete),
            Route("POST", COMPLETIONS, self._complete),
            Route("GET", "/v1/models", self._models),
            Route("GET", "/v1/models/*", self._model),
            *(self._page_routes() if self.settings.page == "Enabled" else ()),
        )

    def _page_routes(self) -> Sequence[Route]:
        def answering(file: PageFile) -> Handler:
            async def answer(_: Incoming) -> Response:
                return Response(body=file.content, content_type=file.content_type, headers=file.headers)

            return answer

        files = (Route("GET", path, answering(file)) for path, file in page_files().items())
        return (*files, Route("GET", FIGURES, self._figures))

    async def start(self, fail: Callable[[BaseException], None]) -> None:
        """As in `Service`: keep routes and keys fresh until cancelled."""
        del fail
        # a request makes many objects and keeps none: looking for cycles among all that stays costs more than it finds
        gc.freeze()
        gc.set_threshold(COLLECT_AFTER)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._routes.watch(self._follow))
            if self._keys.file is not None:
                tasks.create_task(self._keys.file.watch(self._use_keys))
            if self.settings.page == "Enabled":
                tasks.create_task(self._sample())

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
        self.forwarder.close()
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
            key = self._keys.check(request.headers.get("authorization"))
            body = read_json_object(request.body)
            # what a client says of KV is not for our servers
            body.pop("kv_transfer_params", None)
            # nor is the other endpoint's prompt, which nobody checks here
            body.pop("prompt" if request.path == CHAT else "messages", None)
            parsed = read_request(
                request.path, body, served_model=self.settings.model_name, aliases=self.forwarder.aliases
            )
            visit = self._admission.admit(key, body, parsed, began)
        except ApiError as error:
            self.metrics.request(str(error.status), DEFAULT_SCENARIO).inc()
            raise
        labels = gen_ai_attributes(
            operation="chat" if request.path == CHAT else "text_completion", request_model=parsed.model
        )
        self.spans.describe(labels)
        meter = StreamMeter(choices=parsed.answers, tells_usage=parsed.include_usage)
        reply = Reply(incoming, meter=meter, on_tokens=self.metrics.output_tokens.inc, headers=visit.headers)
        exchange = self._exchange(reply, visit.body, parsed)
        self.metrics.arrived(exchange.scenario, at=time.time())
        self._open += 1
        status, error_code, tokens = "499", "client_disconnected", (0, 0)
        try:
            answer = await exchange.run()
            status, error_code = str(answer.status), exchange.error.code if exchange.error else ""
            if isinstance(answer, Response):
                answer.headers.update(visit.headers(time.monotonic()))
                tokens = usage_of(answer.body)
                self.metrics.output_tokens.inc(tokens[1])
                return answer
            return reply.begun
        finally:
            self._open -= 1
            if reply.has_begun:
                # a stream that broke off ends with an event that tells the error, unless nobody was there to read it
                late = max(0, meter.held_back - (status != "499")) if error_code else 0
                self.metrics.output_tokens.inc(late)
                tokens = (exchange.prompt_tokens, meter.tokens + late)
                if (pace := meter.seconds_per_token()) is not None:
                    self.metrics.of(exchange.scenario).tpot.observe(pace)
            visit.end(status, time.monotonic(), prompt_tokens=tokens[0], output_tokens=tokens[1])
            self._observe(exchange, began, labels, error_code, status, tokens)

    def _follow(self, routes: Routes) -> None:
        """Forward as the operator says now."""
        self.forwarder.follow(routes)
        log.info("routes %s: %d groups", routes.digest(), len(routes.groups))

    def _exchange(
        self, caller: Caller, body: dict[str, Any], parsed: ChatRequest | CompletionRequest
    ) -> Exchange | Together:
        if isinstance(parsed, CompletionRequest) and len(parsed.prompts) > 1:
            return Together(self, caller, body, parsed)
        return Exchange(self, caller, body)

    def _observe(
        self,
        exchange: Exchange | Together,
        began: float,
        labels: dict[str, str],
        error_code: str,
        status: str,
        tokens: tuple[int, int],
    ) -> None:
        taken = time.monotonic() - began
        scenario = self.metrics.of(exchange.scenario)
        self.metrics.request(status, exchange.scenario).inc()
        scenario.duration.observe(taken)
        if not error_code and tokens[0] > 0:
            scenario.prompt_tokens.observe(tokens[0])
            scenario.output_tokens.observe(tokens[1])
        if error_code:
            labels = labels | {"error.type": error_code}
            self.spans.describe({"error.type": error_code})
        if error_code in LATE_CODES:
            self.metrics.early_terminations.labels(error_code, exchange.scenario).inc()
        first = exchange.first_token_seconds
        if first is not None:
            scenario.ttft.observe(first)
        if self.gen_ai is not None:
            self.gen_ai.server_request_duration.record(taken, labels)
            if first is not None:
                self.gen_ai.server_time_to_first_token.record(first, labels)

    async def _figures(self, incoming: Incoming) -> Response:
        self._keys.check(incoming.request.headers.get("authorization"))
        told = figures(
            self._history.samples,
            self.groups,
            service=self.settings.service,
            model=self.settings.model_name,
        )
        return Response.of_json(told, headers={"Cache-Control": "no-store"})

    async def _sample(self) -> None:
        """Keep what the page shows, for ever."""
        while True:
            try:
                shown = self.registry.collect() if self._member is None else await self._member.collect()
            except ApiError as error:
                log.warning("no figures for now: %s", error.message)
            else:
                self._history.add(take_sample(shown, time.monotonic()))
            await asyncio.sleep(SAMPLE_SECONDS)

    def _use_keys(self, keys: tuple[ApiKey, ...]) -> None:
        log.info("%d API keys", len(keys))
        self._keys.forget_removed()

    async def _models(self, incoming: Incoming) -> Response:
        self._keys.check(incoming.request.headers.get("authorization"))
        names = (self.settings.model_name, *sorted(self.forwarder.aliases))
        return Response.of_json(models(*names, created=self._created))

    async def _model(self, incoming: Incoming) -> Response:
        self._keys.check(incoming.request.headers.get("authorization"))
        name = incoming.request.path.removeprefix("/v1/models/")
        if name != self.settings.model_name and name not in self.forwarder.aliases:
            raise unknown_model(name, served=self.settings.model_name)
        return Response.of_json(models(name, created=self._created)["data"][0])


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

    key_use = KeyUse(processes=count)

    def work(place: Place) -> NoReturn:
        member = Member(place)
        key_use.join(place.number)
        run("gateway", lambda: Gateway(settings, member, key_use), member)

    listening = listen_together(settings.pod_ip, settings.http_port, count)
    gc.freeze()  # what is shared with the processes to come stays shared
    Supervisor(listening, work, drain_seconds=settings.drain_seconds).run()


if __name__ == "__main__":
    main()
