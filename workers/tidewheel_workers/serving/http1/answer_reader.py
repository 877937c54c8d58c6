"""A connection's bytes become one answer: llhttp does the grammar, this keeps the bounds.

Without sockets: `feed` takes what came; the head, the pieces of the body and the end are then there to be taken.
"""

from __future__ import annotations

from typing import Any

import httptools

MOST_HEAD_BYTES = 65_536
_FRAMING = ("content-length", "transfer-encoding")


class BadAnswer(Exception):
    """What came is no HTTP answer, or its head is larger than any should be."""


def decoded(lines: list[tuple[bytes, bytes]]) -> dict[str, str]:
    """Headers with their names in lower case."""
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in lines}


class AnswerReader:
    """The answers on one connection, one after the other; `begin` before each."""

    def __init__(self) -> None:
        self._parser: Any = httptools.HttpResponseParser(self)
        self.begin()

    def begin(self) -> None:
        """Another request goes out."""
        self.status = 0
        self.header_lines: list[tuple[bytes, bytes]] = []
        self.has_head = False
        self.is_complete = False
        self.keeps_alive = False
        self.size = 0  # bytes of the body that wait to be taken
        self._parts: list[bytes] = []
        self._head_size = 0

    def feed(self, data: bytes) -> None:
        """Take bytes.

        Raises:
            BadAnswer: they cannot be an answer, or belong to none that was asked for.
        """
        if self.is_complete:
            raise BadAnswer("bytes came after the end of the answer")
        if not self.has_head:
            self._head_size += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as error:
            raise BadAnswer("the server wants to speak another protocol") from error
        except httptools.HttpParserError as error:
            raise BadAnswer(f"no HTTP answer: {error}") from error
        if not self.has_head and self._head_size > MOST_HEAD_BYTES:
            raise BadAnswer(f"the head of the answer is larger than {MOST_HEAD_BYTES} bytes")

    def end(self) -> None:
        """The connection has ended; that is the end of an answer that did not say its length."""
        headers = decoded(self.header_lines)
        self.is_complete |= self.has_head and headers.keys().isdisjoint(_FRAMING)

    def take(self) -> bytes:
        """What came of the body since the last time."""
        parts = self._parts
        if not parts:
            return b""
        self._parts = []
        self.size = 0
        return parts[0] if len(parts) == 1 else b"".join(parts)

    # ---- what llhttp calls

    def on_message_begin(self) -> None:
        """An answer begins."""
        if self.is_complete:
            raise BadAnswer("a second answer came")

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer, which is of no interest."""
        if not self.has_head:
            self.header_lines.append((name, value))

    def on_headers_complete(self) -> None:
        """The head is complete, unless it only says that another one follows."""
        status: int = self._parser.get_status_code()
        if status < 200:
            self.header_lines.clear()
            return
        self.status = status
        self.has_head = True

    def on_body(self, part: bytes) -> None:
        """Some of the body."""
        self._parts.append(part)
        self.size += len(part)

    def on_message_complete(self) -> None:
        """The end of the answer."""
        if self.has_head:
            self.is_complete = True
            self.keeps_alive = self._parser.should_keep_alive()
