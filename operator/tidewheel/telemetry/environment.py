"""What the standard OTEL_* variables and the pod's downward fields say, read in one place for traces and metrics."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Literal

from opentelemetry.sdk.resources import OTELResourceDetector, Resource

Signal = Literal["traces", "metrics"]
Protocol = Literal["grpc", "http/protobuf"]

#: Environment variables of a pod (downward API) and the resource attributes they become.
_POD_ATTRIBUTES: Mapping[str, str] = {
    "POD_NAME": "k8s.pod.name",
    "POD_NAMESPACE": "k8s.namespace.name",
    "POD_UID": "k8s.pod.uid",
    "NODE_NAME": "k8s.node.name",
}


class TelemetryMisconfigured(ValueError):
    """An OTEL_* variable has a value nothing can be done with."""


def sdk_is_disabled() -> bool:
    """Whether OTEL_SDK_DISABLED switches traces and metrics off. Context still passes through."""
    return os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"


def service_resource(service_name: str, attributes: Mapping[str, str] | None = None) -> Resource:
    """Who speaks: the service, its pod, and what OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME add.

    The environment wins over `attributes`, so that whoever deploys has the last word. Every process
    has its own `service.instance.id`; without it the metrics of two replicas would be one series.
    """
    pod = {
        name: os.environ[variable] for variable, name in _POD_ATTRIBUTES.items() if os.environ.get(variable)
    }
    instance = pod.get("k8s.pod.uid") or pod.get("k8s.pod.name") or socket.gethostname()
    own = {
        "service.name": service_name,
        "service.namespace": "tidewheel",
        "service.instance.id": f"{instance}-{os.getpid()}",
        **pod,
        **(attributes or {}),
    }
    # Resource.create() lets its argument win, so the environment is laid over it first.
    return Resource.create({**own, **OTELResourceDetector().detect().attributes})


def is_sent(signal: Signal) -> bool:
    """Whether what this process records of `signal` goes anywhere.

    Raises:
        TelemetryMisconfigured: the exporter or protocol asked for does not exist here.
    """
    return otlp_protocol(signal) is not None


def otlp_protocol(signal: Signal) -> Protocol | None:
    """How `signal` leaves this process, or None if it does not: no endpoint, exporter `none`, SDK disabled.

    Raises:
        TelemetryMisconfigured: the exporter or protocol asked for does not exist here.
    """
    upper = signal.upper()
    exporter_variable = f"OTEL_{upper}_EXPORTER"
    exporter = os.environ.get(exporter_variable, "otlp").strip().lower() or "otlp"
    if exporter not in ("otlp", "none"):
        raise TelemetryMisconfigured(f"{exporter_variable}={exporter}: only otlp and none are offered")
    endpoint = os.environ.get(f"OTEL_EXPORTER_OTLP_{upper}_ENDPOINT") or os.environ.get(
        "OTEL_EXPORTER_OTLP_ENDPOINT"
    )
    if exporter == "none" or not endpoint or sdk_is_disabled():
        return None
    for variable in (f"OTEL_EXPORTER_OTLP_{upper}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        protocol = os.environ.get(variable, "").strip().lower()
        if protocol == "http/protobuf":
            return "http/protobuf"
        if protocol == "grpc":
            return "grpc"
        if protocol:
            raise TelemetryMisconfigured(f"{variable}={protocol}: only grpc and http/protobuf are offered")
    return "grpc"
