"""One round's decision: who gets the boost slots, why, and with which probability; a pure function of state and spec.

In order: pins take their slots; boosts that a longest gap demands come next, on lanes that were reserved for them; the
policy ranks the rest; and the last slot is given at random now and then, so that what was not chosen can be judged later.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Literal

from tidewheel.planning.allocation.bound import ANY_GAP, Gaps, relax
from tidewheel.planning.allocation.estimates import Learning
from tidewheel.planning.allocation.lanes import LaneLoad, pack
from tidewheel.planning.allocation.policies import (
    POLICIES,
    Board,
    PolicyName,
    calendar_in_force,
    curves_of,
)
from tidewheel.planning.allocation.state import AllocationState, Pending

#: A calendar and turns are there to be relied upon; the others give their last slot at random now and then.
EXPLORING: tuple[PolicyName, ...] = ("Index", "Myopic")

Why = Literal["Pinned", "LongestGap", "Ranked", "Explored"]


class Infeasible(ValueError):
    """Pins and longest gaps ask for more slots than there are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A scenario as its spec has it."""

    uid: str
    pinned: bool = False  # boosted in every round, and not learnt from
    frozen: bool = False  # never boosted by the policy
    gaps: Gaps = ANY_GAP


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What a service says about its allocation."""

    slots: int
    learning: Learning
    policy: PolicyName = "Index"
    seed: int = 0
    explore: float = 0.05  # how often the last slot is given at random
    hold_out: float = 0.0  # part of the rounds without any boost, to compare with
    patience: int = 3  # rounds until a reward that has not come is not waited for any more


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
    price: float  # of the relaxed problem on what was seen: what one more slot would earn
    bound: float  # reward per round that no policy could exceed if what was seen is true


def admit(contenders: Sequence[Contender], slots: int) -> None:
    """Refuse what could never be kept.

    A longest gap g with a cool-down c takes a lane every 2^floor(log2(g - c + 1)) rounds: whoever is still cooling down at
    its turn can wait for the next one. These periods are a harmonic chain that packs exactly (see `lanes`), so the test
    is constructive; without a cool-down it costs at most twice the boosts that the gaps need.

    Raises:
        Infeasible: the slots do not suffice for pins and longest gaps, or a gap's bounds exclude each other.
    """
    for one in contenders:
        if one.gaps.most is not None and one.gaps.most < one.gaps.least:
            raise Infeasible(
                f"scenario {one.uid}: boosts at least {one.gaps.least} and at most {one.gaps.most} rounds apart "
                "are impossible; raise the longest gap or lower the shortest"
            )
    pinned = sum(one.pinned for one in contenders)
    lanes = LaneLoad.of(iter(_floor_periods(contenders).values())).lanes
    if pinned + lanes > slots:
        raise Infeasible(
            f"{pinned} pinned scenarios and the longest gaps of others need {pinned + lanes} slots, there are {slots}; "
            "give more slots, unpin some, or allow longer gaps"
        )


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
        state = replace(state, calendar=calendar_in_force(state, rules.learning, slots=rules.slots, at=at))
    held_out = _chance(rules.seed, at, "hold-out") < rules.hold_out
    picks = [*_bound(state, contenders, at)]
    if not held_out:
        picks += _chosen(state, contenders, rules, at, taken={pick.uid for pick in picks})
    relaxation = relax(
        curves_of(state, rules.learning), rules.slots, gaps={i: one.gaps for i, one in enumerate(contenders)}
    )
    decision = Decision(
        round=at, picks=tuple(picks), is_held_out=held_out, price=relaxation.price, bound=relaxation.value
    )
    return _after(state, decision, rules), decision


def forecast(
    state: AllocationState, contenders: Sequence[Contender], rules: Rules, *, at: int, rounds: int
) -> list[tuple[str, ...]]:
    """Who would be boosted in the next rounds if nothing more were learnt: for warming up in time."""
    certain = replace(rules, explore=0.0, hold_out=0.0)
    picked: list[tuple[str, ...]] = []
    for number in range(at, at + rounds):
        state, decision = decide(state, contenders, certain, at=number)
        picked.append(tuple(pick.uid for pick in decision.picks))
    return picked


def _bound(state: AllocationState, contenders: Sequence[Contender], at: int) -> Iterator[Pick]:
    """The boosts that no policy decides about; they are given in held-out rounds, too."""
    idle = [one.idle(at) for one in state.scenarios]
    due = _due_by_gap(contenders, idle, at)
    for scenario, one in enumerate(contenders):
        if one.pinned or scenario in due:
            why: Why = "Pinned" if one.pinned else "LongestGap"
            yield Pick(uid=one.uid, idle=idle[scenario], why=why, score=None, propensity=1.0)


def _chosen(
    state: AllocationState, contenders: Sequence[Contender], rules: Rules, at: int, *, taken: AbstractSet[str]
) -> Iterator[Pick]:
    """What the policy makes of the slots that are left."""
    idle = [one.idle(at) for one in state.scenarios]
    eligible = [
        scenario
        for scenario, one in enumerate(contenders)
        if one.uid not in taken and not one.frozen and idle[scenario] >= one.gaps.least
    ]
    scores = POLICIES[rules.policy](
        Board(
            at=at,
            rounds=state.rounds,
            idle=idle,
            estimates=[one.estimate for one in state.scenarios],
            learning=rules.learning,
            calendar=state.calendar.calendar if state.calendar is not None else None,
        )
    )
    ranked = sorted(
        (-score, -idle[scenario], scenario)
        for scenario in eligible
        if (score := scores[scenario]) is not None
    )
    chosen = [scenario for _, _, scenario in ranked[: rules.slots - len(taken)]]
    rest = [scenario for scenario in eligible if scenario not in chosen]
    chances = [1.0] * len(chosen)
    why: list[Why] = ["Ranked"] * len(chosen)
    if chosen and rest and rules.policy in EXPLORING:
        explored = _explored(rest, rules, at)
        chances[-1] = 1 - rules.explore if explored is None else rules.explore / len(rest)
        if explored is not None:
            chosen[-1], why[-1] = explored, "Explored"
    for scenario, reason, chance in zip(chosen, why, chances, strict=True):
        yield Pick(
            uid=contenders[scenario].uid,
            idle=idle[scenario],
            why=reason,
            score=scores[scenario],
            propensity=chance,
        )


def _explored(rest: Sequence[int], rules: Rules, at: int) -> int | None:
    """Who takes the last slot in place of its owner, now and then."""
    if _chance(rules.seed, at, "explore") >= rules.explore:
        return None
    return rest[int(_chance(rules.seed, at, "who") * len(rest))]


def _due_by_gap(contenders: Sequence[Contender], idle: Sequence[int], at: int) -> list[int]:
    """Those whose lane turn it is and whose gap would be too long at their next one."""
    periods = _floor_periods(contenders)
    due: list[int] = []
    for scenario in pack(periods).due(at):
        most = contenders[scenario].gaps.most
        if most is not None and idle[scenario] + periods[scenario] > most and not contenders[scenario].pinned:
            due.append(scenario)
    return due


def _floor_periods(contenders: Sequence[Contender]) -> dict[int, int]:
    return {
        scenario: 1 << ((one.gaps.most - one.gaps.least + 1).bit_length() - 1)
        for scenario, one in enumerate(contenders)
        if one.gaps.most is not None and not one.pinned
    }


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
