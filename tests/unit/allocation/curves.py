"""Recovery curves as scenarios may have them, for tests: smooth, sudden, late, and in stairs."""

from __future__ import annotations

import random

from hypothesis import strategies as st

from tidewheel.planning.allocation.curves import RecoveryCurve
from tidewheel.simulation.recovering import mixed_curves


def of(*rewards: float) -> RecoveryCurve:
    """A curve with a step for each round."""
    return RecoveryCurve(tuple(range(1, len(rewards) + 1)), rewards)


def mixed(generator: random.Random, count: int, longest: int) -> list[RecoveryCurve]:
    """A mixed family: exponential, sudden, logistic and in stairs, of various heights and paces."""
    return list(mixed_curves(generator, count, longest))


def curves(longest: int = 12) -> st.SearchStrategy[RecoveryCurve]:
    """Any non-decreasing curve with rewards from 0 to 1."""
    rewards = st.lists(st.floats(0, 1), min_size=1, max_size=longest)
    return rewards.map(lambda values: of(*sorted(values)))
