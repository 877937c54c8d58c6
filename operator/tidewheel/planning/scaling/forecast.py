"""What a load will be once an instance asked for now is ready: several simple forecasts, judged by what came of them.

Every window each candidate says what it expects one horizon (start-up and a window) ahead; when that time has come its
error is taken. The candidate in use is replaced only by one that Diebold and Mariano's test (J. Bus. Econ. Stat. 13,
1995) finds better, so that chance does not change it. The candidate in use at first is the long mean. A load whose recent
windows say nothing about the next keeps it: it is stationary as far as can be told, and following it would be to chase
noise. The error of the candidate in use, less what the randomness of single arrivals explains, is the bound of the forecast.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

Candidate = Literal["mean", "hour", "minutes", "last", "trend", "day", "week"]
CANDIDATES: tuple[Candidate, ...] = ("mean", "hour", "minutes", "last", "trend", "day", "week")
Kind = Literal["stationary", "level", "trend", "seasonal"]
_KINDS: dict[Candidate, Kind] = {
    "mean": "stationary", "hour": "level", "minutes": "level", "last": "level",
    "trend": "trend", "day": "seasonal", "week": "seasonal",
}  # fmt: skip

#: Memories, in seconds.
_MEAN, _HOUR, _MINUTES, _SLOPE, _ERRORS = 21_600.0, 2_400.0, 240.0, 1_800.0, 7_200.0
#: How much better a candidate must be, in standard errors of the difference, and over how many forecasts.
_BETTER, _LEAST_JUDGED = 3.0, 6
#: Error before any forecast was judged, and how many forecasts it counts for.
_PRIOR_VARIANCE, _PRIOR_COUNT = 0.04, 4.0
#: Windows in a row so far from the forecast that the load has jumped and its past counts no more.
_JUMP, _JUMP_DEVIATIONS = 3, 4.0

DAY, WEEK = 86_400.0, 604_800.0
_BINS = 168  # hours of a week


@dataclass(frozen=True, slots=True, kw_only=True)
class Season:
    """The load by hour of the week, as seen so far; hours not seen are None."""

    hours: tuple[float | None, ...] = (None,) * _BINS

    def see(self, rate: float, *, at: float, seconds: float) -> Season:
        """After a window that ended at `at`: a mean over about one hour's windows, in which older weeks fade."""
        bin_ = int(at % WEEK // 3600)
        old = self.hours[bin_]
        new = rate if old is None else old + min(1.0, seconds / 2400) * (rate - old)
        return Season(hours=(*self.hours[:bin_], _short(new), *self.hours[bin_ + 1 :]))

    def weekly(self, at: float) -> float | None:
        """The load at a time of the week, between the middles of hours; None if that part was not seen."""
        place = at % WEEK / 3600 - 0.5
        low = math.floor(place)
        return _between(self.hours[low % _BINS], self.hours[(low + 1) % _BINS], place - low)

    def daily(self, at: float) -> float | None:
        """The mean of the last days at this time of day: that hour's, on the days seen, the latest counting most."""
        place = at % WEEK / 3600 - 0.5
        low = math.floor(place)
        return _between(self._hour_of_day(low), self._hour_of_day(low + 1), place - low)

    def _hour_of_day(self, hour: int) -> float | None:
        total = weight = 0.0
        for back in range(1, 8):
            seen = self.hours[(hour - 24 * back) % _BINS]
            if seen is not None:
                total += seen / back
                weight += 1 / back
        return total / weight if weight else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """What is remembered of one load: levels with several memories, a slope, and how good each candidate was."""

    windows: int = 0
    levels: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)  # mean, hour, minutes, last
    slope: float = 0.0  # per second
    pending: tuple[tuple[float, tuple[float, ...]], ...] = ()  # (due, what each candidate expects)
    judged: int = 0
    errors: tuple[float, ...] = (0.0,) * len(CANDIDATES)  # mean squared relative errors, chance included
    noise: float = 0.0  # the part of them that the randomness of single arrivals explains
    # of the squared error of the candidate in use less each other's: mean and mean square
    gains: tuple[float, ...] = (0.0,) * len(CANDIDATES)
    gains_squared: tuple[float, ...] = (0.0,) * len(CANDIDATES)
    compared: int = 0  # forecasts since the candidate in use was chosen
    used: int = 0
    surprises: int = 0  # windows in a row far above (positive) or below the forecast


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """A load to come."""

    now: float  # the level that the candidate in use sees at present
    mean: float
    relative_variance: float  # of the error, chance of single arrivals excluded
    candidate: Candidate
    kind: Kind

    @property
    def upper(self) -> float:
        """Not exceeded with 97.5 %, if errors are lognormal."""
        deviation = math.sqrt(math.log1p(self.relative_variance))
        return self.mean * math.exp(1.96 * deviation - deviation**2 / 2)

    @property
    def lower(self) -> float:
        """Exceeded with 97.5 %."""
        deviation = math.sqrt(math.log1p(self.relative_variance))
        return self.mean * math.exp(-1.96 * deviation - deviation**2 / 2)


