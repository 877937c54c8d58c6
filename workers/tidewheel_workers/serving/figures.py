"""The live figures of a gateway: what its metrics did in the last minute or two, without I/O and without a clock.

A `Sample` is taken from the metrics every `SAMPLE_SECONDS`; figures are differences between samples, so that they need nothing
beside what Prometheus is shown. Quantiles are interpolated within a histogram's bucket, as Prometheus' `histogram_quantile` does.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from tidewheel.api.distribution import Distribution, add_up

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from prometheus_client.metrics_core import Metric

    from tidewheel.api.ranktable import RouteGroup

SAMPLE_SECONDS = 2.0
#: The lines of the page show so much, the numbers the last half of it.
SAMPLES_KEPT = 61
SAMPLES_OF_A_MINUTE = 31

_PREFIX = "tidewheel_gateway_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A gateway's metrics at one moment; all but the open requests only rise."""

    at: float
    ttft: Distribution = field(default_factory=Distribution)
    tpot: Distribution = field(default_factory=Distribution)
    tokens: float = 0.0
    requests: float = 0.0
    rejections: float = 0.0  # of inquiries, by servers without a free slot
    shed: float = 0.0  # requests that ended because no server had time for them
    reforwards: float = 0.0
    interrupted: float = 0.0
    open_requests: float = 0.0


def take_sample(metrics: Iterable[Metric], at: float) -> Sample:
    """What a registry shows now."""

    def asked(name: str, labels: Mapping[str, str]) -> str | None:
        short = name.removeprefix(_PREFIX)
        return None if short == "inquiries_total" and labels["outcome"] != "busy" else short

    sums, distributions = add_up((sample for metric in metrics for sample in metric.samples), asked)

    return Sample(
        at=at,
        ttft=distributions.get("time_to_first_token_seconds", Distribution()),
        tpot=distributions.get("time_per_output_token_seconds", Distribution()),
        tokens=sums.get("output_tokens_total", 0.0),
        requests=sums.get("requests_total", 0.0),
        rejections=sums.get("inquiries_total", 0.0),
        shed=sums.get("early_terminations_total", 0.0),
        reforwards=sums.get("reforwards_total", 0.0),
        interrupted=sums.get("interrupted_streams_total", 0.0),
        open_requests=sums.get("open_streams", 0.0),
    )


class History:
    """The last samples."""

    def __init__(self) -> None:
        self._samples: deque[Sample] = deque(maxlen=SAMPLES_KEPT)

    def add(self, sample: Sample) -> None:
        """One more; the oldest goes."""
        self._samples.append(sample)

    @property
    def samples(self) -> tuple[Sample, ...]:
        """Oldest first."""
        return tuple(self._samples)


def figures(
    samples: Sequence[Sample], groups: Sequence[RouteGroup], *, service: str, model: str
) -> dict[str, Any]:
    """What the page shows: numbers of the last minute, lines of the last two, oldest value first.

    Times are in seconds and None where nothing was measured; P/D is prefill to decode pods over all groups that serve.
    """
    recent = samples[-SAMPLES_OF_A_MINUTE:]
    first, last = (recent[0], recent[-1]) if recent else (Sample(at=0.0), Sample(at=0.0))
    seconds = last.at - first.at
    prefill = sum(len(group.prefill) for group in groups)
    decode = sum(len(group.decode) for group in groups)
    return {
        "service": service,
        "model": model,
        "seconds": round(seconds, 3),
        "groups": len(groups),
        "prefill": prefill,
        "decode": decode,
        "ratio": _ratio(prefill, decode),
        "ttft_seconds": _quantiles(last.ttft.since(first.ttft)),
        "tpot_seconds": _quantiles(last.tpot.since(first.tpot)),
        "tokens_per_second": _rate(last.tokens - first.tokens, seconds),
        "requests_per_second": _rate(last.requests - first.requests, seconds),
        "open_requests": int(last.open_requests),
        "rejections": int(last.rejections - first.rejections),
        "shed": int(last.shed - first.shed),
        "reforwards": int(last.reforwards - first.reforwards),
        "interrupted": int(last.interrupted - first.interrupted),
        "history": {
            "step_seconds": SAMPLE_SECONDS,
            "ttft_seconds": [_rounded(b.ttft.since(a.ttft).mean) for a, b in pairwise(samples)],
            "tpot_seconds": [_rounded(b.tpot.since(a.tpot).mean) for a, b in pairwise(samples)],
            "tokens_per_second": [_rate(b.tokens - a.tokens, b.at - a.at) for a, b in pairwise(samples)],
            "open_requests": [int(sample.open_requests) for sample in samples],
            "rejections": [int(b.rejections - a.rejections) for a, b in pairwise(samples)],
            "reforwards": [int(b.reforwards - a.reforwards) for a, b in pairwise(samples)],
        },
    }


def _ratio(prefill: int, decode: int) -> str | None:
    if not decode:
        return None
    if not prefill:
        return f"0:{decode}"  # all of them do both
    ratio = Fraction(prefill, decode)
    return f"{ratio.numerator}:{ratio.denominator}"


def _quantiles(values: Distribution) -> dict[str, float | None] | None:
    if not values.count:
        return None
    return {"p50": _rounded(values.quantile(0.5)), "p95": _rounded(values.quantile(0.95))}


def _rate(amount: float, seconds: float) -> float:
    return round(amount / seconds, 3) if seconds > 0 else 0.0


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)
