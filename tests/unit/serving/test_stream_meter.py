"""Tokens and their pace are read off a stream that is only passed on."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidewheel_workers.serving.stream_meter import StreamMeter

TOKEN, USAGE, DONE = b'data: {"choices": [1]}\n\n', b'data: {"usage": 1}\n\n', b"data: [DONE]\n\n"


def meter(**options) -> StreamMeter:
    return StreamMeter(**{"choices": 1, "tells_usage": False} | options)


@given(st.integers(1, 20), st.booleans(), st.integers(0, 2**32))
def test_events_are_counted_in_whatever_pieces_they_come(tokens, tells_usage, seed):
    cut = random.Random(seed)
    raw = TOKEN * tokens + (USAGE if tells_usage else b"") + DONE
    seen = meter(tells_usage=tells_usage)
    told = 0
    while raw:
        size = cut.randint(1, 40)
        told += seen.saw(raw[:size], 0.0)
        assert told == seen.tokens
        raw = raw[size:]
    assert seen.tokens == tokens


def test_the_pace_is_that_after_the_first_piece():
    seen = meter()
    for at in (1.0, 1.5, 2.0):
        seen.saw(TOKEN, at)
    seen.saw(DONE, 2.0)
    assert seen.seconds_per_token() == pytest.approx(0.5)


def test_choices_are_written_side_by_side():
    seen = meter(choices=2)
    for at in (1.0, 1.5, 2.0):
        seen.saw(2 * TOKEN, at)
    seen.saw(DONE, 2.0)
    assert seen.seconds_per_token() == pytest.approx(0.5)


def test_a_stream_that_broke_off_has_the_tokens_that_came():
    for tells_usage in (False, True):
        seen = meter(tells_usage=tells_usage)
        assert (seen.tokens, seen.held_back) == (0, 0)
        for at in range(1, 6):
            seen.saw(TOKEN, float(at))
            assert seen.tokens + seen.held_back == at


def test_without_tokens_there_is_no_pace():
    assert meter().seconds_per_token() is None
    seen = meter()
    seen.saw(TOKEN + DONE, 1.0)
    assert (seen.tokens, seen.seconds_per_token()) == (1, None)
