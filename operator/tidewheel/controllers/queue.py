"""The work queue: keys to look at, each at most once at a time, with delays and backoff per key.

The semantics are client-go's workqueue: a key that is added while it waits is not added twice; one that is added
while it is worked on waits until that is done. Keys are served first come, first served, and a key that comes back
goes to the end, so an object that changes all the time cannot hold up the others.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Hashable
from typing import Generic, Protocol, TypeVar

K = TypeVar("K", bound=Hashable)


class QueueObserver(Protocol):
    """Told what happens in the queue, for metrics."""

    def added(self, depth: int) -> None:
        """A key was added; `depth` keys wait now."""

    def started(self, depth: int, waited_seconds: float) -> None:
        """A key is worked on now, after it waited; `depth` keys still wait."""

    def finished(self, worked_seconds: float) -> None:
        """The work on a key is done, well or not."""

    def retried(self) -> None:
        """A key comes back because its work failed."""


class Backoff:
    """Seconds to wait after so many failures of one key: doubling, with jitter, up to a bound."""

    def __init__(
        self, *, first: float = 0.05, most: float = 60.0, chance: Callable[[], float] = random.random
    ) -> None:
        self._first = first
        self._most = most
        self._chance = chance

    def seconds(self, failures: int) -> float:
        """The delay before attempt `failures + 1`; between half of and the whole doubled time."""
        # The exponent is bounded because 2.0 ** n overflows after some hours of failures.
        doubled = min(self._first * 2.0 ** min(failures - 1, 30), self._most)
        return doubled * (0.5 + 0.5 * self._chance())


class WorkQueue(Generic[K]):
    """De-duplicating queue for one controller's workers. All calls belong to one event loop."""

    def __init__(self, *, backoff: Backoff | None = None, observer: QueueObserver | None = None) -> None:
        self._backoff = backoff or Backoff()
        self._observer = observer
        #: Keys that wait, in order, and since when (loop time).
        self._ready: deque[K] = deque()
        self._since: dict[K, float] = {}
        #: Keys that are worked on, and since when; those of them that must be looked at again.
        self._busy: dict[K, float] = {}
        self._again: dict[K, float] = {}
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._failures: dict[K, int] = {}
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._closed = False

    def __len__(self) -> int:
        """How many keys wait for a worker; delayed ones do not count."""
        return len(self._ready)

    def add(self, key: K) -> None:
        """Wants `key` to be looked at, now or as soon as the work on it is done."""
        now = asyncio.get_running_loop().time()
        if key in self._busy:
            self._again.setdefault(key, now)
        elif key not in self._since:
            self._enqueue(key, now)

    def add_after(self, key: K, seconds: float) -> None:
        """Wants `key` to be looked at after `seconds`, unless it is wanted earlier: the earlier time wins."""
        loop = asyncio.get_running_loop()
        timer = self._timers.get(key)
        if timer is not None:
            if timer.when() <= loop.time() + seconds:
                return
            timer.cancel()
        self._timers[key] = loop.call_later(seconds, self._fire, key)

    def retry(self, key: K, *, at_least: float = 0.0) -> float:
        """The work on `key` failed: adds it after its backoff, which grows with each failure; returns the delay."""
        self._failures[key] = self._failures.get(key, 0) + 1
        delay = max(self._backoff.seconds(self._failures[key]), at_least)
        if self._observer is not None:
            self._observer.retried()
        self.add_after(key, delay)
        return delay

    def forget(self, key: K) -> None:
        """The work on `key` went well: its next failure is its first."""
        self._failures.pop(key, None)

    async def get(self) -> K | None:
        """The next key, which the caller must hand to `done`; None once the queue is closed.

        A delay that was set for the key is dropped: whoever works on it now says anew when to look again.
        """
        loop = asyncio.get_running_loop()
        while not self._ready and not self._closed:
            waiter: asyncio.Future[None] = loop.create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                # The wake-up may have been meant for this one; pass it on rather than lose it.
                if waiter.done() and not waiter.cancelled():
                    self._wake()
                raise
        if self._closed:
            return None
        key = self._ready.popleft()
        waited = loop.time() - self._since.pop(key)
        self._busy[key] = loop.time()
        if (timer := self._timers.pop(key, None)) is not None:
            timer.cancel()
        if self._observer is not None:
            self._observer.started(len(self._ready), waited)
        return key

    def done(self, key: K) -> None:
        """The work on `key` has ended, well or not."""
        now = asyncio.get_running_loop().time()
        worked = now - self._busy.pop(key)
        if self._observer is not None:
            self._observer.finished(worked)
        if key in self._again:
            self._enqueue(key, self._again.pop(key))

    def close(self) -> None:
        """Gives out no more keys: every `get` returns None. What waits is dropped."""
        self._closed = True
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        while self._waiters:
            self._wake()

    def busy_seconds(self) -> list[float]:
        """For how long each key that is worked on has been worked on."""
        now = asyncio.get_running_loop().time()
        return [now - since for since in self._busy.values()]

    def _fire(self, key: K) -> None:
        del self._timers[key]
        self.add(key)

    def _enqueue(self, key: K, since: float) -> None:
        if self._closed:
            return
        self._ready.append(key)
        self._since[key] = since
        if self._observer is not None:
            self._observer.added(len(self._ready))
        self._wake()

    def _wake(self) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
