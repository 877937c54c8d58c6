"""Purely periodic allocations: every scenario has a period and an offset, and no round has more boosts than slots.

The paper's policies (Simchi-Levi, Zheng, Zhu, "Dynamic Planning and Learning under Recovering Rewards", ICML 2021): a
calendar can be read by people and known in advance. `lanes` and `ring` make them; here is what they make.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import lcm

from tidewheel.planning.allocation.curves import RecoveryCurve


@dataclass(frozen=True, slots=True, order=True)
class Entry:
    """One scenario's boosts: in the rounds that leave the remainder `offset` when divided by `period`."""

    scenario: int
    period: int
    offset: int

    def is_due(self, at: int) -> bool:
        """Whether round `at` is one of them."""
        return at % self.period == self.offset


@dataclass(frozen=True, slots=True)
class Calendar:
    """The entries of all scenarios that are boosted at all, by scenario."""

    entries: tuple[Entry, ...]

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> Calendar:
        """From entries in any order."""
        return cls(tuple(sorted(entries)))

    def due(self, at: int) -> tuple[int, ...]:
        """The scenarios to boost in round `at`."""
        return tuple(entry.scenario for entry in self.entries if entry.is_due(at))

    def rate(self, curves: Sequence[RecoveryCurve]) -> float:
        """Reward per round in the long run; exact, as no gap is ever longer or shorter than its period."""
        return sum(curves[entry.scenario].at(entry.period) / entry.period for entry in self.entries)

    @property
    def busiest(self) -> int:
        """Boosts in the round that has most of them."""
        if not self.entries:
            return 0
        cycle = lcm(*(entry.period for entry in self.entries))
        if cycle > _LONGEST_CYCLE:
            raise ValueError(f"periods with a common multiple of {cycle} rounds are no calendar to check")
        load = Counter(at for entry in self.entries for at in range(entry.offset, cycle, entry.period))
        return max(load.values())


_LONGEST_CYCLE = 1 << 22
