"""Whatever comes over a KV connection: an error is counted, memory stays bounded, nothing hangs, and the next prompt is served."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
import socket
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.serving.group import DECODE_HOST, PREFILL_HOST, Pair, compute, kv_of, pair

from tidewheel_workers.serving.kv_buffer import GivenUp
from tidewheel_workers.serving.kv_parts import Extent, Part
from tidewheel_workers.serving.kv_transport import TransferFailed, TransfersBusy
from tidewheel_workers.serving.kv_wire import (
    KV,
    MAGIC,
    PREFIX,
    VERSION,
    AnyFrame,
    Complete,
    Computing,
    Fetch,
    FirstToken,
    PartFrame,
    Refusal,
    Release,
    encode,
)
from tidewheel_workers.serving.stand_in import StandInEngine

SHAPE = StandInEngine.identity.kv
TEXT = "a prompt of two blocks and a bit more"
SIZE = SHAPE.bytes_for(len(TEXT))
PATIENCE_SECONDS = 20.0  # only for when it hangs
fuzzed = settings(max_examples=60, deadline=None)

numbers = st.integers(0, (1 << 16) - 1)
junk = st.one_of(
    st.binary(min_size=1, max_size=200),
    # a proper prefix that claims whatever it likes
    st.builds(
        lambda kind, header, payload, rest: PREFIX.pack(MAGIC, VERSION, kind, 0, header, payload) + rest,
        st.integers(0, 255),
        st.one_of(st.integers(0, 200), st.integers(0, (1 << 32) - 1)),
        st.one_of(st.just(0), st.integers(0, (1 << 64) - 1)),
        st.binary(max_size=100),
    ),
    st.builds(
        lambda layer, start, tokens, size: encode(
            PartFrame(part=Part(layer=layer, start=start, tokens=tokens), payload_bytes=size)
        ),
        numbers,
        numbers,
        numbers,
        st.integers(0, (1 << 64) - 1),
    ),
)


async def settle(group: Pair, waiting: int = 0) -> None:
    """Until no transfer, buffer or offer is left over but those that still wait."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while (  # noqa: ASYNC110 - gauges have no event
            group.server.waiting > waiting
            or group.server_metric("tidewheel_kv_buffers", state="used") > waiting
            or group.metric("tidewheel_kv_buffers", state="used")
            or group.metric("tidewheel_kv_transfers", state="running")
        ):
            await asyncio.sleep(0.001)


async def still_serves(group: Pair) -> None:
    received = await group.client.fetch(group.offer("next"))
    assert bytes(received.computed.kv) == kv_of("next")
    received.free()


# ---- a member, or a stranger, that says anything to a prefill


def said_by_a_decode(group: Pair, hand_over) -> dict[str, AnyFrame]:
    known = {"transfer_id": hand_over.remote_request_id}
    return {
        "fetch": Fetch(**known, bearer=hand_over.remote_bearer),
        "fetch with a wrong bearer": Fetch(**known, bearer="guessed"),
        "fetch of nothing": Fetch(transfer_id="none", bearer="none"),
        "release": Release(**known),
        "release of nothing": Release(transfer_id="none"),
        "hello": group.decode.hello(),
        "refusal": Refusal(reason="no", message="no"),
        "computing": Computing(),
        "complete": Complete(first=(FirstToken(token=1),)),
        "kv": KV(transfer_id="x", tokens=1, **dataclasses.asdict(SHAPE)),
    }


NAMES = [
    "fetch",
    "fetch with a wrong bearer",
    "fetch of nothing",
    "release",
    "release of nothing",
    "hello",
    "refusal",
    "computing",
    "complete",
    "kv",
]


