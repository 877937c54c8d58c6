"""One container of a pod: start, probe, stop and restart its process, and keep its record true."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tidewheel.api.manifest import Manifest
from tidewheel.local.events import EventRecorder, Severity
from tidewheel.local.node import probes
from tidewheel.local.node.backoff import BackOff, BackOffRule
from tidewheel.local.node.environment import PodPlace, Sources, Unresolvable, container_command
from tidewheel.local.node.logs import ContainerLog, tail
from tidewheel.local.node.paths import PodPaths
from tidewheel.local.node.process import CannotStart, Command, Process
from tidewheel.local.node.status import ContainerRecord, Running, Terminated, Waiting
from tidewheel.local.nodes import NodesFile
from tidewheel.local.quantities import whole

logger = logging.getLogger(__name__)

_MOST_TERMINATION_MESSAGE = 4096
_LONGEST_HOOK_SECONDS = 24 * 3600.0
#: A container whose configuration does not resolve is tried again when something changes, or after this.
_CONFIG_RETRY_SECONDS = 5.0
#: After a preStop hook that used up the grace the process still gets this long.
_LEAST_GRACE_SECONDS = 2.0


@dataclass(slots=True, kw_only=True)
class PodContext:
    """What the containers of one pod share."""

    pod: Manifest
    place: PodPlace
    paths: PodPaths
    volumes: Mapping[str, Path]
    kubeconfig: Path | None
    sources: Sources
    nodes_file: NodesFile
    recorder: EventRecorder
    back_off: BackOffRule
    on_change: Callable[[], None]


@dataclass(frozen=True, slots=True)
class _Kill:
    """Why a running process has to end."""

    message: str
    grace_seconds: float
    reason: str = "Error"


def _log_failure(probing: asyncio.Task[None]) -> None:
    if not probing.cancelled() and (error := probing.exception()) is not None:
        logger.error("The %s failed; the container goes on without them", probing.get_name(), exc_info=error)


class Container:
    """Runs one container until its restart rule lets it rest or it is told to stop."""

    def __init__(
        self,
        manifest: Manifest,
        record: ContainerRecord,
        context: PodContext,
        *,
        restarts_after: Callable[[int], bool],
    ) -> None:
        self.manifest = manifest
        self.record = record
        self.started = asyncio.Event()
        self.log: ContainerLog | None = None
        self.previous_log: ContainerLog | None = None
        limit = ((manifest.get("resources") or {}).get("limits") or {}).get("memory")
        self.memory_limit = whole("memory", limit) if limit is not None else None
        self._context = context
        self._restarts_after = restarts_after
        self._back_off = BackOff(context.back_off)
        self._stop_grace: float | None = None
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()
        self._configuration_changed = asyncio.Event()
        self._process: Process | None = None
        self._command: Command | None = None
        self._kill: asyncio.Future[_Kill] | None = None

    @property
    def address(self) -> str:
        """The pod's address."""
        return self._context.place.pod_ip

    @property
    def pid(self) -> int | None:
        """The process, None while none runs."""
        return self._process.pid if self._process is not None else None

    async def run(self) -> None:
        """Runs the container, again and again if its rule says so."""
        while not self._stopping.is_set():
            command = await self._resolve()
            if command is None:
                return
            began = time.monotonic()
            ended = await self._run_once(command)
            self.record.state = ended
            self._changed(ready=False, started=False)
            if self._stopping.is_set() or not self._restarts_after(ended.exit_code):
                return
            await self._wait_to_restart(self._back_off.after(time.monotonic() - began))
            self.record.last = ended
            self.record.restarts += 1

    def request_stop(self, grace_seconds: float) -> None:
        """Ends the container for good: preStop, SIGTERM, SIGKILL after the grace; 0 means at once."""
        self._stop_grace = grace_seconds
        self._stopping.set()
        if grace_seconds <= 0:
            self._hurry.set()
        self._request_kill(_Kill(f"Stopping container {self.record.name}", grace_seconds))

    def kill_for_memory(self, used_bytes: int) -> None:
        """Ends the run because it holds more memory than its limit."""
        self._request_kill(
            _Kill(f"Memory of {used_bytes} bytes exceeds the limit of {self.memory_limit}", 0.0, "OOMKilled")
        )

    def kill_now(self) -> None:
        """SIGKILL, without waiting for anything; for an agent that gives up."""
        if self._process is not None:
            self._process.kill()

    def configuration_changed(self) -> None:
        """A ConfigMap or Secret the pod names has changed: what could not be resolved may be now."""
        self._configuration_changed.set()

    async def execute(self, argv: list[str]) -> tuple[int, str]:
        """Runs a command beside the container's process, in its environment."""
        if self._command is None:
            return 1, "the container does not run"
        output: list[bytes] = []
        command = Command(argv=tuple(argv), env=self._command.env, directory=self._command.directory)
        try:
            process = Process(command, lambda _, chunk: output.append(chunk))
        except CannotStart as error:
            return 126, str(error)
        try:
            code = await process.wait()
        finally:
            process.kill()
        return code, b"".join(output).decode(errors="replace")

    async def _resolve(self) -> Command | None:
        """The command, as soon as all that it refers to is there; None when the container is stopped first."""
        context, image = self._context, self.record.image
        pulls = 0
        while not self._stopping.is_set():
            self._configuration_changed.clear()
            row = context.nodes_file.image(image)
            if row.absent:
                pulls += 1
                message = f'Failed to pull image "{image}": not found'
                self._wait_for("ErrImagePull" if pulls % 2 else "ImagePullBackOff", message)
                self._event("Warning", "Failed", message)
                await self._pause(max(self._back_off.after(0.0), min(1.0, context.back_off.first_seconds)))
                continue
            try:
                return container_command(
                    context.pod,
                    self.manifest,
                    place=context.place,
                    paths=context.paths,
                    image=row,
                    sources=context.sources,
                    volumes=context.volumes,
                    kubeconfig=context.kubeconfig,
                )
            except Unresolvable as error:
                self._wait_for(error.reason, str(error))
                self._event("Warning", "Failed", f"Error: {error}")
                await self._pause(_CONFIG_RETRY_SECONDS, or_until=self._configuration_changed)
        return None

    async def _run_once(self, command: Command) -> Terminated:
        record, paths = self.record, self._context.paths
        identity = f"tidewheel://{uuid.uuid4().hex}"
        termination_log = paths.termination_log(record.name)
        termination_log.write_bytes(b"")
        self._open_log()
        log = self.log
        began = datetime.now(UTC)
        try:
            process = Process(command, log.write if log is not None else lambda *_: None)
        except CannotStart as error:
            if log is not None:
                log.close()
            self._event("Warning", "Failed", f"Error: {error}")
            return Terminated(
                exit_code=128, reason="StartError", message=str(error), started_at=began, finished_at=began
            )
        self._process, self._command = process, command
        self._kill = asyncio.get_running_loop().create_future()
        record.container_id = identity
        record.state = Running(began)
        for reason, message in (
            ("Pulled", f'Container image "{record.image}" stands for a command of this machine'),
            ("Created", f"Container created: {record.name}"),
            ("Started", f"Container started: {record.name}"),
        ):
            self._event("Normal", reason, message)
        if self._stopping.is_set():
            self.request_stop(self._stop_grace or 0.0)
        watching = asyncio.create_task(self._watch_probes(), name=f"probes of {record.name}")
        watching.add_done_callback(_log_failure)
        exiting = asyncio.create_task(process.wait(), name=f"exit of {record.name}")
        kill: _Kill | None = None
        try:
            either: set[asyncio.Future[Any]] = {exiting, self._kill}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not exiting.done():
                kill = self._kill.result()
                await self._end(process, exiting, kill, watching)
            code = await exiting
        finally:
            watching.cancel()
            process.kill()
            self._process = self._command = self._kill = None
            if log is not None:
                log.close()
        return Terminated(
            exit_code=code,
            reason=kill.reason
            if kill is not None and kill.reason == "OOMKilled"
            else "Error"
            if code
            else "Completed",
            message=self._termination_message(code, termination_log),
            started_at=began,
            finished_at=datetime.now(UTC),
            container_id=identity,
            signal=code - 128 if 128 < code < 192 else 0,
        )

    async def _end(
        self, process: Process, exiting: asyncio.Task[int], kill: _Kill, watching: asyncio.Task[None]
    ) -> None:
        self._event("Normal", "Killing", kill.message)
        deadline = time.monotonic() + kill.grace_seconds
        hurrying = asyncio.create_task(self._hurry.wait())
        try:
            hook = (self.manifest.get("lifecycle") or {}).get("preStop")
            if hook is not None and kill.grace_seconds > 0:
                running = asyncio.create_task(probes.attempt(hook, self, timeout_seconds=kill.grace_seconds))
                await asyncio.wait({running, exiting, hurrying}, return_when=asyncio.FIRST_COMPLETED)
                if running.done() and not running.result().succeeded:
                    self._event(
                        "Warning", "FailedPreStopHook", f"PreStopHook failed: {running.result().message}"
                    )
                running.cancel()
                deadline = max(deadline, time.monotonic() + _LEAST_GRACE_SECONDS)
            watching.cancel()
            if kill.grace_seconds > 0 and not self._hurry.is_set():
                process.signal(signal.SIGTERM)
                left = max(deadline - time.monotonic(), 0.0)
                await asyncio.wait({exiting, hurrying}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if not exiting.done():
                process.kill()
        finally:
            hurrying.cancel()

    async def _watch_probes(self) -> None:
        if (hook := (self.manifest.get("lifecycle") or {}).get("postStart")) is not None:
            outcome = await probes.attempt(hook, self, timeout_seconds=_LONGEST_HOOK_SECONDS)
            if not outcome.succeeded:
                self._event("Warning", "FailedPostStartHook", f"PostStartHook failed: {outcome.message}")
                self._request_kill(_Kill("FailedPostStartHook", self._grace()))
                return
        startup, liveness, readiness = (
            probes.ProbeSpec.of(self.manifest, kind)
            for kind in ("startupProbe", "livenessProbe", "readinessProbe")
        )
        if startup is not None:
            self._changed(ready=False, started=False)
            await probes.watch(
                startup,
                self,
                on_verdict=self._fatal(startup),
                on_failure=self._unhealthy(startup),
                until_first_success=True,
            )
        self._changed(ready=readiness is None, started=True)
        self.started.set()
        async with asyncio.TaskGroup() as group:
            if liveness is not None:
                group.create_task(
                    probes.watch(
                        liveness, self, on_verdict=self._fatal(liveness), on_failure=self._unhealthy(liveness)
                    )
                )
            if readiness is not None:
                group.create_task(
                    probes.watch(
                        readiness, self, on_verdict=self._readiness, on_failure=self._unhealthy(readiness)
                    )
                )

    async def _readiness(self, succeeded: bool, _: str) -> None:
        self._changed(ready=succeeded, started=True)

    def _fatal(self, spec: probes.ProbeSpec) -> probes.Verdict:
        async def verdict(succeeded: bool, _: str) -> None:
            if not succeeded:
                grace = spec.grace_seconds if spec.grace_seconds is not None else self._grace()
                name = self.record.name
                self._request_kill(
                    _Kill(f"Container {name} failed {spec.kind.lower()} probe, will be restarted", grace)
                )

        return verdict

    def _unhealthy(self, spec: probes.ProbeSpec) -> Callable[[str], None]:
        return lambda message: self._event("Warning", "Unhealthy", f"{spec.kind} probe failed: {message}")

    async def _wait_to_restart(self, seconds: float) -> None:
        if seconds <= 0:
            return
        name, metadata = self.record.name, self._context.pod["metadata"]
        pod = f"{metadata['name']}_{metadata['namespace']}({metadata['uid']})"
        ended = self.record.state
        self.record.last = ended if isinstance(ended, Terminated) else None
        self._wait_for(
            "CrashLoopBackOff", f"back-off {seconds:g}s restarting failed container={name} pod={pod}"
        )
        self._event("Warning", "BackOff", f"Back-off restarting failed container {name} in pod {pod}")
        await self._pause(seconds)

    async def _pause(self, seconds: float, *, or_until: asyncio.Event | None = None) -> None:
        events = [self._stopping] + ([or_until] if or_until is not None else [])
        waits = [asyncio.create_task(event.wait()) for event in events]
        try:
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    def _request_kill(self, kill: _Kill) -> None:
        if self._kill is not None and not self._kill.done():
            self._kill.set_result(kill)

    def _open_log(self) -> None:
        paths, run = self._context.paths, self.record.restarts
        if self.previous_log is not None:
            self.previous_log.remove()
        self.previous_log = self.log
        self.log = ContainerLog(paths.log(self.record.name, run))

    def _termination_message(self, code: int, written: Path) -> str:
        message = ""
        with contextlib.suppress(OSError):
            message = written.read_bytes()[:_MOST_TERMINATION_MESSAGE].decode(errors="replace")
        policy = self.manifest.get("terminationMessagePolicy")
        if not message and code and policy == "FallbackToLogsOnError" and self.log is not None:
            message = tail(self.log.path)
        return message.strip()

    def _grace(self) -> float:
        return float(self._context.pod["spec"].get("terminationGracePeriodSeconds", 30))

    def _wait_for(self, reason: str, message: str) -> None:
        self.record.state = Waiting(reason, message)
        self._changed(ready=False, started=False)

    def _changed(self, *, ready: bool, started: bool) -> None:
        self.record.ready, self.record.started = ready, started
        self._context.on_change()

    def _event(self, severity: Severity, reason: str, message: str) -> None:
        kind = "initContainers" if self._is_init() else "containers"
        path = f"spec.{kind}{{{self.record.name}}}"
        self._context.recorder.event(self._context.pod, severity, reason, message, field_path=path)

    def _is_init(self) -> bool:
        names = (c["name"] for c in self._context.pod["spec"].get("initContainers") or [])
        return self.record.name in names
