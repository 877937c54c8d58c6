"""What the status tells of boosts: picks with reasons, what is known of each scenario, the forecast and the certificate."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal

from tidewheel.api.allocation import (
    Allocation,
    AllocationStatus,
    BoostPick,
    BoostReward,
    ForecastRound,
    ScenarioAllocation,
)
from tidewheel.planning.allocation.certificate import certificate
from tidewheel.planning.allocation.decide import Decision, Pick, forecast
from tidewheel.planning.allocation.estimates import believed, expected
from tidewheel.planning.allocation.index import whittle_index
from tidewheel.planning.allocation.rules import Contender, Rules
from tidewheel.planning.boosts.memory import BoostMemory
from tidewheel.planning.decisions import shorten
from tidewheel.planning.times import as_time

_FORECAST_ROUNDS = 8
_LONGEST_MESSAGE = 1024

Outcome = Literal["Boosted", "Shadow", "HeldOut", "NobodyEligible"]


def tell(
    memory: BoostMemory, allocation: Allocation, rules: Rules, contenders: Sequence[Contender]
) -> AllocationStatus:
    """The status of the round that was decided last.

    Raises:
        ValueError: none was.
    """
    decision = memory.decision
    if decision is None:
        raise ValueError("no round was decided yet; there is nothing to tell of boosts")
    following = decision.round + 1
    proof = certificate(memory.state, contenders, rules, at=following)
    ahead = forecast(memory.state, contenders, rules, at=following, rounds=_FORECAST_ROUNDS)
    return AllocationStatus(
        round=decision.round,
        time=_time_of(decision.round, allocation),
        outcome=_outcome(decision, allocation),
        message=summary(decision, allocation),
        picks=tuple(
            BoostPick(
                name=pick.uid,
                reason=pick.why,
                idle_rounds=pick.idle,
                worth_percent=_percent(pick.score),
                chance_percent=round(100 * pick.propensity),
            )
            for pick in decision.picks
        ),
        price_percent=_percent(decision.price),
        forecast=tuple(
            ForecastRound(round=one.round, names=tuple(pick.uid for pick in one.picks)) for one in ahead
        ),
        bound_percent=round(100 * proof.bound),
        planned_percent=round(100 * proof.planned),
        hoped_percent=round(100 * proof.hoped),
        scenarios=tuple(_scenarios(memory, allocation, rules, contenders)),
        rewards=tuple(
            BoostReward(
                round=one.round, name=one.name, verdict=one.verdict, reward_percent=_percent(one.value)
            )
            for one in memory.rewards
        ),
        late=memory.state.late,
    )


def tell_infeasible(why: str, allocation: Allocation, number: int) -> AllocationStatus:
    """The status while pins and longest gaps ask for more slots than there are."""
    return AllocationStatus(
        round=number,
        time=_time_of(number, allocation),
        outcome="Infeasible",
        message=shorten(why, _LONGEST_MESSAGE),
    )


def summary(decision: Decision, allocation: Allocation) -> str:
    """A round in a sentence."""
    gift = f"{allocation.pods_per_slot} more {allocation.role} in round {decision.round}"
    if not decision.picks:
        why = "it is held out to compare with" if decision.is_held_out else "no scenario is eligible"
        return f"nobody gets {gift}: {why}"
    price = "" if decision.price is None else f"; a slot's price is {decision.price:.2f}"
    picks = ", ".join(_pick(pick) for pick in decision.picks)
    verb = "would get" if allocation.mode == "Shadow" else "get"
    return shorten(f"{picks} {verb} {gift}{price}", _LONGEST_MESSAGE)


def _pick(pick: Pick) -> str:
    score = "" if pick.score is None else f" {pick.score:.2f}"
    return f"{pick.uid} ({pick.why}{score}, idle for {pick.idle})"


def _outcome(decision: Decision, allocation: Allocation) -> Outcome:
    if allocation.mode == "Shadow":
        return "Shadow"
    if decision.is_held_out:
        return "HeldOut"
    return "Boosted" if decision.picks else "NobodyEligible"


def _scenarios(
    memory: BoostMemory, allocation: Allocation, rules: Rules, contenders: Sequence[Contender]
) -> list[ScenarioAllocation]:
    frozen = {one.name for one in allocation.scenarios if one.state == "Frozen"}
    following = (memory.state.decided or 0) + 1
    estimates = [one.estimate for one in memory.state.scenarios]
    seen = expected(estimates, rules.learning)
    hoped = believed(estimates, rules.learning, at=memory.state.rounds + 1)
    found = []
    for one, contender, mean, bound in zip(memory.state.scenarios, contenders, seen, hoped, strict=True):
        idle = one.idle(following)
        reason = "Frozen" if one.uid in frozen else "InsufficientData" if contender.frozen else ""
        found.append(
            ScenarioAllocation(
                name=one.uid,
                idle_rounds=idle - 1,
                rewards=one.estimate.total,
                expected_percent=_percent(mean.at(idle)) if one.estimate.total else None,
                hoped_percent=max(-100, round(100 * bound.at(idle))),
                index_percent=round(100 * whittle_index(bound, idle)),
                resets=one.estimate.resets,
                reason=reason,
            )
        )
    return found


def _percent(value: float | None) -> int | None:
    return None if value is None else round(100 * value)


def _time_of(number: int, allocation: Allocation) -> str:
    return as_time(datetime.fromtimestamp(number * allocation.round_seconds, UTC))
