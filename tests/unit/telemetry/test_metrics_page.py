"""docs/metrics.md names every metric that a process shows, with its type, and none that does not exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from tests.otlp_receiver import otlp_receiver  # noqa: F401  (a fixture)

from tidewheel.controllers.metrics import ControllerMetrics
from tidewheel.telemetry import GenAiInstruments, configure
from tidewheel_workers.serving.engine import EngineLoad
from tidewheel_workers.serving.gateway_metrics import GatewayMetrics
from tidewheel_workers.serving.kv_arena import KVArena
from tidewheel_workers.serving.kv_queue import TransferQueue
from tidewheel_workers.serving.metrics import KVMetrics, WorkerMetrics
from tidewheel_workers.serving.stand_in import StandInEngine

PAGE = (Path(__file__).parents[3] / "docs" / "metrics.md").read_text()


def section(title: str) -> dict[str, tuple[str, set[str]]]:
    """Metrics of a section: name to type and labels."""
    text = PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([a-z0-9_:.]+)` \| (\w+) \|([\w, ]*)\|", text, re.MULTILINE)
    return {name: (kind, set(re.findall(r"\w+", labels))) for name, kind, labels in rows}


def shown(registry: CollectorRegistry) -> dict[str, str]:
    """Names as a scrape shows them, with their types."""
    return {
        f"{metric.name}_total" if metric.type == "counter" else metric.name: metric.type
        for metric in registry.collect()
        if not metric.name.startswith(("process_", "python_"))
    }


def types(documented: dict[str, tuple[str, set[str]]]) -> dict[str, str]:
    return {name: kind for name, (kind, _) in documented.items()}


def test_the_operators_metrics():
    metrics = ControllerMetrics(CollectorRegistry())
    metrics.queue("pdservice", list)

    assert types(section("Operator")) == shown(metrics.registry)


def test_the_gateways_metrics():
    registry = CollectorRegistry()
    GatewayMetrics(registry, open_requests=lambda: 0, groups=lambda: 0, waiting=lambda: 0)

    assert types(section("Gateway")) == shown(registry)


def test_the_workers_metrics():
    registry = CollectorRegistry()
    metrics = WorkerMetrics(registry, model_name="m")
    metrics.watch(running=lambda: 0, waiting=lambda: 0, kv_usage=lambda: 0)
    metrics.watch_engine(lambda: EngineLoad(prefix_queries=9, prefix_hits=4, preemptions=1))
    metrics.watch_slots(used=lambda: 0, total=1)
    kv = KVMetrics(registry, role="decode")
    kv.watch_arena(KVArena(StandInEngine.identity.kv, buffers=1, tokens=1))
    kv.watch_queue(TransferQueue(most_running=1, most_waiting=1))

    assert types(section("Prefill and decode")) == shown(registry)
    labels = {"model_name": "m", "engine": "0"}
    counts = ("vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total", "vllm:num_preemptions_total")
    assert [registry.get_sample_value(name, labels) for name in counts] == [9, 4, 1]


def test_labels_are_those_of_the_page():
    registry = CollectorRegistry()
    metrics = GatewayMetrics(registry, open_requests=lambda: 0, groups=lambda: 0, waiting=lambda: 0)
    metrics.request("200", "default").inc()
    metrics.inquiry("prefill", "busy").inc()
    metrics.reforwards.labels(reason="lost").inc()
    metrics.early_terminations.labels(reason="late", scenario="default").inc()
    metrics.of("default").ttft.observe(1)

    for metric in registry.collect():
        name = f"{metric.name}_total" if metric.type == "counter" else metric.name
        for sample in metric.samples:
            assert sample.labels.keys() - {"le"} == section("Gateway")[name][1], name


def test_the_gen_ai_instruments(otlp_receiver, monkeypatch):  # noqa: F811
    for variable, value in otlp_receiver.environment.items():
        monkeypatch.setenv(variable, value)
    ours = configure("tidewheel-test", register=False)
    instruments = GenAiInstruments.of(ours.meter("test"))
    for name in GenAiInstruments.__slots__:
        getattr(instruments, name).record(1)
    ours.shutdown()

    documented = re.findall(r"^\| `(gen_ai\.[a-z_.]+)` \| (\S+) \|", PAGE, re.MULTILINE)
    assert set(documented) == {(metric.name, metric.unit) for metric in otlp_receiver.metrics}


@pytest.mark.parametrize("title", ["Operator", "Gateway", "Prefill and decode"])
def test_no_label_names_an_object(title):
    for name, (_, labels) in section(title).items():
        assert not labels & {"namespace", "pod", "request_id", "uid"}, name
