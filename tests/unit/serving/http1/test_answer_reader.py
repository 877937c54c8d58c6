"""Bytes become one answer, or are none."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidewheel_workers.serving.http1.answer_reader import AnswerReader, BadAnswer, decoded


def read(*pieces: bytes) -> AnswerReader:
    reader = AnswerReader()
    for piece in pieces:
        reader.feed(piece)
    return reader


def test_an_answer_has_status_headers_and_body():
    reader = read(b"HTTP/1.1 429 Busy\r\nRetry-After: 1\r\nContent-Length: 3\r\n\r\nabc")
    assert (reader.status, decoded(reader.header_lines)["retry-after"], reader.take()) == (429, "1", b"abc")
    assert reader.is_complete
    assert reader.keeps_alive


def test_what_came_is_taken_once():
    reader = read(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n1\r\nb\r\n")
    assert reader.size == 2
    assert (reader.take(), reader.take(), reader.size) == (b"ab", b"", 0)
    assert not reader.is_complete
    reader.feed(b"1\r\nc\r\n0\r\nTrailer: x\r\n\r\n")
    assert reader.take() == b"c"
    assert reader.is_complete
    assert "trailer" not in decoded(reader.header_lines)


def test_an_interim_answer_is_skipped():
    reader = read(
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    )
    assert (reader.status, "link" in decoded(reader.header_lines), reader.is_complete) == (200, False, True)


def test_an_answer_without_a_length_ends_with_the_connection():
    reader = read(b"HTTP/1.1 200 OK\r\n\r\nabc")
    assert not reader.is_complete
    reader.end()
    assert reader.is_complete
    assert not reader.keeps_alive


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabc", id="a length"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", id="chunks"),
        pytest.param(b"HTTP/1.1 200", id="no head"),
    ],
)
def test_an_answer_that_was_cut_is_not_complete(head):
    reader = read(head)
    reader.end()
    assert not reader.is_complete


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"SSH-2.0-OpenSSH_9.6\r\n", id="another protocol"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200 OK\r\n", id="two answers"),
        pytest.param(b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n", id="another protocol agreed"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000, id="a head without end"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", id="a chunk without a size"),
    ],
)  # fmt: skip
def test_what_is_no_answer(sent):
    with pytest.raises(BadAnswer):
        read(sent)


def test_bytes_after_the_end_belong_to_no_request():
    reader = read(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    with pytest.raises(BadAnswer, match="after the end"):
        reader.feed(b"x")


@given(st.lists(st.binary(min_size=1, max_size=20)), st.lists(st.integers(0, 10_000), max_size=6))
def test_the_pieces_in_which_an_answer_comes_do_not_matter(parts, places):
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
    sent = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
    marks = sorted({0, len(sent), *(place % len(sent) for place in places)})
    reader = read(*(sent[a:b] for a, b in itertools.pairwise(marks)))
    assert reader.take() == b"".join(parts)
    assert reader.is_complete


@given(st.binary(max_size=200))
def test_noise_is_refused_or_incomplete(noise):
    reader = AnswerReader()
    try:
        reader.feed(noise)
    except BadAnswer:
        return
    assert not reader.is_complete
