"""A port in front of a port: connections pass through it, and it can cut, truncate, delay, hold and spoil what passes."""

from __future__ import annotations

import asyncio
import random
import re
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass, field

CHUNK = 65536
#: How answers begin that a receiver can tell from noise; a wrong byte further on would be TCP's to find.
BEGINNINGS = (b"HTTP/1.1 ", b"TWKV")
SPOILT_BYTES = 4
MOST_BYTES_LEFT = 600
_ABORT = struct.pack("ii", 1, 0)


@dataclass(slots=True, eq=False)
class _Connection:
    """Both halves of one connection that passes."""

    near: asyncio.StreamWriter  # towards who connected
    far: asyncio.StreamWriter
    answer_bytes_left: int | None = None  # None: no limit

    def reset(self) -> None:
        """End it without a goodbye."""
        for writer in (self.near, self.far):
            sock: socket.socket | None = writer.get_extra_info("socket")
            if sock is not None and sock.fileno() >= 0:  # it is not closed yet
                with suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
            writer.transport.abort()


@dataclass(eq=False, kw_only=True)
class Link:
    """One port that is known to others, and the port behind it that a process listens on.

    `kv_port` is the known one of the process's KV port: the process tells others where it listens itself, so its
    answers are changed to say what they can reach. Both ports have as many digits.
    """

    host: str
    port: int
    behind: int
    kv_port: tuple[int, int] | None = None  # behind, and known
    delay_seconds: float = 0.0
    _flows: asyncio.Event = field(default_factory=asyncio.Event)
    _spoils: random.Random | None = None
    _server: asyncio.Server | None = None
    _connections: set[_Connection] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._flows.set()

    async def up(self) -> None:
        """Take connections, as long as something listens behind."""
        if self._server is None:
            self._server = await asyncio.start_server(self._pass, self.host, self.port, limit=CHUNK)

    def down(self) -> None:
        """Take none, and reset those that are there: the process is gone."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.cut()
        self.release()

    def cut(self) -> None:
        """Reset every connection."""
        for connection in list(self._connections):
            connection.reset()

    def truncate(self, draw: random.Random) -> None:
        """Let the answers of the connections that are there end after some more bytes."""
        for connection in self._connections:
            connection.answer_bytes_left = draw.randrange(MOST_BYTES_LEFT)

    def spoil(self, draw: random.Random) -> None:
        """Let every answer that begins begin with a wrong byte."""
        self._spoils = draw

    def hold(self) -> None:
        """Let nothing pass."""
        self._flows.clear()

    def release(self) -> None:
        """Let everything pass again, at once and whole."""
        self.delay_seconds = 0.0
        self._spoils = None
        self._flows.set()
        for connection in self._connections:
            connection.answer_bytes_left = None

    async def _pass(self, reader: asyncio.StreamReader, near: asyncio.StreamWriter) -> None:
        try:
            far_reader, far = await asyncio.open_connection(self.host, self.behind, limit=CHUNK)
        except OSError:
            near.transport.abort()
            return
        connection = _Connection(near, far)
        self._connections.add(connection)
        try:
            async with asyncio.TaskGroup() as halves:
                halves.create_task(self._pump(connection, reader, far, is_answer=False))
                halves.create_task(self._pump(connection, far_reader, near, is_answer=True))
        except* OSError:
            connection.reset()
        finally:
            self._connections.discard(connection)
            for writer in (near, far):
                writer.close()

    async def _pump(
        self,
        connection: _Connection,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        is_answer: bool,
    ) -> None:
        while chunk := await reader.read(CHUNK):
            await asyncio.sleep(self.delay_seconds)
            await self._flows.wait()
            if is_answer:
                chunk = self._changed(chunk)
                left = connection.answer_bytes_left
                if left is not None:
                    chunk = chunk[:left]
                    connection.answer_bytes_left = left - len(chunk)
            if writer.is_closing():  # it was reset meanwhile
                return
            writer.write(chunk)
            await writer.drain()
            if connection.answer_bytes_left == 0:
                writer.close()
                connection.far.close()
                return
        if not writer.is_closing():
            writer.write_eof()

    def _changed(self, chunk: bytes) -> bytes:
        if self.kv_port is not None:
            chunk = renamed(chunk, *self.kv_port)
        if self._spoils is not None and chunk.startswith(BEGINNINGS):
            chunk = spoilt(chunk, self._spoils)
        return chunk


def renamed(chunk: bytes, behind: int, known: int) -> bytes:
    """An answer whose hand-over, if it has one, names the known port; of the same length.

    One that is split within these few bytes stays as it is, and its KV cannot be fetched: a fault like others.
    """
    return re.sub(rb'("remote_port": ?)%d\b' % behind, rb"\g<1>%d" % known, chunk)


def spoilt(chunk: bytes, draw: random.Random) -> bytes:
    """The same bytes but for one of the first."""
    at = draw.randrange(min(SPOILT_BYTES, len(chunk)))
    return chunk[:at] + bytes([chunk[at] ^ draw.randrange(1, 256)]) + chunk[at + 1 :]
