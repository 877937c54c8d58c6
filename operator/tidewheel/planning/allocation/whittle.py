"""The Whittle index of a recovering scenario, in closed form: the price at which a boost now and later are worth the same."""

from __future__ import annotations

from tidewheel.planning.allocation.curves import RecoveryCurve


def whittle_index(curve: RecoveryCurve, idle: int) -> float:
    """What a boost after `idle` rounds may cost before it is better left for later.

    For one scenario and a price m per boost the best long-run gain is g(m) = max(0, max_d (R(d) - m)/d). To boost after
    t rounds is optimal iff waiting k more earns no more than the gain of that time: R(t+k) - R(t) <= k g for all k.
    With s(t) = max(0, max_k (R(t+k) - R(t))/k) the set of idle times at which to boost shrinks as m grows, so every
    non-decreasing curve is indexable, and

        W(t) = max_d [R(d) - d s(t)].

    On a step function both maxima are at the first round of a step. It is negative just before a jump of the curve:
    then leaving the scenario alone is better than boosting it for free.

    Args:
        curve: non-decreasing.
        idle: rounds since the last boost, at least 1.
    """
    now = curve.at(idle)
    steepest = max(
        (max(0.0, (reward - now) / (start - idle)) for start, reward in curve.points if start > idle),
        default=0.0,
    )
    return max(reward - start * steepest for start, reward in curve.points)
