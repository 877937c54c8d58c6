"""When a status is written, and what stands in it."""

from __future__ import annotations

import pytest

from tidewheel.controllers.report import new_status


def condition(status: str = "True", *, reason: str = "Serving", at: str = "2026-01-01T00:00:00Z") -> dict:
    return {"type": "Ready", "status": status, "reason": reason, "message": "m", "lastTransitionTime": at}


LATER = "2026-06-01T00:00:00Z"


@pytest.mark.parametrize(
    ("before", "planned"),
    [
        pytest.param({"pods": 2}, {"pods": 2}, id="equal"),
        pytest.param(
            {"conditions": [condition()]}, {"conditions": [condition(at=LATER)]}, id="only a time differs"
        ),
        pytest.param(
            {"decisions": [{"time": "a", "action": "x"}]},
            {"decisions": [{"time": "b", "action": "x"}]},
            id="or another",
        ),
        pytest.param(
            {"pods": 2}, {"pods": 2, "decisions": [], "address": ""}, id="what is empty may be left out"
        ),
        pytest.param({"pods": 2}, None, id="the plan leaves it alone"),
    ],
)
def test_nothing_new_is_not_written(before, planned):
    assert new_status({"status": before}, planned) is None


def test_a_first_status_is_written():
    assert new_status({}, {"pods": 0}) == {"pods": 0}


@pytest.mark.parametrize(
    ("now", "want"),
    [
        pytest.param(
            condition(reason="Slow", at=LATER), "2026-01-01T00:00:00Z", id="same status: the time stays"
        ),
        pytest.param(condition("False", at=LATER), LATER, id="it flipped: the time is new"),
    ],
)
def test_the_time_of_a_condition_moves_only_with_its_status(now, want):
    written = new_status({"status": {"conditions": [condition()]}}, {"conditions": [now]})
    assert written is not None
    assert written["conditions"][0]["lastTransitionTime"] == want
