"""How many prefills and decodes a forecast load needs so that a share of its requests gets TTFT and TPOT in time.

Per role the smallest integer is taken whose expected share, over what the load may turn out to be, reaches the objective:
TTFT is the prefills' matter and TPOT the decodes', so the two smallest are the cheapest pair, and their ratio is Eq. 1's
with each role's own margin. `queueing` holds the formulas and their sources.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tidewheel.planning.scaling.profile import DeviceProfile
from tidewheel.planning.scaling.queueing import DecodeWork, PrefillWork, blocked_share, erlang_b, spread

#: Beyond so many instances of one role nothing is searched: the measurements must be wrong.
MOST_INSTANCES = 65_536
_DECODE_POINTS = 14


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """What a scenario promises."""

    ttft_seconds: float
    tpot_seconds: float
    attainment: float = 0.99  # share of the requests that get each
    e2e_seconds: float | None = None  # for a whole answer of mean length

    def __post_init__(self) -> None:
        if min(self.ttft_seconds, self.tpot_seconds) <= 0 or not 0 < self.attainment < 1:
            raise ValueError(
                f"TTFT {self.ttft_seconds} s, TPOT {self.tpot_seconds} s and attainment {self.attainment} are no targets; "
                "give positive times and a share between 0 and 1"
            )

    def tpot_for(self, answer_tokens: float, transfer_seconds: float) -> float:
        """TPOT that keeps E2E too: T_d = ξ + TPOT·G may take what TTFT leaves of it."""
        if self.e2e_seconds is None:
            return self.tpot_seconds
        left = self.e2e_seconds - self.ttft_seconds - transfer_seconds
        return max(1e-4, min(self.tpot_seconds, left / max(answer_tokens, 1.0)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What requests of a scenario are like: slow to change, so remembered over many windows."""

    prompt_tokens: float = 0.0
    prompt_tokens_squared: float = 0.0  # mean of the square
    answer_tokens: float = 0.0
    answer_tokens_squared: float = 0.0
    prefix_factor: float = 1.0  # r_pre
    transfer_seconds: float = 0.0  # ξ
    arrival_dispersion: float = 1.0
    prefill_correction: float = 1.0  # measured T_p over the profile's
    decode_correction: float = 1.0  # measured TPOT over the profile's at the same batch

    @property
    def context_tokens(self) -> float:
        """Mean context of a sequence in a decode's batch: the prompt and, by length-biased sampling, E[G²]/2E[G]."""
        second = max(self.answer_tokens_squared, self.answer_tokens**2)
        return self.prompt_tokens + second / (2 * max(self.answer_tokens, 1.0))

    @property
    def prompt_variance(self) -> float:
        """Squared coefficient of variation of prompt lengths."""
        return max(0.0, self.prompt_tokens_squared / max(self.prompt_tokens, 1e-9) ** 2 - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """Requests per second at a time to come."""

    mean: float
    relative_variance: float = 0.0  # of how the mean may turn out, without the randomness of single arrivals

    def points(self) -> tuple[tuple[float, float], ...]:
        """What it may be, with probabilities."""
        return spread(self.mean, self.relative_variance)

    def times(self, factor: float) -> Demand:
        """So much more of it."""
        return Demand(mean=self.mean * factor, relative_variance=self.relative_variance)


def prefill_work(work: Workload, profile: DeviceProfile, targets: Targets) -> PrefillWork:
    """Service times of prompts: T_p = TTFT_bs·r_pre over a lognormal spread of lengths."""
    factor = work.prefix_factor * work.prefill_correction
    points = [
        (max(1e-6, factor * profile.prefill_seconds(tokens)), weight)
        for tokens, weight in spread(max(1.0, work.prompt_tokens), work.prompt_variance)
    ]
    return PrefillWork.of(
        points, ttft_seconds=targets.ttft_seconds, arrival_variability=work.arrival_dispersion
    )


def decode_work(work: Workload, profile: DeviceProfile, targets: Targets) -> DecodeWork:
    """Batch against rate of one decode, at the scenario's mean context."""
    context = work.context_tokens
    tpot = targets.tpot_for(work.answer_tokens, work.transfer_seconds) / work.decode_correction
    room = max(1, min(profile.decode_slots, int(profile.kv_tokens // max(1.0, context))))
    most = profile.decode_batch(tpot, context)
    last = max(2.0, float(room))
    batches = [last ** (step / (_DECODE_POINTS - 1)) for step in range(_DECODE_POINTS)]
    if most > 1:
        batches = sorted({*batches, float(most)})
    batches.append(batches[-1] * 1.1)  # for the slope at the last
    return DecodeWork.of(
        [
            (batch, max(1e-6, work.decode_correction * profile.decode_seconds(batch, context)))
            for batch in batches
        ],
        answer_tokens=work.answer_tokens,
        most=most or room,
        objective=most > 0,
        arrival_variability=work.arrival_dispersion,
    )


def prefills_for(demand: Demand, work: PrefillWork, attainment: float, *, most: int = MOST_INSTANCES) -> int:
    """The least number of prefills with which the expected share in time is `attainment`, or `most` if none is."""
    points = [
        (rate * weight, rate * work.mean, erlang_b(rate * work.mean)) for rate, weight in demand.points()
    ]
    total = sum(weight for weight, _, _ in points)
    if total <= 0:
        return 1
    least = demand.mean * work.mean * attainment
    for servers in range(1, most + 1):
        blocked = [next(losses) for _, _, losses in points]
        if servers < least:
            continue
        share = sum(
            weight * work.in_time(loss, servers, offered)
            for (weight, offered, _), loss in zip(points, blocked, strict=True)
        )
        if share >= attainment * total:
            return servers
    return most


def prefill_attainment(servers: int, demand: Demand, work: PrefillWork) -> float:
    """The expected share of requests that `servers` prefills serve in time."""
    total = got = 0.0
    for rate, weight in demand.points():
        offered = rate * work.mean
        total += rate * weight
        got += rate * weight * work.in_time(blocked_share(servers, offered), servers, offered)
    return got / total if total > 0 else 1.0


def decodes_for(demand: Demand, work: DecodeWork, attainment: float, *, most: int = MOST_INSTANCES) -> int:
    """The least number of decodes with which the expected share in time is `attainment`, or `most` if none is."""
    fails = max(0, math.ceil(attainment * demand.mean / work.capacity) - 1)
    if fails >= most:
        return most
    step = 1
    while fails + step < most and decode_attainment(fails + step, demand, work) < attainment:
        fails, step = fails + step, 2 * step
    holds = min(fails + step, most)
    while holds - fails > 1:
        middle = (fails + holds) // 2
        if decode_attainment(middle, demand, work) < attainment:
            fails = middle
        else:
            holds = middle
    return holds


def decode_attainment(servers: int, demand: Demand, work: DecodeWork) -> float:
    """The expected share of requests that `servers` decodes serve in time."""
    points = demand.points()
    total = sum(rate * weight for rate, weight in points)
    if total <= 0:
        return 1.0
    return sum(rate * weight * work.in_time(servers, rate) for rate, weight in points) / total


def combined_for(
    demand: Demand,
    prefill: PrefillWork,
    decode_seconds: Sequence[tuple[float, float]],
    answer_tokens: float,
    targets: Targets,
    *,
    most: int,
) -> int:
    """The least number of instances that do both, prompts first: what a scenario would need without disaggregation.

    An instance that prefills a share ρ of its time decodes in the rest, so that an iteration of a batch k takes
    τ(k)/(1 - ρ) on average (a stall beside each prompt, or the same in chunks). With λ/n requests per instance the
    batch settles at k = (λ/n) G τ(k)/(1 - ρ), with deviation √k, and must keep the TPOT. Prompts wait as for n prefills.

    Args:
        demand: requests per second.
        prefill: their prompts.
        decode_seconds: (batch, seconds of an iteration) at rising batches.
        answer_tokens: G.
        targets: what must be kept.
        most: what to give up at.
    """
    rate = demand.mean * (1 + 2 * math.sqrt(demand.relative_variance))
    certain = Demand(mean=rate)
    first = prefills_for(certain, prefill, targets.attainment, most=most)
    margin = 2.33 if targets.attainment <= 0.99 else 3.1
    for servers in range(first, most + 1):
        busy = rate * prefill.mean / servers
        if busy >= 1:
            continue
        # the largest batch that keeps the objective while prompts take their share
        fitting = [batch for batch, seconds in decode_seconds if seconds <= targets.tpot_seconds * (1 - busy)]
        if not fitting:
            continue
        largest = fitting[-1]
        mean = max(0.0, (-margin + math.sqrt(margin**2 + 4 * largest * servers)) / 2) ** 2 / servers
        seconds = next(s for b, s in decode_seconds if b >= min(mean, largest))
        if rate / servers * answer_tokens * seconds / (1 - busy) <= mean:
            return servers
    return most