@given(
    greets=st.booleans(),
    story=st.lists(st.one_of(st.sampled_from(NAMES), junk), max_size=6),
    kept=st.floats(0.5, 1.0),
    end=st.sampled_from(["close", "reset", "stall"]),
)
@fuzzed
def test_a_prefill_survives_whatever_is_said_to_it(greets, story, kept, end):
    async def scenario() -> None:
        async with pair(timeout_seconds=0.3, buffers=3) as group:
            hand_over = group.offer(TEXT)
            frames = said_by_a_decode(group, hand_over)
            raw = encode(group.decode.hello()) if greets else b""
            raw += b"".join(encode(frames[one]) if isinstance(one, str) else one for one in story)
            loop = asyncio.get_running_loop()
            with socket.socket() as sock:
                sock.setblocking(False)
                sock.bind((DECODE_HOST, 0))
                await loop.sock_connect(sock, (PREFILL_HOST, group.port))
                with contextlib.suppress(ConnectionError):
                    await loop.sock_sendall(sock, raw[: int(kept * len(raw))])
                if end == "reset":
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                if end != "stall":
                    sock.close()
                group.server.withdraw(hand_over.remote_bearer)  # as nobody may have fetched it
                await settle(group)
            assert group.released == [TEXT]
            await still_serves(group)

    asyncio.run(asyncio.wait_for(scenario(), PATIENCE_SECONDS))


# ---- a prefill that says anything to a decode


def transcript(group: Pair, hand_over, blocks: bool) -> list[bytes]:
    """What a prefill says, frame by frame, each with its payload."""
    extent, kv = Extent.of(SHAPE, len(TEXT)), kv_of(TEXT)
    parts = list(extent.blocks(extent.whole)) if blocks else [extent.whole]
    opening = KV(transfer_id=hand_over.remote_request_id, tokens=len(TEXT), **dataclasses.asdict(SHAPE))
    return [
        encode(group.prefill.hello()),
        encode(opening),
        *(
            encode(PartFrame(part=part, payload_bytes=extent.bytes_of(part)))
            + b"".join(kv[place] for place in extent.slices(part))
            for part in parts
        ),
        encode(Computing()),
        encode(Complete(first=(FirstToken(token=1),))),
    ]


