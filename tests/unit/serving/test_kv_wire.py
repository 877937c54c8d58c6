"""Frames: what is sent arrives, and nothing that is not a proper frame gets past the checks."""

from __future__ import annotations

import asyncio
import socket
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidewheel_workers.serving.kv_connection import KVConnection
from tidewheel_workers.serving.kv_wire import (
    FRAMES,
    KV,
    MAGIC,
    PREFIX,
    BadHeader,
    BadMagic,
    BadPayload,
    Fetch,
    FirstToken,
    Frame,
    HeaderTooLarge,
    Hello,
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
    first=(FirstToken(token=7, logprob=-0.5, top=(TopLogprob(token=7, logprob=-0.5),)),),
    traceparent="00-" + "a" * 32 + "-" + "b" * 16 + "-01",
)
ALL: tuple[Frame, ...] = (
    HELLO,
    Fetch(transfer_id="t1", bearer="b1"),
    SOME_KV,
    Release(transfer_id="t1"),
    Refusal(reason="unknown_transfer", message="no"),
)


def read(raw: bytes) -> Frame:
    prefix = decode_prefix(raw[: PREFIX.size])
    return decode_header(prefix, raw[PREFIX.size : PREFIX.size + prefix.header_bytes])


def prefix_with(**changes: int | bytes) -> bytes:
    """The prefix of a Release frame, with some of its fields replaced."""
    fields = {"magic": MAGIC, "version": 1, "type": 4, "reserved": 0, "header": 20, "payload": 0} | changes
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
        pytest.param(prefix_with(version=2), UnsupportedVersion, id="a later version"),
        pytest.param(prefix_with(reserved=1), UnsupportedVersion, id="a reserved bit"),
        pytest.param(prefix_with(type=9), UnknownFrame, id="an unknown type"),
        pytest.param(prefix_with(header=64 * 1024 + 1), HeaderTooLarge, id="a header above 64 KiB"),
        pytest.param(prefix_with(payload=1), BadPayload, id="a payload where none belongs"),
        pytest.param(prefix_with(type=3, payload=1 << 62), BadPayload, id="a payload beyond all bounds"),
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


def test_a_header_that_speaks_of_another_payload_is_refused():
    raw = encode(SOME_KV)
    wrong = PREFIX.pack(MAGIC, 1, 3, 0, len(raw) - PREFIX.size, SOME_KV.payload_bytes + 1)
    with pytest.raises(BadPayload, match="384"):
        decode_header(decode_prefix(wrong), raw[PREFIX.size :])


def outcome(raw: bytes) -> Frame | WireError:
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
    raw = encode(frame) + b"x" * frame.payload_bytes
    part = raw[: int(kept * len(raw))]
    ours, theirs = tcp_pair()

    async def receive() -> tuple[Frame | None, bytes]:
        async with KVConnection(ours) as connection:
            theirs.sendall(part)
            theirs.close()
            frame = await connection.receive()
            buffer = bytearray(frame.payload_bytes if frame is not None else 0)
            await connection.receive_payload(memoryview(buffer))
            return frame, bytes(buffer)

    if not part:
        assert asyncio.run(receive()) == (None, b"")
    else:
        with pytest.raises(Truncated):
            asyncio.run(receive())
