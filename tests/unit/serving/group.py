"""A group in one process, for tests: rank table, memberships and both ends of the KV transfer on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry

from tidewheel.api.ranktable import Member, RankTable
from tidewheel_workers.serving.engine import (
    Computed,
    EngineIdentity,
    KVShape,
    Prefilled,
    Prompt,
    Sampling,
)
from tidewheel_workers.serving.kv_buffer import KVBuffer
from tidewheel_workers.serving.kv_client import KVClient
from tidewheel_workers.serving.kv_offers import Offer
from tidewheel_workers.serving.kv_server import KVServer
from tidewheel_workers.serving.kv_transport import HandOver, KVMode
from tidewheel_workers.serving.membership import Membership
from tidewheel_workers.serving.metrics import KVMetrics
from tidewheel_workers.serving.settings import WorkerSettings
from tidewheel_workers.serving.stand_in import StandInEngine

PREFILL_HOST, DECODE_HOST = "127.66.0.1", "127.66.0.2"
MOST_TOKENS = 64


def table(*extra: Member, kv_port: int = 7001, group: str = "g0") -> RankTable:
    """One prefill and one decode, and whoever else."""
    members = (
        Member(rank=0, role="prefill", name="p0", uid="u-p0", address=PREFILL_HOST, kv_port=kv_port),
        Member(rank=1, role="decode", name="d0", uid="u-d0", address=DECODE_HOST),
    )
    return RankTable(service="chat", group=group, revision="r1", members=members + extra)


def decode_member(number: int) -> Member:
    """One more decode."""
    return Member(rank=number + 1, role="decode", name=f"d{number}", uid=f"u-d{number}", address="127.66.0.3")


def membership(role: str, *, identity: EngineIdentity = StandInEngine.identity, uid: str = "") -> Membership:
    """What the first member of a role knows, without a table."""
    name = "p0" if role == "prefill" else "d0"
    settings = WorkerSettings(
        model_name="m",
        model_source="stand-in",
        role=role,
        group="g0",
        pod_name=name,
        pod_uid=uid or f"u-{name}",
    )
    return Membership(settings, identity)


def compute(text: str, sink: KVBuffer) -> Computed:
    """Compute a prompt as the stand-in does."""
    engine = StandInEngine(max_context=len(text) + 1)
    prompt = Prompt(request_id="r", token_ids=engine.encode_text(text), sampling=Sampling())
    engine.submit(prompt, sink)
    (happened,) = engine.step()
    assert isinstance(happened, Computed)
    return happened


def buffer_of(tokens: int, shape: KVShape = StandInEngine.identity.kv) -> KVBuffer:
    """A buffer that belongs to no arena."""
    return KVBuffer(shape, tokens, memoryview(bytearray(shape.bytes_for(tokens))), on_free=lambda: None)


def prefilled(buffer: KVBuffer, done: Computed) -> Prefilled:
    """What a decode's engine gets of it, without a transfer."""
    return Prefilled(
        first=done.first, tokens=buffer.tokens, kv=buffer.buffer, cached_tokens=done.cached_tokens
    )


def kv_of(text: str) -> bytes:
    """A prompt's keys and values."""
    buffer = buffer_of(len(text))
    compute(text, buffer)
    return bytes(buffer.buffer)


async def until(condition) -> None:
    """Let the other tasks run until it holds."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - metrics have no event
            await asyncio.sleep(0.001)


@dataclass(kw_only=True)
class Pair:
    """A prefill's and a decode's end."""

    server: KVServer
    client: KVClient
    prefill: Membership
    decode: Membership
    port: int
    server_registry: CollectorRegistry
    client_registry: CollectorRegistry
    released: list[str] = field(default_factory=list)

    def offer(self, text: str = "hello") -> HandOver:
        """Offer a computed prompt's KV; its text is noted when it is released."""
        offer = self.offer_early(text)
        offer.finish(compute(text, offer.buffer))
        offer.buffer.drop()
        return offer.hand_over

    def offer_early(self, text: str = "hello") -> Offer:
        """Offer what is not computed yet; who computes it drops the buffer."""
        return self.server.offer(self.server.reserve(len(text), on_free=lambda: self.released.append(text)))

    def metric(self, name: str, **labels: str) -> float:
        """A sample of the decode's end."""
        return self.client_registry.get_sample_value(name, labels) or 0.0

    def server_metric(self, name: str, **labels: str) -> float:
        """A sample of the prefill's end."""
        return self.server_registry.get_sample_value(name, labels) or 0.0

    def errors(self, reason: str) -> float:
        """The server's counter."""
        name = "tidewheel_kv_transfer_errors_total"
        return self.server_registry.get_sample_value(name, {"reason": reason}) or 0.0


@asynccontextmanager
async def pair(
    *,
    lease_seconds: float = 30.0,
    timeout_seconds: float = 5.0,
    decode_identity: EngineIdentity = StandInEngine.identity,
    mode: KVMode = "Whole",
    buffers: int = 32,
    max_tokens: int = MOST_TOKENS,
    most_transfers: int = 2,
    most_waiting: int = 32,
) -> AsyncIterator[Pair]:
    """Both ends, listening and acquainted."""
    prefill, decode = membership("prefill"), membership("decode", identity=decode_identity)
    server_registry, client_registry = CollectorRegistry(), CollectorRegistry()
    shape = StandInEngine.identity.kv
    server = KVServer(
        prefill,
        shape,
        KVMetrics(server_registry, role="prefill"),
        buffers=buffers,
        max_tokens=max_tokens,
        lease_seconds=lease_seconds,
        timeout_seconds=timeout_seconds,
        mode=mode,
    )
    port = server.listen(PREFILL_HOST, 0, engine_id="p0")
    for one in (prefill, decode):
        one.update(table(kv_port=port))
    client = KVClient(
        decode,
        shape,
        KVMetrics(client_registry, role="decode"),
        buffers=buffers,
        max_tokens=max_tokens,
        timeout_seconds=timeout_seconds,
        most_transfers=most_transfers,
        most_waiting=most_waiting,
    )
    try:
        yield Pair(
            server=server,
            client=client,
            prefill=prefill,
            decode=decode,
            port=port,
            server_registry=server_registry,
            client_registry=client_registry,
        )
    finally:
        client.close()
        await server.close()


@asynccontextmanager
async def prefill_server(group: Pair) -> AsyncIterator[KVServer]:
    """The prefill's end started anew, at the same place."""
    server = KVServer(
        group.prefill,
        StandInEngine.identity.kv,
        KVMetrics(CollectorRegistry(), role="prefill"),
        buffers=4,
        max_tokens=MOST_TOKENS,
        lease_seconds=30.0,
        timeout_seconds=5.0,
    )
    server.listen(PREFILL_HOST, group.port, engine_id="p0")
    try:
        yield server
    finally:
        await server.close()
