"""Carriers of the W3C trace context: HTTP headers, a pod's environment, and the annotation of a resource."""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from functools import cache

from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from tidewheel.api.meta import ANNOTATION_TRACEPARENT

_TRACEPARENT = "traceparent"
_ids = RandomIdGenerator()


def context_from_headers(headers: Mapping[str, str]) -> Context:
    """The caller's context, from headers in any case. Malformed headers are ignored, as W3C asks.

    It starts from an empty context: a span left current by somebody else cannot become the parent.
    """
    return propagate.extract({name.lower(): value for name, value in headers.items()}, Context())


def passing_context(headers: Mapping[str, str]) -> Context:
    """The caller's context as it is, or, without one, ids that nobody has used: for a process whose spans are not sent.

    Logs and further hops then tell one request by its ids, as with spans, and a hop whose spans are sent finds the last
    span that was sent as its parent. Names of headers have to be in lower case.
    """
    carriers = _carriers()
    if not carriers.isdisjoint(headers):
        carried = {name: headers[name] for name in carriers if name in headers}
        context = context_from_headers(carried)
        caller = trace.get_current_span(context).get_span_context()
        if caller.is_valid:
            return trace.set_span_in_context(
                _Passed(caller.trace_id, caller.span_id, carried, caller), context
            )
    trace_id, span_id = _ids.generate_trace_id(), _ids.generate_span_id()
    return trace.set_span_in_context(_Passed(trace_id, span_id, None, None), Context())


class _Passed(trace.NonRecordingSpan):
    """What another span stands for, with the headers that carry it on: as they came, and written only once.

    There is one for every request, so all that few ask for is made when they do.
    """

    def __init__(
        self,
        trace_id: int,
        span_id: int,
        headers: Mapping[str, str] | None,
        context: trace.SpanContext | None,
    ) -> None:
        self._trace_id, self._span_id = trace_id, span_id
        self._headers = headers
        self._made = context

    def get_span_context(self) -> trace.SpanContext:
        """As in `Span`."""
        if self._made is None:
            self._made = trace.SpanContext(
                trace_id=self._trace_id,
                span_id=self._span_id,
                is_remote=False,
                trace_flags=trace.TraceFlags(trace.TraceFlags.SAMPLED),
            )
        return self._made

    @property
    def ids(self) -> dict[str, str]:
        """As log records tell them."""
        return {"trace_id": f"{self._trace_id:032x}", "span_id": f"{self._span_id:016x}"}

    def headers(self, context: Context | None) -> dict[str, str]:
        """As the next hop is told of it."""
        if self._headers is None:
            if _TRACEPARENT in _carriers():
                self._headers = {_TRACEPARENT: f"00-{self._trace_id:032x}-{self._span_id:016x}-01"}
            else:
                self._headers = {}
                inject_headers(self._headers, context)
        return dict(self._headers)


@cache
def _carriers() -> frozenset[str]:
    """The headers that may carry a context; OTEL_PROPAGATORS has decided it when the process began."""
    return frozenset(propagate.get_global_textmap().fields)


def inject_headers(headers: MutableMapping[str, str], context: Context | None = None) -> None:
    """Adds `context` (by default the current one) to the headers of a request, or to any string map."""
    propagate.inject(headers, context)


def trace_headers(context: Context | None = None) -> dict[str, str]:
    """The headers that carry `context`, by default the current one; empty if there is no span."""
    span = trace.get_current_span(context)
    if isinstance(span, _Passed):
        return span.headers(context)
    headers: dict[str, str] = {}
    inject_headers(headers, context)
    return headers


def trace_ids() -> dict[str, str]:
    """The ids of the current span, as log records carry them; empty if there is no span."""
    span = trace.get_current_span()
    if isinstance(span, _Passed):
        return span.ids
    context = span.get_span_context()
    if not context.is_valid:
        return {}
    return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}


def context_from_environment(environment: Mapping[str, str] | None = None) -> Context:
    """The context in TRACEPARENT, TRACESTATE and BAGGAGE of this process, or of `environment`."""
    values = os.environ if environment is None else environment
    return context_from_headers({_header_name(name): value for name, value in values.items()})


def trace_environment(context: Context | None = None) -> dict[str, str]:
    """The environment variables that hand `context`, by default the current one, to a child process."""
    return {_variable_name(name): value for name, value in trace_headers(context).items()}


def link_from_annotations(annotations: Mapping[str, str] | None) -> trace.Link | None:
    """A link to whoever applied the resource, by its tidewheel.dev/traceparent annotation, if it is valid.

    A link and not a parent: a resource is reconciled for as long as it lives, and a trace must end.
    """
    value = (annotations or {}).get(ANNOTATION_TRACEPARENT)
    if value is None:
        return None
    # W3C whatever OTEL_PROPAGATORS says: the annotation's format is part of the API.
    context = TraceContextTextMapPropagator().extract({_TRACEPARENT: value}, Context())
    span_context = trace.get_current_span(context).get_span_context()
    return trace.Link(span_context) if span_context.is_valid else None


def _header_name(variable: str) -> str:
    return variable.lower().replace("_", "-")


def _variable_name(header: str) -> str:
    return header.upper().replace("-", "_")
