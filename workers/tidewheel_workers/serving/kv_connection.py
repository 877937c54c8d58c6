"""Frames over one socket, straight between it and the caller's memory.

The event loop greets, waits and refuses; what is large a thread moves, with blocking calls that each copy as much as there
is. On the loop every few hundred kilobytes would be an event of their own, at the price of a wait for the interpreter's
lock when an engine computes beside it: measured here with a busy thread, half the throughput or less, and the loop late
for everyone else while it copies.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, Any, Self, TypeVar

from tidewheel_workers.serving.kv_bulk import KVBulk
from tidewheel_workers.serving.kv_wire import (
    PREFIX,
    AnyFrame,
    Frame,
    Refusal,
    Truncated,
    UnexpectedFrame,
    decode_header,
    decode_prefix,
    encode,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor
    from types import TracebackType

F = TypeVar("F", bound=Frame)
T = TypeVar("T")

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
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * KEEPALIVE_SECONDS)
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._lent_to: asyncio.Future[Any] | None = None  # what a thread does with it
        self._bulk: KVBulk | None = None
        self._is_closed = False

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
        """Close it, also for a thread that uses it; a second call changes nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._lent_to is not None:
            # the thread's calls return at once, and only then may the descriptor be given to somebody else
            with contextlib.suppress(OSError):  # it is down already
                self._sock.shutdown(socket.SHUT_RDWR)
        else:
            self._sock.close()

    async def send(self, frame: AnyFrame) -> None:
        """Send a frame that has no payload."""
        await self._loop.sock_sendall(self._sock, encode(frame))

    async def receive(self, *, patience_seconds: float | None = None) -> AnyFrame | None:
        """The next frame's header, or None when the peer closed between two frames.

        Args:
            patience_seconds: how long the rest of a frame may take once it has begun.

        Raises:
            WireError: the peer does not speak the protocol.
            OSError: the connection broke.
            TimeoutError: the peer does not finish its frame.
        """
        raw = bytearray(PREFIX.size)
        count = await self._loop.sock_recv_into(self._sock, memoryview(raw))
        if count == 0:
            return None
        async with asyncio.timeout(patience_seconds):
            count += await self._fill(memoryview(raw)[count:])
            prefix = decode_prefix(bytes(raw[:count]))
            header = bytearray(prefix.header_bytes)
            count = await self._fill(memoryview(header))
            return decode_header(prefix, bytes(header[:count]))

    async def expect(self, kind: type[F]) -> F:
        """The next frame, which has to be of that type.

        Raises:
            Refused: the peer refused.
            WireError, OSError: as in `receive`; also when the peer closed or sent another type.
        """
        return expected(await self.receive(), kind)

    @property
    def bytes_received(self) -> int:
        """What came for the last thread that had it."""
        return self._bulk.received if self._bulk is not None else 0

    async def in_thread(
        self,
        executor: Executor,
        work: Callable[[KVBulk], T],
        *,
        patience_seconds: float,
        on_abandoned: Callable[[], None],
        on_peer_end: Callable[[], None] | None = None,
    ) -> T:
        """Let a thread have the connection. When this is cancelled, or fails by anything but a refusal, it is closed.

        Args:
            executor: has a free thread.
            work: does not outlive the connection for long: it waits for nothing else without looking at it again.
            patience_seconds: how long not a single call may come to its end.
            on_abandoned: called when this fails or is cancelled, once the thread is done.
            on_peer_end: called when the peer closes meanwhile, for a thread that sends or waits.

        Raises:
            TimeoutError: the peer stalls.
            WireError, Refused, OSError: whatever `work` raises.
        """
        bulk = self._bulk = KVBulk(self._sock)
        if on_peer_end is not None:
            self._loop.add_reader(self._sock, self._look, on_peer_end)
        # behind add_reader: libuv makes what it watches non-blocking
        self._sock.setblocking(True)
        future: asyncio.Future[T] = self._loop.run_in_executor(executor, work, bulk)
        self._lent_to = future
        try:
            while not future.done():
                before = bulk.calls
                await asyncio.wait([future], timeout=patience_seconds)
                if not future.done() and bulk.calls == before:
                    raise TimeoutError(f"the peer stalled for {patience_seconds:g} s")
        except BaseException:
            self.close()
            future.add_done_callback(lambda _: self._abandon(future, on_abandoned))
            raise
        self._take_back()
        try:
            return future.result()
        except BaseException as error:
            if not isinstance(error, Refused):
                self.close()
            on_abandoned()
            raise

    def _look(self, on_peer_end: Callable[[], None]) -> None:
        # a peer that says something is there; it is read when the thread is done
        self._loop.remove_reader(self._sock)
        try:
            has_ended = not self._sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            has_ended = True
        if has_ended:
            on_peer_end()

    def _abandon(self, future: asyncio.Future[T], on_abandoned: Callable[[], None]) -> None:
        future.exception()  # nobody asks for it any more
        self._take_back()
        on_abandoned()

    def _take_back(self) -> None:
        self._lent_to = None
        self._loop.remove_reader(self._sock)
        if self._is_closed:
            self._sock.close()
        else:
            self._sock.setblocking(False)

    async def _fill(self, into: memoryview) -> int:
        filled = 0
        while filled < len(into):
            count = await self._loop.sock_recv_into(self._sock, into[filled:])
            if count == 0:
                break
            filled += count
        return filled


def expected(frame: AnyFrame | None, kind: type[F]) -> F:
    """The frame, which has to be of that type.

    Raises:
        Refused: the peer refused.
        WireError: the peer closed, or sent another type.
    """
    if isinstance(frame, kind):
        return frame
    if isinstance(frame, Refusal):
        raise Refused(frame)
    if frame is None:
        raise Truncated(f"the peer closed the connection in place of a {kind.__name__} frame")
    raise UnexpectedFrame(f"a {type(frame).__name__} frame came in place of {kind.__name__}")
