"""The reward of a boost: what it added, and not what the day brought to everyone."""

from __future__ import annotations

import pytest

from tidewheel.planning.allocation.reward import Measured, Window, reward_of


def window(good: int, *, arrived: int = 1000, seconds: float = 100) -> Window:
    return Window(seconds=seconds, arrived=arrived, good=good)


@pytest.mark.parametrize(
    ("before", "during", "others", "value"),
    [
        pytest.param(window(500), window(700), [], 0.2, id="2 more a second of 10 that the devices could"),
        pytest.param(
            window(500), window(700), [(window(400), window(560))], 0.0, id="all rose by 40 %: a tide"
        ),
        pytest.param(
            window(500), window(500), [(window(400), window(200))], 0.25, id="it stayed while others fell"
        ),
        pytest.param(window(700), window(500), [], -0.2, id="a loss is a loss"),
        pytest.param(
            window(100),
            window(100_000, arrived=100_000),
            [],
            1.0,
            id="more than it could is no more than all",
        ),
    ],
)
def test_reward_is_the_lift_without_the_tide(before, during, others, value):
    assert reward_of(before, during, others, reference=10).value == pytest.approx(value)


def test_few_requests_give_no_verdict_and_nothing_to_gain_is_not_a_bad_boost():
    assert reward_of(window(50, arrived=99), window(50), [], reference=10) == Measured(
        verdict="InsufficientData"
    )
    assert reward_of(window(1000), window(1000), [], reference=10) == Measured(verdict="NotSaturated")


def test_a_reference_that_is_no_goodput_is_refused():
    with pytest.raises(ValueError, match="measure a profile"):
        reward_of(window(1), window(1), [], reference=0)
