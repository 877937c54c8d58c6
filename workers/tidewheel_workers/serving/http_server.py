"""The workers' HTTP side: probes, metrics, request ids, server spans, and errors in OpenAI's form.

The gateway's is `front`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from importlib.metadata import version
from typing import TYPE_CHECKING

from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage
from opentelemetry import trace
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from tidewheel_workers.serving.errors import ApiError, invalid
from tidewheel_workers.serving.service import REQUEST_ID_HEADER, proper_request_id
from tidewheel_workers.serving.spans import server_span

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from aiohttp.typedefs import Middleware

    from tidewheel_workers.serving.service import OpenRequests, Service

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

log = logging.getLogger(__name__)
tracer = trace.get_tracer(__name__)

REQUEST_ID = web.RequestKey("request_id", str)
#: A client that takes longer to send its body is told so.
BODY_SECONDS = 30.0


class AiohttpListener:
    """The `Listener` of a worker."""

    def __init__(self, service: Service, routes: Sequence[web.RouteDef], open_requests: OpenRequests) -> None:
        self._runner = web.AppRunner(
            build_app(service, routes, open_requests),
            handler_cancellation=True,
            access_log=None,
            shutdown_timeout=1.0,
        )

    async def start(self, host: str, port: int) -> None:
        """As in `Listener`."""
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port, backlog=1024).start()

    async def close(self) -> None:
        """As in `Listener`."""
        await self._runner.cleanup()


def build_app(
    service: Service, routes: Sequence[web.RouteDef], open_requests: OpenRequests
) -> web.Application:
    """The application of one service."""
    app = web.Application(
        middlewares=[_identify, _translate_errors, _trace(service), _count(open_requests)],
        client_max_size=service.settings.max_body_bytes,
    )

    async def ready(_: web.Request) -> web.Response:
        seen = service.readiness()
        return web.json_response(seen.to_body(), status=200 if seen.is_ready else 503)

    async def live(_: web.Request) -> web.Response:
        alive = service.is_alive
        return web.json_response({"alive": alive}, status=200 if alive else 503)

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(
            body=generate_latest(service.registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    async def tell_version(_: web.Request) -> web.Response:
        return web.json_response({"version": version("tidewheel")})

    app.router.add_routes(
        [
            web.get("/health", ready),
            web.get("/health/ready", ready),
            web.get("/health/live", live),
            web.get("/metrics", metrics),
            web.get("/version", tell_version),
            *routes,
        ]
    )
    return app


async def read_body(request: web.Request) -> bytes:
    """A request's body within the size and time that are allowed.

    Raises:
        ApiError: it is too large, too slow or broken.
    """
    limit = request.app._client_max_size  # noqa: SLF001 - aiohttp has no public name for what it was given
    if (request.content_length or 0) > limit:
        raise _too_large(limit)
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await request.read()
    except web.HTTPRequestEntityTooLarge as error:
        raise _too_large(limit) from error
    except (web.RequestPayloadError, BadHttpMessage) as error:
        raise invalid("unreadable_body", f"the body cannot be read: {error}") from error
    except TimeoutError as error:
        raise ApiError(
            408, "body_timeout", f"the body was not sent within {BODY_SECONDS:.0f} seconds"
        ) from error


def error_response(error: ApiError) -> web.Response:
    """An error as an answer."""
    return web.json_response(error.to_body(), status=error.status, headers=error.headers)


def _too_large(limit: int) -> ApiError:
    return ApiError(413, "body_too_large", f"the body is larger than {limit} bytes, the limit of this server")


@web.middleware
async def _identify(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Keep the client's request id when it is a proper one, else make one; the answer names it."""
    request_id = proper_request_id(request.headers.get(REQUEST_ID_HEADER))
    request[REQUEST_ID] = request_id
    response = await handler(request)
    if not response.prepared:
        response.headers[REQUEST_ID_HEADER] = request_id
    return response


@web.middleware
async def _translate_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except ApiError as error:
        return error_response(error)
    except web.HTTPNotFound:
        return error_response(ApiError(404, "unknown_url", f"{request.method} {request.path} does not exist"))
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods))
        answer = error_response(
            ApiError(405, "method_not_allowed", f"{request.path} takes {allowed}, not {request.method}")
        )
        answer.headers["Allow"] = allowed
        return answer
    except web.HTTPException as error:
        return error_response(ApiError(error.status, "bad_request", error.text or error.reason))
    except ConnectionError:
        raise  # the client is gone; there is nobody to answer
    except Exception:
        log.exception("request %s failed", request[REQUEST_ID])
        return error_response(
            ApiError(
                500,
                "internal_error",
                f"the server failed; its log has the cause under request id {request[REQUEST_ID]}",
            )
        )


def _trace(service: Service) -> Middleware:
    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not request.path.startswith("/v1/"):
            return await handler(request)
        with server_span(
            tracer,
            request.method,
            request.path,
            request.headers,
            server=service.settings.pod_ip,
            request_id=request[REQUEST_ID],
        ) as span:
            began = time.monotonic()
            try:
                response = await handler(request)
            except ApiError as error:
                span.set_attributes({"http.response.status_code": error.status, "error.type": error.code})
                _log_access(request, error.status, began)
                raise
            except asyncio.CancelledError:
                span.set_attribute("error.type", "client_disconnected")
                _log_access(request, 499, began)
                raise
            span.set_attribute("http.response.status_code", response.status)
            _log_access(request, response.status, began)
            return response

    return middleware


def _log_access(request: web.Request, status: int, began: float) -> None:
    log.info(
        "%s %s %d in %.0f ms",
        request.method,
        request.path,
        status,
        1000 * (time.monotonic() - began),
        extra={"request_id": request[REQUEST_ID], "status": status},
    )


def _count(open_requests: OpenRequests) -> Middleware:
    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not request.path.startswith("/v1/"):
            return await handler(request)
        open_requests.count += 1
        try:
            response = await handler(request)
        finally:
            open_requests.count -= 1
        if open_requests.is_draining:
            response.force_close()
        return response

    return middleware
