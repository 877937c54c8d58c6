"""Frames over one non-blocking socket, straight between it and the caller's memory."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Self, TypeVar

from tidewheel_workers.serving.kv_wire import (
    PREFIX,
    Frame,
    Refusal,
    Truncated,
    UnexpectedFrame,
    decode_header,
    decode_prefix,
    encode,
)

if TYPE_CHECKING:
    from types import TracebackType

F = TypeVar("F", bound=Frame)

#: A host that vanishes without a word is noticed after about this many seconds.
KEEPALIVE_SECONDS = 15


class Refused(Exception):
    """The peer answered with a refusal."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(f"{refusal.reason}: {refusal.message}")
        self.reason = refusal.reason


class KVConnection:
    """One connection. After any error or cancellation within a frame it can only be closed."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_KEEPIDLE"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_SECONDS // 3)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_SECONDS // 3)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 2)
        self._sock = sock
        self._loop = asyncio.get_running_loop()

    @classmethod
    async def connect(cls, host: str, port: int) -> Self:
        """Open a connection.

        Raises:
            OSError: nothing listens there, or it cannot be reached.
        """
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, (host, port))
            return cls(sock)
        except BaseException:
            sock.close()
            raise

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close it; a second call changes nothing."""
        self._sock.close()

    async def send(self, frame: Frame, payload: memoryview | None = None) -> None:
        """Send a frame, and behind it the payload that its header announces."""
        await self._loop.sock_sendall(self._sock, encode(frame))
        if payload is not None:
            await self._loop.sock_sendall(self._sock, payload)

    async def receive(self) -> Frame | None:
        """The next frame's header, or None when the peer closed between two frames. A payload is read apart.

        Raises:
            WireError: the peer does not speak the protocol.
            OSError: the connection broke.
        """
        prefix_bytes = bytearray(PREFIX.size)
        filled = await self._fill(memoryview(prefix_bytes))
        if filled == 0:
            return None
        prefix = decode_prefix(bytes(prefix_bytes[:filled]))
        header = bytearray(prefix.header_bytes)
        filled = await self._fill(memoryview(header))
        return decode_header(prefix, bytes(header[:filled]))

    async def expect(self, kind: type[F]) -> F:
        """The next frame, which has to be of that type.

        Raises:
            Refused: the peer refused.
            WireError, OSError: as in `receive`; also when the peer closed or sent another type.
        """
        frame = await self.receive()
        if isinstance(frame, kind):
            return frame
        if isinstance(frame, Refusal):
            raise Refused(frame)
        if frame is None:
            raise Truncated(f"the peer closed the connection in place of a {kind.__name__} frame")
        raise UnexpectedFrame(f"a {type(frame).__name__} frame came in place of {kind.__name__}")

    async def receive_payload(self, into: memoryview) -> None:
        """Fill memory with the payload of the frame just received; its length was checked by the caller.

        Raises:
            Truncated: the connection ended before.
            OSError: the connection broke.
        """
        filled = await self._fill(into)
        if filled < len(into):
            raise Truncated(f"{filled} of {len(into)} bytes of a payload came")

    async def _fill(self, into: memoryview) -> int:
        filled = 0
        while filled < len(into):
            count = await self._loop.sock_recv_into(self._sock, into[filled:])
            if count == 0:
                break
            filled += count
        return filled
