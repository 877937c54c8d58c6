"""What boosts remember between looks and restarts: one text, equal after every repeat."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tidewheel.planning.allocation.decide import Decision, Pick
from tidewheel.planning.allocation.state import AllocationState, from_text, to_text
from tidewheel.planning.boosts.windows import Rewarded, RoundRecord, Tally
from tidewheel.planning.stored import UnreadableState, read_stored

_SCHEMA = 1
#: Rewards that are told of.
MOST_REWARDS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class BoostMemory:
    """Everything that the next step depends on beside the spec, the time and what is seen."""

    #: What a reward and a round mean; what was learnt under another meaning is of no use.
    meaning: str
    #: Whether the last boosts were only shown.
    shadow: bool = False
    state: AllocationState = field(default_factory=AllocationState)
    #: Of the last round that was decided.
    decision: Decision | None = None
    #: The last rounds, rising.
    records: tuple[RoundRecord, ...] = ()
    #: Up to when stretches have been counted, in seconds since 1970.
    counted: float = 0.0
    #: Newest first.
    rewards: tuple[Rewarded, ...] = ()

    def record(self, at: int) -> RoundRecord | None:
        """Of that round, if there is one."""
        return next((one for one in self.records if one.round == at), None)

    def with_record(self, record: RoundRecord, *, most: int) -> BoostMemory:
        """With that in place of what there was of its round, and the last `most` rounds."""
        others = [one for one in self.records if one.round != record.round]
        records = sorted([*others, record], key=lambda one: one.round)
        return replace(self, records=tuple(records[-most:]))


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredMemory:
    """A memory as it was stored, read once for all who look at it in a plan."""

    text: str = ""
    #: None where nothing is stored, or nothing that can be read.
    memory: BoostMemory | None = None
    #: Why it cannot be read.
    trouble: str = ""

    @classmethod
    def of(cls, text: str) -> StoredMemory:
        """What is stored; empty for nothing."""
        if not text:
            return cls()
        try:
            return cls(text=text, memory=memory_from_text(text))
        except UnreadableState as error:
            return cls(text=text, trouble=str(error))


def memory_to_text(memory: BoostMemory) -> str:
    """Compact JSON; `memory_from_text` gives the very same memory."""
    document = {
        "schema": _SCHEMA,
        "meaning": memory.meaning,
        "shadow": memory.shadow,
        "state": to_text(memory.state),
        "decision": _from_decision(memory.decision),
        "records": [
            [
                one.round,
                sorted(one.boosted),
                sorted(one.served),
                one.judged,
                one.seconds,
                {name: [tally.arrived, tally.good] for name, tally in sorted(one.tallies.items())},
            ]
            for one in memory.records
        ],
        "counted": memory.counted,
        "rewards": [[one.round, one.name, one.verdict, one.value] for one in memory.rewards],
    }
    return json.dumps(document, separators=(",", ":"))


def memory_from_text(text: str) -> BoostMemory:
    """What `memory_to_text` wrote.

    Raises:
        UnreadableState: it is something else.
    """
    return read_stored(text, _memory, schema=_SCHEMA, what="memory of boosts")


def _memory(document: Mapping[str, Any]) -> BoostMemory:
    return BoostMemory(
        meaning=str(document["meaning"]),
        shadow=bool(document["shadow"]),
        state=from_text(document["state"]),
        decision=_to_decision(document["decision"]),
        records=tuple(
            RoundRecord(
                round=number,
                boosted=frozenset(boosted),
                served=frozenset(served),
                judged=judged,
                seconds=seconds,
                tallies={
                    name: Tally(arrived=arrived, good=good) for name, (arrived, good) in tallies.items()
                },
            )
            for number, boosted, served, judged, seconds, tallies in document["records"]
        ),
        counted=float(document["counted"]),
        rewards=tuple(
            Rewarded(round=number, name=name, verdict=verdict, value=value)
            for number, name, verdict, value in document["rewards"]
        ),
    )


def _from_decision(decision: Decision | None) -> list[Any] | None:
    if decision is None:
        return None
    picks = [[one.uid, one.idle, one.why, one.score, one.propensity] for one in decision.picks]
    return [decision.round, picks, decision.is_held_out, decision.price]


def _to_decision(document: list[Any] | None) -> Decision | None:
    if document is None:
        return None
    number, picks, is_held_out, price = document
    return Decision(
        round=number,
        picks=tuple(
            Pick(uid=uid, idle=idle, why=why, score=score, propensity=propensity)
            for uid, idle, why, score, propensity in picks
        ),
        is_held_out=is_held_out,
        price=price,
    )
