"""What a boost is worth after so many rounds without one; apart because bounds, indices and calendars all read it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class RecoveryCurve:
    """Mean reward of a boost by idle rounds: a step function that stays at its last value.

    A scenario that was boosted in the last round has been idle for one round.

    Args:
        starts: the idle rounds at which each step begins; they rise, and the first is 1.
        rewards: the reward from there on, one for each step.

    Raises:
        ValueError: the steps do not begin at 1 and rise, or there is not one reward for each.
    """

    starts: tuple[int, ...]
    rewards: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.rewards) != len(self.starts) or not _rise_from_one(self.starts):
            raise ValueError(
                f"steps that begin at {self.starts} with {len(self.rewards)} rewards are no recovery curve; "
                "they begin at 1 and rise, and each has a reward"
            )

    def at(self, idle: int) -> float:
        """The reward after `idle` rounds, at least 1."""
        return self.rewards[step_of(self.starts, idle)]

    @property
    def points(self) -> tuple[tuple[int, float], ...]:
        """Each step's first idle round, and its reward: where waiting longer begins to pay."""
        return tuple(zip(self.starts, self.rewards, strict=True))


@lru_cache(maxsize=256)
def _rise_from_one(starts: tuple[int, ...]) -> bool:
    """Whether these are the starts of steps; remembered, as thousands of curves have the same."""
    return bool(starts) and starts[0] == 1 and all(before < after for before, after in pairwise(starts))


def step_of(starts: Sequence[int], idle: int) -> int:
    """The place of the step that `idle` rounds fall into."""
    if idle < 1:
        raise ValueError(f"a scenario has been idle for at least 1 round, not {idle}")
    return bisect_right(starts, idle) - 1


def idle_grid(longest: int) -> tuple[int, ...]:
    """1, 2, 3, 4, 6, 8, 12, 16, 24, ... up to `longest`: the powers of two and their 3/2.

    Rounding an idle time down to it loses at most a third, and there are only 2 log2(longest) steps to learn.
    """
    if longest < 1:
        raise ValueError(f"the longest idle time is at least 1 round, not {longest}")
    powers = [1 << power for power in range(longest.bit_length())]
    halves = [3 * power // 2 for power in powers[1:]]
    return tuple(sorted(rounds for rounds in {*powers, *halves} if rounds <= longest))