def see(
    series: Series, value: float, season: Season, *, at: float, seconds: float, horizon: float, noise: float
) -> Series:
    """The series after a window.

    Args:
        series: before it.
        value: the load in it, in any unit.
        season: of the same load or of one that goes with it, before this window.
        at: when the window ended; seconds since the Unix epoch's Thursday, or any origin that stays.
        seconds: its length.
        horizon: how far ahead forecasts are made.
        noise: the squared coefficient of variation that `value` has by the randomness of single arrivals alone.
    """
    series = _judge(series, value, at=at, seconds=seconds, noise=noise)
    count, slope = series.windows + 1, 0.0
    old_mean, old_hour, old_minutes, _ = series.levels
    levels = (
        _towards(old_mean, value, seconds, _MEAN, count),
        _towards(old_hour, value, seconds, _HOUR, count),
        _towards(old_minutes, value, seconds, _MINUTES, count),
        value,
    )
    if count > 1:
        slope = _towards(series.slope, (levels[2] - old_minutes) / seconds, seconds, _SLOPE, count)
    pending = series.pending
    surprises = _surprises(series, levels, slope, season, at=at, noise=noise)
    if abs(surprises) >= _JUMP:
        count, levels, slope, surprises, pending = 2, (value,) * 4, 0.0, 0, ()
    if not pending or at + horizon - pending[-1][0] >= max(0.75 * seconds, horizon / 12):
        said = _candidates(levels, slope, season, at=at, ahead=horizon)
        pending = (*pending, (at + horizon, said))
    return replace(series, windows=count, levels=levels, slope=slope, pending=pending, surprises=surprises)


def outlook(series: Series, season: Season, *, at: float, ahead: float) -> Outlook:
    """What the candidate in use expects `ahead` seconds after `at`, and how wrong it has been."""
    expected = _candidates(series.levels, series.slope, season, at=at, ahead=ahead)[series.used]
    name = CANDIDATES[series.used]
    level = series.levels[min(series.used, 2)]
    return Outlook(
        now=level,
        mean=max(0.0, expected),
        relative_variance=_variance(series),
        candidate=name,
        kind=_KINDS[name],
    )


def _variance(series: Series) -> float:
    excess = max(0.0, series.errors[series.used] - series.noise)
    judged = float(min(series.judged, 200))
    return (_PRIOR_COUNT * _PRIOR_VARIANCE + judged * excess) / (_PRIOR_COUNT + judged)


def _candidates(
    levels: tuple[float, ...], slope: float, season: Season, *, at: float, ahead: float
) -> tuple[float, ...]:
    mean, hour, minutes, last = levels
    trend = max(0.0, minutes + slope * (ahead + _MINUTES))
    by_day = by_week = minutes
    here, there = season.daily(at - _MINUTES), season.daily(at + ahead)
    if here and there is not None:
        by_day = minutes * min(4.0, there / here)
    here, there = season.weekly(at - _MINUTES), season.weekly(at + ahead)
    if here and there is not None:
        by_week = minutes * min(4.0, there / here)
    return (mean, hour, minutes, last, trend, by_day, by_week)


def _judge(series: Series, value: float, *, at: float, seconds: float, noise: float) -> Series:
    """Take the errors of forecasts whose time has come, and change the candidate if another is better."""
    due = [said for when, said in series.pending if when <= at + 0.25 * seconds]
    if not due:
        return series
    said = due[-1]  # the others' windows were missed
    scale = max(value, series.levels[2], said[series.used], 1e-9)
    errors = [((value - one) / scale) ** 2 for one in said]
    judged, compared = series.judged + 1, series.compared + 1
    share = max(1 - math.exp(-seconds / _ERRORS), 1 / judged)
    fresh = max(1 - math.exp(-seconds / _ERRORS), 1 / compared)
    gains = [errors[series.used] - error for error in errors]
    series = replace(
        series,
        pending=tuple(one for one in series.pending if one[0] > at + 0.25 * seconds),
        judged=judged,
        compared=compared,
        errors=_moved(series.errors, errors, share),
        noise=(series.noise + share * (noise - series.noise)),
        gains=_moved(series.gains, gains, fresh),
        gains_squared=_moved(series.gains_squared, [gain * gain for gain in gains], fresh),
    )
    better = _better(series, seconds)
    if better is None:
        return series
    nothing = (0.0,) * len(CANDIDATES)
    return replace(series, used=better, compared=0, gains=nothing, gains_squared=nothing)


def _better(series: Series, seconds: float) -> int | None:
    """The candidate that beats the one in use by most, beyond chance."""
    if series.compared < _LEAST_JUDGED:
        return None
    count = min(series.compared, 2 * _ERRORS / seconds)
    best, found = 0.0, None
    for candidate, (gain, square) in enumerate(zip(series.gains, series.gains_squared, strict=True)):
        error = math.sqrt(max(square - gain * gain, 1e-18) / count)
        if gain > max(best, _BETTER * error, 0.05 * series.errors[series.used]):
            best, found = gain, candidate
    return found


def _surprises(
    series: Series,
    levels: tuple[float, ...],
    slope: float,
    season: Season,
    *,
    at: float,
    noise: float,
) -> int:
    """How many windows in a row, with this one, lay far above the forecast (or below it, as a negative number)."""
    value = levels[-1]
    expected = _candidates(levels, slope, season, at=at, ahead=0.0)[series.used]
    deviation = math.sqrt(_variance(series) + noise) * max(expected, 1e-9)
    if abs(value - expected) <= _JUMP_DEVIATIONS * deviation:
        return 0
    side = 1 if value > expected else -1
    return series.surprises + side if series.surprises * side >= 0 else side


def _towards(old: float, value: float, seconds: float, memory: float, count: int) -> float:
    """A mean that fades with a memory; of the first windows, their plain mean."""
    return old + max(1 - math.exp(-seconds / memory), 1 / count) * (value - old)


def _moved(old: Sequence[float], new: Sequence[float], share: float) -> tuple[float, ...]:
    return tuple(a + share * (b - a) for a, b in zip(old, new, strict=True))


def _between(low: float | None, high: float | None, part: float) -> float | None:
    if low is None or high is None:
        return low if high is None else high
    return low + part * (high - low)


def _short(value: float) -> float:
    """Seven digits: what is stored is exactly what is computed with, and short."""
    return float(f"{value:.7g}")
