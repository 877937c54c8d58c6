"""The gateway's HTTP side: routes, probes, metrics, request ids, server spans, the access log, and errors in OpenAI's form.

The workers' is `http_server`. This one stands on `http1`, as every request and every token of a service passes it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.registry import Collector

from tidewheel_workers.serving.access_log import AccessLog
from tidewheel_workers.serving.errors import ApiError
from tidewheel_workers.serving.http1.messages import Limits, Response
from tidewheel_workers.serving.http1.server import HttpServer
from tidewheel_workers.serving.service import REQUEST_ID_HEADER, proper_request_id

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from prometheus_client import Metric

    from tidewheel_workers.serving.family import Member
    from tidewheel_workers.serving.http1.messages import Refusal
    from tidewheel_workers.serving.http1.server import Answer, Incoming
    from tidewheel_workers.serving.service import OpenRequests, Service
    from tidewheel_workers.serving.spans import Spans

    Handler = Callable[[Incoming], Awaitable[Answer]]

log = logging.getLogger(__name__)

_ANYTHING_BELOW = "/*"


@dataclass(frozen=True, slots=True)
class Route:
    """Who answers a method at a path; a path that ends in `/*` stands for all below it."""

    method: str
    path: str
    handler: Handler


class Front:
    """Listens for one service, and answers what all services answer alike.

    Args:
        member: this process's place among several that share the port; None where it stands alone.
        on_refusal: told the status of what was refused before any handler saw it.
    """

    def __init__(
        self,
        service: Service,
        routes: Sequence[Route],
        open_requests: OpenRequests,
        *,
        spans: Spans,
        member: Member | None,
        on_refusal: Callable[[int], None],
    ) -> None:
        self._service = service
        self._open = open_requests
        self._spans = spans
        self._member = member
        self._log = AccessLog()
        self._on_refusal = on_refusal
        self._exact: dict[str, dict[str, Handler]] = {}
        self._below: dict[str, dict[str, Handler]] = {}
        own = (
            Route("GET", "/health", self._ready),
            Route("GET", "/health/ready", self._ready),
            Route("GET", "/health/live", self._live),
            Route("GET", "/metrics", self._metrics),
            Route("GET", "/version", _version),
        )
        for route in (*own, *routes):
            if route.path.endswith(_ANYTHING_BELOW):
                table, path = self._below, route.path.removesuffix("*")
            else:
                table, path = self._exact, route.path
            table.setdefault(path, {})[route.method] = route.handler
        self.server = HttpServer(
            self._handle,
            limits=Limits(body_bytes=service.settings.max_body_bytes),
            refuse=self._refuse,
            fail=_failed,
        )

    async def start(self, host: str, port: int) -> None:
        """As in `Listener`; one of several processes has its socket already."""
        if self._member is None:
            await self.server.start(host, port)
        else:
            await self.server.start_on(self._member.place.listening)

    async def close(self) -> None:
        """As in `Listener`."""
        await self.server.close()
        self._log.flush()

    async def _handle(self, incoming: Incoming) -> Answer:
        self.server.is_draining = self._open.is_draining
        request = incoming.request
        incoming.id = proper_request_id(request.headers.get(REQUEST_ID_HEADER))
        try:
            handler = self._find(request.method, request.path)
            if not request.path.startswith("/v1/"):
                answer = await handler(incoming)
            else:
                self._open.count += 1
                try:
                    answer = await self._traced(handler, incoming)
                finally:
                    self._open.count -= 1
        except ApiError as error:
            answer = error_response(error)
        if isinstance(answer, Response):
            answer.headers[REQUEST_ID_HEADER] = incoming.id
        return answer

    def _find(self, method: str, path: str) -> Handler:
        methods = self._exact.get(path)
        if methods is None:
            methods = next((found for below, found in self._below.items() if path.startswith(below)), None)
        if methods is None:
            raise ApiError(404, "unknown_url", f"{method} {path} does not exist")
        # a HEAD is a GET of which only the head is sent
        handler = methods.get("GET" if method == "HEAD" else method)
        if handler is None:
            allowed = ", ".join(sorted(methods))
            raise _MethodNotAllowed(allowed, f"{path} takes {allowed}, not {method}")
        return handler

    async def _traced(self, handler: Handler, incoming: Incoming) -> Answer:
        with self._spans.of_request(incoming, server=self._service.settings.pod_ip) as span:
            began = time.monotonic()
            try:
                answer = await handler(incoming)
            except ApiError as error:
                span.set_attributes({"http.response.status_code": error.status, "error.type": error.code})
                self._log.add(incoming, error.status, time.monotonic() - began)
                raise
            except asyncio.CancelledError:
                span.set_attribute("error.type", "client_disconnected")
                self._log.add(incoming, 499, time.monotonic() - began)
                raise
            span.set_attribute("http.response.status_code", answer.status)
            self._log.add(incoming, answer.status, time.monotonic() - began)
            return answer

    async def _ready(self, _: Incoming) -> Response:
        seen = self._service.readiness()
        return Response.of_json(seen.to_body(), status=200 if seen.is_ready else 503)

    async def _live(self, _: Incoming) -> Response:
        alive = self._service.is_alive
        return Response.of_json({"alive": alive}, status=200 if alive else 503)

    async def _metrics(self, _: Incoming) -> Response:
        registry = self._service.registry
        if self._member is not None:
            registry = CollectorRegistry()
            registry.register(_Collected(await self._member.collect()))
        return Response(body=generate_latest(registry), content_type=CONTENT_TYPE_LATEST)

    def _refuse(self, refusal: Refusal) -> Response:
        self._on_refusal(refusal.status)
        answer = error_response(ApiError(refusal.status, refusal.code, refusal.message))
        answer.headers[REQUEST_ID_HEADER] = request_id = proper_request_id(None)
        log.info(
            "refused a request: %d %s",
            refusal.status,
            refusal.message,
            extra={"request_id": request_id, "status": refusal.status},
        )
        return answer


class _Collected(Collector):
    """Metrics that were collected already."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


class _MethodNotAllowed(ApiError):
    def __init__(self, allowed: str, message: str) -> None:
        super().__init__(405, "method_not_allowed", message)
        self._allowed = allowed

    @property
    def headers(self) -> dict[str, str]:
        return {"Allow": self._allowed}


def error_response(error: ApiError) -> Response:
    """An error as an answer."""
    return Response.of_json(error.to_body(), status=error.status, headers=error.headers)


def _failed(incoming: Incoming) -> Response:
    log.exception("request %s failed", incoming.id)
    told = ApiError(
        500,
        "internal_error",
        f"the server failed; its log has the cause under request id {incoming.id}",
    )
    answer = error_response(told)
    answer.headers[REQUEST_ID_HEADER] = incoming.id
    return answer


async def _version(_: Incoming) -> Response:
    return Response.of_json({"version": version("tidewheel")})
