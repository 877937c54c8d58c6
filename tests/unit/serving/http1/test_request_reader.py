"""Bytes become requests or refusals: whatever comes, in whatever pieces, within the bounds."""

from __future__ import annotations

import gzip
import itertools
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidewheel_workers.serving.http1.messages import Limits, Refusal, Request
from tidewheel_workers.serving.http1.request_reader import BodyExpected, RequestReader

LIMITS = Limits(body_bytes=100, head_bytes=500, headers=10)
HEAD = b"POST /v1/chat/completions?a=b HTTP/1.1\r\nHost: x\r\n"


def read(*pieces: bytes, limits: Limits = LIMITS) -> list:
    reader = RequestReader(limits)
    return [completed for piece in pieces for completed in reader.feed(piece)]


def only(*pieces: bytes) -> Request | Refusal:
    (one,) = read(*pieces)
    return one


def chunked(*parts: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + end


def test_a_request_has_method_path_query_headers_and_body():
    request = only(HEAD + b"X-Twice: a\r\nContent-Length: 3\r\nx-twice: b\r\n\r\nabc")
    assert (request.method, request.path, request.query, request.body) == (
        "POST",
        "/v1/chat/completions",
        "a=b",
        b"abc",
    )
    assert request.headers == {"host": "x", "x-twice": "a, b", "content-length": "3"}
    assert request.keeps_alive
    assert request.takes_chunks


@pytest.mark.parametrize(
    ("head", "keeps_alive", "takes_chunks"),
    [
        pytest.param(
            b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", False, True, id="asks to close"
        ),
        pytest.param(b"GET / HTTP/1.0\r\n\r\n", False, False, id="an old client"),
        pytest.param(
            b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", True, False, id="an old client that stays"
        ),
    ],
)
def test_what_becomes_of_the_connection(head, keeps_alive, takes_chunks):
    request = only(head)
    assert (request.keeps_alive, request.takes_chunks) == (keeps_alive, takes_chunks)


@pytest.mark.parametrize(
    ("target", "path"),
    [
        pytest.param(b"/v1/models/a%2Fb%20c", "/v1/models/a/b c", id="percent-encoded"),
        pytest.param(b"http://gateway:8000/v1/models", "/v1/models", id="absolute, as to a proxy"),
        pytest.param(b"http://gateway:8000", "/", id="absolute without a path"),
    ],
)
def test_targets(target, path):
    assert only(b"GET " + target + b" HTTP/1.1\r\nHost: x\r\n\r\n").path == path


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        pytest.param(b"gzip", gzip.compress(b"abc"), id="gzip"),
        pytest.param(b"deflate", zlib.compress(b"abc"), id="deflate"),
        pytest.param(b"identity", b"abc", id="identity"),
    ],
)
def test_a_body_is_decompressed(encoding, body):
    head = HEAD + b"Content-Encoding: %b\r\nContent-Length: %d\r\n\r\n" % (encoding, len(body))
    assert only(head + body).body == b"abc"
    assert (
        only(
            HEAD + b"Content-Encoding: %b\r\nTransfer-Encoding: chunked\r\n\r\n" % encoding + chunked(body)
        ).body
        == b"abc"
    )


