"""The controllers' Prometheus metrics, under the names that controller-runtime's dashboards know.

No label holds an object's name; every label has few values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

_RECONCILE_BUCKETS = (
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.15,
    0.2,
    0.25,
    0.3,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
)
_WORK_BUCKETS = (1e-4, 1e-3, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
# A large fleet applied at once waits for minutes: no bucket there is wider than half of its lower end.
_WAIT_BUCKETS = (
    *(1e-4, 1e-3, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 75.0, 90.0, 105.0, 120.0),
    *(150.0, 180.0, 210.0, 240.0, 300.0, 450.0, 600.0),
)


class ControllerMetrics:
    """All metrics of one operator process; also the observer of its API client."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.registry = registry
        controller = ("controller",)
        self.reconciles = Counter(
            "controller_runtime_reconcile_total",
            "Reconciles per controller and result: success, requeue, requeue_after or error.",
            ("controller", "result"),
            registry=registry,
        )
        self.reconcile_errors = Counter(
            "controller_runtime_reconcile_errors_total",
            "Reconciles that ended with an error and will be repeated.",
            controller,
            registry=registry,
        )
        self.reconcile_seconds = Histogram(
            "controller_runtime_reconcile_time_seconds",
            "Seconds per reconcile.",
            controller,
            buckets=_RECONCILE_BUCKETS,
            registry=registry,
        )
        self.workers = Gauge(
            "controller_runtime_max_concurrent_reconciles",
            "Reconciles that may run at a time.",
            controller,
            registry=registry,
        )
        self.active = Gauge(
            "controller_runtime_active_workers", "Reconciles that run now.", controller, registry=registry
        )
        queue = ("name",)
        self.queue_depth = Gauge("workqueue_depth", "Keys that wait.", queue, registry=registry)
        self.queue_adds = Counter("workqueue_adds_total", "Keys added.", queue, registry=registry)
        self.queue_retries = Counter(
            "workqueue_retries_total", "Keys added again after an error.", queue, registry=registry
        )
        self.queue_wait = Histogram(
            "workqueue_queue_duration_seconds",
            "Seconds a key waited for a worker.",
            queue,
            buckets=_WAIT_BUCKETS,
            registry=registry,
        )
        self.queue_work = Histogram(
            "workqueue_work_duration_seconds",
            "Seconds a key was worked on.",
            queue,
            buckets=_WORK_BUCKETS,
            registry=registry,
        )
        self.leader = Gauge(
            "leader_election_master_status",
            "1 on the replica that acts, 0 on those that stand by.",
            queue,
            registry=registry,
        )
        self._busy: dict[str, Callable[[], list[float]]] = {}
        registry.register(_BusyCollector(self._busy))
        self.requests = Counter(
            "rest_client_requests_total",
            "Requests to the API server by method and HTTP status; code 0 is no answer.",
            ("code", "method"),
            registry=registry,
        )
        self.events_dropped = Counter(
            "tidewheel_events_dropped_total",
            "Kubernetes Events that were not posted because there were too many, or the server refused them.",
            registry=registry,
        )
        self.objects = Gauge(
            "tidewheel_cached_objects", "Objects in the operator's cache.", ("kind",), registry=registry
        )
        self.watch_relists = Counter(
            "tidewheel_watch_relists_total",
            "Times a watch lost its place and listed everything anew.",
            ("kind",),
            registry=registry,
        )

    def request_answered(self, method: str, status: int, seconds: float) -> None:  # noqa: ARG002
        """See `tidewheel.kube.client.RequestObserver`."""
        self.requests.labels(code=str(status), method=method).inc()

    def queue(self, name: str, busy_seconds: Callable[[], list[float]]) -> QueueMetrics:
        """The observer of one work queue; `busy_seconds` is asked at each scrape."""
        self._busy[name] = busy_seconds
        return QueueMetrics(self, name)


class QueueMetrics:
    """See `tidewheel.controllers.queue.QueueObserver`."""

    def __init__(self, metrics: ControllerMetrics, name: str) -> None:
        self._depth = metrics.queue_depth.labels(name)
        self._adds = metrics.queue_adds.labels(name)
        self._retries = metrics.queue_retries.labels(name)
        self._wait = metrics.queue_wait.labels(name)
        self._work = metrics.queue_work.labels(name)

    def added(self, depth: int) -> None:
        """A key was added."""
        self._adds.inc()
        self._depth.set(depth)

    def started(self, depth: int, waited_seconds: float) -> None:
        """A key is worked on."""
        self._depth.set(depth)
        self._wait.observe(waited_seconds)

    def finished(self, worked_seconds: float) -> None:
        """The work on a key is done."""
        self._work.observe(worked_seconds)

    def retried(self) -> None:
        """A key comes back after a failure."""
        self._retries.inc()


class _BusyCollector(Collector):
    """What can only be told at the moment of a scrape: how long the running work has taken so far."""

    def __init__(self, queues: Mapping[str, Callable[[], list[float]]]) -> None:
        self._queues = queues

    def collect(self) -> Iterable[Metric]:
        unfinished = GaugeMetricFamily(
            "workqueue_unfinished_work_seconds", "Seconds of work that runs now, in sum.", labels=("name",)
        )
        longest = GaugeMetricFamily(
            "workqueue_longest_running_processor_seconds",
            "Seconds of the longest work that runs now.",
            labels=("name",),
        )
        for name, busy_seconds in self._queues.items():
            busy = busy_seconds()
            unfinished.add_metric((name,), sum(busy))
            longest.add_metric((name,), max(busy, default=0.0))
        return (unfinished, longest)
