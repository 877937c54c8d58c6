"""A service of real processes that can be broken: gateways, one group of prefills and decodes, links before their ports,
and as much of the operator as keeps rank table and routes true."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import psutil
from tests.local.serving.processes import MODEL, Worker
from tests.soak.link import Link
from tests.soak.story import EVERYONE, Cast, Role

from tidewheel.api.ranktable import DECODE_RANKS, Backend, Member, RankTable, RouteGroup, Routes

HTTP_PORT, KNOWN_HTTP_PORT = 8000, 8100
KV_PORT, KNOWN_KV_PORT = 7001, 7101
PROBE_SECONDS = 0.2
PROBE_TIMEOUT_SECONDS = 1.0
START_SECONDS = 60.0
DRAIN_SECONDS = 30.0

#: Short enough for a fault's end to be seen within the soak.
ENVIRONMENT = {
    "TIDEWHEEL_SLOTS": "8",
    "TIDEWHEEL_KV_TIMEOUT_SECONDS": "3",
    "TIDEWHEEL_KV_LEASE_SECONDS": "5",
    "TIDEWHEEL_PEER_TIMEOUT_SECONDS": "5",
    "TIDEWHEEL_DRAIN_SECONDS": str(DRAIN_SECONDS),
    "TIDEWHEEL_TTFT_DEADLINE_SECONDS": "10",
    "TIDEWHEEL_REQUEST_TIMEOUT_SECONDS": "60",
    "TIDEWHEEL_MAX_BODY_BYTES": "65536",
}


@dataclass(eq=False)
class Player:
    """One process in its place, with the links before it."""

    role: Role
    place: int
    worker: Worker
    links: dict[str, Link] = field(default_factory=dict)
    life: int = 0  # how often it was started
    is_ready: bool = False
    is_leaving: bool = False  # on purpose, so it is on the routes no more
    is_expected: bool = True  # to be there; otherwise someone took it away
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)  # of whoever starts or ends it

    @property
    def name(self) -> str:
        """The process's name."""
        return self.worker.name

    @property
    def pid(self) -> int:
        """Its process id; raises where it was never started."""
        if self.worker.process is None:
            raise RuntimeError(f"{self.name} was never started")
        return self.worker.process.pid

    @property
    def family(self) -> list[psutil.Process]:
        """The process, and those that it started."""
        with suppress(psutil.NoSuchProcess):
            parent = psutil.Process(self.pid)
            return [parent, *parent.children(recursive=True)]
        return []

    @property
    def has_ended(self) -> bool:
        """Whether there is no process now."""
        return self.worker.process is None or self.worker.process.poll() is not None

    @property
    def known_http_port(self) -> int:
        """The port that gateways are told."""
        return self.links["http"].port if self.links else HTTP_PORT