def test_a_client_may_ask_before_it_sends_its_body():
    reader = RequestReader(LIMITS)
    (asks,) = reader.feed(HEAD + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\n")
    assert isinstance(asks, BodyExpected)
    assert reader.is_in_body
    (request,) = reader.feed(b"abc")
    assert request.body == b"abc"


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"Content-Length: 3\r\n\r\nabc", id="with a length"),
        pytest.param(b"Transfer-Encoding: chunked\r\n\r\n" + chunked(b"a", b"bc"), id="in chunks"),
    ],
)
def test_an_offer_to_upgrade_is_ignored_and_the_body_read(body):
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
    first, second = read(HEAD + offer + body + b"GET /next HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (first.path, first.body) == ("/v1/chat/completions", b"abc")
    assert second.path == "/next"


def test_requests_after_each_other_are_told_apart():
    first, second, third = read(
        HEAD
        + b"Content-Length: 1\r\n\r\n1"
        + HEAD
        + b"Transfer-Encoding: chunked\r\n\r\n"
        + chunked(b"2")
        + HEAD
        + b"\r\n"
    )
    assert [first.body, second.body, third.body] == [b"1", b"2", b""]


def test_what_follows_the_last_request_is_ignored():
    assert len(read(HEAD + b"Connection: close\r\n\r\n" + HEAD + b"\r\n", HEAD + b"\r\n")) == 1


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", 400, "malformed_request", id="TLS"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "malformed_request", id="HTTP/2"),
        pytest.param(b"HELO mail\r\n", 400, "malformed_request", id="another protocol"),
        pytest.param(b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", 505, "http_version", id="a later version"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", 400, "malformed_request", id="no host"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, "malformed_request", id="two hosts"),
        pytest.param(b"GET a HTTP/1.1\r\nHost: x\r\n\r\n", 400, "malformed_request", id="a target that is no path"),
        pytest.param(b"GET http://[/ HTTP/1.1\r\nHost: x\r\n\r\n", 400, "malformed_request", id="a broken URL"),
        pytest.param(b"CONNECT a:443 HTTP/1.1\r\nHost: x\r\n\r\n", 400, "malformed_request", id="a tunnel"),
        pytest.param(HEAD + b"Bad Header: x\r\n\r\n", 400, "malformed_request", id="a space in a name"),
        pytest.param(HEAD + b"X: a\r\n b\r\n\r\n", 400, "malformed_request", id="a folded header"),
        pytest.param(HEAD + b"X: a\rb\r\n\r\n", 400, "malformed_request", id="a bare carriage return"),
        pytest.param(HEAD + b"X: \x00\r\n\r\n", 400, "malformed_request", id="a zero byte"),
        pytest.param(HEAD + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc", 400, "malformed_request", id="two lengths"),
        pytest.param(HEAD + b"Content-Length: -1\r\n\r\n", 400, "malformed_request", id="a negative length"),
        pytest.param(HEAD + b"Content-Length: 1e3\r\n\r\n", 400, "malformed_request", id="a length that is no number"),
        pytest.param(
            HEAD + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
            400,
            "malformed_request",
            id="a length and chunks, as smugglers send",
        ),
        pytest.param(HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n", 501, "transfer_encoding", id="another coding"),
        pytest.param(HEAD + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n", 400, "malformed_request", id="a chunk without a size"),
        pytest.param(HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n", 400, "malformed_request", id="a chunk that is longer than it says"),
        pytest.param(HEAD + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff1\r\n", 400, "malformed_request", id="a chunk size beyond numbers"),
        pytest.param(HEAD + b"Content-Length: 101\r\n\r\n", 413, "body_too_large", id="a body announced too large"),
        pytest.param(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(b"x" * 101), 413, "body_too_large", id="chunks too large"),
        pytest.param(HEAD + b"Content-Encoding: br\r\n\r\n", 415, "unsupported_encoding", id="an unknown compression"),
        pytest.param(HEAD + b"Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc", 400, "unreadable_body", id="no gzip"),
        pytest.param(HEAD + b"X: " + b"x" * 500 + b"\r\n\r\n", 431, "head_too_large", id="a long header"),
        pytest.param(HEAD + b"X: " + b"x" * 600, 431, "head_too_large", id="a header without end"),
        pytest.param(b"GET /" + b"x" * 600, 431, "head_too_large", id="a target without end"),
        pytest.param(HEAD + b"a: b\r\n" * 10 + b"\r\n", 431, "head_too_large", id="too many headers"),
        pytest.param(
            HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX: " + b"x" * 2000,
            400,
            "unreadable_body",
            id="a trailer without end",
        ),
        pytest.param(
            HEAD + b"Transfer-Encoding: chunked\r\n\r\n1;" + b"x" * 2000, 400, "unreadable_body", id="a chunk extension without end"
        ),
    ],
)  # fmt: skip
def test_refusals(sent, status, code):
    for pieces in ((sent,), (sent[i : i + 1] for i in range(len(sent)))):
        refused = only(*pieces)
        assert isinstance(refused, Refusal)
        assert (refused.status, refused.code) == (status, code)


def test_a_small_body_cannot_become_a_large_one():
    bomb = gzip.compress(bytes(10_000_000))
    limits = Limits(body_bytes=len(bomb))
    (refused,) = read(
        HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(bomb) + bomb, limits=limits
    )
    assert refused.status == 413


def test_a_compressed_body_that_ends_too_early_is_refused():
    body = gzip.compress(b"abc" * 10)[:-4]
    refused = only(HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    assert (refused.status, refused.code) == (400, "unreadable_body")


def test_where_a_request_stands_can_be_told():
    reader = RequestReader(LIMITS)
    seen = []
    for piece in (b"", b"POST / HT", b"TP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n", b"a", b"b"):
        reader.feed(piece)
        seen.append((reader.is_in_head, reader.is_in_body))
    assert seen == [(False, False), (True, False), (False, True), (False, True), (False, False)]


@st.composite
def requests(draw) -> tuple[bytes, list[bytes]]:
    """Some requests as bytes, and their bodies."""
    sent, bodies = b"", []
    for _ in range(draw(st.integers(1, 4))):
        parts = draw(st.lists(st.binary(min_size=1, max_size=20), max_size=4))
        body = b"".join(parts)
        bodies.append(body)
        offer = draw(st.sampled_from([b"", b"Connection: upgrade\r\nUpgrade: h2c\r\n"]))
        if draw(st.booleans()):
            sent += HEAD + offer + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(*parts)
        else:
            sent += HEAD + offer + b"Content-Length: %d\r\n\r\n" % len(body) + body
    return sent, bodies


def cut(data: bytes, places: list[int]) -> list[bytes]:
    marks = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[a:b] for a, b in itertools.pairwise(marks)]


@given(requests(), st.lists(st.integers(0, 10_000), max_size=8))
def test_the_pieces_in_which_requests_come_do_not_matter(sent, places):
    data, bodies = sent
    assert [request.body for request in read(*cut(data, places))] == bodies


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=30),
            st.sampled_from([HEAD, b"\r\n", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"0\r\n\r\n", b"5\r\nabcde\r\n", b"Content-Encoding: gzip\r\n", b"Upgrade: x\r\nConnection: upgrade\r\n", b"Expect: 100-continue\r\n"]),
        ),
        max_size=12,
    )
)  # fmt: skip
def test_noise_is_refused_once_or_understood_and_never_more_than_that(pieces):
    completed = read(*pieces)
    refusals = [one for one in completed if isinstance(one, Refusal)]
    assert len(refusals) <= 1
    assert refusals == completed[len(completed) - len(refusals) :]
    for one in completed:
        if isinstance(one, Request):
            assert len(one.body) <= LIMITS.body_bytes
