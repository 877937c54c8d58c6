"""Scheduled floors: there when they begin, over midnight and over the week's end."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from tidewheel.planning.scaling.floors import Floor, floor_at

WEEKDAYS = Floor(days=(0, 1, 2, 3, 4), from_minute=8 * 60, to_minute=18 * 60, prefill=4, decode=2)
SUNDAY_NIGHT = Floor(days=(6,), from_minute=22 * 60, to_minute=2 * 60, prefill=3, decode=3)


def at(day: int, hour: int, minute: int = 0) -> float:
    """In the week of Monday 2026-11-23."""
    return datetime(2026, 11, 23 + day, hour, minute, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("now", "want"),
    [
        pytest.param(at(0, 9), (4, 2), id="Monday morning"),
        pytest.param(at(0, 7, 55), (0, 0), id="ten minutes would be too early"),
        pytest.param(at(0, 7, 59), (4, 2), id="a start-up before it begins"),
        pytest.param(at(4, 18, 1), (0, 0), id="Friday evening"),
        pytest.param(at(5, 9), (0, 0), id="Saturday"),
        pytest.param(at(6, 23), (3, 3), id="Sunday night"),
        pytest.param(at(7, 1), (3, 3), id="past midnight, on Monday"),
        pytest.param(at(7, 3), (0, 0), id="later on Monday"),
    ],
)
def test_floors(now, want):
    assert floor_at((WEEKDAYS, SUNDAY_NIGHT), now=now, ahead=90.0) == want


def test_of_two_floors_the_higher_holds():
    higher = Floor(days=(0,), from_minute=0, to_minute=0, prefill=1, decode=9)
    assert floor_at((WEEKDAYS, higher), now=at(0, 9), ahead=0) == (4, 9)


@pytest.mark.parametrize(
    "wrong",
    [{"days": (7,)}, {"from_minute": 1440}, {"to_minute": -1}],
    ids=["no such day", "no such start", "no such end"],
)
def test_a_floor_outside_the_week_is_refused(wrong):
    with pytest.raises(ValueError, match=r"days|minutes"):
        Floor(**{"days": (0,), "from_minute": 0, "to_minute": 60, **wrong})
