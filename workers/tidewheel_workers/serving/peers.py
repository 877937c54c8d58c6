"""Keeps a worker's group together: watches the rank table and, on decodes, holds a verified connection to each prefill."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING

from tidewheel.api.ranktable import RankTable
from tidewheel.api.reasons import Reason
from tidewheel_workers.serving.kv_connection import Refused
from tidewheel_workers.serving.kv_wire import UnexpectedFrame, WireError
from tidewheel_workers.serving.watched_file import WatchedFile

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tidewheel.api.ranktable import Member
    from tidewheel_workers.serving.kv_client import KVClient
    from tidewheel_workers.serving.membership import Membership

log = logging.getLogger(__name__)

FIRST_RETRY_SECONDS = 0.1
LAST_RETRY_SECONDS = 2.0


class Peers:
    """The tasks behind a `Membership`."""

    def __init__(
        self,
        membership: Membership,
        ranks_file: Path,
        *,
        client: KVClient | None,
        timeout_seconds: float,
        on_reassigned: Callable[[], None] | None = None,
    ) -> None:
        """Watch.

        Args:
            membership: what is known of the group.
            ranks_file: the rank table; may not be there yet.
            client: connects to the prefills; None on a prefill.
            timeout_seconds: after that one verified peer is enough.
            on_reassigned: called when a table gives this worker the other role; later tables are for whoever has it then.
        """
        self.membership = membership
        self._on_reassigned = on_reassigned
        self._file = WatchedFile(ranks_file, RankTable.model_validate_json)
        self._client = client
        self._timeout_seconds = timeout_seconds
        self._links: dict[str, asyncio.Task[None]] = {}
        self._late = False

    @property
    def reason(self) -> str:
        """One word for a worker that is not ready: Starting, and PeersUnverified when that takes too long."""
        return Reason.PEERS_UNVERIFIED if self._late else Reason.STARTING

    async def run(self) -> None:
        """Until cancelled."""
        timer = asyncio.get_running_loop().call_later(self._timeout_seconds, self._stop_waiting)
        try:
            await self._file.watch(self._on_table)
        finally:
            timer.cancel()
            for link in self._links.values():
                link.cancel()
            await asyncio.gather(*self._links.values(), return_exceptions=True)

    def _on_table(self, table: RankTable) -> None:
        if self.membership.is_reassigned:
            return
        try:
            self.membership.update(table)
        except ValueError as error:
            log.error("ignored a rank table: %s", error)
            return
        log.info("rank table %s: %d members", table.digest(), len(table.members))
        if self.membership.is_reassigned:
            if self._on_reassigned is not None:
                self._on_reassigned()
            return
        if self._client is None:
            return
        wanted = {_place(peer): peer for peer in self.membership.peers}
        for place in self._links.keys() - wanted.keys():
            self._links.pop(place).cancel()
        for place in wanted.keys() - self._links.keys():
            link = asyncio.get_running_loop().create_task(self._hold(self._client, wanted[place]))
            self._links[place] = link

    def _stop_waiting(self) -> None:
        if self.membership.has_formed:
            return
        self._late = True
        self.membership.settle()
        if self.membership.has_formed:
            log.warning("serving with a part of the group: %s", self.membership.explanation)
        else:
            log.error("%s: %s; still trying", Reason.PEERS_UNVERIFIED, self.membership.explanation)

    async def _hold(self, client: KVClient, peer: Member) -> None:
        """Connect, verify, notice the end, and begin again: a peer that restarts is back within seconds."""
        wait, said = FIRST_RETRY_SECONDS, ""
        try:
            while True:
                try:
                    async with await client.open(peer) as connection:
                        wait, said = FIRST_RETRY_SECONDS, ""
                        self.membership.connected(peer.uid)
                        log.info("verified %s at %s:%d", peer.name, peer.address, peer.kv_port)
                        try:
                            frame = await connection.receive()
                        finally:
                            self.membership.disconnected(peer.uid)
                            client.forget(peer.uid)
                    if frame is not None:
                        raise UnexpectedFrame(f"{peer.name} sent a {type(frame).__name__} frame unasked")
                    log.warning("%s closed its connection", peer.name)
                except (OSError, WireError, Refused) as error:
                    if (fault := str(error) or "timed out") != said:
                        log.info("cannot verify %s: %s; trying on", peer.name, fault)
                    said = fault
                    self.membership.failed(peer.uid, fault)
                await asyncio.sleep(wait * random.uniform(0.5, 1.5))  # noqa: S311 - jitter
                wait = min(2 * wait, LAST_RETRY_SECONDS)
        finally:
            client.forget(peer.uid)


def _place(peer: Member) -> str:
    return f"{peer.uid}@{peer.address}:{peer.kv_port}"
