"""Prometheus metrics of the workers: vLLM's names, which dashboards and autoscalers know, and our own of the KV transfer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tidewheel_workers.serving.engine import EngineLoad
    from tidewheel_workers.serving.kv_arena import KVArena
    from tidewheel_workers.serving.kv_queue import TransferQueue

# vLLM's boundaries
_TTFT = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1,
    2.5,
    5,
    7.5,
    10,
    20,
    40,
    80,
    160,
    640,
    2560,
)
_ITL = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_REQUEST = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
_TRANSFER = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class KVMetrics:
    """One end of the KV transfer."""

    def __init__(self, registry: CollectorRegistry, *, role: str) -> None:
        labels = {"role": role}
        self.seconds = Histogram(
            "tidewheel_kv_transfer_seconds",
            "Time of one prompt's KV transfer.",
            ["role"],
            registry=registry,
            buckets=_TRANSFER,
        ).labels(**labels)
        self.exposed = Histogram(
            "tidewheel_kv_transfer_exposed_seconds",
            "The part of a transfer that came after the prompt was computed.",
            ["role"],
            registry=registry,
            buckets=_TRANSFER,
        ).labels(**labels)
        self.queue_seconds = Histogram(
            "tidewheel_kv_transfer_queue_seconds",
            "How long a transfer waited for others.",
            ["role"],
            registry=registry,
            buckets=_TRANSFER,
        ).labels(**labels)
        self.bytes = Counter(
            "tidewheel_kv_transfer_bytes", "Bytes of KV transferred.", ["role"], registry=registry
        ).labels(**labels)
        self.errors = Counter(
            "tidewheel_kv_transfer_errors",
            "KV connections dropped and transfers failed, by reason.",
            ["reason"],
            registry=registry,
        )
        self._registry = registry

    def watch_arena(self, arena: KVArena) -> None:
        """Read the buffers when someone asks for them."""
        buffers = Gauge("tidewheel_kv_buffers", "KV buffers, by state.", ["state"], registry=self._registry)
        buffers.labels("used").set_function(lambda: arena.used)
        buffers.labels("free").set_function(lambda: arena.total - arena.used)
        Gauge(
            "tidewheel_kv_buffer_bytes", "Memory that KV buffers have taken so far.", registry=self._registry
        ).set_function(lambda: arena.touched_bytes)

    def watch_queue(self, queue: TransferQueue) -> None:
        """Read the transfers when someone asks for them."""
        transfers = Gauge(
            "tidewheel_kv_transfers", "KV transfers, by state.", ["state"], registry=self._registry
        )
        transfers.labels("running").set_function(lambda: queue.running)
        transfers.labels("waiting").set_function(lambda: queue.waiting)

    def observe(self, seconds: float, size: int) -> None:
        """One transfer was done."""
        self.seconds.observe(seconds)
        self.bytes.inc(size)


class WorkerMetrics:
    """A prefill's or a decode's requests, under vLLM's names and labels."""

    def __init__(self, registry: CollectorRegistry, *, model_name: str) -> None:
        names = ("model_name", "engine")
        values = (model_name, "0")

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(name, text, names, registry=registry, buckets=buckets).labels(*values)

        def counter(name: str, text: str) -> Counter:
            return Counter(name, text, names, registry=registry).labels(*values)

        self.prompt_tokens = counter("vllm:prompt_tokens", "Prompt tokens computed.")
        self.generation_tokens = counter("vllm:generation_tokens", "Tokens generated.")
        self.ttft = histogram("vllm:time_to_first_token_seconds", "From arrival to the first token.", _TTFT)
        self.itl = histogram("vllm:inter_token_latency_seconds", "Between two tokens of a request.", _ITL)
        self.e2e = histogram("vllm:e2e_request_latency_seconds", "From arrival to the end.", _REQUEST)
        self.prefill_seconds = histogram(
            "vllm:request_prefill_time_seconds", "Computing the prompt.", _REQUEST
        )
        self.decode_seconds = histogram(
            "vllm:request_decode_time_seconds", "From the first token to the last.", _REQUEST
        )
        self._success = Counter(
            "vllm:request_success", "Requests done.", [*names, "finished_reason"], registry=registry
        )
        self._refused = Counter(
            "tidewheel_requests_refused", "Requests not taken, by reason.", ["reason"], registry=registry
        )
        self._registry = registry
        self._names, self._values = names, values

    def watch(
        self, *, running: Callable[[], float], waiting: Callable[[], float], kv_usage: Callable[[], float]
    ) -> None:
        """Read these gauges when someone asks for them."""
        for name, text, read in (
            ("vllm:num_requests_running", "Requests in the engine or holding a slot.", running),
            ("vllm:num_requests_waiting", "Requests accepted and not yet in the engine.", waiting),
            ("vllm:kv_cache_usage_perc", "Part of the KV cache in use, 0 to 1.", kv_usage),
        ):
            Gauge(name, text, self._names, registry=self._registry).labels(*self._values).set_function(read)

    def watch_engine(self, load: Callable[[], EngineLoad]) -> None:
        """Read what the engine counts when someone asks for it."""
        self._registry.register(_EngineCounts(load, self._names, self._values))

    def watch_slots(self, *, used: Callable[[], float], total: int) -> None:
        """Read the slots when someone asks for them."""
        slots = Gauge("tidewheel_slots", "Slots, by state.", ["state"], registry=self._registry)
        slots.labels("used").set_function(used)
        slots.labels("free").set_function(lambda: total - used())

    def watch_peers(self, *, verified: Callable[[], int], total: Callable[[], int]) -> None:
        """Read the group's peers when someone asks for them."""
        peers = Gauge(
            "tidewheel_peers", "Peers in the rank table, by state.", ["state"], registry=self._registry
        )
        peers.labels("verified").set_function(verified)
        peers.labels("unverified").set_function(lambda: total() - verified())

    def finished(self, reason: str) -> None:
        """A request ended well, or by abort."""
        self._success.labels(*self._values, reason).inc()

    def refused(self, reason: str) -> None:
        """A request was not taken."""
        self._refused.labels(reason).inc()


class _EngineCounts(Collector):
    """Counters that the engine keeps itself."""

    def __init__(
        self, load: Callable[[], EngineLoad], names: tuple[str, ...], values: tuple[str, ...]
    ) -> None:
        self._load = load
        self._names = names
        self._values = values

    def collect(self) -> Iterator[CounterMetricFamily]:
        """As in `Collector`."""
        load = self._load()
        for name, text, count in (
            (
                "vllm:prefix_cache_queries",
                "Prompt tokens looked up in the prefix cache.",
                load.prefix_queries,
            ),
            ("vllm:prefix_cache_hits", "Prompt tokens found in the prefix cache.", load.prefix_hits),
            (
                "vllm:num_preemptions",
                "Times that a request gave its KV back, to be computed again later.",
                load.preemptions,
            ),
        ):
            family = CounterMetricFamily(name, text, labels=self._names)
            family.add_metric(self._values, count)
            yield family
