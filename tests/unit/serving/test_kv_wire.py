"""Frames: what is sent arrives, and nothing that is not a proper frame gets past the checks."""

from __future__ import annotations

import asyncio
import socket
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidewheel_workers.serving.kv_bulk import KVBulk
from tidewheel_workers.serving.kv_connection import KVConnection
from tidewheel_workers.serving.kv_parts import Part, Plane
from tidewheel_workers.serving.kv_wire import (
    FRAMES,
    KV,
    MAGIC,
    PART,
    PREFIX,
    AnyFrame,
    BadHeader,
    BadMagic,
    BadPayload,
    Complete,
    Computing,
    Fetch,
    FirstToken,
    HeaderTooLarge,
    Hello,
    PartFrame,
    Refusal,
    Release,
    TopLogprob,
    Truncated,
    UnknownFrame,
    UnsupportedVersion,
    WireError,
    decode_header,
    decode_prefix,
    encode,
)

HELLO = Hello(
    name="chat-decode-0",
    uid="u1",
    role="decode",
    group="g0",
    model_digest="m" * 32,
    layout_digest="l" * 16,
    ranktable_digest="r" * 16,
)
SOME_KV = KV(
    transfer_id="t1",
    tokens=3,
    layers=2,
    kv_heads=1,
    head_dim=8,
    dtype="float32",
    traceparent="00-" + "a" * 32 + "-" + "b" * 16 + "-01",
)
ALL: tuple[AnyFrame, ...] = (
    HELLO,
    Fetch(transfer_id="t1", bearer="b1"),
    SOME_KV,
    PartFrame(part=Part(layer=1, layers=1, plane=Plane.VALUES, start=2, tokens=1), payload_bytes=32),
    Computing(),
    Complete(
        first=(FirstToken(token=7, logprob=-0.5, top=(TopLogprob(token=7, logprob=-0.5),)),), cached_tokens=1
    ),
    Release(transfer_id="t1"),
    Refusal(reason="unknown_transfer", message="no"),
)


def read(raw: bytes) -> AnyFrame:
    prefix = decode_prefix(raw[: PREFIX.size])
    return decode_header(prefix, raw[PREFIX.size : PREFIX.size + prefix.header_bytes])


def prefix_with(**changes: int | bytes) -> bytes:
    """The prefix of a Release frame, with some of its fields replaced."""
    fields = {"magic": MAGIC, "version": 2, "type": 4, "reserved": 0, "header": 20, "payload": 0} | changes
    return struct.pack(">4sBBHIQ", *fields.values())


def test_every_type_has_an_example_here():
    assert {type(frame) for frame in ALL} == set(FRAMES.values())


@pytest.mark.parametrize("frame", ALL, ids=lambda frame: type(frame).__name__)
def test_a_frame_reads_as_it_was_written(frame):
    assert read(encode(frame)) == frame


@pytest.mark.parametrize(
    ("prefix", "error"),
    [
        pytest.param(prefix_with(magic=b"GET "), BadMagic, id="another protocol"),
        pytest.param(prefix_with(version=3), UnsupportedVersion, id="a later version"),
        pytest.param(prefix_with(version=1), UnsupportedVersion, id="an earlier version"),
        pytest.param(prefix_with(reserved=1), UnsupportedVersion, id="a reserved bit"),
        pytest.param(prefix_with(type=9), UnknownFrame, id="an unknown type"),
        pytest.param(prefix_with(header=64 * 1024 + 1), HeaderTooLarge, id="a header above 64 KiB"),
        pytest.param(prefix_with(payload=1), BadPayload, id="a payload where none belongs"),
        pytest.param(
            prefix_with(type=6, header=16, payload=1 << 62), BadPayload, id="a payload beyond all bounds"
        ),
        pytest.param(prefix_with(type=6, header=17), BadHeader, id="a part's header of another length"),
        pytest.param(prefix_with()[:-1], Truncated, id="a byte too few"),
    ],
)
def test_a_wrong_prefix_is_told_apart(prefix, error):
    with pytest.raises(error):
        decode_prefix(prefix)


