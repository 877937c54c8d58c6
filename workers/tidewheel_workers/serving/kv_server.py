"""Prefill's end of the KV transfer: offered buffers with a lease, served over TCP to verified decodes."""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
import socket
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from opentelemetry import propagate, trace

from tidewheel_workers.serving.kv_connection import KVConnection
from tidewheel_workers.serving.kv_transport import HandOver
from tidewheel_workers.serving.kv_wire import (
    KV,
    Fetch,
    FirstToken,
    Hello,
    Refusal,
    Release,
    UnexpectedFrame,
    WireError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tidewheel_workers.serving.engine import KVShape, Prefilled
    from tidewheel_workers.serving.membership import Membership
    from tidewheel_workers.serving.metrics import KVMetrics

log = logging.getLogger(__name__)
tracer = trace.get_tracer(__name__)

HELLO_SECONDS = 5.0
MOST_CONNECTIONS = 512


@dataclass(slots=True, eq=False, kw_only=True)
class _Offer:
    hand_over: HandOver
    computed: Prefilled
    on_release: Callable[[], None]
    lease: asyncio.TimerHandle | None = None
    fetched_over: KVConnection | None = field(default=None)


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
        lease_seconds: float,
        timeout_seconds: float,
    ) -> None:
        self._membership = membership
        self._shape = shape
        self._metrics = metrics
        self._lease_seconds = lease_seconds
        self._timeout_seconds = timeout_seconds
        self._offers: dict[str, _Offer] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._address = ("", 0)
        self._listener: socket.socket | None = None
        self._engine_id = ""

    @property
    def waiting(self) -> int:
        """Offers that nobody released yet."""
        return len(self._offers)

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
        for offer in list(self._offers.values()):
            self._end(offer)

    def offer(self, computed: Prefilled, *, on_release: Callable[[], None]) -> HandOver:
        """As in `KVSender`."""
        hand_over = HandOver(
            remote_engine_id=self._engine_id,
            remote_host=self._address[0],
            remote_port=self._address[1],
            remote_request_id=secrets.token_hex(16),
            remote_bearer=secrets.token_hex(16),
            remote_tokens=computed.tokens,
        )
        offer = _Offer(hand_over=hand_over, computed=computed, on_release=on_release)
        self._offers[hand_over.remote_request_id] = offer
        self._renew(offer)
        return hand_over

    def withdraw(self, hand_over: HandOver) -> bool:
        """As in `KVSender`."""
        offer = self._find(hand_over.remote_request_id, hand_over.remote_bearer)
        if offer is None:
            return False
        self._end(offer)
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
            if len(self._tasks) > MOST_CONNECTIONS:
                self._metrics.errors.labels("too_many_connections").inc()
                sock.close()
                continue
            self._spawn(self._serve(KVConnection(sock), f"{address[0]}:{address[1]}"))

    def _spawn(self, work: asyncio._CoroutineLike[None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, connection: KVConnection, peer: str) -> None:
        try:
            async with connection:
                async with asyncio.timeout(HELLO_SECONDS):
                    hello = await connection.expect(Hello)
                    refusal = self._membership.judge(hello)
                    await connection.send(refusal or self._membership.hello())
                if refusal is not None:
                    self._metrics.errors.labels(refusal.reason).inc()
                    log.warning("refused the KV connection of %s: %s", peer, refusal.message)
                    return
                await self._serve_verified(connection, hello.uid)
        except WireError as error:
            self._metrics.errors.labels(error.reason).inc()
            log.warning("dropped the KV connection of %s: %s", peer, error)
        except (OSError, TimeoutError) as error:
            self._metrics.errors.labels("timeout" if isinstance(error, TimeoutError) else "connection").inc()
            log.warning("lost the KV connection of %s: %s", peer, error or "timed out")

    async def _serve_verified(self, connection: KVConnection, uid: str) -> None:
        self._membership.connected(uid)
        try:
            while (frame := await connection.receive()) is not None:
                if isinstance(frame, Fetch):
                    await self._send(connection, frame)
                elif isinstance(frame, Release):
                    offer = self._offers.get(frame.transfer_id)
                    if offer is not None and offer.fetched_over is connection:
                        self._end(offer)
                else:
                    raise UnexpectedFrame(f"a {type(frame).__name__} frame came after the handshake")
        finally:
            self._membership.disconnected(uid)
            for offer in [o for o in self._offers.values() if o.fetched_over is connection]:
                self._end(offer)

    async def _send(self, connection: KVConnection, fetch: Fetch) -> None:
        offer = self._find(fetch.transfer_id, fetch.bearer)
        if offer is None or offer.fetched_over is not None:
            self._metrics.errors.labels("unknown_transfer").inc()
            await connection.send(
                Refusal(
                    reason="unknown_transfer",
                    message="no KV waits under this id and bearer: fetched, released or expired",
                )
            )
            return
        offer.fetched_over = connection
        self._renew(offer)
        parent = propagate.extract({"traceparent": fetch.traceparent} if fetch.traceparent else {})
        began = time.monotonic()
        with tracer.start_as_current_span(
            "kv_transfer send", context=parent, kind=trace.SpanKind.SERVER
        ) as span:
            carrier: dict[str, str] = {}
            propagate.inject(carrier)
            computed = offer.computed
            header = KV(
                transfer_id=fetch.transfer_id,
                tokens=computed.tokens,
                layers=self._shape.layers,
                kv_heads=self._shape.kv_heads,
                head_dim=self._shape.head_dim,
                dtype=self._shape.dtype,  # type: ignore[arg-type] # checked by the model
                first=tuple(FirstToken.of(first) for first in computed.first),
                cached_tokens=computed.cached_tokens,
                traceparent=carrier.get("traceparent"),
            )
            span.set_attributes(
                {"tidewheel.kv.bytes": len(computed.kv), "tidewheel.kv.tokens": computed.tokens}
            )
            async with asyncio.timeout(self._timeout_seconds):
                await connection.send(header, computed.kv)
        self._metrics.observe(time.monotonic() - began, len(computed.kv))

    def _find(self, transfer_id: str, bearer: str) -> _Offer | None:
        offer = self._offers.get(transfer_id)
        if offer is None or not hmac.compare_digest(offer.hand_over.remote_bearer.encode(), bearer.encode()):
            return None
        return offer

    def _renew(self, offer: _Offer) -> None:
        if offer.lease is not None:
            offer.lease.cancel()
        offer.lease = asyncio.get_running_loop().call_later(self._lease_seconds, self._expire, offer)

    def _expire(self, offer: _Offer) -> None:
        self._metrics.errors.labels("lease_expired").inc()
        log.warning(
            "the KV of transfer %s was not released within %.0f s; its slot is free again",
            offer.hand_over.remote_request_id,
            self._lease_seconds,
        )
        self._end(offer)

    def _end(self, offer: _Offer) -> None:
        if self._offers.pop(offer.hand_over.remote_request_id, None) is None:
            return
        if offer.lease is not None:
            offer.lease.cancel()
        offer.on_release()
