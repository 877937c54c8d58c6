"""Requests, answers and refusals as values, the bounds a server keeps, and answers as bytes."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

JSON = "application/json"
_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
_BODILESS = frozenset({204, 304})


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a server takes from one connection: bytes, and seconds that the peer may keep it waiting."""

    body_bytes: int
    head_bytes: int = 32_768  # request line and headers
    headers: int = 128
    waiting_bytes: int = 65_536  # of further requests sent before the answer to the first
    head_seconds: float = 10.0  # from a request's first byte to the end of its head
    body_seconds: float = 30.0  # from there to the end of its body
    idle_seconds: float = 75.0  # from an answer to the next request
    stall_seconds: float = 30.0  # that a full send buffer may stay full


@dataclass(slots=True, kw_only=True)
class Request:
    """One request with its whole body, decompressed."""

    method: str
    path: str  # percent-decoded
    query: str
    headers: Mapping[str, str]  # names in lower case; repeated ones joined by commas
    body: bytes = b""
    keeps_alive: bool = True
    takes_chunks: bool = True  # HTTP/1.0 clients read to the end of the connection


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a request is not handled: malformed, too large or too slow. The connection ends with it."""

    status: int
    code: str
    message: str


@dataclass(slots=True, kw_only=True)
class Response:
    """An answer that is known as a whole."""

    status: int = 200
    body: bytes = b""
    content_type: str = JSON
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of_json(
        cls, value: Mapping[str, Any], *, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> Response:
        """An answer with this object as its body."""
        body = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
        return cls(status=status, body=body, headers=dict(headers or {}))

    def to_bytes(self, *, keeps_alive: bool, with_body: bool = True) -> bytes:
        """As it is sent; without the body it answers a HEAD."""
        if self.status in _BODILESS:
            return encode_head(self.status, self.headers.items(), keeps_alive=keeps_alive)
        head = encode_head(
            self.status,
            (
                ("Content-Type", self.content_type),
                ("Content-Length", str(len(self.body))),
                *self.headers.items(),
            ),
            keeps_alive=keeps_alive,
        )
        return head + self.body if with_body else head


def encode_head(status: int, headers: Collection[tuple[str, str]], *, keeps_alive: bool) -> bytes:
    """Status line and headers, with the empty line that ends them.

    Raises:
        ValueError: a header holds a line break, which would begin another header.
    """
    text = "".join([f"{name}: {value}\r\n" for name, value in headers])
    if text.count("\n") != len(headers) or text.count("\r") != len(headers):
        raise ValueError("a header's value must not hold a line break")
    end = "\r\n" if keeps_alive else "Connection: close\r\n\r\n"
    return _LINES[status] + f"Date: {_date(int(time.time()))}\r\n{text}{end}".encode("latin-1")


@lru_cache(maxsize=1)
def _date(second: int) -> str:
    """The time as HTTP writes it, made once a second."""
    return formatdate(second, usegmt=True)
