"""What was measured becomes laws, and the whole numbers of a spec."""

from __future__ import annotations

import pytest

from tidewheel.planning.scaling.profile import BadProfile, DecodeLaw, PrefillLaw
from tidewheel.profiling import Found, TooLittleMeasured
from tidewheel.simulation.profiles import H200, Point, fitted_prefill, read_csv

PREFILL = PrefillLaw(base_seconds=0.004, seconds_per_token=6e-5, seconds_per_token_squared=9e-10)
DECODE = DecodeLaw(base_seconds=0.009, seconds_per_sequence=4e-5, seconds_per_kv_token=5e-8)


def points() -> list[Point]:
    prompts = [
        Point(role="prefill", tokens=tokens, batch=1, seconds=PREFILL.seconds(tokens))
        for tokens in (128, 512, 1024, 2048)
    ]
    iterations = [
        Point(role="decode", tokens=context, batch=batch, seconds=DECODE.seconds(batch, context))
        for context in (128, 1024)
        for batch in (1, 4, 16)
    ]
    return prompts + iterations


def test_laws_are_found_again_in_what_they_would_measure():
    found = Found.of(points())
    assert all(found.expected(one) == pytest.approx(one.seconds, rel=1e-6) for one in points())
    profile = found.profile
    assert (profile.prefill.base_microseconds, profile.prefill.nanoseconds_per_token) == (4000, 60_000)
    assert profile.prefill.femtoseconds_per_token_squared == pytest.approx(900_000, rel=1e-3)
    assert (profile.decode.base_microseconds, profile.decode.picoseconds_per_kv_token) == (9000, 50_000)


@pytest.mark.parametrize(
    ("measured", "want"),
    [
        pytest.param([(100, 0.1), (200, 0.2)], (0.0, 0.001, 0.0), id="two points on a line"),
        pytest.param(
            [(100, 0.09), (200, 0.19), (400, 0.39)], (0.0, 0.0009, 1.73e-7), id="a base below nothing"
        ),
        pytest.param([(100, 0.2), (200, 0.25), (400, 0.3)], (0.18, 0.0003, 0.0), id="ever cheaper tokens"),
    ],
)
def test_no_part_of_a_prefill_takes_negative_time(measured, want):
    law = fitted_prefill(measured)
    assert (law.base_seconds, law.seconds_per_token, law.seconds_per_token_squared) == pytest.approx(
        want, rel=0.1, abs=1e-9
    )


def test_prompts_that_take_less_the_longer_they_are_are_no_profile():
    with pytest.raises(BadProfile, match="measure again"):
        fitted_prefill([(100, 0.3), (200, 0.2)])


def test_too_few_measurements_are_refused():
    with pytest.raises(TooLittleMeasured, match="1 prompts and 6 iterations"):
        Found.of(points()[3:])


def test_planner_and_simulator_read_the_same_rows_alike():
    rows = [f"{one.role},{one.tokens},{one.batch},{one.seconds!r}" for one in points()]
    lines = ["role,tokens,batch,seconds", *rows]
    assert Found.read(lines) == Found.of(points())
    read = read_csv(lines, like=H200)
    assert read.prefill_seconds(512) == pytest.approx(PREFILL.seconds(512))
    assert read.decode_seconds(8, 512) == pytest.approx(DECODE.seconds(8, 512), rel=1e-6)
