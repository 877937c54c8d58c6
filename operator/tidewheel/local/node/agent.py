"""The node agent: registers its nodes, gives every pod bound to them a worker, and takes all down again."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tidewheel.api.manifest import PODS, Manifest
from tidewheel.kube.client import Api, HttpApi
from tidewheel.kube.connection import connect
from tidewheel.local.events import EventRecorder
from tidewheel.local.informer import Informer
from tidewheel.local.node.addresses import Addresses
from tidewheel.local.node.backoff import BackOffRule
from tidewheel.local.node.certificate import self_signed
from tidewheel.local.node.container import Container
from tidewheel.local.node.credentials import ApiAddress
from tidewheel.local.node.heartbeat import Heartbeat
from tidewheel.local.node.log_server import LogServer
from tidewheel.local.node.memory import watch_memory
from tidewheel.local.node.paths import AgentPaths
from tidewheel.local.node.pod_worker import HOST_IP, AgentServices, PodWorker
from tidewheel.local.node.process import adopting_orphans, kill_marked
from tidewheel.local.node.references import References
from tidewheel.local.node.stand_in import StandIn
from tidewheel.local.nodes import NodesFile, VirtualNode, load_nodes

logger = logging.getLogger(__name__)

DEFAULT_DATA = Path(".tidewheel/node")


class DataDirectoryInUse(Exception):
    """Another agent runs with the same data directory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentOptions:
    """How an agent behaves."""

    nodes_file: NodesFile
    data: Path
    back_off: BackOffRule = field(default_factory=BackOffRule)
    #: Pods become ready at once without processes.
    stand_in: bool = False
    #: On a clean stop the Node objects are deleted instead of marked NotReady.
    delete_nodes: bool = False
    #: How long processes may take to end when the agent stops, at most.
    stop_grace_seconds: float = 3.0


async def run_nodes(
    *,
    kubeconfig: Path | None = None,
    nodes: Path | None = None,
    data: Path = DEFAULT_DATA,
    stand_in: bool = False,
    delete_nodes: bool = False,
    back_off: BackOffRule | None = None,
    on_ready: Callable[[], None] = lambda: None,
) -> None:
    """Runs a node agent against the cluster of `kubeconfig` until cancelled; `tidewheel node` is this.

    Raises:
        NoConnection: there is no cluster configuration.
        NodesFileError: the nodes file is wrong.
        DataDirectoryInUse: another agent has `data`.
    """
    options = AgentOptions(
        nodes_file=load_nodes(nodes),
        data=data,
        stand_in=stand_in,
        delete_nodes=delete_nodes,
        back_off=back_off or BackOffRule(),
    )
    async with HttpApi(connect(kubeconfig), user_agent="tidewheel-node") as api:
        await NodeAgent(api, ApiAddress.of(kubeconfig), options).run(on_ready)


