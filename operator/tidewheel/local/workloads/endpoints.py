"""The endpoint controller: which pods a Service leads to, as Endpoints and as an EndpointSlice."""

from __future__ import annotations

from typing import Any

from tidewheel.api.manifest import SERVICES, Manifest, Resource
from tidewheel.kube.client import Api
from tidewheel.kube.errors import AlreadyExists, ApiError, NotFound
from tidewheel.local.informer import Informer, Key, key_of
from tidewheel.local.labels import selects
from tidewheel.local.workloads.loop import Loop, is_ready, owner_reference

ENDPOINTS = Resource("", "v1", "endpoints", "Endpoints")
ENDPOINT_SLICES = Resource("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice")
SERVICE_NAME = "kubernetes.io/service-name"
_MANAGED_BY = "endpointslice.kubernetes.io/managed-by"


class EndpointsController:
    """Keeps Endpoints and EndpointSlice of every Service with a selector true."""

    def __init__(self, api: Api, services: Informer, pods: Informer, slices: Informer) -> None:
        self._api = api
        self._services = services
        self._pods = pods
        self._slices = slices
        self.loop = Loop("endpoints", self._sync)
        services.subscribe(lambda before, after: self.loop.enqueue(key_of(after or before or {})))
        pods.subscribe(self._pod_changed)

    def _pod_changed(self, before: Manifest | None, after: Manifest | None) -> None:
        pod = after or before
        if pod is None:
            return
        labels = [o["metadata"].get("labels") or {} for o in (before, after) if o is not None]
        for service in self._services.in_namespace(pod["metadata"]["namespace"]):
            if any(_leads_to(service, each) for each in labels):
                self.loop.enqueue(key_of(service))

    async def _sync(self, key: Key) -> None:
        service = self._services.get(*key)
        if service is None:
            await self._remove(ENDPOINTS, key[1], key[0])
            await self._remove(ENDPOINT_SLICES, _slice_name(key[1]), key[0])
            return
        if not service["spec"].get("selector") or service["metadata"].get("deletionTimestamp"):
            return
        pods = [
            pod
            for pod in self._pods.in_namespace(key[0])
            if _leads_to(service, pod["metadata"].get("labels") or {}) and _has_address(pod)
        ]
        endpoint_slice = slice_of(service, pods)
        known = self._slices.get(key[0], endpoint_slice["metadata"]["name"])
        if known is None or any(
            known.get(field) != endpoint_slice[field] for field in ("endpoints", "ports")
        ):
            await self._put(ENDPOINT_SLICES, endpoint_slice)
            await self._put(ENDPOINTS, endpoints_of(service, endpoint_slice))

    async def _put(self, resource: Resource, body: Manifest) -> None:
        metadata = body["metadata"]
        content = {key: value for key, value in body.items() if key in ("endpoints", "ports", "subsets")}
        try:
            await self._api.patch(resource, metadata["name"], content, metadata["namespace"])
        except NotFound:
            try:
                await self._api.create(resource, body)
            except AlreadyExists:
                await self._api.patch(resource, metadata["name"], content, metadata["namespace"])

    async def _remove(self, resource: Resource, name: str, namespace: str) -> None:
        try:
            await self._api.delete(resource, name, namespace)
        except NotFound:
            return
        except ApiError:
            self.loop.enqueue((namespace, name), after_seconds=1.0)


def slice_of(service: Manifest, pods: list[Manifest]) -> Manifest:
    """The EndpointSlice of a Service that leads to these pods."""
    metadata = service["metadata"]
    publish_all = bool(service["spec"].get("publishNotReadyAddresses"))
    ports = [
        {"name": port.get("name", ""), "port": number, "protocol": port.get("protocol", "TCP")}
        for port in service["spec"].get("ports") or []
        if (number := _target_port(port, pods)) is not None
    ]
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": _slice_name(metadata["name"]),
            "namespace": metadata["namespace"],
            "labels": {SERVICE_NAME: metadata["name"], _MANAGED_BY: "endpointslice-controller.k8s.io"},
            "ownerReferences": [owner_reference(service, SERVICES.api_version, SERVICES.kind)],
        },
        "addressType": "IPv4",
        "endpoints": [
            _endpoint(pod, publish_all) for pod in sorted(pods, key=lambda p: str(p["metadata"]["name"]))
        ],
        "ports": ports,
    }


def endpoints_of(service: Manifest, endpoint_slice: Manifest) -> Manifest:
    """The Endpoints object that says the same as the slice."""
    ready: list[Manifest] = []
    waiting: list[Manifest] = []
    for endpoint in endpoint_slice["endpoints"]:
        address = {
            "ip": endpoint["addresses"][0],
            "nodeName": endpoint["nodeName"],
            "targetRef": endpoint["targetRef"],
        }
        (ready if endpoint["conditions"]["ready"] else waiting).append(address)
    subset: dict[str, Any] = {"ports": endpoint_slice["ports"]}
    subset |= {"addresses": ready} if ready else {}
    subset |= {"notReadyAddresses": waiting} if waiting else {}
    return {
        "apiVersion": "v1",
        "kind": "Endpoints",
        "metadata": {
            "name": service["metadata"]["name"],
            "namespace": service["metadata"]["namespace"],
            "ownerReferences": endpoint_slice["metadata"]["ownerReferences"],
        },
        "subsets": [subset] if ready or waiting else [],
    }


def _endpoint(pod: Manifest, publish_all: bool) -> Manifest:
    metadata = pod["metadata"]
    terminating = bool(metadata.get("deletionTimestamp"))
    serving = is_ready(pod)
    return {
        "addresses": [pod["status"]["podIP"]],
        "conditions": {
            "ready": publish_all or (serving and not terminating),
            "serving": serving,
            "terminating": terminating,
        },
        "nodeName": pod["spec"]["nodeName"],
        "targetRef": {
            "kind": "Pod",
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "uid": metadata["uid"],
        },
    }


def _leads_to(service: Manifest, labels: dict[str, str]) -> bool:
    selector = service["spec"].get("selector")
    return bool(selector) and selects({"matchLabels": selector}, labels)


def _has_address(pod: Manifest) -> bool:
    status = pod.get("status") or {}
    return bool(status.get("podIP")) and status.get("phase") not in ("Succeeded", "Failed")


def _target_port(port: Manifest, pods: list[Manifest]) -> int | None:
    target = port.get("targetPort") or port["port"]
    if isinstance(target, int):
        return target
    for pod in pods:
        for container in pod["spec"]["containers"]:
            for named in container.get("ports") or []:
                if named.get("name") == target:
                    return int(named["containerPort"])
    return None


def _slice_name(service: str) -> str:
    return f"{service}-local"
