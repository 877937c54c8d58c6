"""The gateway's line per request: the same JSON as all log lines, made at less cost and written some at a time."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from typing import TYPE_CHECKING

from tidewheel.telemetry import json_line

if TYPE_CHECKING:
    from tidewheel_workers.serving.http1.server import Incoming

log = logging.getLogger(__name__)

#: How long a line may wait for others.
GATHER_SECONDS = 0.02
#: At once: a pipe that several processes write to mixes what is longer.
MOST_BYTES = 4000


class AccessLog:
    """Lines of one process, on standard error as all of them."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def add(self, incoming: Incoming, status: int, seconds: float) -> None:
        """A request has ended."""
        if not log.isEnabledFor(logging.INFO):
            return
        request = incoming.request
        line = json_line(
            time.time(),
            "INFO",
            log.name,
            f"{request.method} {request.path} {status} in {1000 * seconds:.0f} ms",
            request_id=incoming.id,
            status=status,
        )
        if not self._lines:
            asyncio.get_running_loop().call_later(GATHER_SECONDS, self.flush)
        self._lines.append(line)

    def flush(self) -> None:
        """Write what has gathered."""
        lines, self._lines = self._lines, []
        text = ""
        for line in lines:
            if text and len(text) + len(line) > MOST_BYTES:
                sys.stderr.write(text)
                text = ""
            text += f"{line}\n"
        sys.stderr.write(text)
        sys.stderr.flush()
