"""Sending one prompt's KV, in a thread: as one piece, layer by layer while it is computed, or in blocks as the baseline."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tidewheel_workers.serving.kv_buffer import GivenUp
from tidewheel_workers.serving.kv_wire import (
    KV,
    PART,
    PREFIX,
    Complete,
    Computing,
    FirstToken,
    PartFrame,
    Refusal,
    encode,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tidewheel_workers.serving.engine import Computed
    from tidewheel_workers.serving.kv_buffer import KVBuffer
    from tidewheel_workers.serving.kv_bulk import KVBulk
    from tidewheel_workers.serving.kv_parts import Part


#: Kernels copy faster when bytes keep their place relative to this much (cache lines and more), so the first payload begins at a
#: multiple of it.
ALIGNED_BYTES = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """How a transfer went."""

    is_complete: bool
    bytes: int
    exposed_seconds: (
        float  # between the end of the computation, or the fetch if that was later, and the last byte
    )


def send(bulk: KVBulk, buffer: KVBuffer, opening: KV, *, in_blocks: bool, alive_seconds: float) -> Sent:
    """Send everything as soon as it is written, until the computation has ended and all is sent, or is given up.

    Args:
        bulk: the connection.
        buffer: what to send; the caller holds it.
        opening: goes first.
        in_blocks: send as the baseline does.
        alive_seconds: how often to say so while there is nothing to send.

    Raises:
        OSError: the connection broke.
    """
    sent = 0
    waiting: list[bytes | memoryview] = [_aligned(opening)]
    began = time.monotonic()
    while True:
        progress = buffer.progress(alive_seconds)
        if isinstance(progress.end, GivenUp):
            refusal = Refusal(reason=progress.end.reason[:64], message=progress.end.message[:1024])
            bulk.send(*waiting, encode(refusal))
            return Sent(is_complete=False, bytes=sent, exposed_seconds=0.0)
        for part in progress.parts:
            sent += buffer.extent.bytes_of(part)
        if in_blocks and progress.parts:
            bulk.send(*waiting)
            waiting.clear()
            for part in progress.parts:
                for block in buffer.extent.blocks(part):
                    bulk.send(*_pieces(buffer, (block,)))
        else:
            waiting += _pieces(buffer, progress.parts)
        if progress.end is not None:
            bulk.send(*waiting, encode(_complete(progress.end)))
            exposed = time.monotonic() - max(began, buffer.ended_at)
            return Sent(is_complete=True, bytes=sent, exposed_seconds=exposed)
        bulk.send(*(waiting or [encode(Computing())]))
        waiting.clear()


def _aligned(opening: KV) -> bytes:
    before_payload = len(encode(opening)) + PREFIX.size + PART.size
    return encode(opening, spaces=-before_payload % ALIGNED_BYTES)


def _pieces(buffer: KVBuffer, parts: Iterable[Part]) -> list[bytes | memoryview]:
    pieces: list[bytes | memoryview] = []
    for part in parts:
        pieces.append(encode(PartFrame(part=part, payload_bytes=buffer.extent.bytes_of(part))))
        pieces += [buffer.buffer[place] for place in buffer.extent.slices(part)]
    return pieces


def _complete(computed: Computed) -> Complete:
    return Complete(
        first=tuple(FirstToken.of(first) for first in computed.first), cached_tokens=computed.cached_tokens
    )
