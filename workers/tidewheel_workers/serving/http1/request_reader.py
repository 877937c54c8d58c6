"""A connection's bytes become requests: llhttp does the grammar, this keeps the bounds and says what is refused.

Without sockets and clocks: `feed` takes what came and gives what it completed.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import httptools

from tidewheel_workers.serving.http1.messages import Refusal, Request

if TYPE_CHECKING:
    from tidewheel_workers.serving.http1.messages import Limits

#: Framing that a body may cost beside its bytes: a chunk of one byte needs five more.
_FRAMING_PER_BYTE = 8
#: zlib's window bits, with those that say which container is expected.
_WINDOW_BITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}


class BodyExpected:
    """The client asks whether it may send its body (`Expect: 100-continue`): it may."""


Completed = Request | Refusal | BodyExpected


class _Refused(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.refusal = Refusal(status=status, code=code, message=message)


class RequestReader:
    """One connection's requests, one after the other."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._completed: list[Completed] = []
        self._is_over = False
        self._parser: Any = httptools.HttpRequestParser(self)
        self._reset()

    def _reset(self) -> None:
        self._has_begun = False
        self._request: Request | None = None  # from the end of its head to the end of its body
        self._target = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._head_size = 0
        self._fed = 0  # bytes from the connection, as far as they are counted
        self._received = 0  # of them, bytes of the body as it was sent
        self._parts: list[bytes] = []
        self._size = 0  # of the parts
        self._inflater: Any = None

    @property
    def is_in_head(self) -> bool:
        """Whether a request has begun whose head is not complete."""
        return self._has_begun and self._request is None

    @property
    def is_in_body(self) -> bool:
        """Whether a request waits for the rest of its body."""
        return self._request is not None

    def feed(self, data: bytes) -> list[Completed]:
        """Take bytes. After a refusal, or a request that said it is the last, they are ignored."""
        if self._is_over:
            return []
        self._fed += len(data)
        try:
            self._parse(data)
            self._check_framing()
        except _Refused as error:
            self._refuse(error.refusal)
        except httptools.HttpParserCallbackError as error:
            # what a callback raised is the context of llhttp's own error
            if not isinstance(error.__context__, _Refused):
                raise
            self._refuse(error.__context__.refusal)
        except httptools.HttpParserError as error:
            if not self._is_over:
                message = f"this is no HTTP/1.1 request: {error}"
                self._refuse(Refusal(status=400, code="malformed_request", message=message))
        completed, self._completed = self._completed, []
        return completed

    # ---- what llhttp calls

    def on_message_begin(self) -> None:
        """A request begins."""
        self._has_begun = True

    def on_url(self, part: bytes) -> None:
        """The target, or a part of it."""
        if self._request is None:
            self._target += part
            self._head_size += len(part)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; after the body it is a trailer, which nothing here asks for."""
        if self._request is not None:
            return
        self._headers.append((name, value))
        self._head_size += len(name) + len(value) + 4
        if self._head_size > self._limits.head_bytes:
            raise self._head_too_large()
        if len(self._headers) > self._limits.headers:
            raise _Refused(431, "head_too_large", f"more than {self._limits.headers} headers")

    def on_headers_complete(self) -> None:
        """The head is complete: refuse what can be refused before the body comes."""
        if self._request is not None:
            return
        version: str = self._parser.get_http_version()
        if version not in ("1.1", "1.0"):
            raise _Refused(505, "http_version", f"HTTP/{version} is not spoken here; use HTTP/1.1")
        headers = _join(self._headers)
        if version == "1.1" and "," in headers.get("host", ","):
            raise _Refused(400, "malformed_request", "a request names its host once, in the header Host")
        if headers.get("transfer-encoding", "chunked").lower() != "chunked":
            raise _Refused(
                501, "transfer_encoding", "the only transfer encoding that is understood is chunked"
            )
        if int(headers.get("content-length", 0)) > self._limits.body_bytes:
            raise self._too_large()
        self._inflater = _inflater(headers.get("content-encoding", "identity"))
        path, query = _path_and_query(self._target.decode("latin-1"))
        self._request = Request(
            method=self._parser.get_method().decode(),
            path=path,
            query=query,
            headers=headers,
            keeps_alive=self._parser.should_keep_alive(),
            takes_chunks=version == "1.1",
        )
        if headers.get("expect", "").lower() == "100-continue":
            self._completed.append(BodyExpected())

    def on_body(self, part: bytes) -> None:
        """Some of the body."""
        self._received += len(part)
        room = self._limits.body_bytes - self._size
        if self._inflater is not None:
            try:
                part = self._inflater.decompress(part, room + 1)
            except zlib.error as error:
                raise _unreadable(f"it is not what its Content-Encoding says: {error}") from error
        if len(part) > room:
            raise self._too_large()
        self._size += len(part)
        self._parts.append(part)

    def on_message_complete(self) -> None:
        """The request is complete, unless its body was taken for another protocol."""
        request = self._request
        if request is None or (self._parser.should_upgrade() and _announces_body(request)):
            return
        if self._received and self._inflater is not None and not self._inflater.eof:
            raise _unreadable("its compressed form ends too early")
        request.body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._completed.append(request)
        self._is_over = not request.keeps_alive
        self._reset()

    # ----

    def _parse(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            self._go_on_without_upgrading(data[offer.args[0] :])

    def _go_on_without_upgrading(self, rest: bytes) -> None:
        """Ignore an offer to speak another protocol, as HTTP allows.

        Java's client offers HTTP/2 with every request. llhttp takes what follows the head for the other protocol; it
        is the body that the head announced, so another parser is told of that body and gets the rest.
        """
        self._parser = httptools.HttpRequestParser(self)
        if self._request is not None:
            framing = "".join(
                f"{name}: {self._request.headers[name]}\r\n"
                for name in ("content-length", "transfer-encoding")
                if name in self._request.headers
            )
            self._parser.feed_data(f"POST / HTTP/1.1\r\n{framing}\r\n".encode("latin-1"))
        if rest and not self._is_over:
            self._parse(rest)

    def _check_framing(self) -> None:
        """Bound what llhttp gathers or skips without a callback: an endless header, trailer or chunk extension."""
        overhead = self._fed - self._received
        if self._request is None:
            if self._has_begun and overhead > self._limits.head_bytes:
                raise self._head_too_large()
        elif overhead > 2 * self._limits.head_bytes + _FRAMING_PER_BYTE * self._received:
            raise _unreadable("its framing is larger than itself")

    def _head_too_large(self) -> _Refused:
        return _Refused(
            431, "head_too_large", f"request line and headers exceed {self._limits.head_bytes} bytes"
        )

    def _too_large(self) -> _Refused:
        limit = self._limits.body_bytes
        return _Refused(
            413, "body_too_large", f"the body is larger than {limit} bytes, the limit of this server"
        )

    def _refuse(self, refusal: Refusal) -> None:
        self._completed.append(refusal)
        self._is_over = True
        self._reset()


def _unreadable(why: str) -> _Refused:
    return _Refused(400, "unreadable_body", f"the body cannot be read: {why}")


def _join(headers: list[tuple[bytes, bytes]]) -> dict[str, str]:
    joined: dict[str, str] = {}
    for name, value in headers:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        joined[key] = f"{joined[key]}, {text}" if key in joined else text
    return joined


def _announces_body(request: Request) -> bool:
    return "transfer-encoding" in request.headers or request.headers.get("content-length", "0") != "0"


def _inflater(encoding: str) -> Any:
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return None
    if encoding not in _WINDOW_BITS:
        raise _Refused(
            415,
            "unsupported_encoding",
            f"Content-Encoding {encoding!r} is not understood; gzip and deflate are",
        )
    return zlib.decompressobj(_WINDOW_BITS[encoding])


def _path_and_query(target: str) -> tuple[str, str]:
    if not target.startswith("/"):
        # the absolute form, which proxies are sent and servers must take
        try:
            parts = urlsplit(target)
        except ValueError:
            parts = None
        if parts is None or parts.scheme not in ("http", "https") or not parts.netloc:
            raise _Refused(400, "malformed_request", "the request's target is neither a path nor a URL")
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    path, _, query = target.partition("?")
    return (unquote(path) if "%" in path else path), query
