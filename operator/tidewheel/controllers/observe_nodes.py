"""Reads nodes out of the cache: what is wrong with them, as planning knows it, and whose pods that concerns."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from tidewheel.api.manifest import NODES, Manifest
from tidewheel.api.meta import NODE_DEVICES_HEALTHY, NODE_RECOVERING
from tidewheel.controllers.cache import Snapshot
from tidewheel.planning.observed import NodeFault
from tidewheel.planning.times import from_time


class Nodes:
    """The faults of nodes, each read once."""

    def __init__(self, cache: Snapshot) -> None:
        self._cache = cache
        self._faults: dict[str, tuple[NodeFault | None, NodeFault | None]] = {}

    def fault(self, pod: Manifest) -> NodeFault | None:
        """What is wrong with the node of a pod, as far as it concerns this pod."""
        name = (pod.get("spec") or {}).get("nodeName", "")
        if not name:
            return None
        if name not in self._faults:
            self._faults[name] = faults_of(self._cache.get(NODES, "", name), seen_at=_bound_at(pod))
        lost, devices = self._faults[name]
        return lost or (devices if _has_devices(pod) else None)


def faults_of(node: Manifest | None, *, seen_at: datetime) -> tuple[NodeFault | None, NodeFault | None]:
    """Whether a node is lost, and whether its devices are sick.

    Args:
        node: the Node; None if it was deleted.
        seen_at: when it was last known to be there.
    """
    if node is None:
        message = "it is not in the cluster any more"
        # A new node's pods may be heard of before it is.
        return NodeFault(kind="Lost", message=message, recovers=True, since=seen_at), None
    conditions = {one["type"]: one for one in (node.get("status") or {}).get("conditions") or ()}
    ready, healthy = conditions.get("Ready"), conditions.get(NODE_DEVICES_HEALTHY)
    lost = devices = None
    if ready is not None and ready.get("status") != "True":
        lost = NodeFault(
            kind="Lost",
            message=f"it is not ready ({ready.get('reason') or 'no reason given'})",
            recovers=True,
            since=from_time(ready.get("lastTransitionTime", "")),
        )
    if healthy is not None and healthy.get("status") == "False":
        devices = NodeFault(
            kind="Devices",
            message=healthy.get("message") or healthy.get("reason") or "its devices are not healthy",
            recovers=healthy.get("reason") == NODE_RECOVERING,
            since=from_time(healthy.get("lastTransitionTime", "")),
        )
    return lost, devices


def pods_on(node: str, pods: Iterable[Manifest]) -> list[Manifest]:
    """Those of the pods that run there."""
    return [pod for pod in pods if (pod.get("spec") or {}).get("nodeName") == node]


def _bound_at(pod: Manifest) -> datetime:
    conditions = (pod.get("status") or {}).get("conditions") or ()
    scheduled = [one.get("lastTransitionTime") for one in conditions if one["type"] == "PodScheduled"]
    return from_time(next(iter(scheduled), None) or pod["metadata"].get("creationTimestamp", ""))


def _has_devices(pod: Manifest) -> bool:
    """Whether a container asks for devices: extended resources have a domain in their names."""
    containers = (pod.get("spec") or {}).get("containers") or ()
    return any("/" in name for one in containers for name in (one.get("resources") or {}).get("limits") or ())
