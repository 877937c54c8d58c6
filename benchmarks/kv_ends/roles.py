"""What each of the two processes does when it is told."""

from __future__ import annotations

import asyncio
import mmap
import socket
import time
import zlib
from dataclasses import dataclass
from typing import Any

import torch
from prometheus_client import CollectorRegistry

from tidewheel.api.ranktable import Member, RankTable
from tidewheel_workers.serving.engine import Computed, EngineIdentity, First, KVShape, Prompt, Sampling
from tidewheel_workers.serving.engine_loop import EngineLoop
from tidewheel_workers.serving.kv_buffer import KVBuffer
from tidewheel_workers.serving.kv_client import KVClient
from tidewheel_workers.serving.kv_early import compute_early
from tidewheel_workers.serving.kv_parts import BLOCK_TOKENS
from tidewheel_workers.serving.kv_server import KVServer
from tidewheel_workers.serving.kv_transport import HandOver, KVMode
from tidewheel_workers.serving.membership import Membership
from tidewheel_workers.serving.metrics import KVMetrics
from tidewheel_workers.serving.settings import WorkerSettings
from tidewheel_workers.serving.torch_engine import TorchEngine

HOST = "127.0.9.2"
#: Not in Python's socket module: bytes a second that the kernel lets a connection send (socket(7), tcp(7)).
SO_MAX_PACING_RATE = 47
TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Link:
    """One prefill's end: how it sends, and how fast the kernel lets it."""

    name: str
    mode: KVMode
    bytes_per_second: int | None = None  # None: as fast as loopback is


class PagedPool:
    """A pool of blocks as engines keep it, and one sequence's blocks in it, scattered."""

    def __init__(self, shape: KVShape, tokens: int) -> None:
        torch.set_num_threads(1)  # a second one would spin on the other end's core after each copy
        dtype = getattr(torch, shape.dtype)
        blocks = -(-tokens // BLOCK_TOKENS)
        self.pool = torch.empty(
            (shape.layers, 2, blocks * BLOCK_TOKENS, shape.kv_heads, shape.head_dim), dtype=dtype
        )
        raw = self.pool.view(torch.uint8)
        raw.copy_(torch.arange(shape.head_dim * dtype.itemsize, dtype=torch.uint8))
        # no two places look the same, so that a mistaken copy shows in the checksum
        raw[..., 0].copy_((torch.arange(raw.shape[2]) % 251)[:, None])
        raw[..., 1].copy_(torch.arange(2 * shape.layers).view(shape.layers, 2, 1, 1))
        order = torch.randperm(blocks, generator=torch.Generator().manual_seed(1)) * BLOCK_TOKENS
        self.rows = (order[:, None] + torch.arange(BLOCK_TOKENS)).reshape(-1)

    def view(self, memory: memoryview, tokens: int) -> torch.Tensor:
        """A buffer as the tensor that it holds."""
        layers, _, _, heads, dim = self.pool.shape
        return torch.frombuffer(memory, dtype=self.pool.dtype).view(layers, 2, tokens, heads, dim)

    def pack(self, into: memoryview, tokens: int) -> None:
        """Copy the sequence out of its blocks."""
        torch.index_select(self.pool, 2, self.rows[:tokens], out=self.view(into, tokens))

    def scatter(self, memory: memoryview, tokens: int) -> None:
        """Copy a sequence into its blocks."""
        self.pool.index_copy_(2, self.rows[:tokens], self.view(memory, tokens))


class Memory:
    """Memory like that of a KV buffer, for the plain socket."""

    def __init__(self, size: int) -> None:
        self._map = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)

    def first(self, size: int) -> memoryview:
        return memoryview(self._map)[:size]


