"""The tracer provider: spans always have ids, and leave over OTLP when the environment names an endpoint."""

from __future__ import annotations

from collections.abc import Mapping

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

from tidewheel.telemetry.environment import Protocol, otlp_protocol, service_resource


def configure_tracing(service_name: str, attributes: Mapping[str, str] | None = None) -> TracerProvider:
    """A provider set up by the standard variables; the caller registers it and shuts it down.

    Without an OTLP endpoint nothing is exported, but spans are still recorded with ids, so that logs
    and the hops of a request can be told together. OTEL_TRACES_SAMPLER, OTEL_BSP_* and
    OTEL_SDK_DISABLED mean what the specification says.

    Raises:
        TelemetryMisconfigured: the exporter or protocol asked for does not exist here.
    """
    protocol = otlp_protocol("traces")
    # The owner shuts down with a time limit; the SDK's own exit hook has none.
    provider = TracerProvider(resource=service_resource(service_name, attributes), shutdown_on_exit=False)
    if protocol is not None:
        provider.add_span_processor(BatchSpanProcessor(_exporter(protocol)))
    return provider


def _exporter(protocol: Protocol) -> SpanExporter:
    # Imported here because grpc alone costs a tenth of a second, which processes without OTLP need not pay.
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter

        return GrpcExporter()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter

    return HttpExporter()
