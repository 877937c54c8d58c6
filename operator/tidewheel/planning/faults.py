"""What is wrong with a pod: its trouble in the words of the documented table, and whether another pod would help."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta

from tidewheel.api.reasons import Reason
from tidewheel.planning.observed import NodeFault, ObservedPod

#: How long a node that is not ready, and devices that are said to recover, are given. Kubernetes notices a silent
#: node after 40 s, and would delete its pods after another 300 s.
NODE_PATIENCE = timedelta(seconds=60)
DEVICE_PATIENCE = timedelta(seconds=300)
#: Restarts in place before a pod that keeps failing is taken for one on a bad node.
MOST_RESTARTS = 3
_FIRST_BACK_OFF = timedelta(seconds=10)
_LONGEST_BACK_OFF = timedelta(seconds=300)

_IMAGE_REASONS = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"}
)
_CONFIG_REASONS = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})
#: Start-up errors another pod would repeat, because they come from the spec or from beyond the node.
_SAME_ANYWHERE = frozenset(
    {
        Reason.INVALID_SPEC,
        Reason.MODEL_NOT_FOUND,
        Reason.MODEL_UNREADABLE,
        Reason.MODEL_UNSUPPORTED,
        Reason.MODEL_DOWNLOAD_FAILED,
        Reason.PEERS_UNVERIFIED,
        Reason.PORT_TAKEN,
        Reason.OUT_OF_MEMORY,
    }
)
_REASONS = {reason.value: reason for reason in Reason}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """Why a pod does not serve."""

    reason: Reason
    message: str
    #: Whether a substitute, perhaps on another node, may do what this pod cannot.
    curable: bool
    #: Not before this time, as it may pass by itself.
    not_before: datetime | None = None


def trouble_of(pod: ObservedPod) -> Trouble | None:
    """What stands in a pod's way, or None if nothing does or it is only starting."""
    if pod.phase in ("Failed", "Succeeded"):
        why = ": ".join(part for part in (pod.failed_reason, pod.failed_message) if part)
        ended = _ended(pod)
        return Trouble(
            reason=ended.reason if ended else Reason.CRASH_LOOP,
            message=why or (ended.message if ended else f"the pod ended in phase {pod.phase}"),
            curable=True,
        )
    if pod.phase == "Unknown":
        return Trouble(
            reason=Reason.CRASH_LOOP, message=f"node {pod.node or '?'} lost touch with it", curable=True
        )
    if pod.node_fault is not None:
        return _of_node(pod.node_fault, pod.node)
    if pod.ready:
        return None
    if pod.unschedulable:
        return Trouble(reason=Reason.UNSCHEDULABLE, message=pod.unschedulable, curable=False)
    if pod.waiting_reason in _IMAGE_REASONS:
        return Trouble(
            reason=Reason.IMAGE_UNAVAILABLE, message=pod.waiting_message or pod.waiting_reason, curable=False
        )
    if pod.waiting_reason in _CONFIG_REASONS:
        return Trouble(
            reason=Reason.POD_REFUSED, message=pod.waiting_message or pod.waiting_reason, curable=False
        )
    return _ended(pod)


def may_be_replaced(pod: ObservedPod, *, now: datetime) -> timedelta | None:
    """How long a failed pod still has to wait for its substitute; None if none would help.

    The n-th pod of a place is replaced no sooner than 10 s · 2^(n-1) after it was created, at most 5 min,
    so a fault that follows its substitutes does not wear out the cluster; the first is replaced at once. What may pass
    by itself is given its time.
    """
    trouble = trouble_of(pod)
    if trouble is None or not trouble.curable:
        return None
    wait = timedelta(0)
    if pod.incarnation:
        wait = min(_LONGEST_BACK_OFF, _FIRST_BACK_OFF * 2 ** min(pod.incarnation - 1, 10))
    earliest = max(pod.created + wait, trouble.not_before or pod.created)
    return max(timedelta(0), earliest - now)


def is_lost(pod: ObservedPod) -> bool:
    """Whether nobody knows what becomes of it: its node does not answer. It may well go on working."""
    return pod.node_fault is not None and pod.node_fault.kind == "Lost"


def _of_node(fault: NodeFault, node: str) -> Trouble:
    is_node = fault.kind == "Lost"
    patience = NODE_PATIENCE if is_node else DEVICE_PATIENCE
    return Trouble(
        reason=Reason.NODE_LOST if is_node else Reason.DEVICE_UNHEALTHY,
        message=f"node {node}: {fault.message}",
        curable=True,
        not_before=fault.since + patience if fault.recovers else None,
    )


def _ended(pod: ObservedPod) -> Trouble | None:
    """What a container that ended, and may have been started again, said at its end."""
    if pod.exit is None:
        return None
    told, message = _termination_message(pod.exit.message)
    if pod.exit.reason == "OOMKilled":
        return Trouble(
            reason=Reason.OUT_OF_MEMORY,
            message=f"the container was killed for memory (restarts: {_many(pod)}); raise its memory limit",
            curable=False,
        )
    if told is not None:
        # who says that its device is sick would say so again
        is_sure = told == Reason.DEVICE_UNHEALTHY or pod.restarts >= MOST_RESTARTS
        curable = told not in _SAME_ANYWHERE and is_sure
        return Trouble(reason=told, message=message, curable=curable)
    text = message or f"it ended with exit code {pod.exit.exit_code} ({pod.exit.reason or 'Error'})"
    return Trouble(
        reason=Reason.CRASH_LOOP,
        message=text,
        curable=pod.restarts >= MOST_RESTARTS,
    )


def _many(pod: ObservedPod) -> str:
    """A count that stops moving, so that a condition's message settles."""
    return str(pod.restarts) if pod.restarts < MOST_RESTARTS else f"{MOST_RESTARTS} or more"


def _termination_message(text: str) -> tuple[Reason | None, str]:
    """Reason and message of a worker's last line, which is JSON; other text is a message without a reason."""
    line = text.strip().rpartition("\n")[2]
    try:
        said = json.loads(line)
    except ValueError:
        return None, text.strip()[-1000:]
    if not isinstance(said, dict):
        return None, line[-1000:]
    return _REASONS.get(str(said.get("reason", ""))), str(said.get("message", ""))[:1000]
