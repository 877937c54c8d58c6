"""Spans of requests, and what stands for the gateway's where they would go nowhere: a span that nobody receives costs as much as one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opentelemetry import context, trace

from tidewheel.telemetry import (
    context_from_headers,
    is_sent,
    passing_context,
    trace_headers,
)
from tidewheel_workers.serving.service import REQUEST_ID_HEADER

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager

    from tidewheel.api.ranktable import Backend
    from tidewheel_workers.serving.http1.server import Incoming

tracer = trace.get_tracer(__name__)


def server_span(
    by: trace.Tracer, method: str, path: str, headers: Mapping[str, str], *, server: str, request_id: str
) -> AbstractContextManager[trace.Span]:
    """The server span of a request, which continues the client's trace.

    Args:
        by: the tracer of the server's own module.
        method: of the request.
        path: of the request.
        headers: of the request; they may name the client's span.
        server: the address of the one who answers.
        request_id: of the request.
    """
    return by.start_as_current_span(
        f"{method} {path}",
        context=context_from_headers(headers),
        kind=trace.SpanKind.SERVER,
        attributes={
            "http.request.method": method,
            "url.path": path,
            "server.address": server,
            "tidewheel.request_id": request_id,
        },
    )


class Spans:
    """The gateway's. Made once the process's telemetry is configured."""

    def __init__(self) -> None:
        self._are_sent = is_sent("traces")

    def of_request(self, incoming: Incoming, *, server: str) -> AbstractContextManager[trace.Span]:
        """The server span of a request; log records in it carry its ids."""
        request = incoming.request
        if not self._are_sent:
            return _Passing(passing_context(request.headers))
        return server_span(
            tracer, request.method, request.path, request.headers, server=server, request_id=incoming.id
        )

    def describe(self, attributes: Mapping[str, str]) -> None:
        """Say more of the request whose span is current."""
        if self._are_sent:
            trace.get_current_span().set_attributes(attributes)

    def of_call(self, role: str, backend: Backend) -> trace.Span:
        """The client span of one call for the request whose span is current; the caller ends it.

        One that records nothing where that of the request does not either.
        """
        if not self._are_sent or not trace.get_current_span().is_recording():
            return trace.INVALID_SPAN
        return tracer.start_span(
            role,
            kind=trace.SpanKind.CLIENT,
            attributes={
                "server.address": backend.address,
                "server.port": backend.port,
                "tidewheel.backend": backend.name,
            },
        )


class _Passing:
    """Makes a context current that has no span of ours."""

    __slots__ = ("_context", "_token")

    def __init__(self, passed: context.Context) -> None:
        self._context = passed

    def __enter__(self) -> trace.Span:
        self._token = context.attach(self._context)
        return trace.get_current_span(self._context)

    def __exit__(self, *_: object) -> None:
        context.detach(self._token)


def call_headers(request_id: str) -> dict[str, str]:
    """Headers of all calls for the request whose span is current."""
    headers = {"Content-Type": "application/json", REQUEST_ID_HEADER: request_id}
    return headers | trace_headers()


def headers_in(span: trace.Span, headers: dict[str, str]) -> dict[str, str]:
    """The same headers with a call's own span as the parent of what it causes."""
    return headers | trace_headers(trace.set_span_in_context(span)) if span.is_recording() else headers