class PrefillEnd:
    """Reserves, packs or computes, offers and sends."""

    def __init__(self) -> None:
        self._servers: dict[str, KVServer] = {}
        self._memberships: list[Membership] = []
        self._engine: EngineLoop | None = None
        self._early: asyncio.Task[tuple[float, float]] | None = None
        self._plain: socket.socket | None = None
        self._is_free = asyncio.Event()
        self._is_free.set()

    async def load(self, source: str, context: int) -> EngineIdentity:
        """Load a model."""
        engine = TorchEngine.load_for(_settings("prefill", "p", source=source, context=context))
        self._engine = EngineLoop(engine, on_failure=_raise)
        self._identity = engine.identity
        return self._identity

    async def invent(self, shape: KVShape, tokens: int) -> EngineIdentity:
        """No model: a pool whose contents nobody computed."""
        self._identity = EngineIdentity(model_digest="m", layout_digest=repr(shape)[:64], kv=shape)
        self._pool = PagedPool(shape, tokens)
        self._plain_memory = Memory(shape.bytes_for(tokens))
        return self._identity

    async def link(self, link: Link, tokens: int) -> int:
        """Open one end; gives its port."""
        membership = Membership(_settings("prefill", link.name), self._identity)
        server = KVServer(
            membership,
            self._identity.kv,
            KVMetrics(CollectorRegistry(), role="prefill"),
            buffers=1,
            max_tokens=tokens,
            lease_seconds=TIMEOUT_SECONDS,
            timeout_seconds=TIMEOUT_SECONDS,
            mode=link.mode,
        )
        listener = socket.socket()
        listener.bind((HOST, 0))
        if link.bytes_per_second is not None:
            rate = link.bytes_per_second.to_bytes(8, "little")
            listener.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, rate)
        listener.listen()
        port = server.serve(listener, engine_id=link.name)
        self._servers[link.name] = server
        self._memberships.append(membership)
        return port

    async def meet(self, table: RankTable) -> None:
        """Know the other end."""
        for membership in self._memberships:
            membership.update(table)

    async def offer(self, link: str, tokens: int) -> tuple[HandOver, float]:
        """Offer a prompt out of the pool; gives also the seconds that packing it took."""
        server = self._servers[link]
        buffer = await self._reserve(server, tokens)
        began = time.perf_counter()
        self._pool.pack(buffer.buffer, tokens)
        packed = time.perf_counter() - began
        for layer in range(buffer.extent.layers):
            buffer.wrote(layer, 0, tokens)
        offer = server.offer(buffer)
        offer.finish(Computed(request_id="r", first=(First(token=1),)))
        buffer.drop()
        return offer.hand_over, packed

    async def _reserve(self, server: KVServer, tokens: int) -> KVBuffer:
        # the release of the one before may still be on its way
        await self._is_free.wait()
        self._is_free.clear()
        return server.reserve(tokens, on_free=self._is_free.set)

    async def checksum(self, tokens: int) -> int:
        """Of the sequence in the pool."""
        return _checksum(self._pool, tokens)

    async def compute(self, link: str, tokens: list[int]) -> tuple[HandOver, float, float]:
        """Compute a prompt and offer it; gives when it began and ended on the monotonic clock."""
        engine, server = self._engine, self._servers[link]
        prompt = Prompt(request_id="r", token_ids=tokens, sampling=Sampling(temperature=0.0))
        buffer = await self._reserve(server, len(tokens))
        began = time.monotonic()
        computed = await engine.compute(prompt, buffer)
        ended = time.monotonic()
        offer = server.offer(buffer)
        offer.finish(computed)
        buffer.drop()
        return offer.hand_over, began, ended

    async def withdraw(self, link: str, hand_over: HandOver) -> None:
        """Nobody will fetch it."""
        self._servers[link].withdraw(hand_over.remote_bearer)

    async def begin(self, link: str, tokens: list[int]) -> HandOver:
        """Begin to compute a prompt that may be fetched at once."""
        engine, server = self._engine, self._servers[link]
        prompt = Prompt(request_id="r", token_ids=tokens, sampling=Sampling(temperature=0.0))
        buffer = await self._reserve(server, len(tokens))
        told: asyncio.Future[HandOver] = asyncio.get_running_loop().create_future()

        async def begin(hand_over: HandOver) -> None:
            told.set_result(hand_over)

        async def work() -> tuple[float, float]:
            began = time.monotonic()
            await compute_early(engine, prompt, buffer, server, begin=begin)
            ended = time.monotonic()
            buffer.drop()
            return began, ended

        self._early = asyncio.create_task(work())
        return await told

    async def ended(self) -> tuple[float, float]:
        """When the computation that `begin` began had begun and ended."""
        return await self._early

    async def plain_port(self) -> int:
        """Open the plain socket that is compared with."""
        listener = socket.create_server((HOST, 0))

        async def accept() -> None:
            self._plain = (await asyncio.to_thread(listener.accept))[0]
            self._plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        self._accepting = asyncio.create_task(accept())
        return listener.getsockname()[1]

    async def plain_pack(self, tokens: int) -> None:
        """Get ready to send as many bytes: they are packed before, as ever."""
        await self._accepting
        self._pool.pack(self._plain_memory.first(self._identity.kv.bytes_for(tokens)), tokens)

    async def plain_send(self, tokens: int) -> None:
        """Send them when the other end says so, as C would: one call."""
        self._plain.recv(1)
        self._plain.sendall(self._plain_memory.first(self._identity.kv.bytes_for(tokens)))


