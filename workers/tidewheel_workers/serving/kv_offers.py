"""Prompts' KV that waits at a prefill: who may have it, and when it is given up. No sockets."""

from __future__ import annotations

import asyncio
import hmac
import logging
from typing import TYPE_CHECKING

from tidewheel_workers.serving.kv_buffer import GivenUp

if TYPE_CHECKING:
    from collections.abc import Callable

    from tidewheel_workers.serving.engine import Computed
    from tidewheel_workers.serving.kv_buffer import KVBuffer
    from tidewheel_workers.serving.kv_transport import HandOver

log = logging.getLogger(__name__)


class Offer:
    """A `KVOffer`.

    While the prompt is computed there is no lease: who computes it ends the offer by `finish`. While it is sent there is
    none either: who sends it notices a receiver that stalls. Apart from that it is given up when nothing happens for the
    time of the lease.
    """

    def __init__(self, offers: Offers, hand_over: HandOver, buffer: KVBuffer) -> None:
        self.hand_over = hand_over
        self.buffer = buffer
        self.fetched_by: object | None = None  # its bearer is spent
        self._is_being_sent = False
        self.has_ended = False
        self._offers = offers
        self._lease: asyncio.TimerHandle | None = None
        self._calls: list[Callable[[], None]] = []
        buffer.hold()

    def on_end(self, call: Callable[[], None]) -> None:
        """As in `KVOffer`."""
        if self.has_ended:
            call()
        else:
            self._calls.append(call)

    def finish(self, end: Computed | GivenUp) -> None:
        """As in `KVOffer`."""
        self.buffer.finish(end)
        if isinstance(end, GivenUp) and self.fetched_by is None:
            self.end()
        else:
            self.renew()

    def sending(self, to: object) -> None:
        """It is being sent to this receiver, and to nobody else from now on."""
        self.fetched_by = to
        self._is_being_sent = True
        self.renew()

    def sent(self) -> None:
        """Nothing of it is under way any more."""
        self._is_being_sent = False
        self.renew()

    def renew(self) -> None:
        """The lease begins anew, unless the prompt is still being computed or is being sent."""
        if self._lease is not None:
            self._lease.cancel()
        if self.buffer.end is not None and not self._is_being_sent and not self.has_ended:
            self._lease = asyncio.get_running_loop().call_later(self._offers.lease_seconds, self._expire)

    def end(self) -> None:
        """Nobody will fetch it any more; a second call changes nothing."""
        if self.has_ended:
            return
        self.has_ended = True
        self._offers.forget(self)
        if self._lease is not None:
            self._lease.cancel()
        self.buffer.finish(GivenUp(reason="withdrawn", message="nobody wants this prompt any more"))
        for call in self._calls:
            call()
        self.buffer.drop()

    def _expire(self) -> None:
        log.warning(
            "the KV of transfer %s was not released within %g s; its slot is free again",
            self.hand_over.remote_request_id,
            self._offers.lease_seconds,
        )
        self._offers.on_expired()
        self.end()


class Offers:
    """All that wait at one prefill."""

    def __init__(self, *, lease_seconds: float, on_expired: Callable[[], None]) -> None:
        self.lease_seconds = lease_seconds
        self.on_expired = on_expired
        self._by_id: dict[str, Offer] = {}

    @property
    def waiting(self) -> int:
        """Computed prompts that nobody released yet."""
        return sum(offer.buffer.end is not None for offer in self._by_id.values())

    def add(self, hand_over: HandOver, buffer: KVBuffer) -> Offer:
        """One more."""
        offer = Offer(self, hand_over, buffer)
        self._by_id[hand_over.remote_request_id] = offer
        offer.renew()
        return offer

    def find(self, transfer_id: str, bearer: str) -> Offer | None:
        """The offer that this bearer is for, if there is one."""
        offer = self._by_id.get(transfer_id)
        if offer is None or not hmac.compare_digest(offer.hand_over.remote_bearer.encode(), bearer.encode()):
            return None
        return offer

    def of(self, bearer: str) -> Offer | None:
        """The offer that this bearer is for, whatever its id."""
        given = bearer.encode()
        for offer in self._by_id.values():
            if hmac.compare_digest(offer.hand_over.remote_bearer.encode(), given):
                return offer
        return None

    def fetched(self, transfer_id: str, by: object) -> Offer | None:
        """The offer under this id, if it went to that receiver."""
        offer = self._by_id.get(transfer_id)
        return offer if offer is not None and offer.fetched_by is by else None

    def end_all(self, by: object | None = None) -> None:
        """End those that went to a receiver that is gone; without one, all."""
        for offer in list(self._by_id.values()):
            if by is None or offer.fetched_by is by:
                offer.end()

    def forget(self, offer: Offer) -> None:
        """It has ended."""
        self._by_id.pop(offer.hand_over.remote_request_id, None)
