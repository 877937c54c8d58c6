"""The blocking side of a KV connection, for the one thread that has it."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from tidewheel_workers.serving.kv_wire import (
    MOST_HEADER_BYTES,
    PREFIX,
    AnyFrame,
    Truncated,
    decode_header,
    decode_prefix,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

#: The most that one call is to bring: the peer shows that it is alive by each, so this much may take the patience of whoever waits.
PIECE_BYTES = 64 << 20
#: Has room for the largest header.
AHEAD_BYTES = PREFIX.size + MOST_HEADER_BYTES
#: Below the kernel's limit for one call (IOV_MAX).
_MOST_PIECES = 512


class KVBulk:
    """Blocking sends and receives, each call as much as possible.

    Headers are read ahead: one call brings those that have come, and the beginning of the payload behind them, which is
    copied from there. The rest of a payload goes straight to its place.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._ahead = memoryview(bytearray(AHEAD_BYTES))
        self._from, self._to = 0, 0  # what of it was not taken yet
        self.calls = 0  # that came to their end; whoever watches compares it
        self.received = 0  # bytes

    @property
    def is_exhausted(self) -> bool:
        """Whether everything that came was taken."""
        return self._from == self._to

    def send(self, *pieces: bytes | memoryview) -> None:
        """Send these one behind the other, from where they are.

        Raises:
            OSError: the connection broke.
        """
        waiting = [memoryview(piece) for piece in pieces]
        while waiting:
            sent = self._sock.sendmsg(_up_to(PIECE_BYTES, waiting))
            self.calls += 1
            while waiting and sent >= len(waiting[0]):
                sent -= len(waiting.pop(0))
            if sent:
                waiting[0] = waiting[0][sent:]

    def receive(self) -> AnyFrame:
        """The next frame's header. A payload is read apart.

        Raises:
            WireError: the peer does not speak the protocol, or closed the connection.
            OSError: the connection broke.
        """
        prefix = decode_prefix(self._header(PREFIX.size))
        return decode_header(prefix, self._header(prefix.header_bytes))

    def receive_into(self, places: Sequence[memoryview]) -> None:
        """Fill these one behind the other.

        Raises:
            Truncated: the peer closed the connection before.
            OSError: the connection broke.
        """
        waiting = [place for place in places if len(place)]
        while waiting and not self.is_exhausted:
            count = min(len(waiting[0]), self._to - self._from)
            waiting[0][:count] = self._ahead[self._from : self._from + count]
            self._from += count
            waiting[0] = waiting[0][count:]
            if not len(waiting[0]):
                waiting.pop(0)
        while waiting:
            count = self._called(
                self._sock.recvmsg_into(_up_to(PIECE_BYTES, waiting), 0, socket.MSG_WAITALL)[0]
            )
            if count == 0:
                raise Truncated(
                    f"the peer closed the connection; {sum(map(len, waiting))} bytes more were to come"
                )
            while waiting and count >= len(waiting[0]):
                count -= len(waiting.pop(0))
            if count:
                waiting[0] = waiting[0][count:]

    def _header(self, size: int) -> bytes:
        if self._to - self._from < size:
            left = self._to - self._from
            self._ahead[:left] = bytes(self._ahead[self._from : self._to])
            self._from, self._to = 0, left
        while self._to < self._from + size:
            count = self._called(self._sock.recv_into(self._ahead[self._to :]))
            if count == 0:
                raise Truncated(f"{self._to - self._from} of {size} bytes of a frame came")
            self._to += count
        self._from += size
        return bytes(self._ahead[self._from - size : self._from])

    def _called(self, count: int) -> int:
        self.calls += 1
        self.received += count
        return count


def _up_to(size: int, pieces: list[memoryview]) -> list[memoryview]:
    """The first pieces, cut where they pass that many bytes."""
    taken: list[memoryview] = []
    for piece in pieces[:_MOST_PIECES]:
        taken.append(piece[:size])
        size -= len(piece)
        if size <= 0:
            break
    return taken
