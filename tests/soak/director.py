"""Performs a story on a fleet, and notes when each fault began, ended and was overcome."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.soak.fleet import HTTP_PORT, KV_PORT
from tests.soak.story import Fault

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.soak.fleet import Fleet, Player
    from tests.soak.link import Link

OVERCOME_SECONDS = 90.0
MOST_DELAY_SECONDS = 0.15
MOST_SILENT, NOISES = 20, 8  # connections of one fault
HALF_A_REQUEST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: soak\r\nContent-Length: 1000\r\n\r\n{"


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """One fault as it was; times are of the monotonic clock."""

    fault: Fault
    name: str  # of the process it hit
    life: int
    began: float
    overcome: float  # everyone was ready again; infinite where that never came

    @property
    def seconds(self) -> float:
        """From its beginning until everyone was ready again."""
        return self.overcome - self.began


class Director:
    """One storm."""

    def __init__(self, fleet: Fleet, say: Callable[[str], None]) -> None:
        self._fleet = fleet
        self._say = say
        self.windows: list[Window] = []

    async def perform(self, story: Sequence[Fault]) -> None:
        """All of it; a fault that takes a process away waits until its role is complete."""
        began = time.monotonic()
        async with asyncio.TaskGroup() as storm:
            for fault in story:
                await asyncio.sleep(began + fault.at - time.monotonic())
                if not fault.kind.takes_away or await self._is_complete(fault):
                    storm.create_task(self._perform(fault))

    async def _is_complete(self, fault: Fault) -> bool:
        """Whether its role is complete within a time that is enough for it."""
        try:
            async with asyncio.timeout(OVERCOME_SECONDS):
                await self._fleet.complete(fault.role)
        except TimeoutError:
            self._say(f"{fault.kind.name}: {fault.target} is spared, as another {fault.role} is still away")
            return False
        return True

    async def _perform(self, fault: Fault) -> None:
        player = self._fleet.at(fault.role, fault.place)
        self._say(f"{fault.at:6.1f} s  {fault.kind.name}: {fault.target} ({player.name})")
        name, life, began = player.name, player.life, time.monotonic()
        overcome = float("inf")
        try:
            async with asyncio.timeout(OVERCOME_SECONDS):
                await getattr(self, "_" + fault.kind.name.replace(" ", "_"))(fault, player)
                await self._fleet.complete(fault.role)
            overcome = time.monotonic()
        except TimeoutError:
            self._say(f"{fault.kind.name}: {fault.target} was not overcome within {OVERCOME_SECONDS:.0f} s")
        self.windows.append(Window(fault=fault, name=name, life=life, began=began, overcome=overcome))

    # ---- one method for each kind, by its name

    async def _kill(self, fault: Fault, player: Player) -> None:
        await self._fleet.kill(player)
        await asyncio.sleep(fault.seconds)
        await self._fleet.restart(player)

    async def _replace(self, _: Fault, player: Player) -> None:
        await self._fleet.kill(player)
        await self._fleet.substitute(player)

    async def _drain(self, _: Fault, player: Player) -> None:
        await self._fleet.stop_gently(player)
        if player.role == "gateway":
            await self._fleet.restart(player)
        else:
            await self._fleet.substitute(player)

    async def _stall(self, fault: Fault, player: Player) -> None:
        self._fleet.send_all(player, signal.SIGSTOP)
        try:
            await asyncio.sleep(fault.seconds)
        finally:
            self._fleet.send_all(player, signal.SIGCONT)

    async def _kill_one(self, fault: Fault, player: Player) -> None:
        self._fleet.kill_one(player, fault.seed)

    async def _cut(self, fault: Fault, player: Player) -> None:
        _link(fault, player).cut()

    async def _truncate(self, fault: Fault, player: Player) -> None:
        _link(fault, player).truncate(random.Random(fault.seed))
        await self._then_release(fault, player)

    async def _corrupt(self, fault: Fault, player: Player) -> None:
        _link(fault, player).spoil(random.Random(fault.seed))
        await self._then_release(fault, player)

    async def _delay(self, fault: Fault, player: Player) -> None:
        _link(fault, player).delay_seconds = random.Random(fault.seed).uniform(0.01, MOST_DELAY_SECONDS)
        await self._then_release(fault, player)

    async def _hold(self, fault: Fault, player: Player) -> None:
        _link(fault, player).hold()
        await self._then_release(fault, player)

    async def _then_release(self, fault: Fault, player: Player) -> None:
        await asyncio.sleep(fault.seconds)
        _link(fault, player).release()

    async def _garbage_frames(self, fault: Fault, player: Player) -> None:
        draw = random.Random(fault.seed)
        for _ in range(NOISES):
            await _send(player.worker.host, KV_PORT, noise(draw, b"TWKV\x01"))

    async def _garbage_bytes(self, fault: Fault, player: Player) -> None:
        draw = random.Random(fault.seed)
        for _ in range(NOISES):
            await _send(player.worker.host, HTTP_PORT, noise(draw, b"POST /v1/chat/completions HTTP/1.1\r\n"))

    async def _silence(self, fault: Fault, player: Player) -> None:
        draw = random.Random(fault.seed)
        port = draw.choice([HTTP_PORT, KV_PORT]) if player.role == "prefill" else HTTP_PORT
        begun = draw.choice([b"", b"T" if port == KV_PORT else HALF_A_REQUEST])
        async with asyncio.TaskGroup() as all_of_them:
            for _ in range(draw.randrange(1, MOST_SILENT + 1)):
                all_of_them.create_task(_send(player.worker.host, port, begun, then_wait=fault.seconds))


def _link(fault: Fault, player: Player) -> Link:
    return player.links[fault.port or "http"]


def noise(draw: random.Random, beginning: bytes) -> bytes:
    """Bytes that no protocol has, sometimes behind a beginning that one has."""
    return draw.choice([b"", beginning]) + draw.randbytes(draw.randrange(1, 2000))


async def _send(host: str, port: int, content: bytes, *, then_wait: float = 0.0) -> None:
    with suppress(OSError):
        _, writer = await asyncio.open_connection(host, port)
        try:
            writer.write(content)
            await writer.drain()
            await asyncio.sleep(then_wait)
        finally:
            writer.transport.abort()
