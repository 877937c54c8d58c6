"""What a boost brought: the goodput it added, with what happened to everyone taken out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["Measured", "InsufficientData", "NotSaturated"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Requests of one scenario that arrived in a stretch of time, judged when they had ended."""

    seconds: float
    arrived: int
    good: int  # of them: those that kept every objective

    @property
    def goodput(self) -> float:
        """Good requests per second."""
        return self.good / self.seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A boost's reward, or why there is none."""

    verdict: Verdict
    value: float | None = None  # of the reference goodput of the devices that were given; may be negative


def reward_of(
    before: Window,
    during: Window,
    others: Iterable[tuple[Window, Window]],
    *,
    reference: float,
    fewest: int = 100,
) -> Measured:
    """The reward of one boost by differences in differences.

    lift = G(during) - G(before) * [sum_j G_j(during) / sum_j G_j(before)] over the scenarios j that were not boosted, so
    that a tide that moves all of them is not taken for the boost's work. Goodput counts by arrival: counted by completion,
    a boost would be credited with the backlog before it. The value is lift over `reference`, bounded to -1 .. 1, and is
    not clipped at 0: clipped noise would make weak scenarios look better than they are.

    Args:
        before: as long as `during`, and ended before the boost was asked for.
        during: the boost's window, without the time until its pods were ready and routed to.
        others: before and during, of the scenarios that were not boosted.
        reference: goodput per second that the devices given would have at saturation, from the profile.
        fewest: arrivals that both windows need for a verdict.

    Returns:
        `InsufficientData` where too few requests arrived; `NotSaturated` where every request before the boost was good
        already, so that there was nothing to gain: that says nothing against the boost.

    Raises:
        ValueError: the reference is not positive.
    """
    if reference <= 0:
        raise ValueError(f"the reference goodput must be positive, not {reference:g}; measure a profile")
    if min(before.arrived, during.arrived) < fewest:
        return Measured(verdict="InsufficientData")
    if before.good == before.arrived:
        return Measured(verdict="NotSaturated")
    then = now = 0.0
    for earlier, later in others:
        then += earlier.goodput
        now += later.goodput
    tide = now / then if then > 0 else 1.0
    lift = during.goodput - before.goodput * tide
    return Measured(verdict="Measured", value=max(-1.0, min(1.0, lift / reference)))
