"""The live figures say what a gateway's metrics did in the last minute."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from tidewheel.api.distribution import Distribution
from tidewheel.api.ranktable import Backend, RouteGroup
from tidewheel_workers.serving.figures import (
    SAMPLE_SECONDS,
    SAMPLES_KEPT,
    History,
    Sample,
    figures,
    take_sample,
)
from tidewheel_workers.serving.gateway_metrics import GatewayMetrics


def of(samples, groups=()):
    told = figures(samples, groups, service="chat", model="m")
    json.dumps(told, allow_nan=False)
    return told


def group(prefill: int, decode: int) -> RouteGroup:
    def pods(role: str, count: int) -> tuple[Backend, ...]:
        return tuple(Backend(name=f"{role}-{i}", address="10.0.0.1") for i in range(count))

    return RouteGroup(name="g", prefill=pods("p", prefill), decode=pods("d", decode))


def metrics(registry: CollectorRegistry) -> GatewayMetrics:
    return GatewayMetrics(registry, open_requests=lambda: 3, groups=lambda: 1, waiting=lambda: 0)


def test_a_gateway_that_has_just_started_has_no_figures_yet():
    for samples in ([], [Sample(at=5.0)]):
        told = of(samples)
        assert (told["ttft_seconds"], told["tokens_per_second"], told["ratio"]) == (None, 0.0, None)
        assert told["history"]["tokens_per_second"] == []


def test_figures_are_differences_of_the_gateways_own_metrics():
    registry = CollectorRegistry()
    shown = metrics(registry)
    shown.of("default").ttft.observe(0.2)
    shown.output_tokens.inc(1000)
    before = take_sample(registry.collect(), 10.0)
    for number in range(10):
        shown.of(("default", "code")[number % 2]).ttft.observe(0.06)
        shown.of("chat").tpot.observe(0.03)
        shown.request("200", "default").inc()
    shown.output_tokens.inc(50)
    shown.request("503", "code").inc()
    shown.inquiry("prefill", "busy").inc(4)
    shown.inquiry("decode", "busy").inc(1)
    shown.inquiry("prefill", "accepted").inc(10)
    shown.early_terminations.labels("all_slots_busy", "default").inc()
    shown.reforwards.labels("prefill_lost").inc(2)
    shown.interrupted.inc()
    told = of([before, take_sample(registry.collect(), 20.0)], [group(1, 2), group(1, 4)])

    assert 0.05 < told["ttft_seconds"]["p50"] <= told["ttft_seconds"]["p95"] <= 0.1
    assert 0.02 < told["tpot_seconds"]["p50"] <= 0.03
    assert (told["tokens_per_second"], told["requests_per_second"]) == (5.0, 1.1)
    assert (told["rejections"], told["shed"], told["reforwards"], told["interrupted"]) == (5, 1, 2, 1)
    assert told["open_requests"] == 3
    assert (told["groups"], told["prefill"], told["decode"], told["ratio"]) == (2, 2, 6, "1:3")
    assert told["history"]["ttft_seconds"] == [pytest.approx(0.06)]


def test_the_ratio_of_combined_groups_has_no_prefills():
    assert of([], [group(0, 2), group(0, 1)])["ratio"] == "0:3"


def test_the_numbers_are_of_one_minute_and_the_lines_of_two():
    history = History()
    for step in range(200):
        history.add(Sample(at=step * SAMPLE_SECONDS, tokens=10.0 * step, rejections=float(step)))
    told = of(history.samples)
    assert told["seconds"] == 60
    assert told["rejections"] == 30
    assert told["tokens_per_second"] == 5.0
    assert told["history"]["tokens_per_second"] == [5.0] * (SAMPLES_KEPT - 1)


def test_a_line_has_a_gap_where_nothing_was_measured():
    ones = Distribution(buckets=((1.0, 1.0), (float("inf"), 1.0)), total=0.5)
    samples = [Sample(at=0.0), Sample(at=2.0, ttft=ones), Sample(at=4.0, ttft=ones)]
    assert of(samples)["history"]["ttft_seconds"] == [0.5, None]


def test_figures_name_no_pod_and_no_address():
    assert "10.0.0.1" not in json.dumps(of([Sample(at=0.0)], [group(1, 1)]))


BOUNDS = (0.1, 0.5, 1.0, float("inf"))


@given(st.lists(st.floats(0, 0.999), min_size=1, max_size=50), st.floats(0, 1))
def test_a_quantile_lies_in_the_bucket_of_the_true_one(values, part):
    buckets = tuple((bound, float(sum(value <= bound for value in values))) for bound in BOUNDS)
    quantile = Distribution(buckets=buckets).quantile(part)
    rank = max(1, -(-int(part * len(values) * 1000) // 1000))
    true = sorted(values)[min(rank, len(values)) - 1]
    low, high = next((a, b) for a, b in pairwise((0.0, *BOUNDS)) if true <= b)
    assert low - 1e-9 <= quantile <= high + 1e-9


def test_what_is_above_the_last_bound_is_at_least_that():
    assert Distribution(buckets=((1.0, 0.0), (float("inf"), 4.0))).quantile(0.5) == 1.0
    assert Distribution().quantile(0.5) is None
