"""Prefill's end of the KV transfer: reserved buffers, offered with a lease, served over TCP to verified decodes."""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from opentelemetry import propagate, trace

from tidewheel_workers.serving.kv_arena import KVArena
from tidewheel_workers.serving.kv_buffer import KVBuffer
from tidewheel_workers.serving.kv_connection import KVConnection
from tidewheel_workers.serving.kv_offers import Offer, Offers
from tidewheel_workers.serving.kv_send import Sent, send
from tidewheel_workers.serving.kv_transport import HandOver
from tidewheel_workers.serving.kv_wire import (
    KV,
    Fetch,
    Hello,
    Refusal,
    Release,
    UnexpectedFrame,
    WireError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tidewheel_workers.serving.engine import KVShape
    from tidewheel_workers.serving.kv_transport import KVMode
    from tidewheel_workers.serving.membership import Membership
    from tidewheel_workers.serving.metrics import KVMetrics

log = logging.getLogger(__name__)
tracer = trace.get_tracer(__name__)

HELLO_SECONDS = 5.0
#: Whoever has not said a proper Hello yet; more are turned away, so that strangers cannot take the members' places.
MOST_STRANGERS = 64
#: Connections that one member may have.
MOST_CONNECTIONS_EACH = 64


class _Unwanted(Exception):
    """The offer that was being sent has ended, and its connection with it."""


class KVServer:
    """A `KVSender` over TCP.

    Whoever connects says Hello and has to be a decode of this group with the same model and layout. A transfer's id
    and bearer go through the gateway to the one decode that is to fetch it; the bearer is spent by the first fetch.
    An offer ends by Release, by the end of the connection that fetched it, by `withdraw`, or by its lease.
    """

    def __init__(
        self,
        membership: Membership,
        shape: KVShape,
        metrics: KVMetrics,
        *,
        buffers: int,
        max_tokens: int,
        lease_seconds: float,
        timeout_seconds: float,
        mode: KVMode = "Whole",
    ) -> None:
        """Reserve the buffers.

        Raises:
            OSError: there is not enough address space for them.
        """
        self._membership = membership
        self._shape = shape
        self._metrics = metrics
        self._timeout_seconds = timeout_seconds
        self._mode = mode
        self._arena = KVArena(shape, buffers=buffers, tokens=max_tokens)
        metrics.watch_arena(self._arena)
        self._offers = Offers(
            lease_seconds=lease_seconds, on_expired=lambda: metrics.errors.labels("lease_expired").inc()
        )
        # a buffer is sent by one thread at a time and is not free before that thread is done with it
        self._threads = ThreadPoolExecutor(max_workers=buffers, thread_name_prefix="kv-send")
        self._tasks: set[asyncio.Task[None]] = set()
        self._strangers = 0
        self._listener: socket.socket | None = None
        self._address = ("", 0)
        self._engine_id = ""

    @property
    def waiting(self) -> int:
        """Computed prompts whose KV nobody released yet."""
        return self._offers.waiting

    def listen(self, host: str, port: int, *, engine_id: str) -> int:
        """Take connections; returns the port.

        Raises:
            OSError: the address cannot be bound.
        """
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
            listener.listen(128)
        except OSError:
            listener.close()
            raise
        return self.serve(listener, engine_id=engine_id)

    def serve(self, listener: socket.socket, *, engine_id: str) -> int:
        """Take connections from a socket that listens, which is ours from now on; returns its port."""
        listener.setblocking(False)
        self._listener = listener
        self._address = listener.getsockname()[:2]
        self._engine_id = engine_id
        self._spawn(self._accept(listener))
        return self._address[1]

    async def close(self) -> None:
        """Close all connections and end all offers."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._listener is not None:
            self._listener.close()
        self._offers.end_all()
        self._threads.shutdown(wait=False)

    def reserve(self, tokens: int, *, on_free: Callable[[], None]) -> KVBuffer:
        """As in `KVSender`."""
        lease = self._arena.lease(tokens)

        def free() -> None:
            lease.free()
            on_free()

        return KVBuffer(self._shape, tokens, lease.memory, on_free=free)

    def offer(self, buffer: KVBuffer, *, bearer: str | None = None) -> Offer:
        """As in `KVSender`."""
        hand_over = HandOver(
            remote_engine_id=self._engine_id,
            remote_host=self._address[0],
            remote_port=self._address[1],
            remote_request_id=secrets.token_hex(16),
            remote_bearer=bearer or secrets.token_hex(16),
            remote_tokens=buffer.tokens,
        )
        return self._offers.add(hand_over, buffer)

    def withdraw(self, bearer: str) -> bool:
        """As in `KVSender`."""
        offer = self._offers.of(bearer)
        if offer is None:
            return False
        offer.end()
        return True

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, address = await loop.sock_accept(listener)
            except OSError as error:
                log.warning("a KV connection could not be accepted: %s", error)
                await asyncio.sleep(0.1)
                continue
            if self._strangers >= MOST_STRANGERS:
                self._metrics.errors.labels("too_many_connections").inc()
                sock.close()
                await asyncio.sleep(0)  # accepting alone would never let another task run
                continue
            self._strangers += 1
            self._spawn(self._serve(KVConnection(sock), f"{address[0]}:{address[1]}"))

    def _spawn(self, work: asyncio._CoroutineLike[None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, connection: KVConnection, peer: str) -> None:
        try:
            async with connection:
                if (uid := await self._greet(connection, peer)) is not None:
                    await self._serve_verified(connection, uid)
        except _Unwanted:
            log.info("the KV that was being sent to %s is not wanted any more", peer)
        except WireError as error:
            self._metrics.errors.labels(error.reason).inc()
            log.warning("dropped the KV connection of %s: %s", peer, error)
        except (OSError, TimeoutError) as error:
            self._metrics.errors.labels("timeout" if isinstance(error, TimeoutError) else "connection").inc()
            log.warning("lost the KV connection of %s: %s", peer, error or "timed out")

    async def _greet(self, connection: KVConnection, peer: str) -> str | None:
        """The uid of a member; None for whoever was refused."""
        try:
            async with asyncio.timeout(HELLO_SECONDS):
                hello = await connection.expect(Hello)
                refusal = self._membership.judge(hello)
                if refusal is None and self._membership.connections(hello.uid) >= MOST_CONNECTIONS_EACH:
                    refusal = Refusal(
                        reason="too_many_connections",
                        message=f"{hello.name} has {MOST_CONNECTIONS_EACH} connections already",
                    )
                await connection.send(refusal or self._membership.hello())
        finally:
            self._strangers -= 1
        if refusal is None:
            return hello.uid
        self._metrics.errors.labels(refusal.reason).inc()
        log.warning("refused the KV connection of %s: %s", peer, refusal.message)
        return None

    async def _serve_verified(self, connection: KVConnection, uid: str) -> None:
        self._membership.connected(uid)
        try:
            while (frame := await connection.receive(patience_seconds=self._timeout_seconds)) is not None:
                if isinstance(frame, Fetch):
                    await self._answer(connection, frame)
                elif isinstance(frame, Release):
                    if (offer := self._offers.fetched(frame.transfer_id, by=connection)) is not None:
                        offer.end()
                else:
                    raise UnexpectedFrame(f"a {type(frame).__name__} frame came after the handshake")
        finally:
            self._membership.disconnected(uid)
            self._offers.end_all(by=connection)

    async def _answer(self, connection: KVConnection, fetch: Fetch) -> None:
        offer = self._offers.find(fetch.transfer_id, fetch.bearer)
        if offer is None or offer.fetched_by is not None:
            self._metrics.errors.labels("unknown_transfer").inc()
            await connection.send(
                Refusal(
                    reason="unknown_transfer",
                    message="no KV waits under this id and bearer: fetched, released or expired",
                )
            )
            return
        parent = propagate.extract({"traceparent": fetch.traceparent} if fetch.traceparent else {})
        began = time.monotonic()
        with tracer.start_as_current_span(
            "kv_transfer send", context=parent, kind=trace.SpanKind.SERVER
        ) as span:
            carrier: dict[str, str] = {}
            propagate.inject(carrier)
            sent = await self._send(connection, offer, carrier.get("traceparent"))
            span.set_attributes(
                {"tidewheel.kv.bytes": sent.bytes, "tidewheel.kv.tokens": offer.buffer.tokens}
            )
        if sent.is_complete:
            self._metrics.observe(time.monotonic() - began, sent.bytes)
            self._metrics.exposed.observe(sent.exposed_seconds)
        else:
            self._metrics.errors.labels("not_computed").inc()
            offer.end()

    async def _send(self, connection: KVConnection, offer: Offer, traceparent: str | None) -> Sent:
        """Have a thread send it. An offer that ends meanwhile ends the connection, as nothing less stops the thread."""
        buffer = offer.buffer
        opening = KV(
            transfer_id=offer.hand_over.remote_request_id,
            tokens=buffer.tokens,
            layers=self._shape.layers,
            kv_heads=self._shape.kv_heads,
            head_dim=self._shape.head_dim,
            dtype=self._shape.dtype,  # type: ignore[arg-type] # checked by the model
            traceparent=traceparent,
        )
        is_sending = True
        offer.on_end(lambda: connection.close() if is_sending else None)
        offer.sending(connection)
        buffer.hold()
        try:
            sent = await connection.in_thread(
                self._threads,
                lambda bulk: send(
                    bulk,
                    buffer,
                    opening,
                    in_blocks=self._mode == "Blocks",
                    alive_seconds=self._timeout_seconds / 5,
                ),
                patience_seconds=self._timeout_seconds,
                on_abandoned=buffer.drop,
                on_peer_end=offer.end,
            )
        except OSError as error:
            if offer.has_ended:
                raise _Unwanted from error
            raise
        finally:
            is_sending = False
            offer.sent()
        buffer.drop()
        if offer.has_ended:
            raise _Unwanted
        return sent
