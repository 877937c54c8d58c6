"""Connections to other servers, kept open for the next request, and the answers that come on them."""

from __future__ import annotations

import asyncio
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple, cast

from tidewheel_workers.serving.http1.answer_reader import AnswerReader, BadAnswer, decoded
from tidewheel_workers.serving.http1.sweeping import sweep

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

#: Shorter than the patience of every server that may stand behind us (uvicorn's, and so vLLM's, is 5 s), so that no request
#: goes out on a connection that the server is just closing.
IDLE_SECONDS = 4.0
#: How often waits are looked at that may have come to their end; none is exact to less.
SWEEP_SECONDS = 0.05
#: Bytes of an answer that may wait for whoever reads it.
HIGH_WATER = 262_144
_NEVER = float("inf")


class Unreachable(OSError):
    """There is no connection to be had; the server has seen nothing of the request."""


class ConnectionLost(OSError):
    """The server ended the connection, or spoke nonsense, before its answer was complete."""


def encode_request(
    method: str, address: tuple[str, int], path: str, headers: Mapping[str, str], body: bytes = b""
) -> bytes:
    """A request as it is sent.

    Raises:
        ValueError: a header holds a line break, which would begin another header.
    """
    text = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    if text.count("\n") != len(headers) or text.count("\r") != len(headers):
        raise ValueError("a header's value must not hold a line break")
    head = f"{_beginning(method, address, path)}{text}Content-Length: {len(body)}\r\n\r\n"
    return head.encode("latin-1") + body


@lru_cache(maxsize=1024)
def _beginning(method: str, address: tuple[str, int], path: str) -> str:
    host = f"[{address[0]}]" if ":" in address[0] else address[0]
    return f"{method} {path} HTTP/1.1\r\nHost: {host}:{address[1]}\r\n"