def mutated(frames: list[bytes], draw: random.Random, junk: list[bytes]) -> bytes:
    """One to three mishaps."""
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(len(frames))
        mishap = draw.choice(["flip", "cut", "drop", "twice", "swap", "junk", "end"])
        if mishap == "flip":
            raw = bytearray(frames[at])
            raw[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
            frames[at] = bytes(raw)
        elif mishap == "cut":
            frames[at] = frames[at][: draw.randrange(len(frames[at]))]
        elif mishap == "drop" and len(frames) > 1:
            del frames[at]
        elif mishap == "twice":
            frames.insert(at, frames[at])
        elif mishap == "swap":
            other = draw.randrange(len(frames))
            frames[at], frames[other] = frames[other], frames[at]
        elif mishap == "junk" and junk:
            frames.insert(at, draw.choice(junk))
        elif mishap == "end":
            del frames[at + 1 :]
        frames = [frame for frame in frames if frame] or [b"\0"]
    return b"".join(frames)


@given(
    seed=st.integers(0, 1 << 32),
    blocks=st.booleans(),
    junk=st.lists(junk, max_size=2),
    closes=st.booleans(),
)
@fuzzed
def test_a_decode_survives_whatever_is_said_to_it(seed, blocks, junk, closes):
    async def scenario() -> None:
        async with pair(timeout_seconds=0.2, buffers=3) as group:
            hand_over = group.offer(TEXT)
            raw = mutated(transcript(group, hand_over, blocks), random.Random(seed), junk)

            async def prefill(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                with contextlib.suppress(ConnectionError):
                    await reader.read(1)
                    writer.write(raw)
                    if closes:
                        writer.write_eof()
                    await reader.read()
                writer.close()

            await group.server.close()
            async with await asyncio.start_server(prefill, PREFILL_HOST, group.port):
                failed: list[str] = []
                try:
                    received = await group.client.fetch(hand_over)
                    assert (len(received.computed.kv), received.computed.tokens) == (SIZE, len(TEXT))
                    received.free()
                except TransferFailed as error:
                    failed.append(error.reason)
                assert all(
                    group.metric("tidewheel_kv_transfer_errors_total", reason=reason) == 1
                    for reason in failed
                )
                await settle(group)
                group.client.forget("u-p0")
            # at most one buffer per try, however much was claimed
            assert group.metric("tidewheel_kv_buffer_bytes") <= 2 * SIZE

    asyncio.run(asyncio.wait_for(scenario(), PATIENCE_SECONDS))


@pytest.mark.parametrize("role", ["prefill", "decode"])
@pytest.mark.parametrize("claim", [1 << 20, 1 << 32, (1 << 40) - 1])
async def test_what_is_claimed_takes_no_memory(role, claim):
    frame = encode(PartFrame(part=Part(layer=0, start=0, tokens=1), payload_bytes=claim))
    async with pair(buffers=2) as group:
        hand_over = group.offer(TEXT)
        if role == "prefill":
            reader, writer = await asyncio.open_connection(PREFILL_HOST, group.port)
            writer.write(encode(group.decode.hello()) + frame)
            await reader.read()
            writer.close()
            assert group.errors("unexpected_frame") == 1
        else:
            frames = [*transcript(group, hand_over, blocks=False)[:2], frame]

            async def prefill(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                writer.write(b"".join(frames))
                await reader.read()
                writer.close()

            await group.server.close()
            async with await asyncio.start_server(prefill, PREFILL_HOST, group.port):
                with pytest.raises(TransferFailed) as failed:
                    await group.client.fetch(hand_over)
            assert failed.value.reason == "bad_payload"
        assert group.metric("tidewheel_kv_buffer_bytes") <= SIZE


async def test_a_member_that_dribbles_is_dropped_and_hinders_nobody():
    async with pair(timeout_seconds=0.2) as group:
        _, writer = await asyncio.open_connection(PREFILL_HOST, group.port)
        writer.write(encode(group.decode.hello()))
        for byte in encode(Fetch(transfer_id="x" * 60, bearer="y" * 60)):
            if group.errors("timeout"):
                break
            writer.write(bytes([byte]))
            await asyncio.sleep(0.01)
            await still_serves(group)
        assert group.errors("timeout") == 1
        writer.close()


# ---- both ends as they are, and everything that can happen in any order


@given(
    story=st.lists(
        st.tuples(
            st.sampled_from(["finish", "give up", "withdraw", "leave", "write a layer", "wait"]),
            st.integers(0, 4),
        ),
        max_size=25,
    ),
    transfers=st.integers(1, 3),
    waiting=st.integers(0, 3),
)
@fuzzed
def test_whatever_happens_when_every_prompt_ends_once_and_nothing_leaks(story, transfers, waiting):
    async def scenario() -> None:
        async with pair(mode="PerLayer", buffers=5, most_transfers=transfers, most_waiting=waiting) as group:
            texts = [f"prompt {number}" for number in range(5)]
            offers = [group.offer_early(text) for text in texts]
            fetches = [asyncio.create_task(group.client.fetch(offer.hand_over)) for offer in offers]
            for what, which in story:
                offer = offers[which]
                if what == "finish" and offer.buffer.end is None:
                    offer.finish(compute(texts[which], offer.buffer))
                elif what == "give up":
                    offer.finish(GivenUp(reason="not_computed", message="no"))
                elif what == "withdraw":
                    group.server.withdraw(offer.hand_over.remote_bearer)
                elif what == "leave":
                    fetches[which].cancel()
                elif what == "write a layer" and offer.buffer.end is None:
                    first = slice(0, SHAPE.bytes_for(len(texts[which])) // SHAPE.layers)
                    offer.buffer.buffer[first] = kv_of(texts[which])[first]
                    offer.buffer.wrote(0, 0, len(texts[which]))
                await asyncio.sleep(0.001 if what == "wait" else 0)
            for offer, text in zip(offers, texts, strict=True):
                if offer.buffer.end is None:
                    offer.finish(compute(text, offer.buffer))
                offer.buffer.drop()
            for text, outcome in zip(
                texts, await asyncio.gather(*fetches, return_exceptions=True), strict=True
            ):
                if isinstance(outcome, BaseException):
                    assert isinstance(outcome, TransferFailed | TransfersBusy | asyncio.CancelledError)
                else:
                    assert bytes(outcome.computed.kv) == kv_of(text)
                    outcome.free()
            for offer in offers:
                group.server.withdraw(offer.hand_over.remote_bearer)  # those that nobody fetched
            await settle(group)
            assert sorted(group.released) == texts
            await still_serves(group)

    asyncio.run(asyncio.wait_for(scenario(), PATIENCE_SECONDS))
