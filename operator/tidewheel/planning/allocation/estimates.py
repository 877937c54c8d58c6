"""What has been learnt of each scenario's recovery: counts and sums by idle time, with optimism where little is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tidewheel.planning.allocation.curves import RecoveryCurve, step_of

#: Sums are kept to this many decimals, so that what was written to the cluster and read back is the very same number.
_DECIMALS = 6
#: Observations that the assumed noise counts for.
_ASSUMED = 10
_LEAST_SPREAD = 1e-6
#: Observations of a step before they are compared with a new one.
_ENOUGH = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Learning:
    """How estimates are formed.

    Rewards are in units of their range: 1 is a boost whose every token counted.
    """

    starts: tuple[int, ...]  # the idle rounds at which the steps of all curves begin
    optimism: float = 0.25  # c of the confidence width c sqrt(ln t / n)
    noise: float = 0.3  # standard deviation of one reward, until there is data
    alarm: float = (
        12.0  # of the change detector, in standard deviations; lower forgets sooner and more often in vain
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """One scenario's observations, by step of its curve."""

    counts: tuple[int, ...]
    sums: tuple[float, ...]
    squares: tuple[float, ...]
    above: float = 0.0  # the change detector: how far rewards have lately run above their means
    below: float = 0.0
    resets: int = 0

    @classmethod
    def empty(cls, steps: int, *, resets: int = 0) -> Estimate:
        """Nothing observed."""
        return cls(counts=(0,) * steps, sums=(0.0,) * steps, squares=(0.0,) * steps, resets=resets)

    @property
    def total(self) -> int:
        """Observations of all steps."""
        return sum(self.counts)

    def with_reward(self, step: int, reward: float) -> Estimate:
        """One observation more."""
        return replace(
            self,
            counts=tuple(count + (at == step) for at, count in enumerate(self.counts)),
            sums=_added(self.sums, step, reward),
            squares=_added(self.squares, step, reward * reward),
        )


def observe(estimate: Estimate, idle: int, reward: float, learning: Learning) -> Estimate:
    """An estimate after a boost that followed `idle` rounds; a change of the scenario's curve empties it first.

    A two-sided CUSUM over standardised deviations from the running mean of the same step (Page 1954, drift 1/2): nothing
    is ever discounted, since a blanket discount re-explores every step of every scenario for ever.
    """
    step = step_of(learning.starts, idle)
    count = estimate.counts[step]
    above, below = estimate.above, estimate.below
    if count >= _ENOUGH:
        spread = noise_of(estimate, learning) * math.sqrt(1 + 1 / count)
        deviation = (reward - estimate.sums[step] / count) / max(spread, _LEAST_SPREAD)
        above = _kept(max(0.0, above + deviation - 0.5))
        below = _kept(max(0.0, below - deviation - 0.5))
    if max(above, below) > learning.alarm:
        estimate = Estimate.empty(len(learning.starts), resets=estimate.resets + 1)
        above = below = 0.0
    return replace(estimate.with_reward(step, reward), above=above, below=below)


def noise_of(estimate: Estimate, learning: Learning) -> float:
    """The standard deviation of one reward around its mean, pooled over a scenario's steps.

    What is assumed counts for `_ASSUMED` observations, so that a few equal rewards are not taken for certainty.
    """
    excess, freedom = _ASSUMED * learning.noise**2, _ASSUMED
    for count, total, square in zip(estimate.counts, estimate.sums, estimate.squares, strict=True):
        if count > 1:
            excess += max(0.0, square - total * total / count)
            freedom += count - 1
    return math.sqrt(excess / freedom)


def believed(estimates: Sequence[Estimate], learning: Learning, *, at: int) -> list[RecoveryCurve]:
    """Upper confidence curves, non-decreasing: what each scenario could reasonably be worth.

    U(b) = min(1, mean + c sqrt(ln t / n)), and 1 where nothing was seen; then the least of U(b') over b' >= b, which is
    still a bound, as R(b) <= R(b') <= U(b'): a step that was never tried is believed to be worth no more than a later one
    that was. The fleet's mean is no prior here: it would keep untried steps from being tried, and in simulation costs
    4 points of reward in the first 1,000 rounds.

    Args:
        estimates: of the scenarios.
        learning: how optimistic to be.
        at: rounds decided so far: t.
    """
    spread = learning.optimism * math.sqrt(math.log(max(at, 2)))
    curves = []
    for one in estimates:
        least = 1.0
        lowered: list[float] = []
        for count, total in zip(reversed(one.counts), reversed(one.sums), strict=True):
            if count:
                least = min(least, total / count + spread / math.sqrt(count))
            lowered.append(least)
        lowered.reverse()
        curves.append(RecoveryCurve(learning.starts, tuple(lowered)))
    return curves


def expected(estimates: Sequence[Estimate], learning: Learning) -> list[RecoveryCurve]:
    """The means without optimism, non-decreasing; a step that was never seen is taken to be as good as the one before."""
    curves = []
    for one in estimates:
        best = 0.0
        rewards = []
        for count, total in zip(one.counts, one.sums, strict=True):
            best = max(best, total / count) if count else best
            rewards.append(best)
        curves.append(RecoveryCurve(learning.starts, tuple(rewards)))
    return curves


def _added(sums: tuple[float, ...], step: int, value: float) -> tuple[float, ...]:
    return tuple(_kept(total + value) if at == step else total for at, total in enumerate(sums))


def _kept(value: float) -> float:
    return round(value, _DECIMALS)
