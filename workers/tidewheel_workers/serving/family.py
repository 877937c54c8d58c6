"""One process of several that share a port: its place in the family, and its talk with the supervisor.

They speak JSON, one object a line, over a pair of sockets. The supervisor orders `report`, `drain` and `end`; a process says
`up` once it listens, `report` with its metrics and what it has not finished, and `collect` when somebody wants the
metrics of all, which the supervisor answers with their sums.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tidewheel_workers.serving.errors import unavailable
from tidewheel_workers.serving.metric_sums import snapshot, total

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Coroutine, Iterable

    from prometheus_client import Metric

    from tidewheel_workers.serving.service import OpenRequests, Service

log = logging.getLogger(__name__)

#: How long a scrape waits for the other processes.
COLLECT_SECONDS = 3.0
MOST_LINE_BYTES = 16_777_216


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a process stands: its number, its listening socket, and its end of the talk."""

    number: int
    listening: socket.socket
    talk: socket.socket


class Member:
    """The `Orders` of one process of a family: it begins to drain, and ends, when the supervisor says so."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._has_to_end = asyncio.Event()
        self._collects: dict[int, asyncio.Future[list[Metric]]] = {}
        self._collected = 0
        self._writer: asyncio.StreamWriter | None = None
        self._task: asyncio.Task[None] | None = None

    async def begin(self, service: Service, open_requests: OpenRequests, end: Callable[[], None]) -> None:
        """As in `Orders`."""
        reader, self._writer = await asyncio.open_connection(sock=self.place.talk, limit=MOST_LINE_BYTES)
        self._say({"say": "up"})
        self._task = asyncio.create_task(self._live(self._obey(reader, service, open_requests, end)))

    async def drained(self, service: Service, open_requests: OpenRequests) -> None:
        """As in `Orders`: the supervisor knows when all are done, and until then requests may still come here."""
        del service, open_requests
        await self._has_to_end.wait()

    async def collect(self) -> Iterable[Metric]:
        """The metrics of all processes together.

        Raises:
            ApiError: they did not come; those of this process alone would look as if the counters had been reset.
        """
        self._collected += 1
        number = self._collected
        waits: asyncio.Future[list[Metric]] = asyncio.get_running_loop().create_future()
        self._collects[number] = waits
        self._say({"say": "collect", "number": number})
        try:
            async with asyncio.timeout(COLLECT_SECONDS):
                return await waits
        except TimeoutError as error:
            raise unavailable("metrics_late", "the other processes of this gateway did not answer") from error
        finally:
            del self._collects[number]

    async def _obey(
        self,
        reader: asyncio.StreamReader,
        service: Service,
        open_requests: OpenRequests,
        end: Callable[[], None],
    ) -> None:
        while line := await reader.readline():
            order: dict[str, Any] = json.loads(line)
            match order["do"]:
                case "report":
                    self._say(
                        {
                            "say": "report",
                            "unfinished": open_requests.count + service.unfinished,
                            "drains": open_requests.is_draining,
                            "metrics": snapshot(service.registry.collect()),
                        }
                    )
                case "collected":
                    waits = self._collects.get(order["number"])
                    if waits is not None and not waits.done():
                        waits.set_result(total(order["metrics"]))
                case "drain":
                    end()
                case "end":
                    self._has_to_end.set()

    async def _live(self, obeying: Coroutine[None, None, None]) -> None:
        """Live no longer than the talk: without a supervisor nobody would ever end this process."""
        try:
            await obeying
        except OSError as error:
            log.error("the supervisor is gone: %s", error)
        except Exception:
            log.exception("the talk with the supervisor broke off")
        else:
            log.error("the supervisor is gone")
        logging.shutdown()
        os._exit(1)

    def _say(self, what: dict[str, Any]) -> None:
        if self._writer is not None:
            self._writer.write(json.dumps(what).encode() + b"\n")
