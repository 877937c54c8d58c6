"""Where requests wait until `dispatch` lets them go on: the one timer and the futures of a gateway."""

from __future__ import annotations

import asyncio
import math
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tidewheel_workers.serving.dispatch import Dispatch, Ticket

#: Timers have a millisecond's resolution; one that is shorter would fire before its time.
LEAST_SECONDS = 0.001


class WaitingRoom:
    """The requests of one event loop that wait.

    Call `look_around` after everything that was told to the dispatch.
    """

    def __init__(self, dispatch: Dispatch) -> None:
        self._dispatch = dispatch
        self._waiting: dict[Ticket, asyncio.Future[None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf

    async def wait(self, ticket: Ticket, until: float) -> None:
        """Until that time, or until the ticket may go on."""
        if not ticket.is_waiting:
            return
        loop = asyncio.get_running_loop()
        future = self._waiting[ticket] = loop.create_future()
        timer = loop.call_later(max(until - time.monotonic(), LEAST_SECONDS), _wake, future)
        try:
            self.look_around()
            await future
        finally:
            timer.cancel()
            self._waiting.pop(ticket, None)

    def look_around(self) -> None:
        """Wake those who may go on, and see to it that nobody sleeps too long."""
        for ticket in self._dispatch.take_woken():
            if (future := self._waiting.get(ticket)) is not None:
                _wake(future)
        when = self._dispatch.look_again_at
        if when == self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_at = None, when
        if when < math.inf:
            delay = max(when - time.monotonic(), LEAST_SECONDS)
            self._timer = asyncio.get_running_loop().call_later(delay, self._ring)

    def close(self) -> None:
        """Nobody waits any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _ring(self) -> None:
        self._timer, self._timer_at = None, math.inf
        self._dispatch.grant(time.monotonic())
        self.look_around()


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
