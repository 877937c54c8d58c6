"""Decode's end of the KV transfer: verified connections to prefills, and the retrieval of one prompt's KV."""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from opentelemetry import propagate, trace

from tidewheel_workers.serving.engine import Prefilled
from tidewheel_workers.serving.kv_arena import KVArena, NoBuffer
from tidewheel_workers.serving.kv_connection import KVConnection, Refused
from tidewheel_workers.serving.kv_queue import TransferQueue
from tidewheel_workers.serving.kv_receive import Came, receive
from tidewheel_workers.serving.kv_transport import TransferFailed
from tidewheel_workers.serving.kv_wire import Fetch, Hello, Refusal, WireError

if TYPE_CHECKING:
    from tidewheel.api.ranktable import Member
    from tidewheel_workers.serving.engine import KVShape
    from tidewheel_workers.serving.kv_arena import Lease
    from tidewheel_workers.serving.kv_bulk import KVBulk
    from tidewheel_workers.serving.kv_transport import HandOver
    from tidewheel_workers.serving.membership import Membership
    from tidewheel_workers.serving.metrics import KVMetrics

log = logging.getLogger(__name__)
tracer = trace.get_tracer(__name__)

CONNECT_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedKV:
    """A `Received` in one of the decode's buffers."""

    computed: Prefilled
    lease: Lease

    def free(self) -> None:
        """As in `Received`."""
        self.lease.free()


