"""Decode's end of the KV transfer: verified connections to prefills, and the retrieval of one prompt's KV."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from opentelemetry import propagate, trace

from tidewheel_workers.serving.engine import Prefilled
from tidewheel_workers.serving.kv_connection import KVConnection, Refused
from tidewheel_workers.serving.kv_transport import TransferFailed
from tidewheel_workers.serving.kv_wire import KV, BadPayload, Fetch, Hello, Release, WireError

if TYPE_CHECKING:
    from tidewheel.api.ranktable import Member
    from tidewheel_workers.serving.engine import KVShape
    from tidewheel_workers.serving.kv_transport import HandOver
    from tidewheel_workers.serving.membership import Membership
    from tidewheel_workers.serving.metrics import KVMetrics

log = logging.getLogger(__name__)
tracer = trace.get_tracer(__name__)

CONNECT_SECONDS = 5.0
#: Concurrent transfers share one wire, so more of them make each later.
MOST_TRANSFERS = 2


class KVClient:
    """A `KVReceiver` over TCP; connections are kept and used again."""

    def __init__(
        self,
        membership: Membership,
        shape: KVShape,
        metrics: KVMetrics,
        *,
        timeout_seconds: float,
        most_transfers: int = MOST_TRANSFERS,
    ) -> None:
        self._membership = membership
        self._shape = shape
        self._metrics = metrics
        self._timeout_seconds = timeout_seconds
        self._transfers = asyncio.Semaphore(most_transfers)
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
                if (refusal := self._membership.judge(hello)) is not None:
                    raise Refused(refusal)
            except BaseException:
                connection.close()
                raise
        return connection

    def forget(self, uid: str) -> None:
        """Close the idle connections to a peer that is gone."""
        for connection in self._idle.pop(uid, ()):
            connection.close()

    async def fetch(self, hand_over: HandOver) -> Prefilled:
        """As in `KVReceiver`."""
        peer = next(
            (
                peer
                for peer in self._membership.peers
                if (peer.address, peer.kv_port) == (hand_over.remote_host, hand_over.remote_port)
            ),
            None,
        )
        if peer is None:
            raise self._failed(
                "unknown_peer",
                f"{hand_over.remote_host}:{hand_over.remote_port} is no prefill of this group",
            )
        began = time.monotonic()
        with tracer.start_as_current_span("kv_transfer", kind=trace.SpanKind.CLIENT) as span:
            span.set_attributes(
                {"server.address": peer.address, "server.port": peer.kv_port, "tidewheel.peer": peer.name}
            )
            try:
                async with asyncio.timeout(self._timeout_seconds), self._transfers:
                    computed = await self._fetch_from(peer, hand_over)
            except WireError as error:
                raise self._failed(error.reason, f"{peer.name}: {error}") from error
            except Refused as error:
                raise self._failed(error.reason, f"{peer.name} refused: {error}") from error
            except TimeoutError as error:
                raise self._failed(
                    "timeout", f"{peer.name} did not deliver the KV within {self._timeout_seconds:g} s"
                ) from error
            except OSError as error:
                raise self._failed("connection", f"{peer.name}: {error}") from error
            span.set_attributes(
                {"tidewheel.kv.bytes": len(computed.kv), "tidewheel.kv.tokens": computed.tokens}
            )
        self._metrics.observe(time.monotonic() - began, len(computed.kv))
        return computed

    async def _fetch_from(self, peer: Member, hand_over: HandOver) -> Prefilled:
        if idle := self._idle.get(peer.uid):
            try:
                return await self._fetch_over(idle.pop(), peer, hand_over)
            except (OSError, WireError) as error:
                # the peer may have closed it since; a spent bearer would be refused, so asking again is safe
                log.info("an idle KV connection to %s was of no use: %s", peer.name, error)
        return await self._fetch_over(await self.open(peer), peer, hand_over)

    async def _fetch_over(self, connection: KVConnection, peer: Member, hand_over: HandOver) -> Prefilled:
        try:
            carrier: dict[str, str] = {}
            propagate.inject(carrier)
            await connection.send(
                Fetch(
                    transfer_id=hand_over.remote_request_id,
                    bearer=hand_over.remote_bearer,
                    traceparent=carrier.get("traceparent"),
                )
            )
            header = await connection.expect(KV)
            self._check(header, hand_over)
            buffer = memoryview(bytearray(header.payload_bytes))
            await connection.receive_payload(buffer)
            await connection.send(Release(transfer_id=header.transfer_id))
        except Refused:
            self._keep(peer, connection)
            raise
        except BaseException:
            # the peer takes the end of the connection for a release
            connection.close()
            raise
        self._keep(peer, connection)
        sender = trace.get_current_span(
            propagate.extract({"traceparent": header.traceparent} if header.traceparent else {})
        ).get_span_context()
        if sender.is_valid:
            trace.get_current_span().add_link(sender)
        return Prefilled(
            first=tuple(first.to_first() for first in header.first),
            tokens=header.tokens,
            kv=buffer,
            cached_tokens=header.cached_tokens,
        )

    def _keep(self, peer: Member, connection: KVConnection) -> None:
        if peer in self._membership.verified:
            self._idle.setdefault(peer.uid, []).append(connection)
        else:
            connection.close()

    def _check(self, header: KV, hand_over: HandOver) -> None:
        if header.transfer_id != hand_over.remote_request_id:
            raise BadPayload("the KV of another transfer came")
        if header.shape != self._shape or header.tokens != hand_over.remote_tokens:
            raise BadPayload(
                f"KV of {header.tokens} tokens of {header.shape} came; "
                f"wanted were {hand_over.remote_tokens} tokens of {self._shape}"
            )

    def _failed(self, reason: str, message: str) -> TransferFailed:
        self._metrics.errors.labels(reason).inc()
        return TransferFailed(reason, message)
