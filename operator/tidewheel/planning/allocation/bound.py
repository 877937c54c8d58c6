"""The most that any allocation can earn in the long run: a linear programme, solved as a fractional knapsack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tidewheel.planning.allocation.curves import RecoveryCurve

#: A share of a segment that is only the rounding of the others.
_NOTHING = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Gaps:
    """How close together and how far apart the boosts of a scenario may be, in rounds."""

    least: int = 1
    most: int | None = None


#: No bounds.
ANY_GAP = Gaps()


@dataclass(frozen=True, slots=True, kw_only=True)
class Relaxation:
    """The solution of the relaxed problem, in which slots are kept on average only."""

    value: float  # reward per round: no policy earns more in the long run
    price: float  # what one more slot would earn: a boost that earns less does not pay
    rates: tuple[float, ...]  # boosts per round of each scenario
    vertices: tuple[
        tuple[tuple[int, float], ...], ...
    ]  # per scenario: periods and the shares of time spent at them


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A piece of a concave majorant: more boosts of one scenario, at the reward that each of them adds."""

    slope: float
    width: float  # boosts per round
    period: int  # of the vertex at its end


def relax(
    curves: Sequence[RecoveryCurve], slots: float, *, gaps: Mapping[int, Gaps] | None = None
) -> Relaxation:
    """The best long-run rates under `slots` boosts per round on average.

    With f(1/d) = R(d)/d and phi its least concave majorant through 0, the bound is

        UB = max sum_i phi_i(x_i)  subject to  sum_i x_i <= slots,  0 <= x_i <= 1,

    for any policy, adaptive or not: a pull after tau rounds earns R(tau) = tau f(1/tau) <= tau phi(1/tau), the idle
    times of a scenario add up to the horizon, and phi is concave. phi is piecewise linear with vertices at 1/d, so the
    programme is a fractional knapsack over hull segments by slope, and all scenarios but one sit at a vertex.

    Args:
        curves: of each scenario.
        slots: boosts per round.
        gaps: bounds on the time between boosts, by scenario; a most is served first, whatever it earns.

    Raises:
        ValueError: the slots do not suffice for the longest gaps allowed.
    """
    gaps = gaps or {}
    rates = [0.0] * len(curves)
    vertices: list[list[tuple[int, float]]] = [[] for _ in curves]
    value = 0.0
    segments: list[tuple[int, Segment]] = []
    for scenario, curve in enumerate(curves):
        gap = gaps.get(scenario, ANY_GAP)
        if gap.most is not None:
            rates[scenario] = 1 / gap.most
            value += curve.at(gap.most) / gap.most
            vertices[scenario].append((gap.most, 1.0))
        segments += [(scenario, segment) for segment in segments_of(curve, gap)]
    left = slots - sum(rates)
    if left < -1e-9:
        raise ValueError(
            f"boosts no further apart than asked for need {sum(rates):.2f} slots a round, there are {slots:g}; "
            "allow longer gaps or give more slots"
        )
    price = 0.0
    # sorted is stable, and slopes fall within a scenario, so its segments are taken in order
    for scenario, segment in sorted(segments, key=lambda one: -one[1].slope):
        if segment.slope <= 0:
            break
        share = min(1.0, left / segment.width)
        if share <= _NOTHING:
            price = segment.slope
            break
        slower = [(period, part * (1 - share)) for period, part in vertices[scenario] if share < 1]
        vertices[scenario] = [*slower, (segment.period, share)]
        rates[scenario] += share * segment.width
        value += share * segment.width * segment.slope
        left -= share * segment.width
        if share < 1:
            price = segment.slope
            break
    return Relaxation(
        value=value, price=price, rates=tuple(rates), vertices=tuple(tuple(one) for one in vertices)
    )


def segments_of(curve: RecoveryCurve, gap: Gaps = ANY_GAP) -> tuple[Segment, ...]:
    """The concave majorant of f(1/d) = R(d)/d, from the left: from 0, or from the rate of the longest gap allowed."""
    most = gap.most or curve.starts[-1] + gap.least
    periods = sorted({*(d for d in curve.starts if gap.least < d < most), gap.least}, reverse=True)
    base = (0, 0.0, 0.0) if gap.most is None else (gap.most, 1 / gap.most, curve.at(gap.most) / gap.most)
    hull = [base]
    for period in periods:
        point = (period, 1 / period, curve.at(period) / period)
        if point[1] <= base[1]:
            continue
        while len(hull) > 1 and _slope(hull[-1], point) >= _slope(hull[-2], hull[-1]):
            hull.pop()
        hull.append(point)
    return tuple(
        Segment(slope=_slope(before, after), width=after[1] - before[1], period=after[0])
        for before, after in pairwise(hull)
    )


def _slope(before: tuple[int, float, float], after: tuple[int, float, float]) -> float:
    return (after[2] - before[2]) / (after[1] - before[1])
