"""What a spec says about allocation, which of it can be kept, and what that leaves to earn."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tidewheel.planning.allocation.bound import ANY_GAP, Gaps, Relaxation, relax
from tidewheel.planning.allocation.curves import RecoveryCurve
from tidewheel.planning.allocation.estimates import Learning
from tidewheel.planning.allocation.lanes import LaneLoad

PolicyName = Literal["Index", "Periodic", "Myopic", "RoundRobin"]

#: Rounds after which exploration has fallen to 1/sqrt(2).
_EXPLORED_FULLY = 100
#: The curve of whoever must not be boosted.
NOTHING = RecoveryCurve((1,), (0.0,))


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
    explore: float = 0.05  # how often the last slot is given at random, under Index at first
    hold_out: float = 0.0  # part of the rounds without any boost, to compare with
    patience: int = 3  # rounds until a reward that has not come is not waited for any more

    def exploring(self, rounds: int) -> float:
        """How often the last slot is given at random after so many decided rounds.

        Under Index it falls with their square root: its optimism explores as well, and what is given at random for later
        judgement should not cost a higher power of time than learning does. Myopic explores in no other way.
        """
        return (
            self.explore
            if self.policy == "Myopic"
            else self.explore / math.sqrt(1 + rounds / _EXPLORED_FULLY)
        )


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
    lanes = lanes_needed(lane_periods(contenders).values())
    if pinned + lanes > slots:
        raise Infeasible(
            f"{pinned} pinned scenarios and the longest gaps of others need {pinned + lanes} slots, there are {slots}; "
            "give more slots, unpin some, or allow longer gaps"
        )


def lane_periods(contenders: Sequence[Contender]) -> Mapping[int, int]:
    """How often a slot is reserved for each scenario that has a longest gap, in rounds: a power of two."""
    return {
        scenario: 1 << ((one.gaps.most - one.gaps.least + 1).bit_length() - 1)
        for scenario, one in enumerate(contenders)
        if one.gaps.most is not None and not one.pinned
    }


def lanes_needed(periods: Iterable[int]) -> int:
    """The slots that boosts with these periods take."""
    return LaneLoad.of(iter(periods)).lanes


def relaxed(curves: Sequence[RecoveryCurve], contenders: Sequence[Contender], slots: int) -> Relaxation:
    """`relax` as the spec has it: a pin takes a slot in every round, the frozen get what their longest gap asks for."""
    gaps: dict[int, Gaps] = {}
    seen = list(curves)
    for scenario, one in enumerate(contenders):
        if one.pinned:
            gaps[scenario] = Gaps(most=1)
        elif one.frozen and one.gaps.most is not None:
            gaps[scenario] = Gaps(least=one.gaps.most, most=one.gaps.most)
        elif one.frozen:
            seen[scenario] = NOTHING
        elif one.gaps is not ANY_GAP:
            gaps[scenario] = one.gaps
    return relax(seen, slots, gaps=gaps)
