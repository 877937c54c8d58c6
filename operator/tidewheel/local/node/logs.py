"""Container logs on disk: time-stamped lines as a container runtime writes them, bounded by rotation, readable while written."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO

#: Longer lines are split, as container runtimes split them.
_LONGEST_LINE = 16 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class LogQuery:
    """What a reader of a log asks for; the words are those of the API's log options."""

    follow: bool = False
    previous: bool = False
    timestamps: bool = False
    tail_lines: int | None = None
    limit_bytes: int | None = None
    since: datetime | None = None


class ContainerLog:
    """The log of one run of a container: `<stem>.log`, and before it `<stem>.log.1` when the former grew too long.

    A line is `<RFC 3339 time> <stdout|stderr> <F|P> <text>`; P marks a part of a longer line.
    """

    def __init__(self, path: Path, *, most_bytes: int = 10 * 1024 * 1024) -> None:
        self.path = path
        self._most_bytes = most_bytes
        self._file: BinaryIO | None = path.open("ab")
        self._rests = {"stdout": b"", "stderr": b""}
        self._changed = asyncio.Event()

    @property
    def is_open(self) -> bool:
        """Whether the container may still write."""
        return self._file is not None

    def write(self, stream: str, chunk: bytes) -> None:
        """Takes what the container wrote; b"" ends the stream and writes out a last line without newline."""
        if self._file is None:
            return
        text = self._rests[stream] + chunk
        *lines, rest = text.split(b"\n")
        entries = [entry for line in lines for entry in _pieces(line)]
        if rest and (not chunk or len(rest) >= _LONGEST_LINE):
            entries += [(b"P", piece) for _, piece in _pieces(rest)] if chunk else list(_pieces(rest))
            rest = b""
        self._rests[stream] = rest
        if entries:
            stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ").encode()
            prefix = stamp + b" " + stream.encode() + b" "
            self._file.write(b"".join(prefix + tag + b" " + piece + b"\n" for tag, piece in entries))
            self._file.flush()
            if self._file.tell() > self._most_bytes:
                self._file.close()
                self.path.replace(self.path.with_name(self.path.name + ".1"))
                self._file = self.path.open("ab")
            self._wake()

    def close(self) -> None:
        """No more will come; followers end."""
        if self._file is not None:
            self.write("stdout", b"")
            self.write("stderr", b"")
            self._file.close()
            self._file = None
            self._wake()

    def remove(self) -> None:
        """Takes the log off the disk."""
        self.close()
        for path in (self.path, self.path.with_name(self.path.name + ".1")):
            path.unlink(missing_ok=True)

    async def read(self, query: LogQuery) -> AsyncIterator[bytes]:
        """The lines that `query` asks for; with `follow` those to come too, until the container ends."""
        left = query.limit_bytes
        async for entry in self._entries(query):
            shown = _shown(entry, query.timestamps)
            if left is not None:
                shown, left = shown[:left], left - len(shown)
            yield shown
            if left is not None and left <= 0:
                return

    async def _entries(self, query: LogQuery) -> AsyncIterator[bytes]:
        # Opened before the first read, so that a rotation in between loses nothing.
        file = self.path.open("rb")
        try:
            entries = [*_lines_of(self.path.with_name(self.path.name + ".1")), *file.readlines()]
            if query.since is not None:
                entries = [entry for entry in entries if _time_of(entry) >= query.since]
            if query.tail_lines is not None:
                entries = entries[len(entries) - min(query.tail_lines, len(entries)) :]
            for entry in entries:
                yield entry
            while query.follow:
                changed, ended = self._changed, not self.is_open
                while line := file.readline():
                    yield line
                if file.tell() > _size(self.path):
                    file.close()
                    file = self.path.open("rb")
                elif ended:
                    return
                else:
                    await changed.wait()
        finally:
            file.close()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def tail(path: Path, *, lines: int = 80, most_bytes: int = 2048) -> str:
    """The end of a log as text, as a termination message falls back to it."""
    entries = [_shown(entry, False) for entry in _lines_of(path)[-lines:]]
    return b"".join(entries)[-most_bytes:].decode(errors="replace")


def since_seconds(seconds: int, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> datetime:
    """The moment that many seconds ago."""
    return clock() - timedelta(seconds=seconds)


def _pieces(line: bytes) -> Iterator[tuple[bytes, bytes]]:
    while len(line) > _LONGEST_LINE:
        yield b"P", line[:_LONGEST_LINE]
        line = line[_LONGEST_LINE:]
    yield b"F", line


def _lines_of(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return []


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _time_of(entry: bytes) -> datetime:
    return datetime.fromisoformat(entry.split(b" ", 1)[0].decode())


def _shown(entry: bytes, timestamps: bool) -> bytes:
    stamp, _, tag, text = entry.split(b" ", 3)
    text = text.removesuffix(b"\n") if tag == b"P" else text
    return stamp + b" " + text if timestamps else text
