"""How fast servers are taken to be, from what was seen of them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidewheel_workers.serving.pace import (
    LEAST_PATIENCE_SECONDS,
    LEAST_SEEN,
    STALE_SECONDS,
    LineSpeed,
    Pace,
)


def seen(*seconds: float, characters: int = 400, beside: int = 0, at: float = 0.0) -> Pace:
    pace = Pace()
    for one in seconds:
        pace.took("prefill", characters, one, at, beside=beside)
    return pace


def test_of_what_was_never_seen_nothing_is_said():
    assert Pace().first_token_seconds(400, 0.0) == 0.0
    assert seen(1.0).first_token_seconds(40_000, 0.0) == 0.0
    assert Pace().patience_seconds("prefill", 400) == math.inf


@given(seconds=st.lists(st.floats(0.01, 10), min_size=20, max_size=60))
def test_nearly_all_is_more_than_most(seconds):
    said = seen(*seconds).first_token_seconds(400, 0.0)
    assert said > sorted(seconds)[len(seconds) // 2] or max(seconds) - min(seconds) > 1


def test_a_steady_server_is_believed_closely_and_an_unsteady_one_less():
    steady = seen(*[1.0] * 50).first_token_seconds(400, 0.0)
    unsteady = seen(*[0.5, 1.5] * 25).first_token_seconds(400, 0.0)
    assert 1.0 <= steady < 1.05
    assert unsteady > 1.5


def test_what_streams_show_counts_more_than_what_prefills_alone_do():
    pace = seen(*[1.0] * 50)
    assert pace.first_token_seconds(400, 0.0) == pytest.approx(1.0, rel=0.05)
    for _ in range(50):
        pace.took("decode", 400, 0.5, 0.0)
        pace.took("first token", 400, 1.5, 0.0)
    assert pace.first_token_seconds(400, 0.0) == pytest.approx(1.5, rel=0.05)
    assert pace.transfer_seconds(400) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("beside", "want"),
    [(0, 1.0), (1, 1.0), (2, 3.0), (100, 3.0)],
)
def test_what_was_not_seen_at_that_load_is_as_at_the_nearest_below(beside, want):
    pace = seen(*[1.0] * 50)
    for _ in range(50):
        pace.took("prefill", 400, 3.0, 0.0, beside=2)
    assert pace.first_token_seconds(400, 0.0, beside=beside) == pytest.approx(want, rel=0.05)


def test_what_was_not_seen_for_long_is_forgotten():
    pace = seen(*[1.0] * 50, at=STALE_SECONDS)
    for _ in range(50):
        pace.took("prefill", 400, 3.0, 0.0, beside=2)
    assert pace.first_token_seconds(400, STALE_SECONDS, beside=2) == pytest.approx(1.0, rel=0.05)
    assert pace.first_token_seconds(400, 2 * STALE_SECONDS) == 0.0


def test_waits_in_vain_raise_the_estimate_until_they_would_not_be_waited_for():
    pace = Pace()
    pace.took_longer("first token", 400, 0.5, 0.0)
    assert pace.first_token_seconds(400, 0.0) > 1.0
    before = pace.first_token_seconds(400, 0.0)
    pace.took_longer("first token", 400, 0.1, 0.0)
    assert pace.first_token_seconds(400, 0.0) == before  # it says nothing new


def test_patience_is_long_and_comes_with_experience():
    assert seen(*[0.1] * (LEAST_SEEN - 1)).patience_seconds("prefill", 400) == math.inf
    assert seen(*[0.1] * LEAST_SEEN).patience_seconds("prefill", 400) == LEAST_PATIENCE_SECONDS
    assert seen(*[5.0] * LEAST_SEEN).patience_seconds("prefill", 400) > 50


def test_a_lines_speed_is_how_fast_it_was_left_lately():
    speed = LineSpeed()
    assert speed.seconds_for(0, 0.0) is None
    for at in range(LEAST_SEEN):
        speed.left(at / 10)
    now = (LEAST_SEEN - 1) / 10
    assert speed.seconds_for(0, now) == pytest.approx(0.1)
    assert speed.seconds_for(9, now) == pytest.approx(1.0)
    assert speed.seconds_for(9, now + 10) > 10  # nobody was taken since
