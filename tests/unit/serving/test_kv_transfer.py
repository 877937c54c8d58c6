"""KV goes from a prefill's buffer into a decode's, once, and a slot is never lost to a transfer that fails."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import pytest
import uvloop
from tests.unit.serving.group import PREFILL_HOST, Pair, compute, kv_of, pair, prefill_server, until

from tidewheel_workers.serving.engine import Computed, First
from tidewheel_workers.serving.kv_buffer import GivenUp
from tidewheel_workers.serving.kv_connection import KVConnection, Refused
from tidewheel_workers.serving.kv_parts import Part
from tidewheel_workers.serving.kv_transport import KVMode, TransferFailed, TransfersBusy
from tidewheel_workers.serving.kv_wire import (
    KV,
    Complete,
    Computing,
    Fetch,
    FirstToken,
    Hello,
    PartFrame,
    Refusal,
    Release,
    encode,
)
from tidewheel_workers.serving.stand_in import StandInEngine

SHAPE = StandInEngine.identity.kv
LONG = 1 << 17  # tokens whose KV no socket's buffers hold


async def fetched(group: Pair, hand_over) -> tuple[bytes, list[int], int]:
    """Fetch, as a decode does: bytes, first tokens, tokens."""
    received = await group.client.fetch(hand_over)
    came = received.computed
    kv = bytes(came.kv)
    received.free()
    return kv, [first.token for first in came.first], came.tokens


async def arrives(text: str, mode: KVMode) -> None:
    async with pair(mode=mode) as group:
        assert await fetched(group, group.offer(text)) == (kv_of(text), [ord("a")], len(text))
        await until(lambda: group.released == [text])
        assert group.server.waiting == 0


@pytest.mark.parametrize("mode", ["Whole", "PerLayer", "Blocks"])
@pytest.mark.parametrize("tokens", [1, 16, 17, 40])
async def test_the_kv_arrives_as_it_was_computed_and_the_slot_is_free_again(mode, tokens):
    await arrives("a prompt of more tokens than a block has"[:tokens], mode)


async def test_log_probabilities_and_what_was_cached_come_along():
    async with pair() as group:
        offer = group.offer_early("hello")
        done = compute("hello", offer.buffer)
        offer.finish(dataclasses.replace(done, first=(First(token=1), First(token=2)), cached_tokens=4))
        came = (await group.client.fetch(offer.hand_over)).computed
        assert (came.first, came.cached_tokens) == ((First(token=1), First(token=2)), 4)


async def test_many_transfers_share_few_connections_and_little_memory():
    async with pair(most_transfers=2) as group:
        texts = [f"prompt {i:02}" for i in range(20)]
        got = await asyncio.gather(*(fetched(group, group.offer(text)) for text in texts))
        assert [kv for kv, _, _ in got] == [kv_of(text) for text in texts]
        await until(lambda: len(group.released) == 20)
        assert group.metric("tidewheel_kv_buffer_bytes") <= 3 * SHAPE.bytes_for(9)
        assert group.metric("tidewheel_kv_buffers", state="used") == 0
        assert group.metric("tidewheel_kv_transfer_queue_seconds_count", role="decode") == 20


async def test_a_decode_that_has_too_many_transfers_refuses_the_next_and_loses_nothing():
    async with pair(most_transfers=1, most_waiting=1) as group:
        first, second, third = (group.offer_early(text) for text in ("first", "second", "third"))
        fetches = [asyncio.create_task(fetched(group, offer.hand_over)) for offer in (first, second)]
        await until(lambda: group.metric("tidewheel_kv_transfers", state="waiting") == 1)
        with pytest.raises(TransfersBusy):
            await group.client.fetch(third.hand_over)
        for offer, text in ((first, "first"), (second, "second"), (third, "third")):
            offer.finish(compute(text, offer.buffer))
        await asyncio.gather(*fetches)
        assert await fetched(group, third.hand_over) == (kv_of("third"), [ord("t")], 5)


async def test_layers_are_sent_while_later_ones_are_computed():
    async with pair(mode="PerLayer") as group:
        offer = group.offer_early("hello")
        async with await group.client.open(group.decode.peers[0]) as decode:
            await decode.send(fetch_of(offer))
            assert (await decode.expect(KV)).tokens == 5
            plane = b"\x01" * (SHAPE.bytes_for(5) // 4)
            for layer in range(SHAPE.layers):
                at = 2 * layer * len(plane)
                offer.buffer.buffer[at : at + 2 * len(plane)] = 2 * plane
                offer.buffer.wrote(layer, 0, 5)
                frame = await decode.receive()
                assert frame == PartFrame(
                    part=Part(layer=layer, start=0, tokens=5), payload_bytes=2 * len(plane)
                )
                assert await payload(decode, frame) == 2 * plane
            offer.finish(Computed(request_id="r", first=(First(token=7),)))
            assert (await decode.receive()).first == (FirstToken(token=7),)
            await decode.send(Release(transfer_id=offer.hand_over.remote_request_id))
            offer.buffer.drop()
            await until(lambda: group.released == ["hello"])


async def test_chunks_of_layers_make_the_same_kv():
    async with pair(mode="PerLayer") as group:
        offer = group.offer_early("hello")
        fetching = asyncio.create_task(fetched(group, offer.hand_over))
        offer.buffer.buffer[:] = kv_of("hello")
        for start, tokens in ((0, 2), (2, 3)):
            for layer in range(SHAPE.layers):
                await asyncio.sleep(0)
                offer.buffer.wrote(layer, start, tokens)
        offer.finish(Computed(request_id="r", first=(First(token=ord("h")),)))
        assert await fetching == (kv_of("hello"), [ord("h")], 5)


async def test_a_long_computation_is_waited_for_as_long_as_the_prefill_is_alive():
    async with pair(mode="PerLayer", timeout_seconds=0.2) as group:
        offer = group.offer_early("hello")
        async with await group.client.open(group.decode.peers[0]) as decode:
            await decode.send(fetch_of(offer))
            await decode.expect(KV)
            assert [await decode.receive() for _ in range(7)] == [Computing()] * 7  # longer than the timeout
        assert not group.released


async def test_a_prompt_that_cannot_be_computed_is_refused_and_the_connection_serves_on():
    async with pair(mode="PerLayer") as group:
        offer = group.offer_early("hello")
        fetching = asyncio.create_task(group.client.fetch(offer.hand_over))
        await until(lambda: offer.fetched_by is not None)
        offer.finish(GivenUp(reason="not_computed", message="no KV blocks are free"))
        offer.buffer.drop()
        with pytest.raises(TransferFailed, match="no KV blocks are free") as failed:
            await fetching
        assert failed.value.reason == "not_computed"
        await until(lambda: group.released == ["hello"])
        connections = group.prefill.connections("u-d0")
        await fetched(group, group.offer("next"))
        assert group.prefill.connections("u-d0") == connections
        assert group.metric("tidewheel_kv_buffers", state="used") == 0


async def leaves_while_it_is_computed() -> None:
    async with pair(mode="PerLayer") as group:
        offer = group.offer_early("hello")
        ended = asyncio.Event()
        offer.on_end(ended.set)
        fetching = asyncio.create_task(group.client.fetch(offer.hand_over))
        await until(lambda: offer.fetched_by is not None)
        fetching.cancel()
        await ended.wait()
        offer.buffer.drop()
        await until(lambda: group.released == ["hello"])
        await until(lambda: group.metric("tidewheel_kv_buffers", state="used") == 0)
        assert group.errors("connection") == 0


async def test_a_client_that_leaves_while_its_prompt_is_computed_frees_both_ends_at_once():
    await leaves_while_it_is_computed()


async def test_a_client_that_leaves_while_the_kv_comes_frees_both_ends_at_once():
    async with pair() as group:
        offer = group.offer()
        async with false_prefill(group, opening(group, offer) + whole() + b"some", is_open=True) as left:
            fetching = asyncio.create_task(group.client.fetch(offer))
            await until(lambda: group.metric("tidewheel_kv_transfers", state="running") == 1)
            fetching.cancel()
            await left.wait()
        await until(lambda: group.metric("tidewheel_kv_buffers", state="used") == 0)
        assert group.metric("tidewheel_kv_transfers", state="running") == 0


def test_servers_run_on_uvloop_which_does_not_treat_sockets_as_asyncio_does():
    async def scenario() -> None:
        for mode in ("Whole", "PerLayer", "Blocks"):
            await arrives("a prompt of more tokens than a block has", mode)
        await leaves_while_it_is_computed()

    uvloop.run(scenario())


async def test_kv_that_is_withdrawn_while_it_is_computed_is_a_failed_transfer():
    async with pair(mode="PerLayer") as group:
        offer = group.offer_early("hello")
        fetching = asyncio.create_task(group.client.fetch(offer.hand_over))
        await until(lambda: offer.fetched_by is not None)
        assert group.server.withdraw(offer.hand_over.remote_bearer)
        with pytest.raises(TransferFailed):
            await fetching
        offer.buffer.drop()
        await until(lambda: group.released == ["hello"])


async def test_a_prompt_longer_than_the_decodes_buffers_is_refused_before_it_is_asked_for():
    async with pair() as group:
        offer = group.offer()
        with pytest.raises(TransferFailed) as failed:
            await group.client.fetch(offer.model_copy(update={"remote_tokens": 65}))
        assert failed.value.reason == "no_buffer"
        assert group.released == []


async def test_a_decode_that_takes_nothing_is_dropped_and_the_slot_is_free_again():
    async with pair(timeout_seconds=0.2, max_tokens=LONG) as group:
        text = "x" * LONG
        offer = group.offer(text)
        async with await group.client.open(group.decode.peers[0]) as decode:
            await decode.send(fetch_of(offer))
            await until(lambda: group.released == [text])
        assert group.errors("timeout") == 1


async def test_a_bearer_is_good_for_one_fetch():
    async with pair() as group:
        offer = group.offer()
        await fetched(group, offer)
        with pytest.raises(TransferFailed, match="unknown_transfer"):
            await group.client.fetch(offer)
        assert group.errors("unknown_transfer") == 1


async def test_a_wrong_bearer_gets_nothing_and_takes_nothing():
    async with pair() as group:
        offer = group.offer()
        with pytest.raises(TransferFailed, match="unknown_transfer"):
            await group.client.fetch(offer.model_copy(update={"remote_bearer": "guessed"}))
        assert not group.server.withdraw("guessed")
        await fetched(group, offer)


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
        assert group.server.withdraw(offer.remote_bearer)
        assert not group.server.withdraw(offer.remote_bearer)
        assert group.released == ["hello"]


async def test_a_decode_that_dies_after_its_fetch_frees_the_slot():
    async with pair() as group:
        offer = group.offer()
        async with await group.client.open(group.decode.peers[0]) as connection:
            await connection.send(fetch_of(offer))
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
        await fetched(group, group.offer())
        await group.server.close()
        async with prefill_server(group) as restarted:
            buffer = restarted.reserve(5, on_free=lambda: None)
            offer = restarted.offer(buffer)
            offer.finish(compute("again", buffer))
            assert (await fetched(group, offer.hand_over))[0] == kv_of("again")


async def test_another_member_at_a_prefills_address_is_not_taken_for_it():
    """As when a pod was replaced and its address went to another of the group."""
    async with pair() as group:
        stranger = group.decode.peers[0].model_copy(update={"uid": "u-old", "name": "old"})
        with pytest.raises(
            Refused, match=r"wrong_member: p0 \(u-p0\) answers at the address of old \(u-old\)"
        ):
            await group.client.open(stranger)


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
            b"TWKV\x02\x01\x00\x00\xff\xff\xff\xff" + bytes(8), "header_too_large", id="4 GiB of header"
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


def fetch_of(offer) -> Fetch:
    hand_over = getattr(offer, "hand_over", offer)
    return Fetch(transfer_id=hand_over.remote_request_id, bearer=hand_over.remote_bearer)


async def payload(connection: KVConnection, frame: PartFrame) -> bytes:
    memory = bytearray(frame.payload_bytes)
    with ThreadPoolExecutor() as threads:
        await connection.in_thread(
            threads,
            lambda bulk: bulk.receive_into([memoryview(memory)]),
            patience_seconds=5,
            on_abandoned=lambda: None,
        )
    return bytes(memory)


def opening(group: Pair, offer, **changes) -> bytes:
    """What a prefill says up to the first part."""
    header = KV(
        **{"transfer_id": offer.remote_request_id, "tokens": 5, **dataclasses.asdict(SHAPE), **changes}
    )
    return encode(group.prefill.hello()) + encode(header)


def whole(**changes: int) -> bytes:
    """The one part of a prompt of five tokens, without its payload."""
    part = {"layer": 0, "layers": SHAPE.layers, "start": 0, "tokens": 5} | changes
    return encode(PartFrame(part=Part(**part), payload_bytes=SHAPE.bytes_for(5)))


@asynccontextmanager
async def false_prefill(group: Pair, answer: bytes, *, is_open: bool = False):
    """In the prefill's place, somebody who says this to whatever is asked, and closes at once or when he is left.

    Gives an event that is set when he is left.
    """
    left = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(answer)
        if not is_open:
            writer.write_eof()
        with contextlib.suppress(ConnectionError):
            await reader.read()
        left.set()
        writer.close()

    await group.server.close()
    async with await asyncio.start_server(serve, PREFILL_HOST, group.port):
        yield left


@pytest.mark.parametrize("cut", [0.0, 0.3, 0.99])
async def test_kv_that_comes_in_part_is_a_failed_transfer(cut):
    async with pair() as group:
        offer = group.offer()
        kv = kv_of("hello")
        async with false_prefill(group, opening(group, offer) + whole() + kv[: int(cut * len(kv))]):
            with pytest.raises(TransferFailed, match="p0"):
                await group.client.fetch(offer)
        assert group.metric("tidewheel_kv_buffers", state="used") == 0


COMPLETE = encode(Complete(first=(FirstToken(token=0),)))


@pytest.mark.parametrize(
    ("said", "message"),
    [
        pytest.param({"tokens": 1 << 24}, "KV of 16777216 tokens", id="more tokens than were computed"),
        pytest.param({"layers": 4096}, "layers=4096", id="another model's"),
        pytest.param({"dtype": "float16"}, "float16", id="another dtype"),
        pytest.param({"transfer_id": "other"}, "the KV of another transfer", id="another prompt's"),
    ],
)
async def test_kv_of_another_size_than_announced_is_refused_before_memory_is_taken(said, message):
    async with pair() as group:
        offer = group.offer()
        async with false_prefill(group, opening(group, offer, **said), is_open=True):
            with pytest.raises(TransferFailed, match=message) as failed:
                await group.client.fetch(offer)
        assert failed.value.reason == "bad_payload"
        assert group.metric("tidewheel_kv_buffer_bytes") == SHAPE.bytes_for(5)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        pytest.param(whole(tokens=6), "bad_payload", id="a part past the end"),
        pytest.param(whole(start=1, tokens=4, layers=1), "bad_payload", id="a part with a gap before it"),
        pytest.param(whole(layers=1), "bad_payload", id="a part with more bytes than it has"),
        pytest.param(whole() + kv_of("hello") + whole(), "bad_payload", id="a part twice"),
        pytest.param(COMPLETE, "bad_payload", id="the end before any part"),
        pytest.param(
            encode(Release(transfer_id="x")), "unexpected_frame", id="a frame that is not its to send"
        ),
        pytest.param(whole() + kv_of("hello") + COMPLETE[:-1], "truncated", id="an end cut short"),
        pytest.param(whole() + kv_of("hello") + COMPLETE + b"T", "unexpected_frame", id="more after the end"),
    ],
)
async def test_parts_that_are_wrong_are_a_failed_transfer(said, reason):
    async with pair() as group:
        offer = group.offer()
        async with false_prefill(group, opening(group, offer) + said):
            with pytest.raises(TransferFailed) as failed:
                await group.client.fetch(offer)
        assert failed.value.reason == reason
        assert group.metric("tidewheel_kv_buffers", state="used") == 0


async def test_a_prefill_that_says_nothing_is_a_timeout():
    async with pair(timeout_seconds=0.1) as group:
        offer = group.offer()
        async with false_prefill(group, opening(group, offer), is_open=True):
            with pytest.raises(TransferFailed) as failed:
                await group.client.fetch(offer)
        assert failed.value.reason == "timeout"
        await until(lambda: group.metric("tidewheel_kv_buffers", state="used") == 0)


async def test_half_a_frame_is_not_waited_for():
    async with pair(timeout_seconds=0.1) as group:
        async with await group.client.open(group.decode.peers[0]):
            reader, writer = await asyncio.open_connection(PREFILL_HOST, group.port)
            writer.write(encode(group.decode.hello()))
            await reader.readuntil(b"}")
            writer.write(encode(Release(transfer_id="x"))[:-1])
            assert await reader.read() == b""
            writer.close()
        assert group.errors("timeout") == 1


async def test_strangers_cannot_take_the_members_places():
    async with pair() as group:
        strangers = [socket.create_connection((PREFILL_HOST, group.port)) for _ in range(70)]
        await until(lambda: group.errors("too_many_connections") >= 6)
        for stranger in strangers[:10]:
            stranger.close()
        await until(lambda: group.errors("truncated") == 10)
        await fetched(group, group.offer())
        for stranger in strangers:
            stranger.close()


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
