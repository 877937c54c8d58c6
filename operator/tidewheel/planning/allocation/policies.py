"""The ways to rank scenarios for a round's slots; each sees the same and says a score, or that a boost is better left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from tidewheel.planning.allocation.estimates import Estimate, believed, expected
from tidewheel.planning.allocation.index import worth_now
from tidewheel.planning.allocation.rules import Contender, PolicyName, Rules, relaxed


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """What a policy may look at."""

    rounds: int  # decided before
    idle: Sequence[int]  # of each scenario
    estimates: Sequence[Estimate]
    contenders: Sequence[Contender]
    rules: Rules
    due: AbstractSet[int]  # in the calendar in force, under Periodic


@dataclass(frozen=True, slots=True)
class Ranking:
    """A score for each scenario, the highest first in line; None where leaving it alone is worth more than a free boost."""

    scores: Sequence[float | None]
    price: float | None = None  # of a boost, where scores are to be compared with one


Policy = Callable[[Board], Ranking]


def rank_by_index(board: Board) -> Ranking:
    """What a boost is worth now beside later, on the believed curves and at their price. The default."""
    curves = believed(board.estimates, board.rules.learning, at=board.rounds + 1)
    price = relaxed(curves, board.contenders, board.rules.slots).price
    worths = [worth_now(curve, idle, price) for curve, idle in zip(curves, board.idle, strict=True)]
    return Ranking([worth if worth >= 0 else None for worth in worths], price)


def rank_by_calendar(board: Board) -> Ranking:
    """What is due in the calendar in force, by its believed reward; nothing else."""
    curves = believed(board.estimates, board.rules.learning, at=board.rounds + 1)
    return Ranking(
        [
            curve.at(idle) if scenario in board.due else None
            for scenario, (curve, idle) in enumerate(zip(curves, board.idle, strict=True))
        ]
    )


def rank_by_reward(board: Board) -> Ranking:
    """The mean reward seen at the present idle time, 1 where none was: greedy, and the honest baseline."""
    curves = expected(board.estimates, board.rules.learning)
    return Ranking(
        [
            curve.at(idle) if estimate.total else 1.0
            for curve, estimate, idle in zip(curves, board.estimates, board.idle, strict=True)
        ]
    )


def rank_by_turn(board: Board) -> Ranking:
    """The longest idle first."""
    return Ranking([float(idle) for idle in board.idle])


POLICIES: dict[PolicyName, Policy] = {
    "Index": rank_by_index,
    "Periodic": rank_by_calendar,
    "Myopic": rank_by_reward,
    "RoundRobin": rank_by_turn,
}
