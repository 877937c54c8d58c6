"""The gateway's line per request: the same JSON as all log lines, made at less cost and written some at a time."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from functools import lru_cache
from typing import TYPE_CHECKING

from tidewheel.telemetry import timestamp, trace_ids

if TYPE_CHECKING:
    from tidewheel_workers.serving.http1.server import Incoming

log = logging.getLogger(__name__)

#: How long a line may wait for others.
GATHER_SECONDS = 0.02
#: At once: a pipe that several processes write to mixes what is longer.
MOST_BYTES = 4000


@lru_cache(maxsize=1024)
def _escaped(method: str, path: str) -> str:
    return json.dumps(f"{method} {path}")[1:-1]


class AccessLog:
    """Lines of one process, on standard error as all of them."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def add(self, incoming: Incoming, status: int, seconds: float) -> None:
        """A request has ended."""
        if not log.isEnabledFor(logging.INFO):
            return
        request = incoming.request
        now = time.time()
        ids = "".join([f'"{name}": "{value}", ' for name, value in trace_ids().items()])
        # a request's id has no characters that would have to be escaped
        line = (
            f'{{"ts": "{timestamp(now)}", "level": "info", "logger": "{log.name}", '
            f'"message": "{_escaped(request.method, request.path)} {status} in {1000 * seconds:.0f} ms", '
            f'{ids}"request_id": "{incoming.id}", "status": {status}}}'
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
