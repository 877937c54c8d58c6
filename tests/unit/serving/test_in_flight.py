"""How many requests a scenario may have at a time."""

from __future__ import annotations

import pytest

from tidewheel.api.scenarios import RouteScenario
from tidewheel_workers.serving.errors import ApiError
from tidewheel_workers.serving.in_flight import InFlight


def limited(most: int | None, *, sharers: int = 1) -> InFlight:
    raw = {"name": "code", "match": {"modelAliases": ["coder"]}, "maxInFlight": most}
    in_flight = InFlight()
    in_flight.follow([RouteScenario.model_validate(raw)], sharers=sharers)
    return in_flight


def let_in(in_flight: InFlight, scenario: str = "code", tries: int = 10) -> int:
    for number in range(tries):
        try:
            in_flight.enter(scenario)
        except ApiError:
            return number
    return tries


def test_one_more_than_it_may_have_is_told_to_come_again():
    in_flight = limited(1)
    in_flight.enter("code")
    with pytest.raises(ApiError) as refused:
        in_flight.enter("code")
    assert (refused.value.status, refused.value.code) == (429, "scenario_limit")
    assert refused.value.retry_after_seconds


@pytest.mark.parametrize(
    ("most", "sharers", "want"),
    [(3, 1, 3), (6, 2, 3), (1, 4, 1), (None, 1, 10)],
    ids=["as many as it may", "gateways share", "each has one at least", "no limit"],
)
def test_a_scenario_has_its_share(most, sharers, want):
    assert let_in(limited(most, sharers=sharers)) == want


def test_who_leaves_makes_room():
    in_flight = limited(1)
    assert let_in(in_flight) == 1
    in_flight.leave("code")
    assert let_in(in_flight) == 1


def test_other_scenarios_have_limits_of_their_own():
    in_flight = limited(1)
    let_in(in_flight)
    assert let_in(in_flight, "default") == 10


def test_a_limit_that_is_lifted_holds_no_longer():
    in_flight = limited(1)
    let_in(in_flight)
    in_flight.follow([], sharers=1)
    assert let_in(in_flight) == 10
