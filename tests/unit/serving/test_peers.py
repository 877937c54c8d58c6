"""A decode holds a connection to each prefill of its group: it notices when one is gone, and finds the one that comes back."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest
from tests.unit.serving.group import Pair, compute, kv_of, pair, prefill_server, table, until

from tidewheel_workers.serving.kv_transport import TransferFailed
from tidewheel_workers.serving.peers import Peers


@asynccontextmanager
async def watching(group: Pair, directory):
    """The decode's watch over its group, acquainted with the prefill."""
    file = directory / "ranktable.json"
    file.write_text(table(kv_port=group.port).to_text())
    peers = Peers(group.decode, file, client=group.client, timeout_seconds=30)
    task = asyncio.create_task(peers.run())
    try:
        await until(lambda: group.decode.verified)
        yield file
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def fetch_again(group: Pair, server) -> bytes:
    buffer = server.reserve(5, on_free=lambda: None)
    offer = server.offer(buffer)
    offer.finish(compute("again", buffer))
    received = await group.client.fetch(offer.hand_over)
    return bytes(received.computed.kv)


async def test_a_prefill_that_restarts_is_noticed_and_found_again_without_stale_connections(tmp_path):
    async with pair() as group, watching(group, tmp_path):
        offer = group.offer()
        (await group.client.fetch(offer)).free()
        kept = group.prefill.connections("u-d0")
        assert kept == 2  # the one that watches, and the one that is kept for the next transfer
        await group.server.close()
        await until(lambda: not group.decode.verified)
        assert "its connection closed" in group.decode.explanation or "refused" in group.decode.explanation
        async with prefill_server(group) as restarted:
            await until(lambda: group.decode.verified)
            assert group.prefill.connections("u-d0") == 1
            with pytest.raises(TransferFailed, match="unknown_transfer"):
                await group.client.fetch(offer)  # what the old process offered is gone, and said to be
            assert await fetch_again(group, restarted) == kv_of("again")


async def test_a_pod_that_takes_anothers_place_and_address_is_verified_anew(tmp_path):
    async with pair() as group, watching(group, tmp_path) as file:
        moved = table(kv_port=group.port).model_dump(mode="json")
        moved["members"][0] |= {"name": "p1", "uid": "u-p1"}
        new = type(table()).model_validate(moved)
        other = file.with_suffix(".new")
        other.write_text(new.to_text())
        other.replace(file)
        # the address still answers as the old pod, which is not in the table any more
        await until(
            lambda: "wrong_member: p0 (u-p0) answers at the address of p1" in group.decode.explanation
        )
        assert not group.decode.is_ready
