"""Clients of a soak: each sends one request after the other to some gateway and notes how each ended."""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import aiohttp
from tests.soak.plans import Ending, Known, Plan, Seen, ending, plan

if TYPE_CHECKING:
    from tests.soak.fleet import Fleet, Player

#: Longer than every limit of the service: who hears nothing until then would wait for ever.
PATIENCE_SECONDS = 90.0
THINK_SECONDS = (0.0, 0.15)
SLOW_BUFFER_BYTES = 4096
SLOW_READ = (2048, 0.03)  # bytes, and seconds until the next


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One request, from the client's side; times are of the monotonic clock."""

    kind: str
    choices: int
    gateway: str
    life: int  # of that gateway
    status: int | None
    ending: Ending
    detail: str
    sent: float
    first: float | None  # when the first bytes of a stream's answer were there
    ended: float

    @property
    def ttft(self) -> float | None:
        """Seconds to the first token, of streams that ended well."""
        if self.first is None or self.ending is not Ending.ANSWERED:
            return None
        return self.first - self.sent


class Clients:
    """Use it as an asynchronous context manager; `begin` and `end` may alternate."""

    def __init__(self, fleet: Fleet, *, count: int, seed: int, has_choices: bool = False) -> None:
        self._fleet = fleet
        self._count = count
        self._seed = seed
        self._round = 0
        self._number = 0
        self._stops = asyncio.Event()
        self._running: list[asyncio.Task[None]] = []
        self.has_choices = has_choices
        self.known: Known = ()
        self.records: list[Record] = []
        self.sent: Counter[tuple[str, int]] = Counter()  # by gateway and its life, also what is in no record

    async def __aenter__(self) -> Clients:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
        # a connection for each request: what one client does to its connection is nobody else's affair
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=True), timeout=timeout
        )
        self._slow_session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=True, socket_factory=_small_socket),
            timeout=timeout,
            read_bufsize=SLOW_BUFFER_BYTES,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        await self._session.close()
        await self._slow_session.close()

    def begin(self) -> None:
        """Let them ask."""
        self._stops.clear()
        self._round += 1
        self._running = [
            asyncio.create_task(self._ask_on(random.Random(f"{self._seed}/{self._round}/{number}")))
            for number in range(self._count)
        ]

    async def end(self) -> None:
        """Let each finish what it asks now."""
        self._stops.set()
        await asyncio.gather(*self._running)
        self._running = []

    async def ask(self, asked: Plan, gateway: Player) -> Record | None:
        """One request; None where no connection came about, so that nothing was asked."""
        life, sent = gateway.life, time.monotonic()
        seen, first = await self.exchange(asked, gateway)
        if seen is None:
            return None
        how, detail = ending(asked, seen)
        record = Record(
            kind=asked.kind,
            choices=asked.choices,
            gateway=gateway.name,
            life=life,
            status=seen.status,
            ending=how,
            detail=detail,
            sent=sent,
            first=first if asked.is_stream else None,
            ended=time.monotonic(),
        )
        self.records.append(record)
        return record

    async def _ask_on(self, draw: random.Random) -> None:
        while not self._stops.is_set():
            await asyncio.sleep(draw.uniform(*THINK_SECONDS))
            self._number += 1
            asked = plan(draw, self._number, has_choices=self.has_choices, known=self.known)
            gateways = [one for one in self._fleet.gateways if one.is_ready and not one.is_leaving]
            if not gateways or await self.ask(asked, draw.choice(gateways)) is None:
                await asyncio.sleep(0.1)

    async def exchange(self, asked: Plan, gateway: Player) -> tuple[Seen | None, float | None]:
        """What comes of a request, None where there was no connection, and when its first bytes came."""
        raw, life = bytearray(), gateway.life
        status: int | None = None
        first: float | None = None
        end = "whole"
        session = self._slow_session if asked.reads_slowly else self._session
        try:
            async with asyncio.timeout(asked.leaves_after_seconds or PATIENCE_SECONDS):
                async with session.post(
                    f"{gateway.worker.url}{asked.endpoint}",
                    data=asked.body,
                    headers={"Content-Type": "application/json"},
                ) as answer:
                    status = answer.status
                    async for part in _parts(answer, slowly=asked.reads_slowly):
                        first = first or time.monotonic()
                        raw += part
                        if raw.count(b"\n\n") >= (asked.leaves_after_chunks or float("inf")):
                            end = "left"
                            answer.close()
                            break
        except aiohttp.ClientConnectorError:
            return None, None
        except TimeoutError:
            end = "unheard" if asked.leaves_after_seconds is None else "left"
        except (aiohttp.ClientError, OSError):
            end = "broken"
        self.sent[gateway.name, life] += 1
        return Seen(status=status, raw=bytes(raw), end=end), first


async def _parts(answer: aiohttp.ClientResponse, *, slowly: bool):
    if not slowly:
        async for part in answer.content.iter_any():
            yield part
        return
    size, pause = SLOW_READ
    while part := await answer.content.read(size):
        yield part
        await asyncio.sleep(pause)


def _small_socket(address: aiohttp.AddrInfoType) -> socket.socket:
    family, kind, protocol, _, _ = address
    sock = socket.socket(family, kind, protocol)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_BUFFER_BYTES)
    return sock
