"""The node-local health file: what a detector on a node knows of its devices, mounted into the pods there."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

from pydantic import Field

from tidewheel.api.model import ApiModel

#: From good to bad.
Level = Literal["Healthy", "Recovering", "Replace"]
_LEVELS: tuple[Level, ...] = ("Healthy", "Recovering", "Replace")


class DeviceHealth(ApiModel):
    """One device."""

    level: Level = Field(
        "Healthy",
        description=(
            "level is Healthy; Recovering, if the fault is expected to pass by itself: the pod takes no requests meanwhile; "
            "or Replace: the pod ends, and a substitute takes its place."
        ),
    )
    message: str = Field("", max_length=1024, description="message says what was found.")


class HealthFile(ApiModel):
    """`{"devices": {"0": {"level": "Replace", "message": "uncorrectable ECC error"}}}`; who is not named is healthy.

    P/D-Serve (arXiv 2408.08147, §3.4): a detector on each node writes its devices' state to a file that all instances there
    mount; faults have levels, and some recover by themselves.
    """

    devices: Mapping[str, DeviceHealth] = Field(
        {}, description="devices are by the index or id that the accelerator's visible-devices variable uses."
    )

    def of(self, devices: Collection[str] | None) -> DeviceHealth:
        """The worst of those devices, or of all when it is not known which a pod has."""
        found = [
            health for name, health in sorted(self.devices.items()) if devices is None or name in devices
        ]
        return max(found, key=lambda health: _LEVELS.index(health.level), default=DeviceHealth())
