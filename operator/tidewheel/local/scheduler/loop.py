"""The scheduling loop: follows pods and nodes, binds what fits, and tells the others why they wait."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from datetime import UTC, datetime
from typing import Any

from tidewheel.api.manifest import PODS, Manifest
from tidewheel.kube.client import Api
from tidewheel.kube.errors import ApiError, Conflict, NotFound
from tidewheel.local.events import EventRecorder
from tidewheel.local.informer import Informer
from tidewheel.local.scheduler.fit import find_fit
from tidewheel.local.scheduler.model import NodeState, PlacedPod, Snapshot, holds_resources
from tidewheel.local.scheduler.score import best_node
from tidewheel.local.subresources import binding_of

logger = logging.getLogger(__name__)

SCHEDULER = "default-scheduler"
_BINDINGS_AT_ONCE = 16
#: Changes that come in a burst are looked at together.
_SETTLE_SECONDS = 0.02
_RETRY_SECONDS = 1.0


class Scheduler:
    """Binds the pods of `default-scheduler`. A bound pod counts on its node before the API has said so."""

    def __init__(self, api: Api, pods: Informer, nodes: Informer, recorder: EventRecorder) -> None:
        """`pods` and `nodes` are informers that the caller runs; this subscribes to them."""
        self._api = api
        self._pods = pods
        self._nodes = nodes
        self._recorder = recorder
        self._snapshot = Snapshot()
        #: Pods that wait for a node, by uid; the number says after which change of the world they were tried.
        self._waiting: dict[str, tuple[Manifest, int]] = {}
        self._assumed: dict[str, str] = {}
        #: Where the API says a pod is, also before its node is known.
        self._bound: dict[str, Manifest] = {}
        self._world = 0
        self._more = asyncio.Event()
        self._slots = asyncio.Semaphore(_BINDINGS_AT_ONCE)
        pods.subscribe(self._pod_changed)
        nodes.subscribe(self._node_changed)

    async def run(self) -> None:
        """Schedules until cancelled."""
        await self._pods.synced.wait()
        await self._nodes.synced.wait()
        async with asyncio.TaskGroup() as group:
            while True:
                await self._more.wait()
                await asyncio.sleep(_SETTLE_SECONDS)
                self._more.clear()
                for pod in self._due():
                    await self._slots.acquire()
                    node = self._choose(pod)
                    work = self._bind(pod, node) if node is not None else self._explain(pod)
                    group.create_task(self._holding_slot(work), name=f"bind {pod['metadata']['name']}")

    def _due(self) -> list[Manifest]:
        due = [pod for pod, tried in self._waiting.values() if tried < self._world]
        # Higher priority first, then who waited longest.
        due.sort(key=lambda p: (-int(p["spec"].get("priority") or 0), p["metadata"]["creationTimestamp"]))
        return due

    def _choose(self, pod: Manifest) -> NodeState | None:
        uid = pod["metadata"]["uid"]
        if uid not in self._waiting:
            return None
        fit = find_fit(pod, self._snapshot)
        if not fit.nodes:
            self._waiting[uid] = (pod, self._world)
            return None
        node = best_node(pod, fit.nodes, self._snapshot)
        del self._waiting[uid]
        self._assumed[uid] = node.name
        node.add(uid, PlacedPod.of(pod))
        return node

    async def _holding_slot(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        finally:
            self._slots.release()

    async def _bind(self, pod: Manifest, node: NodeState) -> None:
        metadata = pod["metadata"]
        target = {"apiVersion": "v1", "kind": "Node", "name": node.name}
        body = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "uid": metadata["uid"],
            },
            "target": target,
        }
        try:
            await self._api.create(binding_of(metadata["name"]), body)
        except ApiError as error:
            self._forget(metadata["uid"])
            if not isinstance(error, (Conflict, NotFound)):
                logger.warning("Pod %s/%s not bound: %s", metadata["namespace"], metadata["name"], error)
            current = self._pods.get(metadata["namespace"], metadata["name"])
            if current is not None and current["metadata"]["uid"] == metadata["uid"] and _is_ours(current):
                await asyncio.sleep(_RETRY_SECONDS)
                self._wait(current)
        else:
            message = f"Successfully assigned {metadata['namespace']}/{metadata['name']} to {node.name}"
            self._recorder.event(pod, "Normal", "Scheduled", message)

    async def _explain(self, pod: Manifest) -> None:
        """Says in the pod's condition and an event why no node takes it; once per reason."""
        metadata = pod["metadata"]
        if metadata["uid"] not in self._waiting:
            return
        message = find_fit(pod, self._snapshot).message()
        current = self._pods.get(metadata["namespace"], metadata["name"]) or pod
        known = _scheduled_condition(current)
        if known.get("message") == message and known.get("status") == "False":
            return
        self._recorder.event(pod, "Warning", "FailedScheduling", message)
        since = known.get("lastTransitionTime") if known.get("status") == "False" else None
        condition = {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": message,
            "lastTransitionTime": since or datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        patch = {"metadata": {"uid": metadata["uid"]}, "status": {"conditions": [condition]}}
        try:
            await self._api.patch(
                PODS, metadata["name"], patch, metadata["namespace"], type="strategic", subresource="status"
            )
        except (Conflict, NotFound):
            return
        except ApiError as error:
            logger.warning("Condition of pod %s not written: %s", metadata["name"], error)

    def _pod_changed(self, before: Manifest | None, after: Manifest | None) -> None:
        pod = after or before
        if pod is None:
            return
        uid = pod["metadata"]["uid"]
        if after is None or not holds_resources(after):
            self._waiting.pop(uid, None)
            self._bound.pop(uid, None)
            self._forget(uid)
            self._world_changed()
        elif after["spec"].get("nodeName"):
            self._waiting.pop(uid, None)
            self._place(after)
            if before is None or _differs(before, after):
                self._world_changed()
        elif _is_ours(after) and uid not in self._assumed:
            if uid not in self._waiting or _differs(self._waiting[uid][0], after):
                self._wait(after)
        elif uid not in self._assumed:
            self._waiting.pop(uid, None)

    def _place(self, pod: Manifest) -> None:
        uid, name = pod["metadata"]["uid"], pod["spec"]["nodeName"]
        self._bound[uid] = pod
        assumed = self._assumed.pop(uid, None)
        if assumed is not None and assumed != name and assumed in self._snapshot.nodes:
            self._snapshot.nodes[assumed].remove(uid)
        node = self._snapshot.nodes.get(name)
        if node is not None:
            node.add(uid, PlacedPod.of(pod))

    def _forget(self, uid: str) -> None:
        self._assumed.pop(uid, None)
        for node in self._snapshot:
            node.remove(uid)

    def _node_changed(self, before: Manifest | None, after: Manifest | None) -> None:
        if after is None:
            if before is not None:
                self._snapshot.nodes.pop(before["metadata"]["name"], None)
            return
        name = after["metadata"]["name"]
        known = self._snapshot.nodes.get(name)
        node = known or self._snapshot.nodes.setdefault(name, NodeState(name=name))
        was = (node.labels, node.taints, node.unschedulable, node.allocatable)
        node.take(after)
        if known is None:
            for uid, pod in self._bound.items():
                if pod["spec"]["nodeName"] == name:
                    node.add(uid, PlacedPod.of(pod))
        # A heartbeat changes nothing that a pod could wait for.
        if known is None or was != (node.labels, node.taints, node.unschedulable, node.allocatable):
            self._world_changed()

    def _wait(self, pod: Manifest) -> None:
        self._waiting[pod["metadata"]["uid"]] = (pod, -1)
        self._more.set()

    def _world_changed(self) -> None:
        self._world += 1
        if self._waiting:
            self._more.set()


def _is_ours(pod: Manifest) -> bool:
    spec = pod["spec"]
    return (
        spec.get("schedulerName", SCHEDULER) == SCHEDULER
        and not spec.get("nodeName")
        and not spec.get("schedulingGates")
        and not pod["metadata"].get("deletionTimestamp")
        and holds_resources(pod)
    )


def _differs(before: Manifest, after: Manifest) -> bool:
    """Whether a pod changed in what placing depends on."""
    return any(
        one.get(key) != other.get(key)
        for one, other, key in (
            (before["spec"], after["spec"], "nodeName"),
            (before["spec"], after["spec"], "schedulingGates"),
            (before["spec"], after["spec"], "nodeSelector"),
            (before["spec"], after["spec"], "tolerations"),
            (before["metadata"], after["metadata"], "labels"),
            (before["metadata"], after["metadata"], "deletionTimestamp"),
        )
    )


def _scheduled_condition(pod: Manifest) -> Manifest:
    conditions = (pod.get("status") or {}).get("conditions") or []
    return next((c for c in conditions if c["type"] == "PodScheduled"), {})
