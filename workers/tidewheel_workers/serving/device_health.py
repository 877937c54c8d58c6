"""Whether this server's devices are well, by the file in which a detector on the node says so."""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING

from tidewheel.api.health import DeviceHealth, HealthFile
from tidewheel_workers.serving.start_errors import SickDevice
from tidewheel_workers.serving.watched_file import POLL_SECONDS, WatchedFile

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

log = logging.getLogger(__name__)

#: What container runtimes write in place of indices when they do not tell.
_UNTOLD = frozenset({"", "all", "void", "none"})


class DeviceWatch:
    """The health of this process's devices. A file that is not there, or cannot be read, says nothing against them.

    Args:
        file: the detector's.
        devices: those that the process may use; None if that is not known.
    """

    def __init__(self, file: Path, devices: frozenset[str] | None) -> None:
        self._file: WatchedFile[HealthFile] = WatchedFile(file, HealthFile.model_validate_json)
        self._devices = devices

    @property
    def health(self) -> DeviceHealth:
        """As it was last told."""
        told = self._file.current
        return told.of(self._devices) if told is not None else DeviceHealth()

    async def watch(self) -> None:
        """Follow the file.

        Raises:
            SickDevice: a device asks to be replaced; nothing else ends it.
        """
        while True:
            if self._file.refresh():
                log.info("devices: %s %s", self.health.level, self.health.message)
            if (health := self.health).level == "Replace":
                raise SickDevice(
                    f"a device of this pod is sick: {health.message or 'the detector says no more'}"
                )
            await asyncio.sleep(POLL_SECONDS)


def visible_devices(
    variable: str | None, environment: Mapping[str, str] = os.environ
) -> frozenset[str] | None:
    """The devices that the variable names, or None if it does not tell."""
    told = environment.get(variable, "") if variable else ""
    return None if told.strip().lower() in _UNTOLD else frozenset(one.strip() for one in told.split(","))
