"""One round's decision: who gets the boost slots, why, and with which probability; a pure function of state and spec.

In order: pins take their slots; boosts that a longest gap demands come next, on lanes that were reserved for them; the
policy ranks the rest; and the last slot is given at random now and then, so that what was not chosen can be judged later.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Literal

from tidewheel.planning.allocation.epochs import calendar_in_force
from tidewheel.planning.allocation.lanes import pack
from tidewheel.planning.allocation.policies import POLICIES, Board
from tidewheel.planning.allocation.rules import Contender, PolicyName, Rules, admit, lane_periods
from tidewheel.planning.allocation.state import AllocationState, Pending

#: A calendar and turns are there to be relied upon; the others give their last slot at random now and then.
EXPLORING: tuple[PolicyName, ...] = ("Index", "Myopic")

Why = Literal["Pinned", "LongestGap", "Ranked", "Explored"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pick:
    """A slot's scenario."""

    uid: str
    idle: int
    why: Why
    score: float | None  # the policy's
    propensity: float  # with which it was to be chosen, given the state


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """A round."""

    round: int
    picks: tuple[Pick, ...]
    is_held_out: bool
    price: float | None  # of a boost, under Index: what scores are compared with


def decide(
    state: AllocationState, contenders: Sequence[Contender], rules: Rules, *, at: int
) -> tuple[AllocationState, Decision]:
    """Decide round `at`, and what to remember of it. The same state, spec and round give the same decision.

    The state is to be stored before the decision is acted upon; deciding the round again from the stored state is
    refused, so a repeat changes nothing.

    Raises:
        Infeasible: as in `admit`.
        ValueError: the round was decided before.
    """
    if state.decided is not None and at <= state.decided:
        raise ValueError(f"round {at} was decided before: the last one was {state.decided}")
    admit(contenders, rules.slots)
    uids = tuple(one.uid for one in contenders)
    state = state.knowing(uids, at=at, learning=rules.learning).without_late(at)
    if rules.policy == "Periodic":
        state = replace(state, calendar=calendar_in_force(state, contenders, rules, at=at))
    idle = [one.idle(at) for one in state.scenarios]
    picks = list(_claimed(contenders, idle, at))
    price = None
    held_out = _chance(rules.seed, at, "hold-out") < rules.hold_out
    if not held_out and len(picks) < rules.slots:
        chosen, price = _chosen(state, contenders, rules, at, idle, taken=picks)
        picks += chosen
    decision = Decision(round=at, picks=tuple(picks), is_held_out=held_out, price=price)
    return _after(state, decision, rules), decision


def forecast(
    state: AllocationState, contenders: Sequence[Contender], rules: Rules, *, at: int, rounds: int
) -> list[Decision]:
    """The next rounds if nothing more were learnt and no slot given at random: for warming up in time."""
    certain = replace(rules, explore=0.0, hold_out=0.0)
    ahead: list[Decision] = []
    for number in range(at, at + rounds):
        state, decision = decide(state, contenders, certain, at=number)
        ahead.append(decision)
    return ahead


def _claimed(contenders: Sequence[Contender], idle: Sequence[int], at: int) -> Iterator[Pick]:
    """The boosts that no policy decides about; they are given in held-out rounds, too.

    A longest gap claims one when it is its lane's turn and the gap would be too long at the next turn.
    """
    periods = lane_periods(contenders)
    due = set(pack(periods).due(at)) if periods else set()
    for scenario, one in enumerate(contenders):
        why: Why | None = "Pinned" if one.pinned else None
        if (
            scenario in due
            and one.gaps.most is not None
            and idle[scenario] + periods[scenario] > one.gaps.most
        ):
            why = "LongestGap"
        if why is not None:
            yield Pick(uid=one.uid, idle=idle[scenario], why=why, score=None, propensity=1.0)


def _chosen(
    state: AllocationState,
    contenders: Sequence[Contender],
    rules: Rules,
    at: int,
    idle: Sequence[int],
    *,
    taken: Sequence[Pick],
) -> tuple[list[Pick], float | None]:
    """What the policy makes of the slots that are left, and its price of a boost."""
    gone = {pick.uid for pick in taken}
    eligible = [
        scenario
        for scenario, one in enumerate(contenders)
        if one.uid not in gone and not one.frozen and idle[scenario] >= one.gaps.least
    ]
    due = state.calendar.due(at) if state.calendar is not None else frozenset()
    ranking = POLICIES[rules.policy](
        Board(
            rounds=state.rounds,
            idle=idle,
            estimates=[one.estimate for one in state.scenarios],
            contenders=contenders,
            rules=rules,
            due={scenario for scenario, one in enumerate(contenders) if one.uid in due},
        )
    )
    ranked = sorted(
        (-score, -idle[scenario], scenario)
        for scenario in eligible
        if (score := ranking.scores[scenario]) is not None
    )
    chosen = [scenario for _, _, scenario in ranked[: rules.slots - len(taken)]]
    first = set(chosen)
    rest = [scenario for scenario in eligible if scenario not in first]
    chances = [1.0] * len(chosen)
    why: list[Why] = ["Ranked"] * len(chosen)
    if chosen and rest and rules.policy in EXPLORING:
        explore = rules.exploring(state.rounds)
        explored = _explored(rest, rules.seed, explore, at)
        chances[-1] = 1 - explore if explored is None else explore / len(rest)
        if explored is not None:
            chosen[-1], why[-1] = explored, "Explored"
    return [
        Pick(
            uid=contenders[scenario].uid,
            idle=idle[scenario],
            why=reason,
            score=ranking.scores[scenario],
            propensity=chance,
        )
        for scenario, reason, chance in zip(chosen, why, chances, strict=True)
    ], ranking.price


def _explored(rest: Sequence[int], seed: int, explore: float, at: int) -> int | None:
    """Who takes the last slot in place of its owner, now and then."""
    if _chance(seed, at, "explore") >= explore:
        return None
    return rest[int(_chance(seed, at, "who") * len(rest))]


def _after(state: AllocationState, decision: Decision, rules: Rules) -> AllocationState:
    picked = {pick.uid: pick for pick in decision.picks}
    before = {one.uid: one.boosted for one in state.scenarios}
    waited_for = tuple(
        Pending(
            round=decision.round,
            uid=pick.uid,
            idle=pick.idle,
            before=before[pick.uid],
            deadline=decision.round + rules.patience,
        )
        for pick in decision.picks
        if pick.why != "Pinned"
    )
    scenarios = tuple(
        replace(one, boosted=decision.round) if one.uid in picked else one for one in state.scenarios
    )
    return replace(
        state,
        decided=decision.round,
        rounds=state.rounds + 1,
        scenarios=scenarios,
        pending=(*state.pending, *waited_for),
    )


def _chance(seed: int, at: int, what: str) -> float:
    """A number in [0, 1) that depends on these alone, so there is no generator whose state could be lost."""
    story = blake2b(f"{seed}:{at}:{what}".encode(), digest_size=8).digest()
    return (int.from_bytes(story, "big") >> 11) / (1 << 53)
