"""How many of a stream's requests an instance count serves in time: loss by deadline before prefill, batch size in decode.

Both are closed forms for randomness on the scale of seconds; slower changes of the load are the forecast's matter.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

#: Gauss-Hermite nodes (in standard deviations) and weights for a normal variable, 9 points without the outermost two.
NORMAL_POINTS: tuple[tuple[float, float], ...] = (
    (-3.2054, 0.00279),
    (-2.0768, 0.04992),
    (-1.0233, 0.24410),
    (0.0, 0.40638),
    (1.0233, 0.24410),
    (2.0768, 0.04992),
    (3.2054, 0.00279),
)


#: The same with 3 points, for a variable that hardly varies.
_FEW_POINTS = ((-1.7320508, 1 / 6), (0.0, 2 / 3), (1.7320508, 1 / 6))
_HARDLY = 0.005

#: e to the minus this is no share worth counting.
_NEVER = 20.0
#: Below this, or over full load, the formula is taken with care.
_FULL = 1e-6


def spread(mean: float, relative_variance: float) -> tuple[tuple[float, float], ...]:
    """A lognormal variable with this mean and squared coefficient of variation, as (value, probability)."""
    if relative_variance <= 0:
        return ((mean, 1.0),)
    log_variance = math.log1p(relative_variance)
    middle, width = math.log(max(mean, 1e-12)) - log_variance / 2, math.sqrt(log_variance)
    points = _FEW_POINTS if relative_variance < _HARDLY else NORMAL_POINTS
    return tuple((math.exp(middle + width * x), weight) for x, weight in points)


def erlang_b(offered: float) -> Iterator[float]:
    """Erlang's loss probability with 1, 2, ... servers, by B(n) = a B(n-1) / (n + a B(n-1))."""
    loss = 1.0
    servers = 0
    while True:
        servers += 1
        loss = offered * loss / (servers + offered * loss)
        yield loss


def blocked_share(servers: int, offered: float) -> float:
    """Erlang's B with so many servers; 1 with none."""
    loss = 1.0
    for server in range(1, servers + 1):
        loss = offered * loss / (server + offered * loss)
    return loss


