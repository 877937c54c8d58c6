"""A virtual node in the API: registered, kept alive by its Lease, and marked or removed when its agent stops."""

from __future__ import annotations

import asyncio
import logging
import platform
from datetime import UTC, datetime

from tidewheel import __version__
from tidewheel.api.manifest import LEASES, NAMESPACES, NODES, Manifest
from tidewheel.kube.client import Api
from tidewheel.kube.errors import AlreadyExists, ApiError, NotFound
from tidewheel.local.node.log_server import LogEndpoint
from tidewheel.local.node.status import rfc3339
from tidewheel.local.nodes import VirtualNode

logger = logging.getLogger(__name__)

LOG_ENDPOINT = "tidewheel.dev/log-endpoint"
LEASE_NAMESPACE = "kube-node-lease"
LEASE_SECONDS = 40
_RENEW_SECONDS = 10.0
_STATUS_SECONDS = 60.0
_MANAGER = "tidewheel-node"


class Heartbeat:
    """Keeps one Node object true."""

    def __init__(self, api: Api, node: VirtualNode, *, log_endpoint: LogEndpoint, host_ip: str) -> None:
        self._api = api
        self._node = node
        self._log_endpoint = log_endpoint
        self._host_ip = host_ip
        self._since = datetime.now(UTC)

    async def register(self) -> None:
        """Creates the Node or takes over the one of that name, and reports it ready; retried while the API is away."""
        while True:
            try:
                await self._apply_node()
                await self._renew()
                await self._report(ready=True)
            except ApiError as error:
                logger.warning("Node %s cannot be registered yet: %s", self._node.name, error)
                await asyncio.sleep(1.0)
            else:
                return

    async def run(self) -> None:
        """Renews the Lease and now and then the status, until cancelled; a deleted Node is registered again."""
        since_status = 0.0
        while True:
            await asyncio.sleep(_RENEW_SECONDS)
            since_status += _RENEW_SECONDS
            try:
                await self._renew()
                if since_status >= _STATUS_SECONDS:
                    await self._report(ready=True)
                    since_status = 0.0
            except NotFound:
                await self.register()
            except ApiError as error:
                logger.warning("Heartbeat of node %s failed: %s", self._node.name, error)

    async def withdraw(self, *, delete: bool) -> None:
        """Says that no agent stands behind the node any more: NotReady, or deleted."""
        try:
            if delete:
                await self._api.delete(NODES, self._node.name)
                await self._api.delete(LEASES, self._node.name, LEASE_NAMESPACE)
            else:
                self._since = datetime.now(UTC)
                await self._report(ready=False)
        except ApiError as error:
            logger.warning("Node %s could not be withdrawn: %s", self._node.name, error)

    async def _apply_node(self) -> None:
        name = self._node.name
        labels = {
            "kubernetes.io/hostname": name,
            "kubernetes.io/os": platform.system().lower(),
            "kubernetes.io/arch": _architecture(),
            **self._node.labels,
        }
        annotations = {LOG_ENDPOINT: self._log_endpoint.url}
        taints = [taint.to_manifest() for taint in self._node.taints]
        body: Manifest = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name, "labels": labels, "annotations": annotations},
            "spec": {"taints": taints} if taints else {},
        }
        try:
            await self._api.create(NODES, body)
        except AlreadyExists:
            # Taints of a known node belong to its admins and controllers by now.
            await self._api.patch(NODES, name, {"metadata": {"labels": labels, "annotations": annotations}})

    async def _report(self, *, ready: bool) -> None:
        resources = self._node.resources()
        now = datetime.now(UTC)
        status = {
            "capacity": resources,
            "allocatable": resources,
            "conditions": [
                _condition("MemoryPressure", False, "KubeletHasSufficientMemory", self._since, now),
                _condition("DiskPressure", False, "KubeletHasNoDiskPressure", self._since, now),
                _condition("PIDPressure", False, "KubeletHasSufficientPID", self._since, now),
                _condition(
                    "Ready",
                    ready,
                    "KubeletReady" if ready else "NodeAgentStopped",
                    self._since,
                    now,
                    "tidewheel node agent runs pods as processes" if ready else "the node agent was stopped",
                ),
            ],
            # No Hostname: kube-apiserver would ask DNS for it when somebody wants logs.
            "addresses": [{"type": "InternalIP", "address": self._host_ip}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": self._log_endpoint.tls_port}},
            "nodeInfo": _node_info(self._node.name),
        }
        await self._api.patch(
            NODES, self._node.name, {"status": status}, type="strategic", subresource="status"
        )

    async def _renew(self) -> None:
        lease = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self._node.name, "namespace": LEASE_NAMESPACE},
            "spec": {
                "holderIdentity": self._node.name,
                "leaseDurationSeconds": LEASE_SECONDS,
                "renewTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            },
        }
        try:
            await self._api.patch(LEASES, self._node.name, {"spec": lease["spec"]}, LEASE_NAMESPACE)
        except NotFound:
            try:
                await self._api.create(LEASES, lease)
            except NotFound:
                namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": LEASE_NAMESPACE}}
                await self._api.create(NAMESPACES, namespace)
                await self._api.create(LEASES, lease)


def _condition(
    kind: str, holds: bool, reason: str, since: datetime, now: datetime, message: str = ""
) -> Manifest:
    return {
        "type": kind,
        "status": "True" if holds else "False",
        "reason": reason,
        "message": message or reason,
        "lastHeartbeatTime": rfc3339(now),
        "lastTransitionTime": rfc3339(since),
    }


def _node_info(name: str) -> Manifest:
    system = platform.uname()
    return {
        "architecture": _architecture(),
        "bootID": "",
        "containerRuntimeVersion": f"tidewheel://{__version__}",
        "kernelVersion": system.release,
        "kubeProxyVersion": "",
        "kubeletVersion": f"v{__version__}-tidewheel",
        "machineID": name,
        "operatingSystem": system.system.lower(),
        "osImage": f"{system.system} processes (no containers)",
        "systemUUID": name,
    }


def _architecture() -> str:
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
