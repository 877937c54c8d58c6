"""One step of a service's boosts: what was counted since the last look becomes rewards, and a new round its picks.

Rounds go by the clock: their number is the time over their length, so idle time passes while nobody decides. A round is
decided once, and remembered with what it rests on before anything is done about it; a plan that is made again, by this operator
or by its successor, finds it decided and does the same.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tidewheel.api.allocation import Allocation, AllocationStatus, ScenarioBoosts
from tidewheel.api.ranktable import Role
from tidewheel.planning.allocation.bound import ANY_GAP, Gaps
from tidewheel.planning.allocation.curves import idle_grid
from tidewheel.planning.allocation.decide import decide
from tidewheel.planning.allocation.estimates import Learning
from tidewheel.planning.allocation.rules import Contender, Infeasible, Rules, admit
from tidewheel.planning.allocation.state import Reward
from tidewheel.planning.boosts.memory import MOST_REWARDS, BoostMemory, StoredMemory, memory_to_text
from tidewheel.planning.boosts.told import summary, tell, tell_infeasible
from tidewheel.planning.boosts.windows import REMEMBERED_ROUNDS, RoundRecord, Stretch, reward_in
from tidewheel.planning.decisions import Deed

#: A round that nobody decided in this part of it is let pass: too little of it would be left to measure.
_DECIDING_PART = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class BoostsSeen:
    """What is known when boosts are planned."""

    #: As `BoostStep.memory` gave it last.
    memory: StoredMemory = field(default_factory=StoredMemory)
    #: What was counted between the last two looks at the metrics, if there were two. It may be given again and again.
    stretch: Stretch | None = None
    #: The scenarios in which, of the boosts' role, as many pods serve as there should be with the boost.
    serving: Collection[str] = ()
    #: What the status says.
    status: AllocationStatus | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BoostStep:
    """What a plan does about boosts."""

    role: Role = "decode"
    #: Pods of the role that scenarios get beyond what they would have; empty but in mode Auto.
    pods: Mapping[str, int] = field(default_factory=dict)
    #: To be written before anything is done; None where nothing is remembered.
    memory: str | None = None
    status: AllocationStatus | None = None
    deeds: tuple[Deed, ...] = ()
    #: When something happens next by the clock alone.
    look_again_in: float | None = None


def step_boosts(allocation: Allocation, names: Sequence[str], seen: BoostsSeen, *, now: float) -> BoostStep:
    """The boosts at `now`, in seconds since 1970.

    Args:
        allocation: the service's.
        names: the scenarios that have groups of their own, and `default` if it has some.
        seen: what was counted, what serves, and what was remembered.
        now: the time.
    """
    if allocation.mode == "Off":
        return BoostStep(role=allocation.role, memory=seen.memory.text or None)
    before, deeds = _remembered(allocation, seen.memory)
    at, into = divmod(now, allocation.round_seconds)
    number = int(at)
    memory = _judged(_counted(allocation, before, seen.stretch), number, into, seen.serving, allocation)
    rules, contenders = _rules(allocation), _contenders(allocation, names, memory, number)
    try:
        admit(contenders, rules.slots)
    except Infeasible as impossible:
        pods = _pods(allocation, [one.uid for one in contenders if one.pinned][: rules.slots])
        return BoostStep(
            role=allocation.role,
            pods=pods,
            memory=memory_to_text(memory),
            status=tell_infeasible(str(impossible), allocation, number),
            deeds=deeds,
        )
    last = memory.state.decided
    is_new = last is None or number > last
    if is_new:
        memory = _settled(memory, allocation, rules, number)
        if into < max(allocation.burn_in_seconds, _DECIDING_PART * allocation.round_seconds):
            memory = _decided(memory, allocation, rules, contenders, number)
            deeds = (*deeds, *_deeds(allocation, before, memory))
    decision = memory.decision
    in_force = decision is not None and decision.round == number
    boosted = [pick.uid for pick in decision.picks] if decision is not None and in_force else []
    pinned = [one.uid for one in contenders if one.pinned]
    status = seen.status
    if in_force and (memory.decision != before.decision or status is None or status.round != number):
        status = tell(memory, allocation, rules, contenders)
    burn_in = allocation.burn_in_seconds
    return BoostStep(
        role=allocation.role,
        pods=_pods(allocation, boosted or pinned),
        memory=memory_to_text(memory),
        status=status,
        deeds=deeds,
        look_again_in=burn_in - into if in_force and into < burn_in else allocation.round_seconds - into,
    )


def meaning_of(allocation: Allocation) -> str:
    """What rewards, rounds and steps mean under a spec: when it changes, what was learnt is given up.

    The slots, the policy, and how sure one wants to be are not part of it: counts outlive their change.
    """
    return (
        f"{allocation.pods_per_slot} {allocation.role} for {allocation.good_requests_per_minute} a minute, "
        f"rounds of {allocation.round_seconds} s without {allocation.burn_in_seconds} s, "
        f"up to {allocation.longest_idle_rounds} idle"
    )


def _remembered(allocation: Allocation, stored: StoredMemory) -> tuple[BoostMemory, tuple[Deed, ...]]:
    """What was remembered, as far as it is of use."""
    meaning = meaning_of(allocation)
    fresh = BoostMemory(meaning=meaning, shadow=allocation.mode == "Shadow")
    if stored.trouble:
        return fresh, (_forgotten(f"{stored.trouble}; learning begins anew"),)
    if (memory := stored.memory) is None:
        return fresh, ()
    if memory.meaning != meaning:
        why = f"rewards mean something else now: {meaning}; before: {memory.meaning}; learning begins anew"
        return fresh, (_forgotten(why),)
    if memory.shadow and allocation.mode == "Auto":
        state = replace(memory.state.without_boosts(), decided=None)
        return replace(memory, shadow=False, state=state, decision=None), ()
    if allocation.mode == "Shadow" and not memory.shadow:
        # the boosts of this round are taken back before their time
        memory = replace(memory, shadow=True, state=replace(memory.state, pending=()))
    return memory, ()


def _forgotten(message: str) -> Deed:
    return Deed(action="ForgetRewards", reason="LearningBegins", message=message, type="Warning")


def _counted(allocation: Allocation, memory: BoostMemory, stretch: Stretch | None) -> BoostMemory:
    """With what a stretch tells of the measured part of its round. What lies across its bounds is left out."""
    if stretch is None or stretch.since < memory.counted or stretch.until <= stretch.since:
        return memory
    memory = replace(memory, counted=stretch.until)
    # the end of a round still belongs to it
    number = math.ceil(stretch.until / allocation.round_seconds) - 1
    began = number * allocation.round_seconds + allocation.burn_in_seconds
    if stretch.since < began:
        return memory
    record = memory.record(number) or RoundRecord(round=number)
    return memory.with_record(record.plus(stretch), most=REMEMBERED_ROUNDS)


def _judged(
    memory: BoostMemory, number: int, into: float, serving: Collection[str], allocation: Allocation
) -> BoostMemory:
    """With those of this round's boosts that serve; from the first look in the measured part on, nobody is added."""
    record = memory.record(number)
    if record is None or record.judged:
        return memory
    served = record.served | (record.boosted & frozenset(serving))
    judged = into >= allocation.burn_in_seconds
    return memory.with_record(replace(record, served=served, judged=judged), most=REMEMBERED_ROUNDS)


