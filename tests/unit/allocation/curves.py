"""Recovery curves as scenarios may have them, for tests: smooth, sudden, late, and in stairs."""

from __future__ import annotations

import math
import random

from hypothesis import strategies as st

from tidewheel.planning.allocation.curves import RecoveryCurve


def of(*rewards: float) -> RecoveryCurve:
    """A curve with a step for each round."""
    return RecoveryCurve(tuple(range(1, len(rewards) + 1)), rewards)


def mixed(rng: random.Random, count: int, longest: int) -> list[RecoveryCurve]:
    """A mixed family: exponential, sudden, logistic and in stairs, of various heights and paces."""
    return [_one(rng, longest) for _ in range(count)]


def _one(rng: random.Random, longest: int) -> RecoveryCurve:
    kind = rng.choice(("exponential", "sudden", "logistic", "stairs"))
    height = rng.uniform(0.2, 1)
    pace = math.exp(rng.uniform(0, math.log(longest / 2)))
    jumps = sorted(rng.randint(1, longest) for _ in range(4))
    shapes = {
        "exponential": lambda d: 1 - math.exp(-d / pace),
        "sudden": lambda d: float(d >= pace),
        "logistic": lambda d: 1 / (1 + math.exp(-4 * (d - pace) / pace)),
        "stairs": lambda d: sum(d >= jump for jump in jumps) / 4,
    }
    return of(*(height * shapes[kind](d) for d in range(1, longest + 1)))


def curves(longest: int = 12) -> st.SearchStrategy[RecoveryCurve]:
    """Any non-decreasing curve with rewards from 0 to 1."""
    rewards = st.lists(st.floats(0, 1), min_size=1, max_size=longest)
    return rewards.map(lambda values: of(*sorted(values)))