class NodeAgent:
    """Virtual nodes of this machine."""

    def __init__(self, api: Api, api_address: ApiAddress, options: AgentOptions) -> None:
        self._options = options
        self._nodes = {node.name: node for node in options.nodes_file.nodes}
        self._api = api
        self._recorder = EventRecorder(api, component="tidewheel-node", host=next(iter(self._nodes)))
        self._references = References(api, self._reference_changed)
        self._paths = AgentPaths(options.data.absolute())
        self._services = AgentServices(
            api=api,
            api_address=api_address,
            recorder=self._recorder,
            addresses=Addresses(),
            references=self._references,
            paths=self._paths,
            nodes_file=options.nodes_file,
            back_off=options.back_off,
        )
        self._workers: dict[str, tuple[PodWorker, asyncio.Task[None]]] = {}
        self._stand_in = StandIn(api) if options.stand_in else None
        self._stopping = False

    async def run(self, on_ready: Callable[[], None] = lambda: None) -> None:
        """Runs until cancelled, then ends its pods' processes and withdraws its nodes.

        Raises:
            DataDirectoryInUse: another agent has the same data directory.
        """
        with _locked(self._paths.root), adopting_orphans():
            self._clean_up_after_crash()
            logs = LogServer(self._find_container, tls=self_signed(HOST_IP, self._paths.root))
            endpoint = await logs.start()
            beats = [
                Heartbeat(self._api, node, log_endpoint=endpoint, host_ip=HOST_IP)
                for node in self._nodes.values()
            ]
            try:
                await asyncio.gather(*(beat.register() for beat in beats))
                async with self._background(beats) as failed:
                    on_ready()
                    await failed
            finally:
                self._stopping = True
                await self._stop_pods()
                self._references.close()
                async with asyncio.TaskGroup() as group:
                    for beat in beats:
                        group.create_task(beat.withdraw(delete=self._options.delete_nodes))
                await logs.stop()

    @contextlib.asynccontextmanager
    async def _background(self, beats: list[Heartbeat]) -> AsyncIterator[asyncio.Future[None]]:
        """The agent's standing tasks; the future fails with the first of them that fails."""
        pods = Informer(self._api, PODS, field_selector=self._selector())
        pods.subscribe(self._pod_changed)
        tasks = [
            asyncio.create_task(pods.run(), name="pods"),
            asyncio.create_task(self._recorder.run(), name="events"),
            asyncio.create_task(watch_memory(self._containers), name="memory"),
            *(asyncio.create_task(beat.run(), name="heartbeat") for beat in beats),
        ]
        if self._stand_in is not None:
            tasks.append(asyncio.create_task(self._stand_in.run(), name="stand-in"))
        failed = asyncio.gather(*tasks)
        try:
            yield asyncio.ensure_future(_drop_result(failed))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _selector(self) -> str:
        # One watch for several nodes costs the server less than one for each.
        return f"spec.nodeName={next(iter(self._nodes))}" if len(self._nodes) == 1 else "spec.nodeName!="

    def _pod_changed(self, before: Manifest | None, after: Manifest | None) -> None:
        pod = after or before
        if pod is None or self._stopping:
            return
        node = self._nodes.get(pod["spec"].get("nodeName", ""))
        if node is None:
            return
        if self._stand_in is not None:
            if after is None:
                self._stand_in.pod_gone(pod)
            else:
                self._stand_in.pod_changed(after)
        elif after is None:
            if (known := self._workers.get(pod["metadata"]["uid"])) is not None:
                known[0].vanish()
        else:
            self._work_on(after, node)

    def _work_on(self, pod: Manifest, node: VirtualNode) -> None:
        uid = pod["metadata"]["uid"]
        if (known := self._workers.get(uid)) is not None:
            known[0].update(pod)
            return
        worker = PodWorker(pod, node, self._services)
        if pod["metadata"].get("deletionTimestamp"):
            worker.update(pod)
        task = asyncio.create_task(
            worker.run(shut_down_grace_seconds=self._options.stop_grace_seconds),
            name=f"pod {pod['metadata']['namespace']}/{pod['metadata']['name']}",
        )
        self._workers[uid] = (worker, task)
        task.add_done_callback(lambda done: self._worker_ended(uid, done))

    def _worker_ended(self, uid: str, task: asyncio.Task[None]) -> None:
        self._workers.pop(uid, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            # A fault of the agent itself: its next event gives the pod a new worker.
            logger.error("The worker of %s failed", task.get_name(), exc_info=error)

    def _reference_changed(self, kind: str, namespace: str, name: str) -> None:
        for worker, _ in self._workers.values():
            if worker.pod["metadata"]["namespace"] == namespace and worker.names(kind, name):
                worker.refresh()

    def _containers(self) -> Iterator[Container]:
        for worker, _ in list(self._workers.values()):
            yield from worker.containers.values()

    def _find_container(self, namespace: str, pod: str, name: str) -> Container | None:
        for worker, _ in self._workers.values():
            metadata = worker.pod["metadata"]
            if (metadata["namespace"], metadata["name"]) == (namespace, pod):
                return worker.containers.get(name)
        return None

    async def _stop_pods(self) -> None:
        tasks = [task for _, task in self._workers.values()]
        for worker, _ in list(self._workers.values()):
            worker.request_shut_down()
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=self._options.stop_grace_seconds + 5.0)
            for task in late:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _clean_up_after_crash(self) -> None:
        """Kills what a former agent of this directory left running, and forgets its pods' directories."""
        self._paths.pods.mkdir(parents=True, exist_ok=True)
        leftovers = list(self._paths.pods.iterdir())
        if leftovers:
            killed = kill_marked({f"TIDEWHEEL_POD_UID={path.name}" for path in leftovers})
            if killed:
                logger.warning("Killed %d processes that a former agent left behind", killed)
            for path in leftovers:
                shutil.rmtree(path, ignore_errors=True)


async def _drop_result(future: asyncio.Future[list[None]]) -> None:
    await future


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "agent.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DataDirectoryInUse(
                f"another node agent uses {directory}; stop it, or give this one another --data"
            ) from error
        yield
