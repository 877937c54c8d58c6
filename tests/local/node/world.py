"""Pods for the node agent's tests, and waiting for what becomes of them without sleeping."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Callable
from typing import Any

from tidewheel.api.manifest import PODS, Resource
from tidewheel.kube.client import Api
from tidewheel.kube.errors import NotFound

Manifest = dict[str, Any]
PATIENCE_SECONDS = 60.0
EVENTS = Resource("", "v1", "events", "Event")


def shell(script: str, **container: Any) -> Manifest:
    """A container that runs a shell script."""
    return {"name": "main", "image": "busybox", "command": ["sh", "-c", script], **container}


def python(script: str, **container: Any) -> Manifest:
    """A container that runs Python code."""
    return {"name": "main", "image": "python", "command": ["python", "-u", "-c", script], **container}


def pod(
    name: str, *containers: Manifest, once: bool = False, labels: dict[str, str] | None = None, **spec: Any
) -> Manifest:
    """A pod without API credentials, which few tests need; `once` means that it never restarts."""
    body: Manifest = {"containers": list(containers), "automountServiceAccountToken": False, **spec}
    body.setdefault("terminationGracePeriodSeconds", 1)
    if once:
        body["restartPolicy"] = "Never"
    metadata = {"name": name, "namespace": "default", "labels": labels or {}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": body}


def config_map(name: str, **data: str) -> Manifest:
    """A ConfigMap."""
    metadata = {"name": name, "namespace": "default"}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


async def until(
    api: Api,
    resource: Resource,
    name: str,
    holds: Callable[[Manifest], bool],
    *,
    namespace: str | None = "default",
) -> Manifest:
    """The object, as soon as `holds` says yes; a failure tells its last status."""
    last: Manifest | None = None

    async def look() -> Manifest:
        nonlocal last
        selector = f"metadata.name={name}"
        while True:
            listing = await api.list(resource, namespace, field_selector=selector)
            for last in listing.items:
                if holds(last):
                    return last
            async for event in api.watch(
                resource, namespace, resource_version=listing.resource_version, field_selector=selector
            ):
                if event.type == "BOOKMARK":
                    continue
                last = event.object
                if event.type != "DELETED" and holds(last):
                    return last

    try:
        return await asyncio.wait_for(look(), PATIENCE_SECONDS)
    except TimeoutError:
        raise AssertionError(
            f"{resource.plural} {name} stayed as it is: {last and last.get('status')}"
        ) from None


async def until_gone(api: Api, name: str) -> None:
    """Returns when the pod is no more in the API."""

    async def look() -> None:
        while True:
            try:
                found = await api.get(PODS, name, "default")
            except NotFound:
                return
            version = found["metadata"]["resourceVersion"]
            selector = f"metadata.name={name}"
            async for event in api.watch(PODS, "default", resource_version=version, field_selector=selector):
                if event.type == "DELETED":
                    return

    await asyncio.wait_for(look(), PATIENCE_SECONDS)


async def run_once(api: Api, body: Manifest) -> Manifest:
    """Creates a pod that never restarts and waits for its end; its terminated state."""
    name = body["metadata"]["name"]
    await api.create(PODS, body)
    ended = await until(api, PODS, name, lambda p: phase(p) in ("Succeeded", "Failed"))
    return container(ended)["state"]["terminated"]


async def until_event(api: Api, about: str, reason: str) -> Manifest:
    """The first event of that reason about the object."""

    async def look() -> Manifest:
        while True:
            listing = await api.list(EVENTS, "default", field_selector=f"involvedObject.name={about}")
            for event in listing.items:
                if event["reason"] == reason:
                    return event
            version = listing.resource_version
            async for change in api.watch(EVENTS, "default", resource_version=version):
                if change.type != "BOOKMARK":
                    break

    try:
        return await asyncio.wait_for(look(), PATIENCE_SECONDS)
    except TimeoutError:
        seen = await api.list(EVENTS, "default", field_selector=f"involvedObject.name={about}")
        raise AssertionError(f"no {reason} about {about}: {[e['reason'] for e in seen.items]}") from None


def phase(found: Manifest) -> str:
    """The pod's phase."""
    return str((found.get("status") or {}).get("phase"))


def container(found: Manifest, name: str = "main") -> Manifest:
    """One container's status; empty before there is any."""
    status = found.get("status") or {}
    listed = [*(status.get("containerStatuses") or []), *(status.get("initContainerStatuses") or [])]
    return next((c for c in listed if c["name"] == name), {"state": {}})


def condition(found: Manifest, kind: str) -> Manifest:
    """One condition; empty before there is any."""
    conditions = (found.get("status") or {}).get("conditions") or []
    return next((c for c in conditions if c["type"] == kind), {})


def is_ready(found: Manifest) -> bool:
    """Whether the Ready condition holds."""
    return condition(found, "Ready").get("status") == "True"


def waits_for(reason: str) -> Callable[[Manifest], bool]:
    """Whether the container waits for this reason."""
    return lambda found: container(found)["state"].get("waiting", {}).get("reason") == reason


def say(text: str) -> str:
    """Shell words that write the termination message."""
    return f'printf %s {shlex.quote(text)} > "$TIDEWHEEL_TERMINATION_LOG"'