class KVClient:
    """A `KVReceiver` over TCP; connections are kept and used again."""

    def __init__(
        self,
        membership: Membership,
        shape: KVShape,
        metrics: KVMetrics,
        *,
        buffers: int,
        max_tokens: int,
        timeout_seconds: float,
        most_transfers: int,
        most_waiting: int,
    ) -> None:
        """Reserve the buffers.

        Args:
            membership: who may be asked.
            shape: what one token's keys and values are.
            metrics: this end's.
            buffers: prompts that are held at a time: those that come, and those that wait for the engine's next round.
            max_tokens: the longest prompt.
            timeout_seconds: how long a prefill may be silent.
            most_transfers: as in `TransferQueue`.
            most_waiting: as in `TransferQueue`.

        Raises:
            OSError: there is not enough address space for the buffers.
        """
        self._membership = membership
        self._shape = shape
        self._metrics = metrics
        self._timeout_seconds = timeout_seconds
        self._arena = KVArena(shape, buffers=buffers, tokens=max_tokens)
        self._queue = TransferQueue(
            most_running=most_transfers, most_waiting=most_waiting, on_turn=metrics.queue_seconds.observe
        )
        metrics.watch_arena(self._arena)
        metrics.watch_queue(self._queue)
        self._threads = ThreadPoolExecutor(max_workers=buffers, thread_name_prefix="kv-receive")
        self._idle: dict[str, list[KVConnection]] = {}

    async def open(self, peer: Member) -> KVConnection:
        """A connection over which both ends verified each other.

        Raises:
            Refused: one of them does not want the other.
            WireError, OSError, TimeoutError: it cannot be reached or does not speak the protocol.
        """
        async with asyncio.timeout(CONNECT_SECONDS):
            connection = await KVConnection.connect(peer.address, peer.kv_port)
            try:
                await connection.send(self._membership.hello())
                hello = await connection.expect(Hello)
                if (refusal := self._judge(hello, peer)) is not None:
                    raise Refused(refusal)
            except BaseException:
                connection.close()
                raise
        return connection

    def forget(self, uid: str) -> None:
        """Close the idle connections to a peer that is gone."""
        for connection in self._idle.pop(uid, ()):
            connection.close()

    def close(self) -> None:
        """Close what is idle; transfers that run end on their own."""
        for uid in list(self._idle):
            self.forget(uid)
        self._threads.shutdown(wait=False)

    async def fetch(self, hand_over: HandOver) -> ReceivedKV:
        """As in `KVReceiver`."""
        peer = self._peer(hand_over)
        with tracer.start_as_current_span("kv_transfer", kind=trace.SpanKind.CLIENT) as span:
            span.set_attributes(
                {"server.address": peer.address, "server.port": peer.kv_port, "tidewheel.peer": peer.name}
            )
            async with self._queue.turn():
                began = time.monotonic()
                try:
                    received = await self._fetch_from(peer, hand_over)
                except WireError as error:
                    raise self._failed(error.reason, f"{peer.name}: {error}") from error
                except Refused as error:
                    raise self._failed(error.reason, f"{peer.name} refused: {error}") from error
                except NoBuffer as error:
                    raise self._failed("no_buffer", str(error)) from error
                except TimeoutError as error:
                    raise self._failed("timeout", f"{peer.name} was silent for too long") from error
                except OSError as error:
                    raise self._failed("connection", f"{peer.name}: {error}") from error
                self._metrics.observe(time.monotonic() - began, len(received.computed.kv))
            span.set_attributes(
                {
                    "tidewheel.kv.bytes": len(received.computed.kv),
                    "tidewheel.kv.tokens": received.computed.tokens,
                }
            )
        return received

    def _peer(self, hand_over: HandOver) -> Member:
        """Only members are connected to, whatever a hand-over says."""
        for peer in self._membership.peers:
            if (peer.address, peer.kv_port) == (hand_over.remote_host, hand_over.remote_port):
                return peer
        raise self._failed(
            "unknown_peer", f"{hand_over.remote_host}:{hand_over.remote_port} is no prefill of this group"
        )

    def _judge(self, hello: Hello, peer: Member) -> Refusal | None:
        if hello.uid != peer.uid:
            return Refusal(
                reason="wrong_member",
                message=f"{hello.name} ({hello.uid}) answers at the address of {peer.name} ({peer.uid})",
            )
        return self._membership.judge(hello)

    async def _fetch_from(self, peer: Member, hand_over: HandOver) -> ReceivedKV:
        if idle := self._idle.get(peer.uid):
            connection = idle.pop()
            try:
                return await self._fetch_over(connection, peer, hand_over)
            except (OSError, WireError) as error:
                if connection.bytes_received:
                    raise
                # the peer has restarted, or its host is gone: then no other idle connection is any better, and as
                # nothing was sent over this one a bearer is at worst refused the second time
                log.info("an idle KV connection to %s was of no use: %s", peer.name, error)
                self.forget(peer.uid)
        return await self._fetch_over(await self.open(peer), peer, hand_over)

    async def _fetch_over(self, connection: KVConnection, peer: Member, hand_over: HandOver) -> ReceivedKV:
        carrier: dict[str, str] = {}
        propagate.inject(carrier)
        fetch = Fetch(
            transfer_id=hand_over.remote_request_id,
            bearer=hand_over.remote_bearer,
            traceparent=carrier.get("traceparent"),
        )
        tokens = hand_over.remote_tokens
        try:
            lease = self._arena.lease(tokens)
        except NoBuffer:
            self._keep(peer, connection)
            raise

        def work(bulk: KVBulk) -> Came:
            return receive(bulk, fetch, shape=self._shape, tokens=tokens, memory=lease.memory)

        try:
            came = await connection.in_thread(
                self._threads, work, patience_seconds=self._timeout_seconds, on_abandoned=lease.free
            )
        except Refused:
            self._keep(peer, connection)
            raise
        self._keep(peer, connection)
        _link_to(came.opening.traceparent)
        return ReceivedKV(
            computed=Prefilled(
                first=tuple(first.to_first() for first in came.complete.first),
                tokens=tokens,
                kv=lease.memory,
                cached_tokens=came.complete.cached_tokens,
            ),
            lease=lease,
        )

    def _keep(self, peer: Member, connection: KVConnection) -> None:
        if peer in self._membership.verified:
            self._idle.setdefault(peer.uid, []).append(connection)
        else:
            connection.close()

    def _failed(self, reason: str, message: str) -> TransferFailed:
        self._metrics.errors.labels(reason).inc()
        return TransferFailed(reason, message)


def _link_to(traceparent: str | None) -> None:
    """Link the fetch to the span of whoever sent."""
    sender = trace.get_current_span(
        propagate.extract({"traceparent": traceparent} if traceparent else {})
    ).get_span_context()
    if sender.is_valid:
        trace.get_current_span().add_link(sender)
