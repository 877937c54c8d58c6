"""What P/D-Serve was measured against: a queue in each prefill, and gateways that send by the queues' reports.

A prefill takes every prompt and lets it wait, first come first served, until a slot is free; nobody is refused. Gateways ask each
prefill for its queue's length every 100 ms and send to the shortest, counting what they sent since; then they wait until the
TTFT deadline. A request that nobody waits for any more leaves the queue and costs nothing. All else is the product's own code.

    python local_queues.py prefill|gateway        (settings as of the product's processes)
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections import Counter, deque
from typing import TYPE_CHECKING

import aiohttp
from aiohttp import web

from tidewheel_workers.serving.dispatch import Dispatch, Ticket
from tidewheel_workers.serving.gateway import Gateway
from tidewheel_workers.serving.prefill import PrefillServer
from tidewheel_workers.serving.process import run
from tidewheel_workers.serving.settings import GatewaySettings, WorkerSettings
from tidewheel_workers.serving.slots import Slots
from tidewheel_workers.serving.waiting_room import WaitingRoom

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tidewheel_workers.serving.candidates import Role
    from tidewheel_workers.serving.errors import ApiError
    from tidewheel_workers.serving.slots import Slot

REPORT_SECONDS = 0.1
log = logging.getLogger("local_queues")


class ToldSlots(Slots):
    """Slots that say when one comes free."""

    def __init__(self, total: int, *, on_free: Callable[[], None]) -> None:
        super().__init__(total)
        self._on_free = on_free

    def give_back(self, count: int, since: float) -> None:
        super().give_back(count, since)
        self._on_free()


class QueueingPrefill(PrefillServer):
    """A prefill with a queue before its slots."""

    def __init__(self, settings: WorkerSettings) -> None:
        super().__init__(settings)
        self._queue: deque[asyncio.Future[None]] = deque()
        self._granted = 0  # slots promised to requests that have not taken them yet
        self.slots = ToldSlots(settings.slots, on_free=self._let_in)

    def routes(self) -> Sequence[web.RouteDef]:
        return (*super().routes(), web.get("/queue", self._report))

    async def complete(self, request: web.Request) -> web.StreamResponse:
        await self._turn()
        return await super().complete(request)

    def take_slot(self, count: int = 1) -> Slot:
        self._granted -= 1
        return super().take_slot(count)

    async def _turn(self) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        self._let_in()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._granted -= 1
                self._let_in()
            raise

    def _let_in(self) -> None:
        while self._queue and self.slots.used + self._granted < self.slots.total:
            turn = self._queue.popleft()
            if not turn.done():
                self._granted += 1
                turn.set_result(None)

    async def _report(self, _: web.Request) -> web.Response:
        waiting = sum(not turn.done() for turn in self._queue)
        return web.json_response({"load": waiting + self._granted + self.slots.used})


class QueueDispatch(Dispatch):
    """Sends every request at once to the prefill whose queue was shortest when it last reported."""

    def __init__(self, like: Dispatch, jitter: Callable[[], float]) -> None:
        super().__init__(like.settings, jitter)
        self.reported: Counter[str] = Counter()  # and what was sent since

    def enter(self, ticket: Ticket, role: Role, at: float, *, group: str = "") -> ApiError | None:
        if role == "decode":
            return super().enter(ticket, role, at, group=group)
        places = [(g, backend) for g in self.groups for backend in g.prefill]
        if not places:
            return super().enter(ticket, role, at, group=group)
        chosen, backend = min(places, key=lambda place: (self.reported[place[1].name], self._jitter()))
        self.reported[backend.name] += 1
        ticket.hold = self.ledger.ask(backend, at)
        ticket.role, ticket.group = "prefill", chosen.name
        return None

    def gives_up_at(self, ticket: Ticket, at: float) -> float:
        del at
        return ticket.deadline


class QueueGateway(Gateway):
    """A gateway that follows the queues' reports."""

    def __init__(self, settings: GatewaySettings) -> None:
        super().__init__(settings)
        forwarder = self.forwarder
        self.reports = QueueDispatch(forwarder.dispatch, forwarder.random.random)
        forwarder.dispatch, forwarder.waiting_room = self.reports, WaitingRoom(self.reports)

    async def start(self, fail: Callable[[BaseException], None]) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(super().start(fail))
            tasks.create_task(self._listen())

    async def _listen(self) -> None:
        timeout = aiohttp.ClientTimeout(total=1)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while True:
                for group in self.groups:
                    for backend in group.prefill:
                        url = f"http://{backend.address}:{backend.port}/queue"
                        try:
                            async with session.get(url) as answer:
                                self.reports.reported[backend.name] = json.loads(await answer.read())["load"]
                        except (aiohttp.ClientError, TimeoutError) as error:
                            log.warning("%s does not report: %s", backend.name, error)
                await asyncio.sleep(REPORT_SECONDS)


def main() -> None:
    if sys.argv[1] == "prefill":
        run("prefill", lambda: QueueingPrefill(WorkerSettings.for_role("prefill")))
    run("gateway", lambda: QueueGateway(GatewaySettings.from_environment()))


if __name__ == "__main__":
    main()
