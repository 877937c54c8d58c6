"""What the operator decides for all PDServices: given once at its start, an argument to every plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tidewheel.api.accelerators import AcceleratorTable


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceDefaults:
    """Operator-wide defaults of PDServices."""

    #: The image of all pods that name none.
    image: str = "tidewheel-worker:latest"
    accelerators: AcceleratorTable = field(default_factory=AcceleratorTable)
    #: Variables every worker gets, such as OTEL_EXPORTER_OTLP_ENDPOINT.
    environment: Mapping[str, str] = field(default_factory=dict)
    #: How long gateways get to read new routes before a pod that left them is deleted.
    settle_seconds: float = 2.0
