"""Prometheus metrics of the gateway: what forwarding did."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from tidewheel.api.arrivals import SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from prometheus_client.metrics_core import Metric

_TTFT = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_TPOT = (0.0025, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5, 5)
_REQUEST = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 60, 120, 240, 480)
_TOKENS = tuple(float(2**power) for power in range(21))


class Tally(Collector):
    """A counter for what happens with every token: without the lock, as all of it happens on the event loop."""

    def __init__(self, name: str, text: str, *, registry: CollectorRegistry) -> None:
        self._name = name
        self._text = text
        self._count = 0
        registry.register(self)

    def inc(self, amount: int) -> None:
        """So many more."""
        self._count += amount

    def collect(self) -> Iterable[Metric]:
        """As in `Collector`."""
        return [CounterMetricFamily(self._name, self._text, value=self._count)]


class SecondsTally(Collector):
    """Counts by scenario and by the second of the clock modulo `SECONDS`, from which the planner sees how clumped arrivals are.

    Counts of one second add over gateways and over their processes, however requests are split among them, and the sum
    is what one gateway would have counted; sums of squares would not. One line for each second in which anything came.
    """

    def __init__(self, name: str, text: str, *, registry: CollectorRegistry) -> None:
        self._name = name
        self._text = text
        self._counts: dict[str, list[int]] = {}
        registry.register(self)

    def of(self, scenario: str) -> list[int]:
        """The counts of a scenario, to be raised in place."""
        return self._counts.setdefault(scenario, [0] * SECONDS)

    def collect(self) -> Iterable[Metric]:
        """As in `Collector`."""
        family = CounterMetricFamily(self._name, self._text, labels=["scenario", "second"])
        for scenario, counts in self._counts.items():
            for second, count in enumerate(counts):
                if count:
                    family.add_metric([scenario, str(second)], count)
        return [family]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScenarioMetrics:
    """The series of one scenario that most requests count in."""

    arrivals: Counter
    arrivals_by_second: list[int]
    ttft: Histogram
    tpot: Histogram
    duration: Histogram
    prompt_tokens: Histogram
    output_tokens: Histogram


class GatewayMetrics:
    """One gateway's.

    Series with labels are had through the methods, which remember them: looking one up takes longer than counting.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        open_requests: Callable[[], float],
        groups: Callable[[], float],
        waiting: Callable[[], float],
    ) -> None:
        # scenarios are bounded: they are those that the routes name
        self._arrivals = Counter(
            "tidewheel_gateway_arrivals", "Requests taken, by scenario.", ["scenario"], registry=registry
        )
        self._arrivals_by_second = SecondsTally(
            "tidewheel_gateway_arrivals_by_second",
            f"Requests taken, by scenario and by the second of Unix time modulo {SECONDS}.",
            registry=registry,
        )
        self._requests = Counter(
            "tidewheel_gateway_requests",
            "Requests ended, by status code and scenario.",
            ["code", "scenario"],
            registry=registry,
        )
        self._inquiries = Counter(
            "tidewheel_gateway_inquiries",
            "Questions to backends, by role and outcome.",
            ["role", "outcome"],
            registry=registry,
        )
        self.reforwards = Counter(
            "tidewheel_gateway_reforwards",
            "Requests sent anew after a backend was lost.",
            ["reason"],
            registry=registry,
        )
        self.early_terminations = Counter(
            "tidewheel_gateway_early_terminations",
            "Requests ended because their time for the first token was over, or would have been.",
            ["reason", "scenario"],
            registry=registry,
        )
        self.interrupted = Counter(
            "tidewheel_gateway_interrupted_streams",
            "Streams that ended by an error, or by the default text, after they had begun.",
            registry=registry,
        )
        self.resumed = Counter(
            "tidewheel_gateway_resumed_streams",
            "Times that a stream went on with another decode.",
            registry=registry,
        )
        self.refused_seconds = Counter(
            "tidewheel_gateway_refused_inquiry_seconds",
            "Seconds that inquiries took which prefills refused.",
            registry=registry,
        )
        self.prefilled_by_decodes = Counter(
            "tidewheel_gateway_prompts_to_decodes",
            "Prompts that decodes computed: of combined groups, and short ones as all prefills were busy.",
            registry=registry,
        )
        self.key_requests = Counter(
            "tidewheel_gateway_key_requests",
            "Requests ended, by the name of the API key and status code.",
            ["key", "code"],
            registry=registry,
        )
        self.key_tokens = Counter(
            "tidewheel_gateway_key_tokens",
            "Tokens used, by the name of the API key and kind.",
            ["key", "kind"],
            registry=registry,
        )
        self.key_refusals = Counter(
            "tidewheel_gateway_key_refusals",
            "Requests refused by a limit of their API key, by the key's name and the limit.",
            ["key", "limit"],
            registry=registry,
        )
        self._ttft = Histogram(
            "tidewheel_gateway_time_to_first_token_seconds",
            "From arrival to the first bytes of the answer, streams only.",
            ["scenario"],
            registry=registry,
            buckets=_TTFT,
        )
        self._tpot = Histogram(
            "tidewheel_gateway_time_per_output_token_seconds",
            "Between two tokens of a stream on average, by stream.",
            ["scenario"],
            registry=registry,
            buckets=_TPOT,
        )
        self.output_tokens = Tally(
            "tidewheel_gateway_output_tokens", "Tokens of answers that went to clients.", registry=registry
        )
        self._duration = Histogram(
            "tidewheel_gateway_request_seconds",
            "From arrival to the end of the answer.",
            ["scenario"],
            registry=registry,
            buckets=_REQUEST,
        )
        self._tokens = {
            kind: Histogram(
                f"tidewheel_gateway_request_{kind}_tokens",
                f"Tokens of the {what} of a request that was answered.",
                ["scenario"],
                registry=registry,
                buckets=_TOKENS,
            )
            for kind, what in (("prompt", "prompt"), ("output", "answer"))
        }
        Gauge(
            "tidewheel_gateway_open_streams", "Requests that are being answered.", registry=registry
        ).set_function(open_requests)
        Gauge(
            "tidewheel_gateway_waiting_requests", "Requests that wait for a prefill.", registry=registry
        ).set_function(waiting)
        Gauge(
            "tidewheel_gateway_groups", "Groups that requests may be sent to.", registry=registry
        ).set_function(groups)

    def arrived(self, scenario: str, *, at: float) -> None:
        """A request of this scenario was taken at that Unix time."""
        counted = self.of(scenario)
        counted.arrivals.inc()
        counted.arrivals_by_second[int(at) % SECONDS] += 1

    @cache  # noqa: B019 - one for each process, for as long as it lives
    def request(self, code: str, scenario: str) -> Counter:
        """Requests of this scenario that ended with this status code."""
        return self._requests.labels(code, scenario)

    @cache  # noqa: B019
    def of(self, scenario: str) -> ScenarioMetrics:
        """What is counted in this scenario."""
        return ScenarioMetrics(
            arrivals=self._arrivals.labels(scenario),
            arrivals_by_second=self._arrivals_by_second.of(scenario),
            ttft=self._ttft.labels(scenario),
            tpot=self._tpot.labels(scenario),
            duration=self._duration.labels(scenario),
            prompt_tokens=self._tokens["prompt"].labels(scenario),
            output_tokens=self._tokens["output"].labels(scenario),
        )

    @cache  # noqa: B019
    def inquiry(self, role: str, outcome: str) -> Counter:
        """Questions to backends of this role that ended like this."""
        return self._inquiries.labels(role, outcome)
