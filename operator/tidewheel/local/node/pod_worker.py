"""One pod on this node from binding to removal: volumes, address, init containers, containers, end."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from tidewheel.api.manifest import CONFIG_MAPS, PODS, SECRETS, SERVICES, Manifest, Resource
from tidewheel.kube.client import Api
from tidewheel.kube.errors import ApiError, Conflict, NotFound
from tidewheel.local.events import EventRecorder
from tidewheel.local.node import volumes
from tidewheel.local.node.addresses import Addresses, AddressesExhausted
from tidewheel.local.node.admission import refusal
from tidewheel.local.node.backoff import BackOffRule
from tidewheel.local.node.container import Container, PodContext
from tidewheel.local.node.credentials import ApiAddress, PodTokens, reaches_api, write_kubeconfig
from tidewheel.local.node.environment import PodPlace, referenced
from tidewheel.local.node.paths import AgentPaths
from tidewheel.local.node.references import References
from tidewheel.local.node.reporter import StatusReporter
from tidewheel.local.node.status import (
    ContainerRecord,
    PodRecord,
    Terminated,
    Waiting,
    phase_of,
    pod_status,
    restored,
)
from tidewheel.local.nodes import NodesFile, VirtualNode

_RETRY_SECONDS = 5.0
_TOKEN_CHECK_SECONDS = 60.0
HOST_IP = "127.0.0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentServices:
    """What the pods of one agent share."""

    api: Api
    api_address: ApiAddress
    recorder: EventRecorder
    addresses: Addresses
    references: References
    paths: AgentPaths
    nodes_file: NodesFile
    back_off: BackOffRule


class PodWorker:
    """Runs one pod. `update`, `refresh`, `vanish` and `request_shut_down` may be called at any time."""

    def __init__(self, pod: Manifest, node: VirtualNode, services: AgentServices) -> None:
        self.pod = pod
        self.containers: dict[str, Container] = {}
        self._services = services
        self._paths = services.paths.pod(pod["metadata"]["uid"])
        self._record = _first_record(pod)
        self._context = PodContext(
            pod=pod,
            place=PodPlace(node=node.name, host_ip=HOST_IP, pod_ip="", allocatable=node.resources()),
            paths=self._paths,
            volumes=volumes.volume_directories(pod, paths=self._paths, agent=services.paths),
            kubeconfig=None,
            sources=services.references.of_namespace(pod["metadata"]["namespace"]),
            nodes_file=services.nodes_file,
            recorder=services.recorder,
            back_off=services.back_off,
            on_change=self._changed,
        )
        self._tokens = PodTokens(services.api, pod)
        self._reporter = StatusReporter(services.api, pod, self._status)
        self._ending = asyncio.Event()
        self._refreshing = asyncio.Event()
        self._vanished = False
        self._shutting_down = False
        self._acquired: list[Resource] = []

    @property
    def is_running(self) -> bool:
        """Whether the pod may have processes."""
        return phase_of(self._record) in ("Pending", "Running")

    def update(self, pod: Manifest) -> None:
        """Takes the pod's newest state; a deletion timestamp begins the end."""
        self.pod = self._context.pod = pod
        self._reporter.pod_changed(pod)
        self._reporter.changed()
        self._refreshing.set()
        if pod["metadata"].get("deletionTimestamp"):
            self._ending.set()

    def refresh(self) -> None:
        """A ConfigMap or Secret has changed: volumes that show it follow."""
        self._refreshing.set()

    def names(self, kind: str, name: str) -> bool:
        """Whether the pod refers to this ConfigMap or Secret."""
        config_maps, secrets = referenced(self.pod)
        return name in (config_maps if kind == "ConfigMap" else secrets)

    def vanish(self) -> None:
        """The pod is no more in the API: its processes end at once."""
        self._vanished = True
        self._ending.set()
        for container in self.containers.values():
            container.request_stop(0.0)

    def request_shut_down(self) -> None:
        """The agent stops: processes end, the pod stays bound."""
        self._shutting_down = True
        self._ending.set()

    def kill_now(self) -> None:
        """SIGKILL for everything the pod runs."""
        for container in self.containers.values():
            container.kill_now()

    async def run(self, *, shut_down_grace_seconds: float = 3.0) -> None:
        """Runs the pod until it is gone from the API, or the agent stops."""
        reporting = asyncio.create_task(self._reporter.run(), name="status")
        try:
            if (self.pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed"):
                await self._live(shut_down_grace_seconds)
            await self._ending.wait()
            if not self._vanished:
                await self._reporter.flush()
            if not self._vanished and not self._shutting_down:
                await self._remove()
        finally:
            reporting.cancel()
            self.kill_now()
            self._let_go()
            if not self._shutting_down:
                shutil.rmtree(self._paths.root, ignore_errors=True)

    async def _live(self, shut_down_grace_seconds: float) -> None:
        living = asyncio.create_task(self._run_containers(), name="containers")
        refreshing = asyncio.create_task(self._keep_volumes_fresh(), name="volumes")
        ending = asyncio.create_task(self._ending.wait())
        deadline = self.pod["spec"].get("activeDeadlineSeconds")
        try:
            await asyncio.wait({living, ending}, timeout=deadline, return_when=asyncio.FIRST_COMPLETED)
            if not living.done():
                if not ending.done():
                    message = "Pod was active on the node longer than the specified deadline"
                    self._record.failure = ("DeadlineExceeded", message)
                    self._ending.set()
                elif self._shutting_down and self._record.restart_policy != "Always":
                    # Cut short is not done: a Job must not count it as a success.
                    message = "Pod was terminated because the agent of its node stopped"
                    self._record.failure = ("NodeShutdown", message)
                await self._stop_containers(living, shut_down_grace_seconds)
            await living
        finally:
            for task in (living, refreshing, ending):
                task.cancel()
            self._record.ended = not self._shutting_down
            self._changed()
            stands = not (
                self._vanished or self._shutting_down or self.pod["metadata"].get("deletionTimestamp")
            )
            if self._record.failure is not None and stands:
                self._ending.clear()

    async def _stop_containers(self, living: asyncio.Task[None], shut_down_grace_seconds: float) -> None:
        """Asks every container to stop, and asks again when the pod's grace is shortened meanwhile."""
        asked: float | None = None
        while not living.done():
            grace = self._grace_seconds()
            if self._shutting_down:
                grace = min(grace, shut_down_grace_seconds)
            if asked is None or grace < asked:
                asked = grace
                for container in self._main_containers():
                    container.request_stop(grace)
            await asyncio.wait({living}, timeout=0.2)

    def _grace_seconds(self) -> float:
        if self._vanished:
            return 0.0
        metadata, spec = self.pod["metadata"], self.pod["spec"]
        default = spec.get("terminationGracePeriodSeconds", 30)
        return float(metadata.get("deletionGracePeriodSeconds", default))

    async def _run_containers(self) -> None:
        why = refusal(self.pod)
        if why is not None:
            self._record.failure = ("UnsupportedPod", why)
            self._services.recorder.event(self.pod, "Warning", "FailedAdmission", why)
            return
        self._record.started_at = datetime.now(UTC)
        await self._acquire_references()
        if not await self._prepare():
            return
        await self._reporter.flush()
        stays: list[tuple[Container, asyncio.Task[None]]] = []
        try:
            if await self._run_init_containers(stays):
                self._record.initialized = True
                self._changed()
                containers = [
                    self._container(manifest, self._record.main[manifest["name"]])
                    for manifest in self.pod["spec"]["containers"]
                ]
                async with asyncio.TaskGroup() as group:
                    for container in containers:
                        group.create_task(container.run(), name=f"container {container.record.name}")
        finally:
            for container, task in reversed(stays):
                container.request_stop(self._grace_seconds())
                await asyncio.wait({task})

    async def _run_init_containers(self, stays: list[tuple[Container, asyncio.Task[None]]]) -> bool:
        for manifest in self.pod["spec"].get("initContainers") or []:
            if self._ending.is_set():
                return False
            container = self._container(manifest, self._record.init[manifest["name"]])
            if manifest["name"] in self._record.sidecars:
                task = asyncio.create_task(container.run(), name=f"sidecar {manifest['name']}")
                stays.append((container, task))
                starting = asyncio.create_task(container.started.wait())
                await asyncio.wait({starting, task}, return_when=asyncio.FIRST_COMPLETED)
                starting.cancel()
                if not container.started.is_set():
                    return False
                continue
            await container.run()
            ended = container.record.state
            if not isinstance(ended, Terminated) or ended.exit_code != 0:
                return False
            container.record.ready = True
        return not self._ending.is_set()

    def _container(self, manifest: Manifest, record: ContainerRecord) -> Container:
        container = Container(manifest, record, self._context, restarts_after=self._restart_rule(record.name))
        self.containers[record.name] = container
        if self._ending.is_set():
            container.request_stop(self._grace_seconds())
        return container

    def _restart_rule(self, name: str) -> Callable[[int], bool]:
        """Whether a container of this name runs again after it ended with a code."""
        policy = self._record.restart_policy
        if name in self._record.sidecars:
            return lambda _: True
        if name in self._record.init:
            return lambda code: code != 0 and policy != "Never"
        return lambda code: policy == "Always" or (policy == "OnFailure" and code != 0)

    async def _prepare(self) -> bool:
        """Volumes, then the address; False when the pod's end comes first."""
        while not self._ending.is_set():
            try:
                self._paths.create()
                await self._mount()
                if not self._record.pod_ip:
                    self._set_address(self._services.addresses.take())
                    self._make_sub_paths()
                return True
            except volumes.CannotMount as error:
                self._services.recorder.event(self.pod, "Warning", "FailedMount", str(error))
            except AddressesExhausted as error:
                self._services.recorder.event(self.pod, "Warning", "FailedCreatePodSandBox", str(error))
            await self._pause(_RETRY_SECONDS)
        return False

    async def _mount(self) -> None:
        try:
            await self._tokens.refresh()
        except ApiError as error:
            raise volumes.CannotMount(f"cannot get a token for the pod's service account: {error}") from error
        volumes.mount(
            self.pod,
            self._context.volumes,
            place=self._context.place,
            sources=self._context.sources,
            token=self._tokens.get,
        )
        if reaches_api(self.pod):
            write_kubeconfig(
                self.pod,
                api=self._services.api_address,
                token=self._tokens.get(),
                path=self._paths.kubeconfig,
            )
            self._context.kubeconfig = self._paths.kubeconfig

    def _set_address(self, address: str) -> None:
        place = self._context.place
        self._record.pod_ip = address
        self._context.place = PodPlace(
            node=place.node, host_ip=place.host_ip, pod_ip=address, allocatable=place.allocatable
        )
        self._changed()

    def _make_sub_paths(self) -> None:
        for manifest in _all_containers(self.pod):
            for mount in manifest.get("volumeMounts") or []:
                if mount.get("subPath"):
                    place = self._context.volumes[mount["name"]] / mount["subPath"]
                    if not place.exists():
                        place.mkdir(parents=True)

    async def _keep_volumes_fresh(self) -> None:
        while True:
            await self._pause(_TOKEN_CHECK_SECONDS)
            for container in self.containers.values():
                container.configuration_changed()
            if not self._record.pod_ip:
                continue
            try:
                await self._mount()
            except volumes.CannotMount as error:
                # What is mounted stays as it was.
                self._services.recorder.event(self.pod, "Warning", "FailedMount", str(error))

    async def _pause(self, seconds: float) -> None:
        """Until a reference changes, the pod ends, or the time is over."""
        waits = [asyncio.create_task(event.wait()) for event in (self._refreshing, self._ending)]
        try:
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            self._refreshing.clear()

    async def _acquire_references(self) -> None:
        namespace = self.pod["metadata"]["namespace"]
        config_maps, secrets = referenced(self.pod)
        links = self.pod["spec"].get("enableServiceLinks", True)
        for resource, used in ((CONFIG_MAPS, config_maps), (SECRETS, secrets), (SERVICES, links)):
            if used:
                self._acquired.append(resource)
                await self._services.references.acquire(resource, namespace)

    async def _remove(self) -> None:
        """The last deletion: from here on the object is gone."""
        metadata = self.pod["metadata"]
        while not self._vanished:
            try:
                await self._services.api.delete(
                    PODS, metadata["name"], metadata["namespace"], uid=metadata["uid"], grace_seconds=0
                )
            except (NotFound, Conflict):
                return
            except ApiError:
                await asyncio.sleep(0.5)
            else:
                return

    def _let_go(self) -> None:
        for resource in self._acquired:
            self._services.references.release(resource, self.pod["metadata"]["namespace"])
        self._acquired.clear()
        if self._record.pod_ip:
            self._services.addresses.release(self._record.pod_ip)

    def _main_containers(self) -> list[Container]:
        return [c for name, c in self.containers.items() if name not in self._record.sidecars]

    def _changed(self) -> None:
        self._reporter.changed()

    def _status(self, before: list[Manifest]) -> Manifest:
        return pod_status(self._record, before, now=datetime.now(UTC))


def _all_containers(pod: Manifest) -> Iterator[Manifest]:
    yield from pod["spec"].get("initContainers") or []
    yield from pod["spec"]["containers"]


def _first_record(pod: Manifest) -> PodRecord:
    spec, status = pod["spec"], pod.get("status") or {}
    inits = spec.get("initContainers") or []
    waiting = Waiting("PodInitializing" if inits else "ContainerCreating")
    return PodRecord(
        restart_policy=spec.get("restartPolicy", "Always"),
        init={c["name"]: restored(status.get("initContainerStatuses") or [], c, waiting) for c in inits},
        main={
            c["name"]: restored(status.get("containerStatuses") or [], c, waiting) for c in spec["containers"]
        },
        sidecars=frozenset(c["name"] for c in inits if c.get("restartPolicy") == "Always"),
        host_ip=HOST_IP,
        gates=tuple(gate["conditionType"] for gate in spec.get("readinessGates") or []),
    )
