"""Several processes' metrics are one process's, and never count backwards."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Metric

from tidewheel_workers.serving.gateway_metrics import GatewayMetrics
from tidewheel_workers.serving.metric_sums import lasting, snapshot, total


def gateway(
    *, requests: int = 0, open_requests: int = 0, groups: int = 1, seconds: float = 0.2
) -> CollectorRegistry:
    registry = CollectorRegistry()
    metrics = GatewayMetrics(
        registry, open_requests=lambda: open_requests, groups=lambda: groups, waiting=lambda: 0
    )
    for _ in range(requests):
        metrics.request("200", "").inc()
        metrics.of("chat").duration.observe(seconds)
    return registry


def value(metrics: list[Metric], name: str, **labels: str) -> float:
    (found,) = (
        sample.value
        for one in metrics
        for sample in one.samples
        if sample.name == name and sample.labels == labels
    )
    return found


def seen(registry: CollectorRegistry):
    """As it travels."""
    return json.loads(json.dumps(snapshot(registry.collect())))


def test_what_was_counted_is_added_up():
    added = total([seen(gateway(requests=2)), seen(gateway(requests=3, seconds=0.7))])
    assert value(added, "tidewheel_gateway_requests_total", code="200", scenario="") == 5
    assert value(added, "tidewheel_gateway_request_seconds_count", scenario="chat") == 5
    assert value(added, "tidewheel_gateway_request_seconds_sum", scenario="chat") == pytest.approx(
        2 * 0.2 + 3 * 0.7
    )
    assert value(added, "tidewheel_gateway_request_seconds_bucket", scenario="chat", le="0.25") == 2


def test_open_requests_are_added_up_and_what_all_see_is_not():
    added = total([seen(gateway(open_requests=2, groups=3)), seen(gateway(open_requests=5, groups=3))])
    assert value(added, "tidewheel_gateway_open_streams") == 7
    assert value(added, "tidewheel_gateway_groups") == 3


def test_a_process_that_ended_leaves_what_it_counted():
    ended = lasting(seen(gateway(requests=2, open_requests=9)))
    added = total([ended, seen(gateway(requests=1, open_requests=1))])
    assert value(added, "tidewheel_gateway_requests_total", code="200", scenario="") == 3
    assert value(added, "tidewheel_gateway_open_streams") == 1


def test_one_process_looks_as_it_does_alone():
    registry = gateway(requests=4, open_requests=1)
    assert total([seen(registry)]) == list(registry.collect())


@given(st.lists(st.integers(0, 5), min_size=1, max_size=5))
def test_sums_of_sums_are_sums(requests):
    parts = [seen(gateway(requests=count)) for count in requests]
    at_once = total(parts)
    one_by_one = parts[0]
    for part in parts[1:]:
        one_by_one = snapshot(total([one_by_one, part]))
    assert {one.name: sorted(one.samples, key=repr) for one in at_once} == {
        one.name: sorted(one.samples, key=repr) for one in total([one_by_one])
    }
