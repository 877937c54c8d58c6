"""The meter provider for OTLP, and the gen_ai instruments with the bucket boundaries their convention publishes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from opentelemetry.metrics import Histogram, Meter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricExporter, PeriodicExportingMetricReader

from tidewheel.telemetry.environment import Protocol, otlp_protocol, service_resource

#: Boundaries recommended by the OpenTelemetry GenAI conventions (status: development).
_DURATION_SECONDS = tuple(0.01 * 2**step for step in range(14))
_TOKENS = tuple(4**step for step in range(14))
_FIRST_TOKEN_SECONDS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
)  # fmt: skip
_OUTPUT_TOKEN_SECONDS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)


def configure_metrics(service_name: str, attributes: Mapping[str, str] | None = None) -> MeterProvider:
    """A provider that pushes over OTLP when the environment names an endpoint, and drops measurements otherwise.

    OTEL_METRIC_EXPORT_INTERVAL and OTEL_SDK_DISABLED mean what the specification says. Scraped
    metrics (Prometheus) are kept apart by whoever serves them.

    Raises:
        TelemetryMisconfigured: the exporter or protocol asked for does not exist here.
    """
    protocol = otlp_protocol("metrics")
    readers = [PeriodicExportingMetricReader(_exporter(protocol))] if protocol is not None else []
    return MeterProvider(
        metric_readers=readers, resource=service_resource(service_name, attributes), shutdown_on_exit=False
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class GenAiInstruments:
    """Histograms of the GenAI conventions; record with the attributes of `gen_ai_attributes`."""

    server_request_duration: Histogram
    server_time_to_first_token: Histogram
    server_time_per_output_token: Histogram
    client_token_usage: Histogram

    @classmethod
    def of(cls, meter: Meter) -> Self:
        """The instruments of `meter`, with the published boundaries."""
        return cls(
            server_request_duration=_histogram(
                meter,
                "gen_ai.server.request.duration",
                "s",
                _DURATION_SECONDS,
                "Generative AI server request duration such as time-to-last byte or last output token.",
            ),
            server_time_to_first_token=_histogram(
                meter,
                "gen_ai.server.time_to_first_token",
                "s",
                _FIRST_TOKEN_SECONDS,
                "Time to generate first token for successful responses.",
            ),
            server_time_per_output_token=_histogram(
                meter,
                "gen_ai.server.time_per_output_token",
                "s",
                _OUTPUT_TOKEN_SECONDS,
                "Time per output token generated after the first token for successful responses.",
            ),
            client_token_usage=_histogram(
                meter,
                "gen_ai.client.token.usage",
                "{token}",
                _TOKENS,
                "Number of input and output tokens used.",
            ),
        )


def gen_ai_attributes(
    *,
    operation: str,
    request_model: str,
    response_model: str | None = None,
    token_type: str | None = None,
    error_type: str | None = None,
) -> dict[str, str]:
    """Attributes of a GenAI measurement or span, by the names of the conventions.

    Args:
        operation: `chat` or `text_completion`.
        request_model: the model the request names.
        response_model: the model that answered.
        token_type: `input` or `output`, for token usage only.
        error_type: a class of failure with few values; absent on success.
    """
    given = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "tidewheel",
        "gen_ai.request.model": request_model,
        "gen_ai.response.model": response_model,
        "gen_ai.token.type": token_type,
        "error.type": error_type,
    }
    return {name: value for name, value in given.items() if value is not None}


def _histogram(
    meter: Meter, name: str, unit: str, boundaries: Sequence[float], description: str
) -> Histogram:
    # The advisory travels with the instrument, so it holds for every provider, also a test's.
    return meter.create_histogram(
        name, unit=unit, description=description, explicit_bucket_boundaries_advisory=boundaries
    )


def _exporter(protocol: Protocol) -> MetricExporter:
    # Imported here because grpc alone costs a tenth of a second, which processes without OTLP need not pay.
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as GrpcExporter

        return GrpcExporter()
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as HttpExporter

    return HttpExporter()
