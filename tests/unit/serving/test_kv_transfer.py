"""KV goes from a prefill's buffer into a decode's, once, and a slot is never lost to a transfer that fails."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random

import pytest
from tests.unit.serving.group import PREFILL_HOST, computed, pair

from tidewheel_workers.serving.kv_connection import KVConnection, Refused
from tidewheel_workers.serving.kv_transport import TransferFailed
from tidewheel_workers.serving.kv_wire import KV, Fetch, FirstToken, Hello, Refusal, Release, encode
from tidewheel_workers.serving.stand_in import StandInEngine


async def until(condition) -> None:
    """Let the other tasks run until it holds."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - metrics have no event
            await asyncio.sleep(0.001)


async def test_the_kv_arrives_as_it_was_computed_and_the_slot_is_free_again():
    async with pair() as group:
        got = await group.client.fetch(group.offer("hello"))
        assert bytes(got.kv) == bytes(computed("hello").kv)
        assert ([first.token for first in got.first], got.tokens) == ([ord("h")], 5)
        await until(lambda: group.released == ["hello"])
        assert group.server.waiting == 0


async def test_many_transfers_share_few_connections():
    async with pair() as group:
        offers = [group.offer(f"prompt {i}") for i in range(20)]
        got = await asyncio.gather(*(group.client.fetch(offer) for offer in offers))
        assert [bytes(one.kv) for one in got] == [bytes(computed(f"prompt {i}").kv) for i in range(20)]
        await until(lambda: len(group.released) == 20)


async def test_a_bearer_is_good_for_one_fetch():
    async with pair() as group:
        offer = group.offer()
        await group.client.fetch(offer)
        with pytest.raises(TransferFailed, match="unknown_transfer"):
            await group.client.fetch(offer)
        assert group.errors("unknown_transfer") == 1


async def test_a_wrong_bearer_gets_nothing_and_takes_nothing():
    async with pair() as group:
        offer = group.offer()
        with pytest.raises(TransferFailed, match="unknown_transfer"):
            await group.client.fetch(offer.model_copy(update={"remote_bearer": "guessed"}))
        assert not group.server.withdraw(offer.model_copy(update={"remote_bearer": "guessed"}))
        await group.client.fetch(offer)


async def test_kv_that_nobody_fetches_is_dropped_when_its_lease_ends():
    async with pair(lease_seconds=0.05) as group:
        offer = group.offer()
        await until(lambda: group.released == ["hello"])
        assert group.errors("lease_expired") == 1
        with pytest.raises(TransferFailed):
            await group.client.fetch(offer)


async def test_kv_can_be_withdrawn():
    async with pair() as group:
        offer = group.offer()
        assert group.server.withdraw(offer)
        assert not group.server.withdraw(offer)
        assert group.released == ["hello"]


async def test_a_decode_that_dies_after_its_fetch_frees_the_slot():
    async with pair() as group:
        offer = group.offer()
        async with await group.client.open(group.decode.peers[0]) as connection:
            await connection.send(Fetch(transfer_id=offer.remote_request_id, bearer=offer.remote_bearer))
            await connection.expect(KV)
            assert group.released == []
        await until(lambda: group.released == ["hello"])


async def test_only_whoever_fetched_may_release():
    async with pair() as group:
        offer = group.offer()
        async with await group.client.open(group.decode.peers[0]) as other:
            await other.send(Release(transfer_id=offer.remote_request_id))
            await group.client.fetch(offer)


async def test_a_hand_over_that_names_a_stranger_is_not_followed():
    async with pair() as group:
        offer = group.offer()
        with pytest.raises(TransferFailed, match="no prefill of this group"):
            await group.client.fetch(offer.model_copy(update={"remote_host": "169.254.169.254"}))


async def test_a_prefill_that_restarted_is_fetched_from_over_a_new_connection():
    async with pair() as group:
        await group.client.fetch(group.offer())
        await group.server.close()
        group.server.listen(PREFILL_HOST, group.port, engine_id="p0")
        await group.client.fetch(group.offer("again"))


async def test_a_prefill_that_is_gone_is_a_failed_transfer():
    async with pair() as group:
        offer = group.offer()
        await group.server.close()
        with pytest.raises(TransferFailed, match="p0"):
            await group.client.fetch(offer)


