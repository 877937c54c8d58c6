"""A pod's status as a function of what its containers did: pure, and in the kubelet's words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeAlias

from tidewheel.api.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Waiting:
    """The container does not run yet, or not now."""

    reason: str
    message: str = ""


@dataclass(frozen=True, slots=True)
class Running:
    """The container runs."""

    started_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Terminated:
    """The container ended."""

    exit_code: int
    reason: str
    message: str = ""
    started_at: datetime | None = None
    finished_at: datetime | None = None
    container_id: str = ""
    signal: int = 0


State: TypeAlias = Waiting | Running | Terminated


@dataclass(slots=True, kw_only=True)
class ContainerRecord:
    """What is known of one container across its restarts."""

    name: str
    image: str
    state: State
    last: Terminated | None = None
    restarts: int = 0
    ready: bool = False
    started: bool = False
    container_id: str = ""

    def to_status(self) -> Manifest:
        """The container's entry in the pod's status."""
        return {
            "name": self.name,
            "image": self.image,
            "imageID": f"tidewheel://{self.image}" if self.container_id else "",
            "containerID": self.container_id,
            "state": state_manifest(self.state),
            "lastState": state_manifest(self.last) if self.last else {},
            "ready": self.ready,
            "started": self.started,
            "restartCount": self.restarts,
        }


@dataclass(slots=True, kw_only=True)
class PodRecord:
    """What is known of one pod on its node."""

    restart_policy: str
    init: dict[str, ContainerRecord]
    main: dict[str, ContainerRecord]
    #: Init containers that stay beside the main ones.
    sidecars: frozenset[str] = frozenset()
    initialized: bool = False
    pod_ip: str = ""
    host_ip: str = "127.0.0.1"
    started_at: datetime | None = None
    #: Set when the pod as a whole failed: refused, evicted, over its deadline.
    failure: tuple[str, str] | None = None
    #: The pod was told to end, so nothing restarts any more.
    ended: bool = False
    gates: tuple[str, ...] = field(default=())


def phase_of(record: PodRecord) -> str:
    """The pod's phase; Succeeded and Failed are final."""
    if record.failure is not None:
        return "Failed"
    policy = "Never" if record.ended else record.restart_policy
    if not record.initialized:
        ended = [r.state for name, r in record.init.items() if name not in record.sidecars]
        failed = any(isinstance(state, Terminated) and state.exit_code != 0 for state in ended)
        return "Failed" if failed and policy == "Never" else "Pending"
    states = [container.state for container in record.main.values()]
    if all(isinstance(state, Terminated) for state in states) and policy != "Always":
        codes = [state.exit_code for state in states if isinstance(state, Terminated)]
        if not any(codes):
            return "Succeeded"
        if policy == "Never":
            return "Failed"
    if any(isinstance(r.state, Waiting) and r.last is None for r in record.main.values()):
        return "Pending"
    return "Running"


def pod_status(record: PodRecord, before: Iterable[Manifest], *, now: datetime) -> Manifest:
    """The status to write. `before` are the conditions that stand now; a transition time changes with its status."""
    phase = phase_of(record)
    standing = {condition["type"]: condition for condition in before}
    conditions = [_dated(condition, standing, now) for condition in _conditions(record, phase, standing)]
    status: Manifest = {
        "phase": phase,
        "conditions": conditions,
        "hostIP": record.host_ip,
        "hostIPs": [{"ip": record.host_ip}],
        "containerStatuses": [container.to_status() for container in record.main.values()],
    }
    if record.init:
        status["initContainerStatuses"] = [container.to_status() for container in record.init.values()]
    if record.pod_ip:
        status |= {"podIP": record.pod_ip, "podIPs": [{"ip": record.pod_ip}]}
    if record.started_at is not None:
        status["startTime"] = rfc3339(record.started_at)
    if record.failure is not None:
        status["reason"], status["message"] = record.failure
    return status


