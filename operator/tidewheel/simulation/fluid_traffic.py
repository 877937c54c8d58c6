"""Arrivals for the fluid model: counts and prefill work step by step, drawn once so that all planners face the same."""

from __future__ import annotations

import math
import random
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass

#: Above this mean a step's count is drawn from a normal variable.
_LARGE = 40.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Surge:
    """A rate that wanders around its mean: a lognormal factor whose logarithm follows an Ornstein-Uhlenbeck process."""

    deviation: float  # of the factor, relative to its mean
    seconds: float  # in which its correlation falls to 1/e


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """How requests of a scenario arrive."""

    rate: Callable[[float], float]  # requests per second at a time
    dispersion: float = 1.0  # variance over mean of counts: 1 for Poisson, c_a² for a renewal process
    surge: Surge | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrivals:
    """What arrived, step by step."""

    step: float  # seconds
    rates: array[float]  # requests per second that were to be expected
    counts: array[float]  # requests that came
    work: array[float]  # prefill seconds that those requests bring, alone on an instance

    @property
    def seconds(self) -> float:
        """From the first step's begin to the last one's end."""
        return self.step * len(self.counts)


def draw(
    traffic: Traffic,
    *,
    seconds: float,
    step: float,
    service_mean: float,
    service_variance: float,
    generator: random.Random,
) -> Arrivals:
    """Arrivals of a scenario.

    Args:
        traffic: how they come.
        seconds: for how long.
        step: of the model.
        service_mean: prefill seconds of a mean prompt.
        service_variance: their squared coefficient of variation.
        generator: of the randomness.
    """
    rates, counts, work = array("d"), array("d"), array("d")
    surge = traffic.surge
    log_variance = math.log1p(surge.deviation**2) if surge else 0.0
    keep = math.exp(-step / surge.seconds) if surge else 0.0
    fresh = math.sqrt(log_variance * (1 - keep * keep))
    wander = generator.gauss(0.0, math.sqrt(log_variance)) if surge else 0.0
    deviation = service_mean * math.sqrt(service_variance)
    for number in range(round(seconds / step)):
        mean = traffic.rate((number + 0.5) * step) * step
        if surge:
            mean *= math.exp(wander - log_variance / 2)
            wander = keep * wander + fresh * generator.gauss(0.0, 1.0)
        rates.append(mean / step)
        count = _count(mean, traffic.dispersion, generator)
        counts.append(count)
        noise = deviation * math.sqrt(count) * generator.gauss(0.0, 1.0) if count else 0.0
        work.append(max(0.2 * service_mean * count, service_mean * count + noise))
    return Arrivals(step=step, rates=rates, counts=counts, work=work)


def hourly(rates: Sequence[float]) -> Callable[[float], float]:
    """A rate that goes in straight lines between the middles of hours and begins anew after the last.

    Args:
        rates: of the hours, per second.
    """
    count = len(rates)

    def rate(at: float) -> float:
        place = at / 3600 - 0.5
        low = math.floor(place)
        part = place - low
        return (1 - part) * rates[low % count] + part * rates[(low + 1) % count]

    return rate


def _count(mean: float, dispersion: float, generator: random.Random) -> float:
    """A Poisson variable, in clumps where the dispersion is greater than 1; normal when it is large."""
    if mean <= 0:
        return 0.0
    if mean > _LARGE * dispersion:
        return max(0.0, round(mean + math.sqrt(mean * dispersion) * generator.gauss(0.0, 1.0)))
    clumps, limit, product = 0, math.exp(-mean / dispersion), generator.random()
    while product > limit:
        clumps += 1
        product *= generator.random()
    return round(clumps * dispersion)
