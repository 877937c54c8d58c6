"""The most that any allocation can earn in the long run: a linear programme, solved as a fractional knapsack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import NamedTuple

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


class Segment(NamedTuple):
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
    segments: list[tuple[float, int, Segment]] = []
    for scenario, curve in enumerate(curves):
        gap = gaps.get(scenario, ANY_GAP)
        if gap.most is not None:
            rates[scenario] = 1 / gap.most
            value += curve.at(gap.most) / gap.most
            vertices[scenario].append((gap.most, 1.0))
        segments += [
            (segment.slope, scenario, segment) for segment in segments_of(curve, gap) if segment.slope > 0
        ]
    left = slots - sum(rates)
    if left < -1e-9:
        raise ValueError(
            f"boosts no further apart than asked for need {sum(rates):.2f} slots a round, there are {slots:g}; "
            "allow longer gaps or give more slots"
        )
    price = 0.0
    # sorted is stable, and slopes fall within a scenario, so its segments are taken in order
    segments.sort(key=itemgetter(0), reverse=True)
    for slope, scenario, (_, width, period) in segments:
        share = min(1.0, left / width)
        if share <= _NOTHING:
            price = slope
            break
        used = share * width
        rates[scenario] += used
        value += used * slope
        left -= used
        if share < 1:
            slower = [(longer, part * (1 - share)) for longer, part in vertices[scenario]]
            vertices[scenario] = [*slower, (period, share)]
            price = slope
            break
        vertices[scenario] = [(period, 1.0)]
    return Relaxation(
        value=value, price=price, rates=tuple(rates), vertices=tuple(tuple(one) for one in vertices)
    )


def segments_of(curve: RecoveryCurve, gap: Gaps = ANY_GAP) -> tuple[Segment, ...]:
    """The concave majorant of f(1/d) = R(d)/d, from the left: from 0, or from the rate of the longest gap allowed."""
    if gap is ANY_GAP:
        points = curve.points
    else:
        most = gap.most or curve.starts[-1] + gap.least
        periods = sorted({*(d for d in curve.starts if gap.least < d < most), gap.least})
        points = tuple((period, curve.at(period)) for period in periods)
    base_rate = base_worth = 0.0
    if gap.most is not None:
        base_rate, base_worth = 1 / gap.most, curve.at(gap.most) / gap.most
    # the hull, as the segments between its vertices: with them stand the rate and the worth at their ends
    hull: list[tuple[float, float, float, float, int]] = []
    for period, reward in reversed(points):
        rate, worth = 1 / period, reward / period
        if rate <= base_rate:
            continue
        left, under = (hull[-1][2], hull[-1][3]) if hull else (base_rate, base_worth)
        slope = (worth - under) / (rate - left)
        while hull and slope >= hull[-1][0]:
            hull.pop()
            left, under = (hull[-1][2], hull[-1][3]) if hull else (base_rate, base_worth)
            slope = (worth - under) / (rate - left)
        hull.append((slope, rate - left, rate, worth, period))
    return tuple(Segment(slope, width, period) for slope, width, _, _, period in hull)