def _conditions(record: PodRecord, phase: str, standing: Mapping[str, Manifest]) -> Iterable[Manifest]:
    yield _condition("PodReadyToStartContainers", bool(record.pod_ip))
    waiting_inits = [name for name, r in record.init.items() if not _init_done(r, name in record.sidecars)]
    if record.initialized or phase == "Succeeded":
        yield _condition("Initialized", True, reason="PodCompleted" if phase == "Succeeded" else "")
    else:
        yield _condition(
            "Initialized",
            False,
            reason="ContainersNotInitialized",
            message=f"containers with incomplete status: [{' '.join(waiting_inits)}]",
        )
    unready = [container.name for container in record.main.values() if not container.ready]
    unready += [name for name in record.sidecars if not record.init[name].ready]
    reason, message = "", ""
    if phase in ("Succeeded", "Failed"):
        reason = "PodCompleted" if phase == "Succeeded" else "PodFailed"
    elif unready:
        reason = "ContainersNotReady"
        message = f"containers with unready status: [{' '.join(unready)}]"
    yield _condition("ContainersReady", not reason, reason=reason, message=message)
    shut = [gate for gate in record.gates if standing.get(gate, {}).get("status") != "True"]
    if not reason and shut:
        reason = "ReadinessGatesNotReady"
        message = "; ".join(
            f'corresponding condition of pod readiness gate "{gate}" is not True' for gate in shut
        )
    yield _condition("Ready", not reason, reason=reason, message=message)
    scheduled = {"PodScheduled"} - standing.keys()
    yield from (_condition(name, True) for name in scheduled)


def _init_done(record: ContainerRecord, is_sidecar: bool) -> bool:
    if is_sidecar:
        return record.started
    return isinstance(record.state, Terminated) and record.state.exit_code == 0


def _condition(kind: str, holds: bool, *, reason: str = "", message: str = "") -> Manifest:
    condition: Manifest = {"type": kind, "status": "True" if holds else "False"}
    # None takes away what a strategic merge would otherwise keep.
    return condition | {"reason": reason or None, "message": message or None}


def _dated(condition: Manifest, standing: Mapping[str, Manifest], now: datetime) -> Manifest:
    before = standing.get(condition["type"])
    same = before is not None and before.get("status") == condition["status"]
    since = before.get("lastTransitionTime") if same and before else None
    return condition | {"lastTransitionTime": since or rfc3339(now)}


def restored(statuses: Sequence[Manifest], container: Manifest, waiting: Waiting) -> ContainerRecord:
    """A container's record when its agent starts (again): what ran before ended with the former agent."""
    record = ContainerRecord(name=container["name"], image=container.get("image", ""), state=waiting)
    status = next((s for s in statuses if s["name"] == container["name"]), None)
    if status is None or not (status.get("containerID") or status.get("lastState")):
        return record
    state, last = status.get("state") or {}, status.get("lastState") or {}
    if "terminated" in state:
        record.last = _terminated(state["terminated"])
    elif "running" in state:
        record.last = Terminated(
            exit_code=137,
            reason="ContainerStatusUnknown",
            message="The container ended with the node agent that ran it",
            started_at=_time(state["running"].get("startedAt")),
            container_id=status.get("containerID", ""),
        )
    elif "terminated" in last:
        record.last = _terminated(last["terminated"])
    record.restarts = int(status.get("restartCount", 0)) + (1 if record.last else 0)
    return record


def state_manifest(state: State) -> Manifest:
    """A container state as the API has it."""
    match state:
        case Waiting():
            return {"waiting": _without_empty({"reason": state.reason, "message": state.message})}
        case Running():
            return {"running": {"startedAt": rfc3339(state.started_at)}}
        case Terminated():
            return {
                "terminated": {"exitCode": state.exit_code}
                | _without_empty(
                    {
                        "reason": state.reason,
                        "message": state.message,
                        "signal": state.signal,
                        "startedAt": rfc3339(state.started_at) if state.started_at else "",
                        "finishedAt": rfc3339(state.finished_at) if state.finished_at else "",
                        "containerID": state.container_id,
                    }
                )
            }


def _terminated(status: Manifest) -> Terminated:
    return Terminated(
        exit_code=int(status.get("exitCode", 0)),
        reason=status.get("reason", ""),
        message=status.get("message", ""),
        started_at=_time(status.get("startedAt")),
        finished_at=_time(status.get("finishedAt")),
        container_id=status.get("containerID", ""),
        signal=int(status.get("signal", 0)),
    )


def rfc3339(moment: datetime) -> str:
    """A time as the API writes it, in whole seconds of UTC."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def _without_empty(fields: Manifest) -> Manifest:
    return {key: value for key, value in fields.items() if value}
