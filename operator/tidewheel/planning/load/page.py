"""One pod's metrics page: the few counters and histograms that the planner looks at, out of all that is there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from tidewheel.api.distribution import Distribution, add_up

ARRIVALS = "tidewheel_gateway_arrivals_total"
ARRIVALS_BY_SECOND = "tidewheel_gateway_arrivals_by_second_total"
ENDED_EARLY = "tidewheel_gateway_early_terminations_total"
WAITING = "tidewheel_gateway_waiting_requests"
TTFT = "tidewheel_gateway_time_to_first_token_seconds"
TPOT = "tidewheel_gateway_time_per_output_token_seconds"
DURATION = "tidewheel_gateway_request_seconds"
PROMPT_TOKENS = "tidewheel_gateway_request_prompt_tokens"
OUTPUT_TOKENS = "tidewheel_gateway_request_output_tokens"
# vLLM's names, so that it can take a role
PREFILL_SECONDS = "vllm:request_prefill_time_seconds"
DECODE_SECONDS = "vllm:request_decode_time_seconds"
PREFIX_QUERIES = "vllm:prefix_cache_queries_total"
PREFIX_HITS = "vllm:prefix_cache_hits_total"
TRANSFER_SECONDS = "tidewheel_kv_transfer_seconds"

_LOOKED_AT = frozenset(
    {
        *(ARRIVALS, ARRIVALS_BY_SECOND, ENDED_EARLY, WAITING, PREFIX_QUERIES, PREFIX_HITS),
        *(TTFT, TPOT, DURATION, PROMPT_TOKENS, OUTPUT_TOKENS),
        *(PREFILL_SECONDS, DECODE_SECONDS, TRANSFER_SECONDS),
    }
)
#: What goes down, too.
GAUGES = frozenset({WAITING})


class Series(NamedTuple):
    """A metric, of one scenario and one second of the clock where it is counted by those; all other labels are added up."""

    name: str
    scenario: str = ""
    second: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PodCounts:
    """What a pod's page says at one moment; all but the gauges only rises while its process lives."""

    values: Mapping[Series, float] = field(default_factory=dict)
    distributions: Mapping[Series, Distribution] = field(default_factory=dict)

    @property
    def scenarios(self) -> frozenset[str]:
        """Those that a gateway has counted."""
        return frozenset(series.scenario for series in self.values if series.name == ARRIVALS)


def read_page(text: str) -> PodCounts:
    """What planning looks at of a page in Prometheus' text format.

    Raises:
        ValueError: it is no such page.
    """

    def series(name: str, labels: Mapping[str, str]) -> Series | None:
        if name not in _LOOKED_AT:
            return None
        return Series(name, labels.get("scenario", ""), labels.get("second", ""))

    families = text_string_to_metric_families(text)
    values, distributions = add_up((sample for family in families for sample in family.samples), series)
    return PodCounts(values=values, distributions=distributions)
