"""The node lifecycle controller: nodes without a heartbeat are marked, tainted, and their pods marked not ready."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime

from tidewheel.api.manifest import NODES, PODS, Manifest
from tidewheel.kube.client import Api
from tidewheel.kube.errors import ApiError
from tidewheel.local.informer import Informer, Key, key_of
from tidewheel.local.workloads.loop import Loop, is_ready

logger = logging.getLogger(__name__)

_LEASES_IN = "kube-node-lease"
_NOT_READY = "node.kubernetes.io/not-ready"
_UNREACHABLE = "node.kubernetes.io/unreachable"
_PERIOD_SECONDS = 5.0


class NodeLifecycle:
    """Keeps taints and pods in step with the nodes' Ready condition."""

    def __init__(
        self, api: Api, nodes: Informer, leases: Informer, pods: Informer, *, grace_seconds: float = 40.0
    ) -> None:
        self._api = api
        self._nodes = nodes
        self._leases = leases
        self._pods = pods
        self._grace_seconds = grace_seconds
        self.loop = Loop("node", self._sync)
        nodes.subscribe(lambda _, after: self.loop.enqueue(key_of(after)) if after else None)

    async def run(self) -> None:
        """Looks at every node from time to time until cancelled; silence makes no event."""
        await self._leases.synced.wait()
        while True:
            await asyncio.sleep(_PERIOD_SECONDS)
            for key in self._nodes.objects:
                self.loop.enqueue(key)

    async def _sync(self, key: Key) -> None:
        node = self._nodes.get(*key)
        if node is None:
            return
        ready = _ready_status(node)
        if ready == "True" and self._is_silent(node):
            ready = "Unknown"
            await self._mark_unknown(node)
        await self._taint(node, ready)
        if ready != "True":
            await self._mark_pods(key[1])

    def _is_silent(self, node: Manifest) -> bool:
        lease = self._leases.get(_LEASES_IN, node["metadata"]["name"])
        renewed = (lease or {}).get("spec", {}).get("renewTime")
        if renewed is None:
            return False
        age = (datetime.now(UTC) - datetime.fromisoformat(renewed)).total_seconds()
        return age > self._grace_seconds

    async def _mark_unknown(self, node: Manifest) -> None:
        name = node["metadata"]["name"]
        condition = {
            "type": "Ready",
            "status": "Unknown",
            "reason": "NodeStatusUnknown",
            "message": "The node agent stopped posting its heartbeat.",
            "lastTransitionTime": _now(),
        }
        await self._api.patch(
            NODES, name, {"status": {"conditions": [condition]}}, type="strategic", subresource="status"
        )
        logger.warning("Node %s sends no heartbeat; is its agent running?", name)

    async def _taint(self, node: Manifest, ready: str) -> None:
        taints = (node.get("spec") or {}).get("taints") or []
        kept = [taint for taint in taints if taint["key"] not in (_NOT_READY, _UNREACHABLE)]
        if ready != "True":
            key = _NOT_READY if ready == "False" else _UNREACHABLE
            kept += [{"key": key, "effect": effect} for effect in ("NoSchedule", "NoExecute")]
        if sorted(map(_taint_key, kept)) != sorted(map(_taint_key, taints)):
            patch = {
                "metadata": {"resourceVersion": node["metadata"]["resourceVersion"]},
                "spec": {"taints": kept or None},
            }
            await self._api.patch(NODES, node["metadata"]["name"], patch)

    async def _mark_pods(self, node: str) -> None:
        for pod in list(self._pods.objects.values()):
            if pod["spec"].get("nodeName") != node or not is_ready(pod):
                continue
            metadata = pod["metadata"]
            condition = {
                "type": "Ready",
                "status": "False",
                "reason": "NodeNotReady",
                "message": f"node {node} is not ready",
                "lastTransitionTime": _now(),
            }
            patch = {"metadata": {"uid": metadata["uid"]}, "status": {"conditions": [condition]}}
            try:
                await self._api.patch(
                    PODS,
                    metadata["name"],
                    patch,
                    metadata["namespace"],
                    type="strategic",
                    subresource="status",
                )
            except ApiError as error:
                logger.debug("Pod %s not marked: %s", metadata["name"], error)


def _ready_status(node: Manifest) -> str:
    conditions = (node.get("status") or {}).get("conditions") or []
    return next((str(c["status"]) for c in conditions if c["type"] == "Ready"), "Unknown")


def _taint_key(taint: Manifest) -> tuple[str, str, str]:
    return taint["key"], taint.get("value", ""), taint["effect"]


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