class Answer:
    """An answer whose head is there; its body may still be coming. Close it, whatever happens.

    Waiting for the body raises TimeoutError when `until` is past.
    """

    def __init__(self, connection: ClientConnection) -> None:
        self.status = connection.reader.status
        self._header_lines = connection.reader.header_lines
        self._connection: ClientConnection | None = connection

    @property
    def headers(self) -> dict[str, str]:
        """By names in lower case."""
        return decoded(self._header_lines)

    async def whole(self, most: int) -> Whole:
        """The answer with its whole body.

        Raises:
            ConnectionLost: it did not come whole, or is larger than `most` bytes.
        """
        return Whole(self.status, self._header_lines, await self.read(most))

    def wait_until(self, until: float | None) -> None:
        """Another end for all waiting, on the event loop's clock; None is never."""
        if self._connection is not None:
            self._connection.wait_until(until)

    async def read(self, most: int) -> bytes:
        """The whole body.

        Raises:
            ConnectionLost: it did not come whole, or is larger than `most` bytes.
        """
        parts: list[bytes] = []
        size = 0
        while part := await self.next():
            parts.append(part)
            size += len(part)
            if size > most:
                raise ConnectionLost(f"the answer is larger than {most} bytes")
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def next(self) -> bytes:
        """More of the body, as soon as there is any; empty at its end.

        Raises:
            ConnectionLost: the server is gone before the end.
        """
        if self._connection is None:
            return b""
        return await self._connection.next()

    async def relay(self, take: Callable[[bytes], None]) -> None:
        """Hand over the rest of the body, each part in the moment in which it comes.

        Raises:
            ConnectionLost: the server is gone before the end; what came before was handed over.
        """
        if self._connection is not None:
            await self._connection.relay(take)

    def pause(self, is_paused: bool) -> None:
        """Whether whoever takes the body wants no more for now; the server is slowed down by it."""
        if self._connection is not None:
            self._connection.pause(is_paused)

    def close(self) -> None:
        """Done with it. If the body is not complete the connection ends, by which the server notices."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.finish()


class Whole(NamedTuple):
    """An answer that has come to its end."""

    status: int
    header_lines: list[tuple[bytes, bytes]]
    body: bytes

    @property
    def headers(self) -> dict[str, str]:
        """By names in lower case; few answers are asked for them."""
        return decoded(self.header_lines)


class HttpClient:
    """Sends requests; connections are kept by address, and the last one used is the first to be used again."""

    def __init__(self, *, connect_seconds: float, idle_seconds: float = IDLE_SECONDS) -> None:
        self.idle: dict[tuple[str, int], list[ClientConnection]] = {}
        self.connections: set[ClientConnection] = set()
        self._connect_seconds = connect_seconds
        self._idle_seconds = idle_seconds
        self._sweeping: asyncio.Task[None] | None = None

    async def send(self, address: tuple[str, int], request: bytes, *, until: float | None = None) -> Answer:
        """Send a request, head and body, and wait for the head of its answer.

        Args:
            until: the end of all waiting for the answer, on the event loop's clock.

        Raises:
            Unreachable: no connection could be made.
            ConnectionLost: it was made, and ended before the head had come.
            TimeoutError: `until` is past.
        """
        connection = self._take(address) or await self._connect(address, until)
        await connection.ask(request, until)
        return Answer(connection)

    async def fetch(
        self, address: tuple[str, int], request: bytes, *, most: int, until: float | None = None
    ) -> Whole:
        """Send a request and wait for its whole answer.

        Args:
            most: the bytes that its body may have.
            until: the end of all waiting for the answer, on the event loop's clock.

        Raises:
            Unreachable: no connection could be made.
            ConnectionLost: it was made, and ended too early, or the answer is too large.
            TimeoutError: `until` is past.
        """
        connection = self._take(address) or await self._connect(address, until)
        await connection.ask(request, until, most=most)
        reader = connection.reader
        whole = Whole(reader.status, reader.header_lines, reader.take())
        connection.finish()
        return whole

    async def close(self) -> None:
        """End all connections."""
        if self._sweeping is not None:
            self._sweeping.cancel()
        for connection in list(self.connections):
            connection.abort()

    def keep(self, connection: ClientConnection) -> None:
        """Its answer is complete: it can carry another request."""
        connection.wait_until(asyncio.get_running_loop().time() + self._idle_seconds)
        self.idle.setdefault(connection.address, []).append(connection)

    def forget(self, connection: ClientConnection) -> None:
        """It has ended."""
        self.connections.discard(connection)
        kept = self.idle.get(connection.address)
        if kept is not None and connection in kept:
            kept.remove(connection)
            if not kept:
                del self.idle[connection.address]

    def _take(self, address: tuple[str, int]) -> ClientConnection | None:
        kept = self.idle.get(address)
        return kept.pop() if kept else None

    async def _connect(self, address: tuple[str, int], until: float | None) -> ClientConnection:
        host, port = address
        loop = asyncio.get_running_loop()
        if self._sweeping is None:
            self._sweeping = loop.create_task(sweep(self.connections, every_seconds=SWEEP_SECONDS))
        ends = loop.time() + self._connect_seconds
        try:
            async with asyncio.timeout_at(ends if until is None else min(ends, until)):
                _, connection = await loop.create_connection(
                    lambda: ClientConnection(self, address), host, port
                )
        except TimeoutError as error:
            if until is not None and until <= ends:
                raise
            raise Unreachable(f"no connection to {host}:{port} within {self._connect_seconds:g} s") from error
        except OSError as error:
            raise Unreachable(f"no connection to {host}:{port}: {error.strerror or error}") from error
        return connection


class ClientConnection(asyncio.Protocol):
    """One connection; it carries one request at a time."""

    def __init__(self, client: HttpClient, address: tuple[str, int]) -> None:
        self.address = address
        self.reader = AnswerReader()
        self.due = _NEVER
        self._client = client
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._is_asked = False
        self._most: int | None = None  # of a whole answer, when only that is waited for
        self._fault: Exception | None = None  # why nothing more will come
        self._is_held = False  # for nobody has taken what is there
        self._is_paused = False  # by whoever takes it
        self._wakes: asyncio.Future[None] | None = None
        self._take: Callable[[bytes], None] | None = None

    # ---- what the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected."""
        self._transport = cast("asyncio.Transport", transport)
        self._client.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """The other side is gone."""
        self._transport = None
        self.reader.end()
        self._fault = self._fault or ConnectionLost(
            "the connection ended too early" if exc is None else f"the connection broke: {exc}"
        )
        self._client.forget(self)
        self._wake()

    def data_received(self, data: bytes) -> None:
        """Bytes of the answer."""
        reader = self.reader
        try:
            if not self._is_asked:
                raise BadAnswer("bytes came without a request")
            reader.feed(data)
        except BadAnswer as error:
            self._fault = ConnectionLost(str(error))
            self.abort()
        take = self._take
        if take is not None and (part := reader.take()):
            take(part)
        if self._fault is None and not reader.is_complete:
            if take is not None or not reader.has_head:
                return
            if self._most is None:
                self._hold()
            elif reader.size <= self._most:
                return
            else:
                self._fault = ConnectionLost(f"the answer is larger than {self._most} bytes")
        self._wake()

    # ---- what the client and its answers call

    def wait_until(self, until: float | None) -> None:
        """The end of all waiting; of an idle connection, its own."""
        self.due = _NEVER if until is None else until

    def is_late(self) -> None:
        """It has come to the end of waiting."""
        if self._is_asked and self._fault is None:
            self._fault = TimeoutError("the server did not answer in time")
            self._wake()
        self.abort()

    async def ask(self, request: bytes, until: float | None, *, most: int | None = None) -> None:
        """Send a request and wait for the head of the answer, or for all of it if it may have `most` bytes.

        Whatever goes wrong ends the connection.
        """
        self.due = _NEVER if until is None else until
        self.reader.begin()
        self._is_asked = True
        self._most = most
        if self._transport is not None:
            self._transport.write(request)
        try:
            while not (self.reader.has_head if most is None else self.reader.is_complete):
                await self._more()
        except BaseException:
            self.abort()
            raise

    async def next(self) -> bytes:
        """As in `Answer`."""
        while True:
            if part := self.reader.take():
                self._release()
                return part
            if self.reader.is_complete:
                return b""
            await self._more()

    async def relay(self, take: Callable[[bytes], None]) -> None:
        """As in `Answer`."""
        if part := self.reader.take():
            take(part)
        self._release()
        self._take = take
        try:
            while not self.reader.is_complete:
                await self._more()
        finally:
            self._take = None

    def pause(self, is_paused: bool) -> None:
        """As in `Answer`."""
        self._is_paused = is_paused
        self._apply()

    def finish(self) -> None:
        """Keep the connection for another request where that is possible."""
        if self._transport is None:
            return
        if self.reader.is_complete and self.reader.keeps_alive and not self._transport.is_closing():
            self._is_asked = False
            if self._is_held or self._is_paused:
                self._is_held = self._is_paused = False
                self._apply()
            self._client.keep(self)
        else:
            self.abort()

    def abort(self) -> None:
        """End it now."""
        if self._transport is not None:
            self._transport.abort()

    # ----

    async def _more(self) -> None:
        """Wait for bytes, or for the end of the connection."""
        if self._fault is not None:
            raise self._fault
        self._wakes = self._loop.create_future()
        try:
            await self._wakes
        finally:
            self._wakes = None

    def _wake(self) -> None:
        if self._wakes is not None and not self._wakes.done():
            self._wakes.set_result(None)

    def _hold(self) -> None:
        """Nobody reads: let no more come than fits."""
        if not self._is_held and self.reader.size > HIGH_WATER:
            self._is_held = True
            self._apply()

    def _release(self) -> None:
        if self._is_held:
            self._is_held = False
            self._apply()

    def _apply(self) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if self._is_held or self._is_paused:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()