class DecodeEnd:
    """Fetches, and scatters into its own pool."""

    def __init__(self) -> None:
        self._plain: socket.socket | None = None
        self._pool: PagedPool | None = None

    async def invent(self, shape: KVShape, tokens: int) -> None:
        """A pool to scatter into."""
        self._shape = shape
        self._pool = PagedPool(shape, tokens)
        self._pool.pool.zero_()
        self._plain_memory = Memory(shape.bytes_for(tokens))

    async def meet(self, table: RankTable, identity: EngineIdentity, tokens: int) -> None:
        """Know the other end, and be ready to fetch from it."""
        membership = Membership(_settings("decode", "d0"), identity)
        membership.update(table)
        self._client = KVClient(
            membership,
            identity.kv,
            KVMetrics(CollectorRegistry(), role="decode"),
            buffers=1,
            max_tokens=tokens,
            timeout_seconds=TIMEOUT_SECONDS,
            most_transfers=1,
            most_waiting=0,
        )
        for peer in membership.peers:
            connection = await self._client.open(peer)
            membership.connected(peer.uid)  # so that connections are kept for the next transfer
            self._held = [*getattr(self, "_held", ()), connection]

    async def fetch(self, hand_over: HandOver) -> tuple[float, float, float]:
        """Fetch; gives when it began and when all had come, and the seconds of scattering it into blocks."""
        began = time.monotonic()
        received = await self._client.fetch(hand_over)
        ended = time.monotonic()
        if self._pool is not None:
            self._pool.scatter(received.computed.kv, received.computed.tokens)
        scattered = time.monotonic() - ended
        received.free()
        return began, ended, scattered

    async def checksum(self, tokens: int) -> int:
        """Of the sequence in the pool."""
        return _checksum(self._pool, tokens)

    async def plain_connect(self, port: int) -> None:
        """Open the plain socket that is compared with."""
        self._plain = await asyncio.to_thread(socket.create_connection, (HOST, port))
        self._plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def plain_receive(self, tokens: int) -> float:
        """Receive as many bytes, as C would: one call if the kernel gives all at once; gives the seconds.

        They are scattered afterwards, so that caches are left as by every other transfer.
        """
        memory = self._plain_memory.first(self._shape.bytes_for(tokens))
        began = time.perf_counter()
        self._plain.sendall(b"!")
        filled = 0
        while filled < len(memory):
            filled += self._plain.recv_into(memory[filled:], 0, socket.MSG_WAITALL)
        taken = time.perf_counter() - began
        self._pool.scatter(memory, tokens)
        return taken


async def serve(role: str, pipe: Any) -> None:
    """Do what the pipe says until it says None."""
    end: PrefillEnd | DecodeEnd = PrefillEnd() if role == "prefill" else DecodeEnd()
    while (asked := await asyncio.to_thread(pipe.recv)) is not None:
        name, arguments = asked
        try:
            pipe.send((await getattr(end, name)(*arguments), None))
        except Exception as error:  # noqa: BLE001 - whoever led it says so
            pipe.send((None, f"{type(error).__name__}: {error}"))


def table(ports: dict[str, int]) -> RankTable:
    """The rank table of one decode and these prefill ends."""
    decode = Member(rank=0, role="decode", name="d0", uid="u-d0", address=HOST)
    prefills = [
        Member(rank=rank, role="prefill", name=name, uid=f"u-{name}", address=HOST, kv_port=port)
        for rank, (name, port) in enumerate(ports.items(), 1)
    ]
    return RankTable(service="s", group="g", revision="r", members=(decode, *prefills))


def _settings(role: str, name: str, *, source: str = "none", context: int = 2048) -> WorkerSettings:
    return WorkerSettings(
        model_name="m",
        model_source=source,
        role=role,
        group="g",
        pod_name=name,
        pod_uid=f"u-{name}",
        max_context_tokens=context,
        slots=1,
    )


def _checksum(pool: PagedPool, tokens: int) -> int:
    sequence = pool.pool.index_select(2, pool.rows[:tokens])
    return zlib.crc32(memoryview(sequence.view(-1).view(torch.uint8).numpy()))


def _raise(error: Exception) -> None:
    raise error
