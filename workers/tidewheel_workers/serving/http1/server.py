"""A server's connections: one request at a time each, answered whole or as a stream.

A handler is cancelled at once when its client goes away. What is sent to a slow client is bounded: whoever writes a
stream is told to pause, and a client that takes nothing for `stall_seconds` is cut off.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, cast

from tidewheel_workers.serving.http1.messages import Refusal, Request, Response, encode_head
from tidewheel_workers.serving.http1.request_reader import BodyExpected, RequestReader
from tidewheel_workers.serving.http1.sweeping import sweep

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable, Collection

    from tidewheel_workers.serving.http1.messages import Limits

log = logging.getLogger(__name__)

#: How often connections are looked at that keep us waiting.
SWEEP_SECONDS = 0.5
#: How long a client may go on sending a request that was refused.
LINGER_SECONDS = 2.0
#: Bytes that may wait to be sent on one connection before its writer is told to pause.
HIGH_WATER = 262_144
BACKLOG = 1024
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_LAST_CHUNK = b"0\r\n\r\n"


class Stream:
    """An answer that is sent piece by piece, in one chunk each."""

    def __init__(self, connection: Connection, head: bytes, *, in_chunks: bool, status: int) -> None:
        self.status = status
        self.has_ended = False
        #: Called with True when the client is too slow to take more for now, and with False when it has caught up.
        self.on_pressure: Callable[[bool], None] | None = None
        self._connection = connection
        self._head = head  # goes out with the first piece
        self._in_chunks = in_chunks

    def write(self, data: bytes) -> None:
        """Send this; it never waits. Empty data and data after the end are not sent."""
        if not data or self.has_ended:
            return
        framed = b"%x\r\n%b\r\n" % (len(data), data) if self._in_chunks else data
        if self._head:
            framed, self._head = self._head + framed, b""
        self._connection.send(framed)

    def end(self) -> None:
        """The answer is complete."""
        if not self.has_ended:
            self.has_ended = True
            self._connection.send(self._head + (_LAST_CHUNK if self._in_chunks else b""))

    @property
    def is_under_pressure(self) -> bool:
        """Whether writing should wait."""
        return self._connection.is_paused


Answer = Response | Stream


class HttpServer:
    """Listens, and gives each request to the handler, each refusal to `refuse`.

    Args:
        handle: answers a request. What it raises becomes what `fail` says of it, or cuts the connection off where a
            stream has begun.
        refuse: what a client is told whose request is malformed, too large or too slow.
        fail: what a client is told when the handler failed; it is called while the error is handled.
    """

    def __init__(
        self,
        handle: Callable[[Incoming], Awaitable[Answer]],
        *,
        limits: Limits,
        refuse: Callable[[Refusal], Response],
        fail: Callable[[Incoming], Response],
    ) -> None:
        self.handle = handle
        self.limits = limits
        self.refuse = refuse
        self.fail = fail
        self.is_draining = False
        self.connections: set[Connection] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._sweeping: asyncio.Task[None] | None = None

    async def start(self, host: str, port: int) -> None:
        """Listen there.

        Raises:
            OSError: the address cannot be bound.
        """
        self._begin(
            await asyncio.get_running_loop().create_server(self._connect, host, port, backlog=BACKLOG)
        )

    async def start_on(self, listening: socket.socket) -> None:
        """Listen on a socket that is bound already."""
        self._begin(
            await asyncio.get_running_loop().create_server(self._connect, sock=listening, backlog=BACKLOG)
        )

    async def close(self, grace_seconds: float = 1.0) -> None:
        """Stop listening, and end what has not ended after a moment."""
        if self._server is not None:
            self._server.close()
        if self._sweeping is not None:
            self._sweeping.cancel()
        if self.tasks:
            await asyncio.wait(list(self.tasks), timeout=grace_seconds)
        for connection in list(self.connections):
            connection.abort()
        if self.tasks:
            await asyncio.wait(list(self.tasks))

    @property
    def port(self) -> int:
        """The port it listens on."""
        if self._server is None:
            raise RuntimeError("the server does not listen")
        return int(self._server.sockets[0].getsockname()[1])

    def _begin(self, server: asyncio.Server) -> None:
        self._server = server
        self._sweeping = asyncio.get_running_loop().create_task(
            sweep(self.connections, every_seconds=SWEEP_SECONDS)
        )

    def _connect(self) -> Connection:
        return Connection(self)


class Incoming:
    """A request on its connection."""

    __slots__ = ("_connection", "id", "request")

    def __init__(self, request: Request, connection: Connection) -> None:
        self.request = request
        self.id = ""  # given by whoever handles it
        self._connection = connection

    def stream(self, headers: Collection[tuple[str, str]], *, status: int = 200) -> Stream:
        """Begin an answer that is sent piece by piece; its head goes out with the first piece."""
        return self._connection.begin_stream(self.request, status, headers)


class Connection(asyncio.Protocol):
    """One client."""

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._limits = server.limits
        self._reader = RequestReader(server.limits)
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = None
        self._stream: Stream | None = None
        self._waiting: deque[Request | Refusal] = deque()  # sent before the answer to an earlier one
        self._waiting_bytes = 0
        self._is_last = False  # the connection ends with the answer that is being made
        self._is_ending = False  # only bytes to ignore may come
        self._phase = ""  # what we wait for
        self.is_paused = False
        self.due = 0.0  # by when it must have happened

    # ---- what the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is there."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(HIGH_WATER)
        self._server.connections.add(self)
        self._watch_peer()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone: nobody waits for its answer any more."""
        del exc
        self._transport = None
        self._server.connections.discard(self)
        self._waiting.clear()
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        """Bytes of requests."""
        for completed in self._reader.feed(data):
            if isinstance(completed, BodyExpected):
                if self._task is None:
                    self.send(_CONTINUE)
            elif self._task is None and not self._waiting:
                self._take(completed)
            else:
                self._waiting.append(completed)
        if self._task is None:
            self._watch_peer()
        else:
            self._hold_back(len(data))

    def pause_writing(self) -> None:
        """The client is slow."""
        self.is_paused = True
        self.due = self._loop.time() + self._limits.stall_seconds
        if self._stream is not None and self._stream.on_pressure is not None:
            self._stream.on_pressure(True)

    def resume_writing(self) -> None:
        """The client has caught up."""
        self.is_paused = False
        self._phase = ""
        self._watch_peer()
        if self._stream is not None and self._stream.on_pressure is not None:
            self._stream.on_pressure(False)

    @property
    def is_read(self) -> bool:
        """Whether more bytes are taken: not while too many wait for the answer to those before them."""
        return self._transport is not None and self._transport.is_reading()

    # ---- what the server and its streams call

    def send(self, data: bytes) -> None:
        """Send bytes, as soon as the client takes them."""
        if self._transport is not None and data:
            self._transport.write(data)

    def abort(self) -> None:
        """End the connection now."""
        if self._transport is not None:
            self._transport.abort()

    def is_late(self) -> None:
        """The peer has kept us waiting for too long."""
        if self._is_ending or self.is_paused:
            self.abort()
        elif self._phase == "body":
            seconds = self._limits.body_seconds
            self._take(_timeout("body_timeout", f"the body was not sent within {seconds:g} seconds"))
        elif self._phase == "head":
            seconds = self._limits.head_seconds
            self._take(_timeout("head_timeout", f"the headers were not sent within {seconds:g} seconds"))
        else:
            self.abort()

    def begin_stream(self, request: Request, status: int, headers: Collection[tuple[str, str]]) -> Stream:
        """A streamed answer to the request that is being handled."""
        self._is_last |= not request.takes_chunks
        framing = (("Transfer-Encoding", "chunked"),) if request.takes_chunks else ()
        head = encode_head(status, (*headers, *framing), keeps_alive=self._keeps_alive(request))
        self._stream = Stream(self, head, in_chunks=request.takes_chunks, status=status)
        return self._stream

    # ----

    def _watch_peer(self) -> None:
        """Whatever the peer has begun to do, it has its time for that from the moment it began."""
        if self._task is not None:
            phase, seconds = "answered", float("inf")
        elif self._reader.is_in_body:
            phase, seconds = "body", self._limits.body_seconds
        elif self._reader.is_in_head:
            phase, seconds = "head", self._limits.head_seconds
        else:
            phase, seconds = "idle", self._limits.idle_seconds
        if phase != self._phase and not self._is_ending:
            self._phase = phase
            self.due = self._loop.time() + seconds

    def _hold_back(self, size: int) -> None:
        """Bound what a client sends before it has its answer; within the bound a client that leaves is noticed at once."""
        self._waiting_bytes += size
        if self._waiting_bytes > self._limits.waiting_bytes and self._transport is not None:
            self._transport.pause_reading()

    def _keeps_alive(self, request: Request) -> bool:
        return request.keeps_alive and not self._is_last and not self._server.is_draining

    def _take(self, completed: Request | Refusal) -> None:
        if isinstance(completed, Refusal):
            self._is_last = True
            self.send(self._server.refuse(completed).to_bytes(keeps_alive=False))
            self._linger()
            return
        task = self._task = self._loop.create_task(self._answer(completed))
        self._watch_peer()
        self._server.tasks.add(task)
        task.add_done_callback(self._server.tasks.discard)

    async def _answer(self, request: Request) -> None:
        incoming = Incoming(request, self)
        try:
            answer = await self._server.handle(incoming)
        except Exception:  # noqa: BLE001 - told by whoever made the handler
            answer = self._server.fail(incoming)
        except asyncio.CancelledError:
            self.abort()
            raise
        if self._transport is None:
            return
        begun = self._stream
        if begun is not None and (answer is not begun or not begun.has_ended):
            # half an answer must not look like a whole one
            self.abort()
            return
        keeps_alive = self._keeps_alive(request)
        if isinstance(answer, Response):
            self.send(answer.to_bytes(keeps_alive=keeps_alive, with_body=request.method != "HEAD"))
        self._task = self._stream = None
        if self._waiting_bytes > self._limits.waiting_bytes:
            self._transport.resume_reading()
        self._waiting_bytes = 0
        if not keeps_alive:
            self._close()
        elif self._waiting:
            self._take(self._waiting.popleft())
        else:
            self._watch_peer()

    def _close(self) -> None:
        self._waiting.clear()
        if self._transport is not None:
            self._transport.close()

    def _linger(self) -> None:
        """Close so that the client can read why: at once, with bytes of its request unread, would reset the connection."""
        self._waiting.clear()
        self._is_ending = True
        self.due = self._loop.time() + LINGER_SECONDS
        if self._transport is not None and self._transport.can_write_eof():
            self._transport.write_eof()


def _timeout(code: str, message: str) -> Refusal:
    return Refusal(status=408, code=code, message=message)