def _settled(memory: BoostMemory, allocation: Allocation, rules: Rules, number: int) -> BoostMemory:
    """With the rewards of all earlier boosts of which something is remembered; the others wait for their deadline."""
    state, told = memory.state, list(memory.rewards)
    for boost in memory.state.pending:
        found = reward_in(
            memory.records,
            boost.uid,
            boost.round,
            reference=allocation.good_requests_per_minute / 60,
            fewest=allocation.fewest_requests,
        )
        if boost.round >= number or found is None:
            continue
        reward = Reward(
            round=boost.round,
            uid=boost.uid,
            value=found.value,
            applied=found.verdict != "NotApplied",
        )
        state, _ = state.settle(reward, rules.learning)
        told.insert(0, found)
    return replace(memory, state=state, rewards=tuple(told[:MOST_REWARDS]))


def _decided(
    memory: BoostMemory,
    allocation: Allocation,
    rules: Rules,
    contenders: Sequence[Contender],
    number: int,
) -> BoostMemory:
    state, decision = decide(memory.state, contenders, rules, at=number)
    boosted = frozenset(pick.uid for pick in decision.picks)
    if allocation.mode == "Shadow":
        # nothing is given, so nothing comes of it
        state, boosted = replace(state, pending=memory.state.pending), frozenset()
    # what was counted of this round before is not of its boosts
    record = RoundRecord(round=number, boosted=boosted)
    return replace(memory, state=state, decision=decision).with_record(record, most=REMEMBERED_ROUNDS)


def _rules(allocation: Allocation) -> Rules:
    learning = Learning(
        starts=idle_grid(allocation.longest_idle_rounds), optimism=allocation.optimism_percent / 100
    )
    return Rules(
        slots=allocation.slots,
        learning=learning,
        policy=allocation.policy,
        seed=allocation.seed,
        explore=allocation.explore_percent / 100,
        hold_out=allocation.hold_out_percent / 100,
        patience=allocation.reward_deadline_rounds,
    )


def _contenders(
    allocation: Allocation, names: Sequence[str], memory: BoostMemory, number: int
) -> list[Contender]:
    """The scenarios as their rules have them; the policy leaves out those with too few requests in the last round.

    Without that, a scenario that nobody asks for would be boosted for ever, as no reward could speak against it.
    """
    own = {one.name: one for one in allocation.scenarios}
    last = memory.record(number - 1)
    found = []
    for name in names:
        rule = own.get(name) or ScenarioBoosts(name=name)
        tally = last.tallies.get(name) if last is not None else None
        has_data = tally is not None and tally.arrived >= allocation.fewest_requests
        has_gaps = rule.min_gap_rounds > 1 or rule.max_gap_rounds is not None
        found.append(
            Contender(
                uid=name,
                pinned=rule.state == "Pinned",
                frozen=rule.state == "Frozen" or (rule.state == "Planned" and not has_data),
                gaps=Gaps(least=rule.min_gap_rounds, most=rule.max_gap_rounds) if has_gaps else ANY_GAP,
            )
        )
    return found


def _pods(allocation: Allocation, boosted: Collection[str]) -> dict[str, int]:
    return dict.fromkeys(boosted, allocation.pods_per_slot) if allocation.mode == "Auto" else {}


def _deeds(allocation: Allocation, before: BoostMemory, after: BoostMemory) -> Iterator[Deed]:
    """The round's boosts, when they are others than those of the round before."""
    if after.decision is None:
        return
    was = {pick.uid for pick in before.decision.picks} if before.decision is not None else set()
    if was != {pick.uid for pick in after.decision.picks}:
        action = "Boost" if allocation.mode == "Auto" else "ShadowBoost"
        yield Deed(action=action, reason=allocation.policy, message=summary(after.decision, allocation))