class Fleet:
    """Use it as an asynchronous context manager; every process is ended with it."""

    def __init__(self, directory: Path, *, cast: Cast, source: str, environment: Mapping[str, str]) -> None:
        self.directory = directory
        self._source = source
        self._environment = {**ENVIRONMENT, **environment}
        self._hosts = itertools.count(1)
        self._names = itertools.count()
        self.unasked_ends: list[str] = []
        self._retired: list[Worker] = []
        self.gateways = [self._gateway(place) for place in range(cast["gateway"])]
        self.members = [
            self._member(role, place) for role in ("prefill", "decode") for place in range(cast[role])
        ]
        self._changed = asyncio.Event()

    async def __aenter__(self) -> Fleet:
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PROBE_TIMEOUT_SECONDS))
        self._publish_ranks()
        self._publish_routes()
        try:
            for player in self.players:
                await self._start(player)
            self._watching = asyncio.create_task(self._watch())
            async with asyncio.timeout(START_SECONDS):
                for role in EVERYONE:
                    await self.complete(role)
        except TimeoutError as error:
            await self.__aexit__()
            unready = [player.name for player in self.players if not player.is_ready]
            ends = "; ".join(self.unasked_ends[:3])
            raise RuntimeError(
                f"not ready within {START_SECONDS:.0f} s: {', '.join(unready)}. {ends}\n"
                + self.logs[unready[0]][-3000:]
            ) from error
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        if (watching := getattr(self, "_watching", None)) is not None:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        for player in self.players:
            for link in player.links.values():
                link.down()
            if not player.has_ended:
                await self.kill(player)
        await self._session.close()

    @property
    def players(self) -> list[Player]:
        """Everyone who has a place now."""
        return [*self.members, *self.gateways]

    @property
    def logs(self) -> dict[str, str]:
        """What every process there ever was has written, by its name."""
        return {one.name: one.log for one in (*self._retired, *(player.worker for player in self.players))}

    def at(self, role: Role, place: int) -> Player:
        """Who has that place now."""
        return next(one for one in self.players if (one.role, one.place) == (role, place))

    async def complete(self, role: Role) -> None:
        """Wait until everyone of a role is ready, whoever that is by then."""
        while not self.is_complete(role):
            self._changed.clear()
            await self._changed.wait()

    def is_complete(self, role: Role) -> bool:
        """Whether everyone of a role is ready."""
        return all(player.is_ready for player in self.players if player.role == role)

    # ---- what breaks it

    async def kill(self, player: Player) -> None:
        """As a kubelet does at last: all processes of it at once."""
        async with player.turn:
            self.send_all(player, signal.SIGSTOP)
            for process in player.family[1:]:
                self._send(process, signal.SIGKILL)
            await self._end(player, signal.SIGKILL)

    def kill_one(self, player: Player, number: int) -> bool:
        """One of the processes that it started; False when it started none."""
        started = player.family[1:]
        if started:
            self._send(started[number % len(started)], signal.SIGKILL)
        return bool(started)

    async def restart(self, player: Player) -> None:
        """Start it again at its place and address."""
        await self._start(player)

    async def stop_gently(self, player: Player) -> None:
        """Take it from the routes, tell it to end, wait until it did."""
        player.is_leaving = True
        self._publish_routes()
        async with player.turn:
            await self._end(player, signal.SIGTERM)

    async def substitute(self, player: Player) -> Player:
        """Another one in its place, at another address: on the map first, on the routes when it is ready."""
        new = self._member(player.role, player.place)
        self.members[self.members.index(player)] = new
        self._retired.append(player.worker)
        self._publish_routes()
        self._publish_ranks()
        await self._start(new)
        return new

    def send_all(self, player: Player, number: signal.Signals) -> None:
        """A signal that does not end it, to all its processes."""
        for process in player.family:
            self._send(process, number)

    def _send(self, process: psutil.Process, number: signal.Signals) -> None:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)

    async def _end(self, player: Player, number: signal.Signals) -> None:
        player.is_expected = False
        with suppress(ProcessLookupError):
            os.kill(player.pid, number)
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS + 10):
                while not player.has_ended:  # noqa: ASYNC110 - a process has no event
                    await asyncio.sleep(0.02)
        if not player.has_ended:
            self.unasked_ends.append(f"{player.name} did not end by {number.name}")
            os.kill(player.pid, signal.SIGKILL)
            await asyncio.to_thread(player.worker.process.wait)
        player.is_ready = False
        for link in player.links.values():
            link.down()

    # ---- the processes and what the operator does for them

    async def _start(self, player: Player) -> None:
        await asyncio.to_thread(player.worker.start)
        player.life += 1
        player.is_expected, player.is_leaving = True, False

    async def _watch(self) -> None:
        """Keep the routes to whoever is ready, and the links to whoever listens, as kubelet and operator do."""
        while True:
            await asyncio.gather(*(self._probe(player) for player in self.players))
            self._publish_routes()
            self._changed.set()
            await asyncio.sleep(PROBE_SECONDS)

    async def _probe(self, player: Player) -> None:
        if player.has_ended:
            player.is_ready = False
            async with player.turn:
                if player.has_ended and player.is_expected and player.life:
                    await self._replace_what_ended(player)
            return
        life, listens, is_ready = player.life, False, False
        with suppress(aiohttp.ClientError, OSError, TimeoutError):
            async with self._session.get(f"{player.worker.url}/health/ready") as answer:
                listens, is_ready = True, answer.status == 200
        if player.life != life or player.has_ended:
            return
        player.is_ready = is_ready
        if listens:
            for link in player.links.values():
                await link.up()

    async def _replace_what_ended(self, player: Player) -> None:
        """Start it again in its place, as a kubelet does; that it ended by itself is not forgotten."""
        self.unasked_ends.append(f"{player.name} ended by itself with {player.worker.process.returncode}")
        for link in player.links.values():
            link.down()
        await self._start(player)

    def _publish_ranks(self) -> None:
        members = [
            Member(
                rank=one.place + (DECODE_RANKS if one.role == "decode" else 0),
                role="decode" if one.role == "decode" else "prefill",
                name=one.name,
                uid=f"uid-{one.name}",
                address=one.worker.host,
                http_port=one.known_http_port,
                kv_port=KNOWN_KV_PORT if one.role == "prefill" else KV_PORT,
            )
            for one in self.members
        ]
        table = RankTable(service="chat", group="g0", revision="r1", members=tuple(members))
        self._write("ranktable.json", table.to_text())

    def _publish_routes(self) -> None:
        def backends(role: Role) -> tuple[Backend, ...]:
            return tuple(
                Backend(name=one.name, address=one.worker.host, port=one.known_http_port)
                for one in self.members
                if one.role == role and one.is_ready and not one.is_leaving
            )

        group = RouteGroup(name="g0", prefill=backends("prefill"), decode=backends("decode"))
        routes = Routes(service="chat", model=MODEL, groups=(group,))
        self._write("routes.json", routes.to_text())

    def _write(self, name: str, content: str) -> None:
        path = self.directory / name
        if path.exists() and path.read_text() == content:
            return
        new = self.directory / f"{name}.new"
        new.write_text(content)
        new.replace(path)

    def _gateway(self, place: int) -> Player:
        files = {"TIDEWHEEL_ROUTES_FILE": str(self.directory / "routes.json")}
        return Player("gateway", place, self._worker("gateway", f"gateway-{place}", files))

    def _member(self, role: Role, place: int) -> Player:
        files = {
            "TIDEWHEEL_GROUP": "g0",
            "TIDEWHEEL_MODEL_SOURCE": self._source,
            "TIDEWHEEL_RANKS_FILE": str(self.directory / "ranktable.json"),
        }
        worker = self._worker(role, f"{role}-{place}-{next(self._names)}", files)
        ports = (KV_PORT, KNOWN_KV_PORT) if role == "prefill" else None
        links = {
            "http": Link(host=worker.host, port=KNOWN_HTTP_PORT, behind=HTTP_PORT, kv_port=ports),
        }
        if role == "prefill":
            links["kv"] = Link(host=worker.host, port=KNOWN_KV_PORT, behind=KV_PORT)
        return Player(role, place, worker, links)

    def _worker(self, role: Role, name: str, files: Mapping[str, str]) -> Worker:
        number = next(self._hosts)
        host = f"127.{60 + os.getpid() % 100}.{200 + number // 200}.{1 + number % 200}"
        return Worker(name, role, host, self.directory, {**self._environment, **files})
