"""The frames that prefill and decode exchange over TCP: their bytes and their checks, without sockets.

    magic "TWKV" | version u8 | type u8 | reserved u16 | header bytes u32 | payload bytes u64 | header | payload

Numbers are big-endian; a header is JSON, but for PART, where it is four numbers. A transfer is one exchange on a connection
over which both ends said HELLO:

    decode:  FETCH                                      RELEASE
    prefill:        KV, PART ... PART, COMPLETE (or REFUSAL at any point of it)

KV says how much will come. A PART's payload is its piece of [layers, 2, tokens, kv_heads, head_dim] as raw numbers in the
sender's byte order, which HELLO names: one part when the prompt was computed before, one or more per layer while it is being
computed, with COMPUTING in between when there is nothing to send yet. COMPLETE brings the first tokens. What a frame
claims is checked before memory is taken for it.
"""

from __future__ import annotations

import struct
import sys
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tidewheel_workers.serving.engine import First, KVShape, Logprob
from tidewheel_workers.serving.kv_parts import Part, Plane

MAGIC = b"TWKV"
VERSION = 2
PREFIX = struct.Struct(">4sBBHIQ")
PART = struct.Struct(">HHBxxxII")  # layer, layers, plane, first token, tokens
MOST_HEADER_BYTES = 64 * 1024
#: A bound for what no sane model and prompt reach; the real one is what the receiver expects.
MOST_PAYLOAD_BYTES = 1 << 40
BYTE_ORDER: Literal["little", "big"] = sys.byteorder


class WireError(Exception):
    """A connection does not speak this protocol properly and has to be dropped; `reason` labels the counter."""

    reason: ClassVar[str] = "wire"


class BadMagic(WireError):
    """The bytes are of some other protocol."""

    reason = "bad_magic"


class UnsupportedVersion(WireError):
    """The peer speaks another version."""

    reason = "unsupported_version"


class UnknownFrame(WireError):
    """A frame type that this version does not have."""

    reason = "unknown_frame"


class UnexpectedFrame(WireError):
    """A proper frame at the wrong moment."""

    reason = "unexpected_frame"


class HeaderTooLarge(WireError):
    """A header above the limit."""

    reason = "header_too_large"


class BadHeader(WireError):
    """A header that is no JSON, or not that of its frame."""

    reason = "bad_header"


class BadPayload(WireError):
    """A payload of another length than the frame or the receiver says."""

    reason = "bad_payload"


class Truncated(WireError):
    """The connection ended within a frame."""

    reason = "truncated"


class Frame(BaseModel):
    """A frame without a payload; each subclass is one type."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    type_number: ClassVar[int]


class Hello(Frame):
    """Who is at this end; both ends say it first."""

    type_number = 1

    name: str = Field(max_length=253)
    uid: str = Field(max_length=64)
    role: Literal["prefill", "decode"]
    group: str = Field(max_length=63)
    model_digest: str = Field(max_length=64)
    layout_digest: str = Field(max_length=64)
    ranktable_digest: str = Field(max_length=64)
    byte_order: Literal["little", "big"] = BYTE_ORDER


class Fetch(Frame):
    """Decode asks for a prompt's KV."""

    type_number = 2

    transfer_id: str = Field(max_length=64)
    bearer: str = Field(max_length=64)
    traceparent: str | None = Field(None, max_length=256)


class TopLogprob(BaseModel):
    """One of the likeliest tokens."""

    model_config = ConfigDict(frozen=True)

    token: int
    logprob: float


class FirstToken(BaseModel):
    """The first token of one choice, with its log-probabilities where they are wanted."""

    model_config = ConfigDict(frozen=True)

    token: int = Field(ge=0, lt=1 << 32)
    logprob: float | None = None
    top: tuple[TopLogprob, ...] = Field((), max_length=64)

    @classmethod
    def of(cls, first: First) -> Self:
        """From the engine's value."""
        if first.logprob is None:
            return cls(token=first.token)
        top = tuple(TopLogprob(token=token, logprob=value) for token, value in first.logprob.top)
        return cls(token=first.token, logprob=first.logprob.logprob, top=top)

    def to_first(self) -> First:
        """The engine's value."""
        if self.logprob is None:
            return First(token=self.token)
        top = tuple((one.token, one.logprob) for one in self.top)
        return First(token=self.token, logprob=Logprob(token=self.token, logprob=self.logprob, top=top))


class KV(Frame):
    """What Fetch asked for is going to be sent: so much of it, and what it looks like."""

    type_number = 3

    transfer_id: str = Field(max_length=64)
    tokens: int = Field(ge=1, le=1 << 24)
    layers: int = Field(ge=1, le=1 << 12)
    kv_heads: int = Field(ge=1, le=1 << 12)
    head_dim: int = Field(ge=1, le=1 << 12)
    dtype: Literal["float32", "bfloat16", "float16"]
    traceparent: str | None = Field(None, max_length=256)

    @property
    def shape(self) -> KVShape:
        """The layout the header names."""
        return KVShape(layers=self.layers, kv_heads=self.kv_heads, head_dim=self.head_dim, dtype=self.dtype)


