"""What an allocation remembers from round to round, in a form that survives in the cluster to the last bit."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from tidewheel.planning.allocation.calendar import Calendar, Entry
from tidewheel.planning.allocation.estimates import Estimate, Learning, observe
from tidewheel.planning.stored import read_stored

SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Remembered:
    """One scenario."""

    uid: str
    boosted: int | None  # the round of its last boost that took effect
    since: int  # the round in which it was first seen: until it was boosted, it has been idle since
    estimate: Estimate

    def idle(self, at: int) -> int:
        """Rounds without a boost, at least 1: counted by the clock, so they pass while nobody decides."""
        return max(1, at - (self.since - 1 if self.boosted is None else self.boosted))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """A boost whose reward is not known yet."""

    round: int
    uid: str
    idle: int  # before the boost
    before: int | None  # the last boost before it, for when this one turns out not to have taken effect
    deadline: int  # the round from which on its reward is not waited for any more


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedCalendar:
    """The calendar in force under the policy Periodic."""

    planned: int  # the round in which it was made
    observations: int  # known by then
    slots: int  # for so many
    uids: tuple[str, ...]  # whom its entries mean
    calendar: Calendar

    def due(self, at: int) -> frozenset[str]:
        """Whom it boosts in round `at`."""
        return frozenset(self.uids[scenario] for scenario in self.calendar.due(at))


@dataclass(frozen=True, slots=True, kw_only=True)
class Reward:
    """What became of a boost: a reward, no verdict, or that it never took effect (its pods did not serve in time)."""

    round: int
    uid: str
    value: float | None
    applied: bool = True


Settled = Literal["learnt", "no verdict", "not applied", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocationState:
    """Everything that the next decision depends on beside the spec and the round."""

    decided: int | None = None  # the last round that was decided
    rounds: int = 0  # decided so far
    scenarios: tuple[Remembered, ...] = ()
    pending: tuple[Pending, ...] = ()
    calendar: PlannedCalendar | None = None
    late: int = 0  # rewards that were not known by their deadline

    def of(self, uid: str) -> Remembered | None:
        """A scenario, if it is known."""
        return next((one for one in self.scenarios if one.uid == uid), None)

    @property
    def observations(self) -> int:
        """Rewards learnt from."""
        return sum(one.estimate.total for one in self.scenarios)

    def knowing(self, uids: tuple[str, ...], *, at: int, learning: Learning) -> AllocationState:
        """With exactly these scenarios: new ones know nothing, those that left are forgotten with what they wait for."""
        known = {one.uid: one for one in self.scenarios}
        steps = len(learning.starts)
        scenarios = tuple(
            known.get(uid) or Remembered(uid=uid, boosted=None, since=at, estimate=Estimate.empty(steps))
            for uid in uids
        )
        if scenarios == self.scenarios:
            return self
        pending = tuple(one for one in self.pending if one.uid in uids)
        return replace(self, scenarios=scenarios, pending=pending, calendar=None)

    def settle(self, reward: Reward, learning: Learning) -> tuple[AllocationState, Settled]:
        """Take a reward. Each boost is settled once: a repeat, and what comes after the deadline, changes nothing.

        A boost without a verdict teaches nothing. Nor does one that never took effect, and its scenario counts as idle
        since the boost before.
        """
        key = (reward.round, reward.uid)
        boost = next((one for one in self.pending if (one.round, one.uid) == key), None)
        if boost is None:
            return self, "unknown"
        pending = tuple(one for one in self.pending if one is not boost)
        if not reward.applied:
            scenarios = self._with(reward.uid, lambda one: _without_boost(one, boost))
            return replace(self, scenarios=scenarios, pending=pending), "not applied"
        if reward.value is None:
            return replace(self, pending=pending), "no verdict"
        value = reward.value
        scenarios = self._with(
            reward.uid,
            lambda one: replace(one, estimate=observe(one.estimate, boost.idle, value, learning)),
        )
        return replace(self, scenarios=scenarios, pending=pending), "learnt"

    def without_boosts(self) -> AllocationState:
        """As if nobody had been boosted since it was first seen: for when boosts were only shown. What was learnt stays."""
        scenarios = tuple(replace(one, boosted=None) for one in self.scenarios)
        return replace(self, scenarios=scenarios, pending=())

    def without_late(self, at: int) -> AllocationState:
        """Stop waiting for rewards whose deadline has come; they are counted, not taken for 0."""
        pending = tuple(one for one in self.pending if one.deadline > at)
        return replace(self, pending=pending, late=self.late + len(self.pending) - len(pending))

    def _with(self, uid: str, change: Callable[[Remembered], Remembered]) -> tuple[Remembered, ...]:
        place = next(place for place, one in enumerate(self.scenarios) if one.uid == uid)
        return (*self.scenarios[:place], change(self.scenarios[place]), *self.scenarios[place + 1 :])


def _without_boost(one: Remembered, boost: Pending) -> Remembered:
    # a later boost may have taken effect meanwhile
    return replace(one, boosted=boost.before) if one.boosted == boost.round else one


def to_text(state: AllocationState) -> str:
    """Compact JSON; `from_text` gives the very same state."""
    calendar = state.calendar
    document = {
        "schema": SCHEMA,
        "decided": state.decided,
        "rounds": state.rounds,
        "late": state.late,
        "scenarios": [
            [
                one.uid,
                one.boosted,
                one.since,
                one.estimate.counts,
                one.estimate.sums,
                one.estimate.squares,
                one.estimate.above,
                one.estimate.below,
                one.estimate.resets,
            ]
            for one in state.scenarios
        ],
        "pending": [[one.round, one.uid, one.idle, one.before, one.deadline] for one in state.pending],
        "calendar": None
        if calendar is None
        else [
            calendar.planned,
            calendar.observations,
            calendar.slots,
            calendar.uids,
            [[entry.scenario, entry.period, entry.offset] for entry in calendar.calendar.entries],
        ],
    }
    return json.dumps(document, separators=(",", ":"))


def from_text(text: str) -> AllocationState:
    """What `to_text` wrote.

    Raises:
        UnreadableState: it is something else.
    """
    return read_stored(text, _state, schema=SCHEMA, what="allocation")


def _state(document: Mapping[str, Any]) -> AllocationState:
    scenarios = tuple(
        Remembered(
            uid=uid,
            boosted=boosted,
            since=since,
            estimate=Estimate(
                counts=tuple(counts),
                sums=tuple(sums),
                squares=tuple(squares),
                above=above,
                below=below,
                resets=resets,
            ),
        )
        for uid, boosted, since, counts, sums, squares, above, below, resets in document["scenarios"]
    )
    pending = tuple(
        Pending(round=number, uid=uid, idle=idle, before=before, deadline=deadline)
        for number, uid, idle, before, deadline in document["pending"]
    )
    calendar = None
    if document["calendar"] is not None:
        planned, observations, slots, uids, entries = document["calendar"]
        calendar = PlannedCalendar(
            planned=planned,
            observations=observations,
            slots=slots,
            uids=tuple(uids),
            calendar=Calendar(tuple(Entry(*entry) for entry in entries)),
        )
    return AllocationState(
        decided=document["decided"],
        rounds=document["rounds"],
        scenarios=scenarios,
        pending=pending,
        calendar=calendar,
        late=document["late"],
    )
