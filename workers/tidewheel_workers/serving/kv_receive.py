"""Receiving one prompt's KV, in a thread: straight into the place where the engine reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tidewheel_workers.serving.kv_connection import Refused, expected
from tidewheel_workers.serving.kv_parts import Arrived, BadPart, Extent
from tidewheel_workers.serving.kv_wire import (
    KV,
    BadPayload,
    Complete,
    Computing,
    Fetch,
    PartFrame,
    Refusal,
    Release,
    UnexpectedFrame,
    encode,
)

if TYPE_CHECKING:
    from tidewheel_workers.serving.engine import KVShape
    from tidewheel_workers.serving.kv_bulk import KVBulk


@dataclass(frozen=True, slots=True, kw_only=True)
class Came:
    """What came with the bytes."""

    opening: KV
    complete: Complete


def receive(bulk: KVBulk, fetch: Fetch, *, shape: KVShape, tokens: int, memory: memoryview) -> Came:
    """Ask, fill the memory, and let the sender release.

    Args:
        bulk: the connection, between two exchanges.
        fetch: what is asked for.
        shape: what must come.
        tokens: how many tokens of it.
        memory: exactly as large as that.

    Raises:
        Refused: the peer has no such KV, or gave it up; the connection is still good.
        WireError: something else came.
        OSError: the connection broke.
    """
    bulk.send(encode(fetch))
    opening = expected(bulk.receive(), KV)
    if opening.transfer_id != fetch.transfer_id:
        raise BadPayload("the KV of another transfer came")
    if opening.shape != shape or opening.tokens != tokens:
        raise BadPayload(
            f"KV of {opening.tokens} tokens of {opening.shape} came; wanted were {tokens} tokens of {shape}"
        )
    extent = Extent.of(shape, tokens)
    arrived = Arrived(extent)
    while True:
        match bulk.receive():
            case PartFrame(part=part, payload_bytes=payload_bytes):
                try:
                    places = arrived.add(part)
                except BadPart as error:
                    raise BadPayload(str(error)) from error
                if payload_bytes != extent.bytes_of(part):
                    raise BadPayload(f"{part} came with {payload_bytes} bytes, not {extent.bytes_of(part)}")
                bulk.receive_into([memory[place] for place in places])
            case Computing():
                pass
            case Complete() as complete:
                if not arrived.is_whole:
                    raise BadPayload("the peer says that the KV is complete; parts of it did not come")
                if not bulk.is_exhausted:
                    raise UnexpectedFrame("more came behind the end of a transfer")
                bulk.send(encode(Release(transfer_id=fetch.transfer_id)))
                return Came(opening=opening, complete=complete)
            case Refusal() as refusal:
                raise Refused(refusal)
            case frame:
                raise UnexpectedFrame(f"a {type(frame).__name__} frame came within a transfer")