def late_share(blocked: float, servers: int, offered: float, patience: float, variability: float) -> float:
    """The share of requests that cannot start within their patience and are therefore ended at once.

    M/M/c with deterministic patience d (Barrer, Operations Research 5, 1957; Baccelli and Hebuterne 1981): with
    ρ = a/c, Erlang's B, and E = exp(-(c - a) d / E[S]),

        loss = (1 - ρ) B E / (1 - ρ + ρ B (1 - E)),

    which is B at d = 0 and 1 - 1/ρ in overload. General service and arrivals enter as in Allen and Cunneen's
    approximation for GI/G/c: the wait is (c_a² + c_s²)/2 times as long, that is, patience counts so much less.
    Without waiting being cut off (no early ending of the hopeless) the share is larger, near and over ρ = 1 much larger.

    Args:
        blocked: Erlang's B for these servers and this load.
        servers: c, at least 1.
        offered: a = λ E[S], in servers.
        patience: d over the mean service time.
        variability: (c_a² + c_s²)/2; 1 for exponential both.
    """
    if patience <= 0:
        return blocked
    load = offered / servers
    exponent = -(servers - offered) * patience / variability
    if abs(exponent) < 1e-6:
        return blocked / (1 + blocked * servers * patience / variability)
    if exponent > 500:
        return 1 - 1 / load
    e = math.exp(exponent)
    return min(1.0, max(0.0, (1 - load) * blocked * e / (1 - load + load * blocked * (1 - e))))


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillWork:
    """One prompt on one prefill."""

    points: tuple[tuple[float, float], ...]  # (seconds, probability)
    patience: tuple[
        tuple[float, float], ...
    ]  # (what the objective leaves, in mean service times, probability)
    hopeless_share: (
        float  # prompts whose computing alone takes longer than the objective: no prefill helps them
    )
    variability: float  # (c_a² + c_s²)/2
    mean: float  # seconds

    @classmethod
    def of(
        cls, points: Sequence[tuple[float, float]], *, ttft_seconds: float, arrival_variability: float
    ) -> PrefillWork:
        """From service times with their probabilities and the arrivals' squared coefficient of variation."""
        mean = sum(weight * value for value, weight in points)
        second = sum(weight * value * value for value, weight in points)
        service = max(0.0, second / mean**2 - 1)
        hopeful = [(value, weight) for value, weight in points if value < ttft_seconds]
        kept = sum(weight for _, weight in hopeful)
        return cls(
            points=tuple(points),
            patience=tuple(((ttft_seconds - value) / mean, weight / kept) for value, weight in hopeful),
            hopeless_share=max(0.0, 1 - kept),
            variability=max(0.05, (arrival_variability + service) / 2),
            mean=mean,
        )

    def in_time(self, blocked: float, servers: int, offered: float) -> float:
        """The share of those that are not hopeless that gets its first token in time: 1 - `late_share` over lengths.

        Args:
            blocked: Erlang's B for these servers and this load.
            servers: prefills, at least 1.
            offered: seconds of prefill per second.
        """
        decay = (servers - offered) / self.variability
        free = 1 - offered / servers
        late = 0.0
        for patience, weight in self.patience:
            exponent = decay * patience
            if exponent > _NEVER:
                continue
            if exponent < _FULL:
                late += weight * late_share(blocked, servers, offered, patience, self.variability)
                continue
            # as `late_share`; a call for each would take most of a plan's time
            e = math.exp(-exponent)
            late += weight * free * blocked * e / (free + (1 - free) * blocked * (1 - e))
        return 1 - late

    def within(self, seconds: float, blocked: float, servers: int, offered: float) -> float:
        """The share of all prompts whose first token comes within any time, if those end early that cannot have it then."""
        got = 0.0
        for service, weight in self.points:
            if service < seconds:
                patience = (seconds - service) / self.mean
                got += weight * (1 - late_share(blocked, servers, offered, patience, self.variability))
        return got


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeWork:
    """How a decode's batch grows with the requests per second that it gets.

    Each of k sequences in a batch gains a token per iteration of τ(k) seconds: a processor-sharing queue whose rate
    depends on its state. Such a queue is insensitive to the distribution of answer lengths (Baskett, Chandy, Muntz and
    Palacios 1975; Kelly 1979): P(k) ∝ Π_{j≤k} λ G τ(j) / j. Around its mean it is nearly normal, with variance
    N / (1 - e), e the elasticity of τ: more than Poisson's, since a large batch is slow to become small. Clumped arrivals
    make it (1 + c_a²)/2 times as large: the peakedness of a renewal stream (Eckberg 1983; Whitt 1984).
    """

    batches: tuple[float, ...]  # rising
    rates: tuple[float, ...]  # requests per second at which they are the mean, rising
    elasticities: tuple[float, ...]
    most: int  # the largest batch within the objective, slots and room for KV
    peakedness: float = 1.0  # (1 + c_a²)/2
    objective: bool = True  # whether `most` keeps the objective; else none does, and it is what fits

    @classmethod
    def of(
        cls,
        iteration_seconds: Sequence[tuple[float, float]],
        *,
        answer_tokens: float,
        most: int,
        objective: bool,
        arrival_variability: float = 1.0,
    ) -> DecodeWork:
        """From (batch, seconds of an iteration) at rising batches."""
        batches, rates, elasticities = [], [], []
        last = 0.0
        for (batch, seconds), (next_batch, next_seconds) in pairwise(iteration_seconds):
            rate = batch / (max(answer_tokens, 1.0) * seconds)
            if rate <= last:  # a profile's noise: more of a batch never carries less
                continue
            slope = math.log(next_seconds / seconds) / math.log(next_batch / batch)
            batches.append(batch)
            rates.append(rate)
            elasticities.append(min(0.95, max(0.0, slope)))
            last = rate
        return cls(
            batches=tuple(batches),
            rates=tuple(rates),
            elasticities=tuple(elasticities),
            most=most,
            peakedness=(1 + arrival_variability) / 2,
            objective=objective,
        )

    def at(self, rate: float) -> tuple[float, float]:
        """Mean batch and elasticity at a rate per instance; beyond what an instance carries the batch is infinite."""
        if rate <= self.rates[0]:
            return self.batches[0] * rate / self.rates[0], self.elasticities[0]
        if rate > self.rates[-1]:
            return math.inf, self.elasticities[-1]
        low, high = 0, len(self.rates) - 1
        while high - low > 1:
            middle = (low + high) // 2
            if self.rates[middle] < rate:
                low = middle
            else:
                high = middle
        part = (rate - self.rates[low]) / (self.rates[high] - self.rates[low])
        batch = self.batches[low] + part * (self.batches[high] - self.batches[low])
        return batch, self.elasticities[low]

    @property
    def capacity(self) -> float:
        """Requests per second of one instance at its largest batch, without room for chance."""
        part = [rate for batch, rate in zip(self.batches, self.rates, strict=True) if batch <= self.most]
        return part[-1] if part else self.rates[0] * self.most / self.batches[0]

    def in_time(self, servers: int, rate: float) -> float:
        """The share of requests whose tokens come within the objective, with sequences spread evenly over instances."""
        batch, elasticity = self.at(rate / servers)
        if math.isinf(batch):
            return 0.0
        deviation = math.sqrt(self.peakedness * max(servers * batch, 1e-9) / (1 - elasticity))
        # an arrival counts itself, and even spreading leaves instances one apart
        return _normal((servers * (self.most - batch) - 0.5) / deviation)


def _normal(z: float) -> float:
    return 0.5 * math.erfc(-z / math.sqrt(2))
