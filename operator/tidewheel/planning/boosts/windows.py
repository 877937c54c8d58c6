"""What was counted of scenarios in each round, and what a boost brought by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from tidewheel.planning.allocation.reward import Window, reward_of

#: Rounds whose windows are kept, to compare a boost with the last round without one.
REMEMBERED_ROUNDS = 12

Verdict = Literal["Measured", "NotSaturated", "InsufficientData", "NoBaseline", "NotApplied"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Requests of one scenario."""

    arrived: int
    good: int  # of them: those that kept every promise

    def plus(self, other: Tally) -> Tally:
        """Both together."""
        return Tally(arrived=self.arrived + other.arrived, good=self.good + other.good)


class Load(Protocol):
    """What the load of a scenario tells of its promises, for the time between two looks at the metrics."""

    @property
    def finished(self) -> int:
        """Requests that ended with an answer."""

    @property
    def rejected(self) -> int:
        """Requests that ended without a first token."""

    @property
    def ttft_attainment(self) -> float:
        """Of both, the share whose first token came in time."""

    @property
    def tpot_attainment(self) -> float:
        """Of the finished, the share whose tokens came fast enough."""


def tally_of(load: Load) -> Tally:
    """The requests that ended, and those of them that were good in both respects.

    Metrics tell the two shares and not the share of those in both, so they are taken to be independent. That is the same
    mistake before and during a boost, and no more requests are called good by it than kept the harder promise.
    """
    ended = load.finished + load.rejected
    return Tally(arrived=ended, good=round(ended * load.ttft_attainment * load.tpot_attainment))


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """What was counted between two looks at the gateways' metrics; times are seconds since 1970."""

    since: float
    until: float
    tallies: Mapping[str, Tally] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRecord:
    """A round: who was boosted in it, and what was counted in its measured part."""

    round: int
    boosted: frozenset[str] = frozenset()
    served: frozenset[str] = frozenset()  # of the boosted: those whose pods served before the measured part
    judged: bool = False  # whether the measured part has begun, after which nobody is added to `served`
    seconds: float = 0.0  # that were measured
    tallies: Mapping[str, Tally] = field(default_factory=dict)

    def plus(self, stretch: Stretch) -> RoundRecord:
        """With one stretch more."""
        tallies = dict(self.tallies)
        for name, tally in stretch.tallies.items():
            tallies[name] = tallies[name].plus(tally) if name in tallies else tally
        return replace(self, seconds=self.seconds + stretch.until - stretch.since, tallies=tallies)

    def window(self, name: str) -> Window | None:
        """What was counted of a scenario, if anything was measured."""
        tally = self.tallies.get(name)
        if tally is None or self.seconds <= 0:
            return None
        return Window(seconds=self.seconds, arrived=tally.arrived, good=tally.good)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewarded:
    """A boost and its verdict."""

    round: int
    name: str
    verdict: Verdict
    value: float | None = None  # in units of the reference; 0 where there was nothing to gain


def reward_in(
    records: Sequence[RoundRecord], name: str, at: int, *, reference: float, fewest: int
) -> Rewarded | None:
    """What the boost of a scenario in round `at` brought, or None if nothing is remembered of that round.

    It is compared with the last round before in which the scenario had no boost and enough requests, and in which somebody
    else had none either in both: from those the tide between the two rounds is taken (`reward_of`). If all others were boosted
    now, there is no telling the tide, and only the round just before will do, from which the tide has not gone far.
    Where every request was good without a boost, the reward is 0 for as long as that is so: a slot is worth nothing there.

    Args:
        records: of the rounds, rising.
        name: the scenario's.
        at: the boost's round.
        reference: good requests per second that are a reward of 1.
        fewest: arrivals that both windows need.
    """
    during = next((one for one in records if one.round == at), None)
    if during is None:
        return None
    if name not in during.served:
        return Rewarded(round=at, name=name, verdict="NotApplied")
    now = during.window(name)
    if now is None or now.arrived < fewest:
        return Rewarded(round=at, name=name, verdict="InsufficientData")
    earlier = [one for one in reversed(records) if one.round < at and name not in one.boosted]
    for before in earlier:
        then = before.window(name)
        if then is None or then.arrived < fewest:
            continue
        others = _in_both(before, during, name)
        if not others and (before.round < at - 1 or during.tallies.keys() - during.boosted):
            continue
        measured = reward_of(then, now, others, reference=reference, fewest=fewest)
        value = 0.0 if measured.verdict == "NotSaturated" else measured.value
        return Rewarded(round=at, name=name, verdict=measured.verdict, value=value)
    return Rewarded(round=at, name=name, verdict="NoBaseline")


def _in_both(before: RoundRecord, during: RoundRecord, name: str) -> list[tuple[Window, Window]]:
    """The windows of those others that were boosted in neither round."""
    return [
        (then, now)
        for other in sorted(during.tallies.keys() - during.boosted - before.boosted - {name})
        if (then := before.window(other)) and (now := during.window(other))
    ]
