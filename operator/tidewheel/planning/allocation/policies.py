"""The ways to rank scenarios for a round's slots; each sees the same and says a score, or that a boost is better left out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from tidewheel.planning.allocation.calendar import Calendar
from tidewheel.planning.allocation.curves import RecoveryCurve
from tidewheel.planning.allocation.estimates import Estimate, Learning, believed, expected
from tidewheel.planning.allocation.lanes import lane_calendar
from tidewheel.planning.allocation.state import AllocationState, PlannedCalendar
from tidewheel.planning.allocation.whittle import whittle_index

PolicyName = Literal["Index", "Periodic", "Myopic", "RoundRobin"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """What a policy may look at."""

    at: int  # the round
    rounds: int  # decided before
    idle: Sequence[int]  # of each scenario
    estimates: Sequence[Estimate]
    learning: Learning
    calendar: Calendar | None  # the one in force, under Periodic


#: A score for each scenario, the highest first in line; None where leaving it alone is worth more than a free boost.
Policy = Callable[[Board], list[float | None]]


def rank_by_index(board: Board) -> list[float | None]:
    """The Whittle index of the believed curve: what a boost now could cost and still be right. The default."""
    curves = believed(board.estimates, board.learning, at=board.rounds + 1)
    indices = [whittle_index(curve, idle) for curve, idle in zip(curves, board.idle, strict=True)]
    return [index if index >= 0 else None for index in indices]


def rank_by_calendar(board: Board) -> list[float | None]:
    """What is due in the calendar in force; nothing else."""
    due = set(board.calendar.due(board.at)) if board.calendar is not None else set()
    curves = believed(board.estimates, board.learning, at=board.rounds + 1)
    return [
        curve.at(idle) if scenario in due else None
        for scenario, (curve, idle) in enumerate(zip(curves, board.idle, strict=True))
    ]


def rank_by_reward(board: Board) -> list[float | None]:
    """The mean reward seen at the present idle time, 1 where none was: greedy, and the honest baseline."""
    curves = expected(board.estimates, board.learning)
    return [
        curve.at(idle) if estimate.total else 1.0
        for curve, estimate, idle in zip(curves, board.estimates, board.idle, strict=True)
    ]


def rank_by_turn(board: Board) -> list[float | None]:
    """The longest idle first."""
    return [float(idle) for idle in board.idle]


POLICIES: dict[PolicyName, Policy] = {
    "Index": rank_by_index,
    "Periodic": rank_by_calendar,
    "Myopic": rank_by_reward,
    "RoundRobin": rank_by_turn,
}


def calendar_in_force(state: AllocationState, learning: Learning, *, slots: int, at: int) -> PlannedCalendar:
    """The calendar to follow: the present one, or a new one when what is known has grown enough.

    UCB on the offline policy: the believed curves are planned as if they were true. A new epoch begins when the number of
    rewards has doubled, or after as many rounds as the longest idle time or the square root of the rounds so far. Lanes
    are enough here: what a ring gains is less than what is not yet known.
    """
    uids = tuple(one.uid for one in state.scenarios)
    now = state.calendar
    patience = max(learning.starts[-1], math.isqrt(state.rounds))
    if (
        now is not None
        and now.uids == uids
        and state.observations < 2 * now.observations
        and at < now.planned + patience
    ):
        return now
    curves = believed([one.estimate for one in state.scenarios], learning, at=state.rounds + 1)
    return PlannedCalendar(
        planned=at, observations=state.observations, uids=uids, calendar=lane_calendar(curves, slots)
    )


def curves_of(state: AllocationState, learning: Learning) -> list[RecoveryCurve]:
    """The curves as they have been seen, for reports and forecasts."""
    return expected([one.estimate for one in state.scenarios], learning)