async def test_a_decode_with_another_model_is_refused_by_name():
    other = dataclasses.replace(StandInEngine.identity, model_digest="other")
    async with pair(decode_identity=other) as group:
        with pytest.raises(Refused, match="model_mismatch: d0 serves model other"):
            await group.client.open(group.decode.peers[0])
        assert group.errors("model_mismatch") == 1
        assert "model_mismatch" in group.prefill.explanation


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "bad_magic", id="HTTP"),
        pytest.param(random.Random(1).randbytes(200), "bad_magic", id="noise"),
        pytest.param(encode(Release(transfer_id="x")), "unexpected_frame", id="no Hello"),
        pytest.param(encode(Release(transfer_id="x"))[:25], "truncated", id="half a frame"),
        pytest.param(
            b"TWKV\x01\x01\x00\x00\xff\xff\xff\xff" + bytes(8), "header_too_large", id="4 GiB of header"
        ),
        pytest.param(b"", "truncated", id="nothing"),
    ],
)
async def test_whatever_a_stranger_sends_is_counted_and_the_server_goes_on(sent, reason):
    async with pair() as group:
        reader, writer = await asyncio.open_connection(PREFILL_HOST, group.port)
        writer.write(sent)
        writer.write_eof()
        with contextlib.suppress(ConnectionResetError):  # what was not read is answered by a reset
            assert await reader.read() == b""
        writer.close()
        await until(lambda: group.errors(reason) == 1)
        await group.client.fetch(group.offer())


async def test_a_member_that_breaks_the_protocol_later_is_dropped():
    async with pair() as group:
        async with await group.client.open(group.decode.peers[0]) as connection:
            await connection.send(group.decode.hello())
            assert await connection.receive() is None
        assert group.errors("unexpected_frame") == 1


@pytest.mark.parametrize("cut", [0.0, 0.3, 0.99])
async def test_kv_that_comes_in_part_is_a_failed_transfer(cut):
    async def half_a_kv(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(encode(group.prefill.hello()))
        prompt = computed()
        header = KV(
            transfer_id=offer.remote_request_id,
            tokens=5,
            first=(FirstToken(token=0),),
            **dataclasses.asdict(StandInEngine.identity.kv),
        )
        writer.write(encode(header) + bytes(prompt.kv)[: int(cut * len(prompt.kv))])
        writer.close()

    async with pair() as group:
        offer = group.offer()
        await group.server.close()
        async with await asyncio.start_server(half_a_kv, PREFILL_HOST, group.port):
            with pytest.raises(TransferFailed, match="p0"):
                await group.client.fetch(offer)


async def test_kv_of_another_length_than_announced_is_refused_before_memory_is_taken():
    async def huge_kv(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        shape = dataclasses.asdict(StandInEngine.identity.kv)
        header = KV(
            transfer_id=offer.remote_request_id, tokens=1 << 24, first=(FirstToken(token=0),), **shape
        )
        writer.write(encode(group.prefill.hello()) + encode(header))
        await reader.read()

    async with pair() as group:
        offer = group.offer()
        await group.server.close()
        async with await asyncio.start_server(huge_kv, PREFILL_HOST, group.port):
            with pytest.raises(TransferFailed) as failed:
                await group.client.fetch(offer)
        assert failed.value.reason == "bad_payload"


async def test_a_prefill_that_says_nothing_is_a_timeout():
    async def silence(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    async with pair(timeout_seconds=0.1) as group:
        offer = group.offer()
        await group.server.close()
        async with await asyncio.start_server(silence, PREFILL_HOST, group.port):
            with pytest.raises(TransferFailed) as failed:
                await group.client.fetch(offer)
        assert failed.value.reason == "timeout"


async def test_a_hello_that_is_refused_closes_the_connection():
    async with pair() as group:
        connection = await KVConnection.connect(PREFILL_HOST, group.port)
        stranger = group.decode.hello().model_copy(update={"uid": "someone"})
        await connection.send(stranger)
        assert isinstance(await connection.receive(), Refusal)
        assert await connection.receive() is None
        connection.close()
        assert group.errors("unknown_member") == 1
        assert isinstance(stranger, Hello)
