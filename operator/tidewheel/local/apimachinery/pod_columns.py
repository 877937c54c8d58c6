"""How a pod is summed up in one line: ready containers, one word of status, restarts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from tidewheel.local.apimachinery.fields import Manifest


def pod_ready(pod: Manifest, _: datetime) -> str:
    """Ready containers over all, sidecars among them."""
    spec, status = pod.get("spec") or {}, pod.get("status") or {}
    sidecars = {
        each["name"] for each in spec.get("initContainers") or () if each.get("restartPolicy") == "Always"
    }
    ready = sum(_is_running_ready(each) for each in status.get("containerStatuses") or ())
    ready += sum(
        bool(each.get("started") and each.get("ready"))
        for each in status.get("initContainerStatuses") or ()
        if each["name"] in sidecars
    )
    return f"{ready}/{len(spec.get('containers') or ()) + len(sidecars)}"


def _is_running_ready(container: Manifest) -> bool:
    return bool(container.get("ready") and (container.get("state") or {}).get("running") is not None)


def pod_status(pod: Manifest, _: datetime) -> str:
    """The word that kubectl prints: the phase, or what keeps the pod from it."""
    status: Manifest = pod.get("status") or {}
    metadata = pod.get("metadata") or {}
    word = status.get("reason") or status.get("phase", "")
    if any(
        each.get("type") == "PodScheduled" and each.get("reason") == "SchedulingGated"
        for each in status.get("conditions") or ()
    ):
        word = "SchedulingGated"
    initial = _initializing(pod)
    if initial:
        word = initial
    else:
        word, has_running = _containers_word(status, word)
        if word == "Completed" and has_running:
            word = "Running" if _has_ready_condition(status) else "NotReady"
    if metadata.get("deletionTimestamp"):
        if status.get("reason") == "NodeLost":
            return "Unknown"
        if status.get("phase") not in ("Failed", "Succeeded"):
            return "Terminating"
    return str(word)


def _initializing(pod: Manifest) -> str:
    """What the first init container that is not done does; empty when all are done."""
    specs = (pod.get("spec") or {}).get("initContainers") or ()
    sidecars = {each["name"] for each in specs if each.get("restartPolicy") == "Always"}
    for index, container in enumerate((pod.get("status") or {}).get("initContainerStatuses") or ()):
        state = container.get("state") or {}
        ended, waiting = state.get("terminated"), state.get("waiting")
        if ended is not None and ended.get("exitCode") == 0:
            continue
        if container["name"] in sidecars and container.get("started"):
            continue
        if ended is not None:
            return f"Init:{_ending(ended)}"
        if waiting is not None and waiting.get("reason") not in (None, "", "PodInitializing"):
            return f"Init:{waiting['reason']}"
        return f"Init:{index}/{len(specs)}"
    return ""


def _containers_word(status: Manifest, word: str) -> tuple[str, bool]:
    has_running = False
    for container in reversed(status.get("containerStatuses") or ()):
        state = container.get("state") or {}
        ended, waiting = state.get("terminated"), state.get("waiting")
        if waiting is not None and waiting.get("reason"):
            word = waiting["reason"]
        elif ended is not None:
            word = _ending(ended)
        elif _is_running_ready(container):
            has_running = True
    return word, has_running


def _ending(ended: Manifest) -> str:
    if ended.get("reason"):
        return str(ended["reason"])
    return f"Signal:{ended['signal']}" if ended.get("signal") else f"ExitCode:{ended.get('exitCode', 0)}"


def _has_ready_condition(status: Manifest) -> bool:
    return any(
        each.get("type") == "Ready" and each.get("status") == "True"
        for each in status.get("conditions") or ()
    )


def pod_restarts(pod: Manifest, age: Callable[[str | None], str]) -> str:
    """How often containers were restarted, and how long ago the last one was."""
    status: Manifest = pod.get("status") or {}
    restarts, last = 0, ""
    containers: list[Any] = [
        *(status.get("initContainerStatuses") or ()),
        *(status.get("containerStatuses") or ()),
    ]
    for container in containers:
        restarts += container.get("restartCount", 0)
        ended = (container.get("lastState") or {}).get("terminated") or {}
        last = max(last, ended.get("finishedAt") or "")
    return f"{restarts} ({age(last)} ago)" if restarts and last else str(restarts)