class Release(Frame):
    """Decode has the KV, or does not want it any more; prefill may use the slot."""

    type_number = 4

    transfer_id: str = Field(max_length=64)


class Refusal(Frame):
    """The other end says no; `reason` is one word for counters, `message` is for people."""

    type_number = 5

    reason: str = Field(max_length=64)
    message: str = Field(max_length=1024)


class Complete(Frame):
    """Every part was sent, and this is what else the decode needs."""

    type_number = 7

    first: tuple[FirstToken, ...] = Field(min_length=1, max_length=128)
    cached_tokens: int = Field(0, ge=0, le=1 << 24)


class Computing(Frame):
    """The prompt is still being computed, and the sender is alive."""

    type_number = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class PartFrame:
    """Some of the keys and values follow as the payload."""

    type_number: ClassVar[int] = 6

    part: Part
    payload_bytes: int


AnyFrame = Frame | PartFrame
FRAMES: dict[int, type[Frame] | type[PartFrame]] = {
    frame.type_number: frame for frame in (Hello, Fetch, KV, Release, Refusal, PartFrame, Complete, Computing)
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefix:
    """The fixed part of a frame, checked."""

    frame: type[Frame] | type[PartFrame]
    header_bytes: int
    payload_bytes: int


def encode(frame: AnyFrame, *, spaces: int = 0) -> bytes:
    """A frame's bytes up to its payload; a header that is JSON may end with spaces, which mean nothing."""
    if isinstance(frame, PartFrame):
        part = frame.part
        return PREFIX.pack(
            MAGIC, VERSION, PartFrame.type_number, 0, PART.size, frame.payload_bytes
        ) + PART.pack(part.layer, part.layers, part.plane, part.start, part.tokens)
    header = frame.model_dump_json(exclude_none=True).encode() + b" " * spaces
    if len(header) > MOST_HEADER_BYTES:
        raise HeaderTooLarge(f"a {type(frame).__name__} header of {len(header)} bytes cannot be sent")
    return PREFIX.pack(MAGIC, VERSION, frame.type_number, 0, len(header), 0) + header


def decode_prefix(raw: bytes) -> Prefix:
    """Read the fixed part.

    Raises:
        WireError: it is not the beginning of a frame that may be read on.
    """
    if len(raw) != PREFIX.size:
        raise Truncated(f"{len(raw)} of {PREFIX.size} bytes of a frame came")
    magic, version, number, reserved, header_bytes, payload_bytes = PREFIX.unpack(raw)
    if magic != MAGIC:
        raise BadMagic(f"the peer began with {magic!r}; it does not speak the KV protocol")
    if version != VERSION or reserved:
        raise UnsupportedVersion(f"the peer speaks version {version} of the KV protocol, this is {VERSION}")
    if number not in FRAMES:
        raise UnknownFrame(f"frame type {number} does not exist in version {VERSION}")
    kind = FRAMES[number]
    if header_bytes > MOST_HEADER_BYTES:
        raise HeaderTooLarge(f"a header of {header_bytes} bytes; the most is {MOST_HEADER_BYTES}")
    if kind is PartFrame and header_bytes != PART.size:
        raise BadHeader(f"a PartFrame header has {header_bytes} bytes; {PART.size} are right")
    if payload_bytes > (MOST_PAYLOAD_BYTES if kind is PartFrame else 0):
        raise BadPayload(f"a {kind.__name__} frame claims {payload_bytes} bytes of payload")
    return Prefix(frame=kind, header_bytes=header_bytes, payload_bytes=payload_bytes)


def decode_header(prefix: Prefix, raw: bytes) -> AnyFrame:
    """Read the header. Whether a part fits, and its payload's length with it, is for the receiver to judge.

    Raises:
        WireError: the header is cut short, or not this frame's.
    """
    if len(raw) != prefix.header_bytes:
        raise Truncated(f"{len(raw)} of {prefix.header_bytes} bytes of a header came")
    if issubclass(prefix.frame, PartFrame):
        return _decode_part(prefix, raw)
    try:
        return prefix.frame.model_validate_json(raw)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:3])
        raise BadHeader(f"a {prefix.frame.__name__} header is wrong: {faults}") from error


def _decode_part(prefix: Prefix, raw: bytes) -> PartFrame:
    layer, layers, plane, start, tokens = PART.unpack(raw)
    if plane > Plane.BOTH:
        raise BadHeader(f"a PartFrame header names plane {plane}; there are {[*map(int, Plane)]}")
    part = Part(layer=layer, layers=layers, plane=Plane(plane), start=start, tokens=tokens)
    return PartFrame(part=part, payload_bytes=prefix.payload_bytes)
