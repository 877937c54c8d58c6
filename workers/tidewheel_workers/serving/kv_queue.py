"""How many KV transfers a decode has at a time, and how many may wait for that."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from tidewheel_workers.serving.kv_transport import TransfersBusy

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable


class TransferQueue:
    """Turns, in the order in which they were asked for.

    Transfers that run together share one wire, so that more of them make each later, and a long queue makes the last
    later than another decode would be: beyond `most_waiting` it is better asked.
    """

    def __init__(
        self, *, most_running: int, most_waiting: int, on_turn: Callable[[float], None] = lambda _: None
    ) -> None:
        """Set the bounds; `on_turn` is told how many seconds each one waited."""
        self.most_running = most_running
        self.most_waiting = most_waiting
        self.waiting = 0
        self._on_turn = on_turn
        self._turns = asyncio.Semaphore(most_running)
        self._running = 0

    @property
    def running(self) -> int:
        """Transfers that have their turn."""
        return self._running

    @asynccontextmanager
    async def turn(self) -> AsyncGenerator[None]:
        """Wait for a turn and have it; a caller that is cancelled leaves the queue.

        Raises:
            TransfersBusy: too many wait already.
        """
        if self._turns.locked() and self.waiting >= self.most_waiting:
            raise TransfersBusy(
                f"{self._running} KV transfers run and {self.waiting} wait; try another decode"
            )
        began = time.monotonic()
        self.waiting += 1
        try:
            await self._turns.acquire()
        finally:
            self.waiting -= 1
        self._running += 1
        try:
            self._on_turn(time.monotonic() - began)
            yield
        finally:
            self._running -= 1
            self._turns.release()