@pytest.mark.parametrize(
    "header",
    [
        pytest.param(b"\xff\xfe", id="no text"),
        pytest.param(b"[]", id="no object"),
        pytest.param(b"{}", id="nothing in it"),
        pytest.param(b'{"transfer_id": 7}', id="a number for a text"),
        pytest.param(b'{"transfer_id": "' + b"x" * 65 + b'"}', id="too long"),
    ],
)
def test_a_wrong_header_is_refused(header):
    prefix = decode_prefix(prefix_with(header=len(header)))
    with pytest.raises(BadHeader):
        decode_header(prefix, header)


def test_a_part_of_a_plane_that_does_not_exist_is_refused():
    prefix = decode_prefix(prefix_with(type=6, header=PART.size))
    with pytest.raises(BadHeader, match="plane 3"):
        decode_header(prefix, PART.pack(0, 1, 3, 0, 1))


def outcome(raw: bytes) -> AnyFrame | WireError:
    try:
        return read(raw)
    except WireError as error:
        return error


@given(raw=st.binary(max_size=400))
def test_any_bytes_give_a_frame_or_a_typed_error(raw):
    assert type(outcome(raw)) in {*FRAMES.values(), *WireError.__subclasses__()}


@given(frame=st.sampled_from(ALL), at=st.integers(min_value=0), bit=st.integers(0, 7))
def test_a_flipped_bit_gives_a_frame_or_a_typed_error(frame, at, bit):
    raw = bytearray(encode(frame))
    raw[at % len(raw)] ^= 1 << bit
    assert type(outcome(bytes(raw))) in {*FRAMES.values(), *WireError.__subclasses__()}


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    return ours, theirs


@given(frame=st.sampled_from(ALL), kept=st.floats(0, 1, exclude_max=True))
@settings(deadline=None, max_examples=60)
def test_a_connection_that_ends_within_a_frame_is_a_truncation(frame, kept):
    raw = encode(frame)
    part = raw[: int(kept * len(raw))]
    ours, theirs = tcp_pair()

    async def receive() -> AnyFrame | None:
        async with KVConnection(ours) as connection:
            theirs.sendall(part)
            theirs.close()
            return await connection.receive()

    if not part:
        assert asyncio.run(receive()) is None
    else:
        with pytest.raises(Truncated):
            asyncio.run(receive())


@given(frame=st.sampled_from(ALL), kept=st.floats(0, 1, exclude_max=True))
@settings(deadline=None, max_examples=60)
def test_a_thread_is_told_so_too(frame, kept):
    raw = encode(frame) + b"x" * payload_bytes(frame)
    ours, theirs = tcp_pair()
    with ours, theirs:
        theirs.sendall(raw[: int(kept * len(raw))])
        theirs.shutdown(socket.SHUT_WR)
        bulk = KVBulk(ours)
        with pytest.raises(Truncated):
            bulk.receive_into([memoryview(bytearray(payload_bytes(bulk.receive())))])


@given(sizes=st.lists(st.integers(0, 5000), min_size=1, max_size=8))
@settings(deadline=None, max_examples=30)
def test_pieces_arrive_in_their_order_whatever_their_sizes(sizes):
    ours, theirs = tcp_pair()
    pieces = [bytes([number]) * size for number, size in enumerate(sizes)]
    with ours, theirs:
        KVBulk(theirs).send(*pieces)
        places = [bytearray(size) for size in reversed(sizes)]
        KVBulk(ours).receive_into([memoryview(place) for place in places])
    assert b"".join(places) == b"".join(pieces)


def payload_bytes(frame: AnyFrame) -> int:
    return frame.payload_bytes if isinstance(frame, PartFrame) else 0
