"""Traces, metrics and logs, shared by the control plane and the workers."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

from opentelemetry.metrics import Meter, set_meter_provider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Tracer, set_tracer_provider

from tidewheel.telemetry.context import (
    context_from_environment,
    context_from_headers,
    inject_headers,
    link_from_annotations,
    passing_context,
    trace_environment,
    trace_headers,
    trace_ids,
)
from tidewheel.telemetry.environment import TelemetryMisconfigured, is_sent
from tidewheel.telemetry.logs import LogFormat, configure_logging, timestamp
from tidewheel.telemetry.metrics import GenAiInstruments, configure_metrics, gen_ai_attributes
from tidewheel.telemetry.tracing import configure_tracing

__all__ = [
    "GenAiInstruments",
    "LogFormat",
    "Telemetry",
    "TelemetryMisconfigured",
    "configure",
    "configure_logging",
    "configure_metrics",
    "configure_tracing",
    "context_from_environment",
    "context_from_headers",
    "gen_ai_attributes",
    "inject_headers",
    "is_sent",
    "link_from_annotations",
    "passing_context",
    "timestamp",
    "trace_environment",
    "trace_headers",
    "trace_ids",
]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Telemetry:
    """The providers of this process; its owner calls `shutdown` before leaving."""

    tracer_provider: TracerProvider
    meter_provider: MeterProvider

    def tracer(self, name: str) -> Tracer:
        """A tracer of this process's provider, also where it is not the global one."""
        return self.tracer_provider.get_tracer(name)

    def meter(self, name: str) -> Meter:
        """A meter of this process's provider, also where it is not the global one."""
        return self.meter_provider.get_meter(name)

    def shutdown(self, timeout_seconds: float = 3.0) -> bool:
        """Sends what is left; gives up after `timeout_seconds` so that a dead collector delays nobody.

        It blocks. Returns whether everything was handed over in time.
        """
        # The SDK's own shutdown may wait for 30 s per provider and cannot be told otherwise.
        ends = time.monotonic() + timeout_seconds
        threads = [
            threading.Thread(target=provider.shutdown, name="telemetry-shutdown", daemon=True)
            for provider in (self.tracer_provider, self.meter_provider)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, ends - time.monotonic()))
        if any(thread.is_alive() for thread in threads):
            _log.warning("telemetry was not sent within %.1f s; the last spans are lost", timeout_seconds)
            return False
        return True


def configure(
    service_name: str,
    *,
    attributes: Mapping[str, str] | None = None,
    log_format: LogFormat = "json",
    log_level: str = "info",
    register: bool = True,
) -> Telemetry:
    """Sets up logs, traces and metrics of a process by the standard OTEL_* variables.

    Args:
        service_name: `service.name` of all signals, unless OTEL_SERVICE_NAME says otherwise.
        attributes: further resource attributes.
        log_format: `json` or `text`.
        log_level: the least severe level that is written.
        register: make the providers the global ones (OpenTelemetry allows that once a process) and
            configure the root logger. Tests that run several in one process say False.

    Raises:
        TelemetryMisconfigured: the exporter or protocol asked for does not exist here.
        ValueError: there is no such log format or level.
    """
    if register:
        configure_logging(log_format, log_level)
    telemetry = Telemetry(
        tracer_provider=configure_tracing(service_name, attributes),
        meter_provider=configure_metrics(service_name, attributes),
    )
    if register:
        set_tracer_provider(telemetry.tracer_provider)
        set_meter_provider(telemetry.meter_provider)
    return telemetry
