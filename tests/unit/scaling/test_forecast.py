"""Forecasts: noise is not followed, ramps and days are, a jump is noticed, and the bounds hold what they say."""

from __future__ import annotations

import math
import random

import pytest

from tidewheel.planning.scaling.forecast import DAY, Season, Series, outlook, see

WINDOW = 60.0


def live(load, windows: int, *, horizon: float = 120.0, noise: float = 0.0, window: float = WINDOW):
    """The series and season after so many windows of `load(at)`, and each window's outlook with what then came."""
    series, season, said = Series(), Season(), []
    for number in range(1, windows + 1):
        at = number * window
        value = load(at)
        series = see(series, value, season, at=at, seconds=window, horizon=horizon, noise=noise)
        season = season.see(value, at=at, seconds=window)
        said.append((at + horizon, outlook(series, season, at=at, ahead=horizon)))
    return series, season, said


def noisy(mean, deviation: float, seed: int = 1):
    generator = random.Random(seed)
    return lambda at: max(0.0, mean(at) * (1 + deviation * generator.gauss(0, 1)))


@pytest.mark.parametrize("seed", range(5))
def test_a_load_without_memory_is_stationary(seed):
    *_, said = live(noisy(lambda _: 10.0, 0.5, seed), 300)
    late = [one for _, one in said[60:]]
    assert {one.kind for one in late} == {"stationary"}
    # the expectation does not move with the windows
    assert max(one.mean for one in late) - min(one.mean for one in late) < 3


def test_a_ramp_is_expected_to_go_on():
    def ramp(at: float) -> float:
        return 10 + at / 600

    *_, said = live(noisy(ramp, 0.02), 240)
    due, last = said[-1]
    assert last.kind in ("trend", "seasonal", "level")
    assert last.mean == pytest.approx(ramp(due), rel=0.03)
    assert last.relative_variance < 0.01


def test_the_third_day_is_known_from_the_first_two():
    def tide(at: float) -> float:
        return 100 * (1.2 + math.sin(2 * math.pi * at / DAY))

    *_, said = live(noisy(tide, 0.02), 3 * 288, window=300.0, horizon=1800.0)
    errors = [abs(one.mean / tide(due) - 1) for due, one in said[-288:]]
    assert {one.kind for _, one in said[-288:]} <= {"seasonal", "trend"}
    assert sum(errors) / len(errors) < 0.06


def test_a_week_is_known_by_its_hours():
    season = Season()
    for hour in range(168):
        season = season.see(float(hour), at=hour * 3600 + 1800.0, seconds=3600)
    assert season.weekly(100 * 3600 + 1800.0) == 100
    assert season.weekly(100 * 3600 + 3600.0) == 100.5
    # yesterday counts most, a week ago least
    assert season.daily(100 * 3600 + 1800.0) == pytest.approx(
        sum((100 - 24 * back) % 168 / back for back in range(1, 8)) / sum(1 / back for back in range(1, 8))
    )


def test_what_was_never_seen_is_not_guessed():
    assert Season().daily(5000.0) is None
    assert Season().weekly(5000.0) is None


def test_a_jump_is_noticed_within_three_windows():
    def jump(at: float) -> float:
        return 10.0 if at <= 100 * WINDOW else 40.0

    *_, said = live(noisy(jump, 0.03), 104, noise=0.001)
    assert said[98][1].mean == pytest.approx(10, rel=0.05)
    assert said[-1][1].mean == pytest.approx(40, rel=0.1)


def test_the_bounds_hold_what_comes():
    generator = random.Random(3)
    factor = [0.0]

    def wander(_: float) -> float:
        factor[0] = 0.9 * factor[0] + 0.1 * generator.gauss(0, 1)
        return 50 * math.exp(factor[0])

    values: dict[float, float] = {}

    def kept(at: float) -> float:
        values[at] = wander(at)
        return values[at]

    *_, said = live(kept, 600)
    judged = [(values[due], one) for due, one in said[100:] if due in values]
    inside = sum(one.lower <= value <= one.upper for value, one in judged) / len(judged)
    assert 0.9 <= inside <= 1.0


def test_chance_of_single_arrivals_is_no_uncertainty_of_the_load():
    noise = 0.2
    *_, certain = live(noisy(lambda _: 10.0, noise), 200, noise=noise**2)
    *_, uncertain = live(noisy(lambda _: 10.0, noise), 200, noise=0.0)
    assert certain[-1][1].relative_variance < 0.25 * uncertain[-1][1].relative_variance


def test_nothing_grows_with_time():
    early, *_ = live(noisy(lambda _: 10.0, 0.1), 50)
    late, *_ = live(noisy(lambda _: 10.0, 0.1), 2000)
    assert len(late.pending) <= len(early.pending) + 1 <= 14
