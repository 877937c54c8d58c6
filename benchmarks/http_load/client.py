"""A closed-loop load client that costs as little as possible: so many callers, each asks again when it has its answer.

A caller has one connection to each server that it asks. `steps` say which servers an exchange needs: one after the other,
or, within one step, at once.
"""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_STAMP = re.compile(rb"@(\d+)@")


@dataclass(slots=True, kw_only=True)
class Ask:
    """One request to one server."""

    host: str
    port: int
    request: bytes


@dataclass(slots=True, kw_only=True)
class Seen:
    """What one run showed; times in nanoseconds."""

    whole: list[int] = field(default_factory=list)  # from asking to the end of the last answer
    first: list[int] = field(default_factory=list)  # to its first byte
    token: list[int] = field(default_factory=list)  # from the server's writing of a token to its arrival
    errors: int = 0
    begun: int = 0  # exchanges, also those that are not measured
    seconds: float = 0.0

    @property
    def per_second(self) -> float:
        """Exchanges completed in a second."""
        return len(self.whole) / self.seconds


class _Connection(asyncio.Protocol):
    def __init__(self, caller: _Caller, ask: Ask) -> None:
        self.ask = ask
        self._caller = caller
        self.transport: asyncio.Transport | None = None
        self._head = b""
        self._left = -1  # of the body; -1 before the head, -2 while chunks come

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self.transport = None
        self._caller.lost()

    def send(self) -> None:
        self._left, self._head = -1, b""
        if self.transport is not None:
            self.transport.write(self.ask.request)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        if self._left == -1:
            if not self._head:
                self._caller.first_byte(self, now)
            self._head += data
            end = self._head.find(b"\r\n\r\n") + 4
            if end < 4:
                return
            head = self._head[:end].lower()
            if not head.startswith(b"http/1.1 200"):
                self._caller.seen.errors += 1
            at = head.find(b"content-length:")
            self._left = int(head[at + 15 : head.find(b"\r\n", at)]) if at > 0 else -2
            data = self._head[end:]
        if self._left == -2:
            for stamp in _STAMP.findall(data):
                self._caller.seen.token.append(now - int(stamp))
            if data.endswith(b"0\r\n\r\n"):
                self._caller.answered(now)
            return
        self._left -= len(data)
        if self._left <= 0:
            self._caller.answered(now)


class _Caller:
    def __init__(self, steps: Sequence[Sequence[Ask]]) -> None:
        self.seen = Seen()
        self.begun = 0
        self.is_over = False
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._steps = [[_Connection(self, ask) for ask in step] for step in steps]
        self._last = self._steps[-1][-1]  # whose answer is the exchange's
        self._step = 0
        self._missing = 0
        self._began = 0
        self._first = 0

    async def connect(self) -> None:
        loop = asyncio.get_running_loop()
        for step in self._steps:
            for one in step:
                await loop.create_connection(lambda one=one: one, one.ask.host, one.ask.port)

    def begin(self) -> None:
        self.begun += 1
        self._began = time.monotonic_ns()
        self._step = 0
        self._ask()

    def _ask(self) -> None:
        step = self._steps[self._step]
        self._missing = len(step)
        for one in step:
            one.send()

    def first_byte(self, connection: _Connection, now: int) -> None:
        if connection is self._last:
            self._first = now

    def answered(self, now: int) -> None:
        self._missing -= 1
        if self._missing:
            return
        self._step += 1
        if self._step < len(self._steps):
            self._ask()
            return
        self.seen.whole.append(now - self._began)
        self.seen.first.append(self._first - self._began)
        if self.is_over:
            self.close()
        else:
            self.begin()

    def lost(self) -> None:
        if not self.ended.done():
            self.seen.errors += 1
            self.ended.set_result(None)

    def close(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)
        for step in self._steps:
            for one in step:
                if one.transport is not None:
                    one.transport.abort()


async def load(
    steps: Sequence[Sequence[Ask]],
    *,
    callers: int,
    warm_seconds: float,
    seconds: float,
    spread_seconds: float = 0.0,
) -> Seen:
    """Ask for some time; what happened while warming up is left out.

    Args:
        spread_seconds: over which the callers begin, evenly; else streams of one length would all begin at once, for ever.
    """
    many = [_Caller(steps) for _ in range(callers)]
    for caller in many:
        await caller.connect()
    for caller in many:
        if spread_seconds:
            await asyncio.sleep(spread_seconds / callers)
        caller.begin()
    await asyncio.sleep(warm_seconds)
    for caller in many:
        caller.seen = Seen()
    began = time.monotonic()
    await asyncio.sleep(seconds)
    total = Seen(seconds=time.monotonic() - began)
    for caller in many:
        total.whole += caller.seen.whole
        total.first += caller.seen.first
        total.token += caller.seen.token
        total.errors += caller.seen.errors
        caller.seen = Seen()
        caller.is_over = True
    await asyncio.wait([caller.ended for caller in many], timeout=5)
    for caller in many:
        total.begun += caller.begun
        caller.close()
    return total
