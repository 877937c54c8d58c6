"""Simulated time: things that happen at their time, in the order in which they were put down."""

from __future__ import annotations

import heapq
from collections.abc import Callable


class Clock:
    """The queue of what is to happen. Nothing here depends on anything but the calls made, so runs repeat exactly."""

    def __init__(self) -> None:
        self.now = 0.0
        self._queue: list[tuple[float, bool, int, Callable[[], None]]] = []
        self._number = 0

    def at(self, when: float, happen: Callable[[], None]) -> None:
        """Let something happen at a time, or now if that is past."""
        self._put(max(when, self.now), happen, is_last=False)

    def at_last(self, happen: Callable[[], None]) -> None:
        """Let something happen now, when all else that happens at this very time has happened."""
        self._put(self.now, happen, is_last=True)

    def after(self, seconds: float, happen: Callable[[], None]) -> None:
        """Let something happen so much later."""
        self.at(self.now + seconds, happen)

    def run(self, until: Callable[[], bool]) -> None:
        """Go on until that is so, or until nothing is left to happen."""
        while self._queue and not until():
            self.now, *_, happen = heapq.heappop(self._queue)
            happen()

    def _put(self, when: float, happen: Callable[[], None], *, is_last: bool) -> None:
        self._number += 1
        heapq.heappush(self._queue, (when, is_last, self._number, happen))
