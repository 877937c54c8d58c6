"""An OTLP collector in the test's own process: a real gRPC server that keeps what it is sent.

`from tests.otlp_receiver import OtlpReceiver, otlp_receiver` in a test module or conftest, then point
OTEL_EXPORTER_OTLP_ENDPOINT at `otlp_receiver.endpoint`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import grpc
import pytest
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedSpan:
    """A span as it arrived; ids are lower-case hex, empty where there is none."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    attributes: Mapping[str, Any]
    resource: Mapping[str, Any]
    links: tuple[tuple[str, str], ...]
    failed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedMetric:
    """A metric as it arrived, with the protobuf message for what is not lifted out."""

    name: str
    unit: str
    resource: Mapping[str, Any]
    message: Metric


class OtlpReceiver:
    """Serves the trace and metrics services on loopback; use it as a context manager."""

    def __init__(self) -> None:
        self._arrived = threading.Condition()
        self._spans: list[ReceivedSpan] = []
        self._metrics: list[ReceivedMetric] = []
        self._server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(_Traces(self), self._server)
        metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(_Metrics(self), self._server)
        self.endpoint = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(grace=None).wait()

    @property
    def environment(self) -> dict[str, str]:
        """Variables that make a process send here at once."""
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
            "OTEL_BSP_SCHEDULE_DELAY": "50",
            "OTEL_METRIC_EXPORT_INTERVAL": "200",
        }

    @property
    def spans(self) -> tuple[ReceivedSpan, ...]:
        """All spans so far, in order of arrival."""
        with self._arrived:
            return tuple(self._spans)

    @property
    def metrics(self) -> tuple[ReceivedMetric, ...]:
        """All metrics so far, in order of arrival; a periodic reader repeats them."""
        with self._arrived:
            return tuple(self._metrics)

    def wait_for_span(
        self,
        name: str,
        where: Callable[[ReceivedSpan], bool] = lambda _: True,
        *,
        timeout_seconds: float = 20.0,
    ) -> ReceivedSpan:
        """The first span of that name; in a coroutine call it by `asyncio.to_thread`.

        Raises:
            TimeoutError: it did not come; the message says what did.
        """
        return self._wait_for(
            lambda: next((s for s in self._spans if s.name == name and where(s)), None),
            lambda: f"no span {name!r}; there are {sorted({s.name for s in self._spans})}",
            timeout_seconds,
        )

    def wait_for_metric(self, name: str, *, timeout_seconds: float = 20.0) -> ReceivedMetric:
        """The latest state of a metric; in a coroutine call it by `asyncio.to_thread`.

        Raises:
            TimeoutError: it did not come; the message says what did.
        """
        return self._wait_for(
            lambda: next((m for m in reversed(self._metrics) if m.name == name), None),
            lambda: f"no metric {name!r}; there are {sorted({m.name for m in self._metrics})}",
            timeout_seconds,
        )

    def receive_traces(self, request: trace_service_pb2.ExportTraceServiceRequest) -> None:
        """Keeps the spans of a request, also of one that came over HTTP."""
        spans = [
            ReceivedSpan(
                name=span.name,
                trace_id=span.trace_id.hex(),
                span_id=span.span_id.hex(),
                parent_id=span.parent_span_id.hex(),
                attributes=_mapping(span.attributes),
                resource=_mapping(group.resource.attributes),
                links=tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
                failed=span.status.code == span.status.STATUS_CODE_ERROR,
            )
            for group in request.resource_spans
            for scope in group.scope_spans
            for span in scope.spans
        ]
        with self._arrived:
            self._spans += spans
            self._arrived.notify_all()

    def receive_metrics(self, request: metrics_service_pb2.ExportMetricsServiceRequest) -> None:
        """Keeps the metrics of a request, also of one that came over HTTP."""
        metrics = [
            ReceivedMetric(
                name=metric.name,
                unit=metric.unit,
                resource=_mapping(group.resource.attributes),
                message=metric,
            )
            for group in request.resource_metrics
            for scope in group.scope_metrics
            for metric in scope.metrics
        ]
        with self._arrived:
            self._metrics += metrics
            self._arrived.notify_all()

    def _wait_for(
        self, find: Callable[[], _T | None], missing: Callable[[], str], timeout_seconds: float
    ) -> _T:
        with self._arrived:
            self._arrived.wait_for(lambda: find() is not None, timeout_seconds)
            found = find()
            if found is None:
                raise TimeoutError(f"{missing()} after {timeout_seconds} s")
            return found


@pytest.fixture
def otlp_receiver() -> Iterator[OtlpReceiver]:
    """A running receiver."""
    with OtlpReceiver() as receiver:
        yield receiver


class _Traces(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self, receiver: OtlpReceiver) -> None:
        self._receiver = receiver

    def Export(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802, ARG002  (gRPC's names)
        self._receiver.receive_traces(request)
        return trace_service_pb2.ExportTraceServiceResponse()


class _Metrics(metrics_service_pb2_grpc.MetricsServiceServicer):
    def __init__(self, receiver: OtlpReceiver) -> None:
        self._receiver = receiver

    def Export(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802, ARG002  (gRPC's names)
        self._receiver.receive_metrics(request)
        return metrics_service_pb2.ExportMetricsServiceResponse()


def _mapping(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair) for pair in pairs}


def _value(pair: KeyValue) -> Any:
    value: AnyValue = pair.value
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [getattr(item, str(item.WhichOneof("value"))) for item in value.array_value.values]
    return getattr(value, kind) if kind else None
