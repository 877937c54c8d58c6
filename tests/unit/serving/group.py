"""A group in one process, for tests: rank table, memberships and both ends of the KV transfer on loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry

from tidewheel.api.ranktable import Member, RankTable
from tidewheel_workers.serving.engine import Computed, EngineIdentity, Prefilled, Prompt, Sampling
from tidewheel_workers.serving.kv_buffer import KVBuffer
from tidewheel_workers.serving.kv_client import KVClient
from tidewheel_workers.serving.kv_server import KVServer
from tidewheel_workers.serving.membership import Membership
from tidewheel_workers.serving.metrics import KVMetrics
from tidewheel_workers.serving.settings import WorkerSettings
from tidewheel_workers.serving.stand_in import StandInEngine

PREFILL_HOST, DECODE_HOST = "127.66.0.1", "127.66.0.2"


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


def computed(text: str = "hello") -> Prefilled:
    """A prompt as the stand-in computes it."""
    engine = StandInEngine()
    prompt = Prompt(request_id="r", token_ids=engine.encode_text(text), sampling=Sampling())
    sink = KVBuffer.for_tokens(engine.identity.kv, prompt.kv_tokens)
    engine.submit(prompt, sink)
    (happened,) = engine.step()
    assert isinstance(happened, Computed)
    return sink.filled(happened)


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

    def offer(self, text: str = "hello"):
        """Offer a prompt's KV; its text is noted when it is released."""
        return self.server.offer(computed(text), on_release=lambda: self.released.append(text))

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
) -> AsyncIterator[Pair]:
    """Both ends, listening and acquainted."""
    prefill, decode = membership("prefill"), membership("decode", identity=decode_identity)
    server_registry, client_registry = CollectorRegistry(), CollectorRegistry()
    shape = StandInEngine.identity.kv
    server = KVServer(
        prefill,
        shape,
        KVMetrics(server_registry, role="prefill"),
        lease_seconds=lease_seconds,
        timeout_seconds=timeout_seconds,
    )
    port = server.listen(PREFILL_HOST, 0, engine_id="p0")
    for one in (prefill, decode):
        one.update(table(kv_port=port))
    client = KVClient(
        decode, shape, KVMetrics(client_registry, role="decode"), timeout_seconds=timeout_seconds
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
        client.forget("u-p0")
        await server.close()
