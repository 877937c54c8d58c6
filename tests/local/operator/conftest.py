"""A local API server, the operator with the tests' own kind in this process, and ways to look and to disturb."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from tests.local.operator.fleets import FLEET_CRD, FLEETS, FleetController

from tidewheel.api.manifest import CRDS, PODS, Manifest, Resource
from tidewheel.controllers.operator import Operator, run_operator
from tidewheel.controllers.settings import Address, OperatorSettings
from tidewheel.kube.client import HttpApi
from tidewheel.kube.connection import connect
from tidewheel.kube.errors import NotFound
from tidewheel.local.apiserver import ApiServer

HOST = "127.0.8.1"
#: Long enough for a loaded machine; a test that waits this long has failed.
PATIENCE_SECONDS = 60.0

KUBECONFIG = """\
apiVersion: v1
kind: Config
clusters: [{{name: local, cluster: {{server: "{url}"}}}}]
contexts: [{{name: local, context: {{cluster: local, user: local, namespace: default}}}}]
current-context: local
users: [{{name: local, user: {{}}}}]
"""


@dataclass
class Request:
    """One request that reached the server, by whom and for what."""

    method: str
    path: str
    agent: str


@dataclass
class World:
    """The cluster side of a test."""

    directory: Path
    url: str
    api: HttpApi
    server: ApiServer
    requests: list[Request] = field(default_factory=list)
    #: Asked before each request of the operator; a status of its own takes the place of the answer.
    disturb: Callable[[web.Request], Awaitable[int | None]] | None = None

    @property
    def kubeconfig(self) -> Path:
        file = self.directory / "kubeconfig"
        file.write_text(KUBECONFIG.format(url=self.url))
        return file

    def writes(self) -> list[Request]:
        """What the operator wrote, but for its lease."""
        return [
            request
            for request in self.requests
            if request.agent.startswith("tidewheel-operator")
            and request.method not in ("GET", "HEAD")
            and "/leases" not in request.path
        ]

    async def pods(self, fleet: str | None = None) -> list[str]:
        listing = await self.api.list(
            PODS, "default", label_selector=fleet and f"tidewheel.dev/service={fleet}"
        )
        return sorted(pod["metadata"]["name"] for pod in listing.items)

    async def fleet(self, name: str) -> Manifest:
        return await self.api.get(FLEETS, name, "default")

    async def until(self, what: Callable[[], Awaitable[Any]], *, seconds: float = PATIENCE_SECONDS) -> Any:
        """The first true answer of `what`."""
        async with asyncio.timeout(seconds):
            while True:
                try:
                    if answer := await what():
                        return answer
                except NotFound:
                    pass
                await asyncio.sleep(0.05)

    async def until_ready(self, name: str, *, size: int) -> Manifest:
        """The Fleet once its status tells of `size` pods and of its present generation."""

        async def ready() -> Manifest | None:
            seen = await self.fleet(name)
            status = seen.get("status") or {}
            settled = status.get("pods") == size and status["conditions"][0]["status"] == "True"
            return (
                seen if settled and status["observedGeneration"] == seen["metadata"]["generation"] else None
            )

        return await self.until(ready)

    async def until_quiet(self) -> None:
        """Until the operator has written nothing for a while."""
        before = -1
        while before != len(self.writes()):
            before = len(self.writes())
            await asyncio.sleep(0.5)


@asynccontextmanager
async def serving(directory: Path, *, port: int = 0, **options: Any) -> AsyncIterator[World]:
    """A local API server with the Fleet's CRD."""
    worlds: list[World] = []

    async def faults(request: web.Request) -> web.StreamResponse | None:
        world = worlds[0]
        agent = request.headers.get("User-Agent", "")
        world.requests.append(Request(request.method, request.path_qs, agent))
        if world.disturb is None or not agent.startswith("tidewheel-operator"):
            return None
        status = await world.disturb(request)
        if status is None:
            return None
        body = {
            "kind": "Status",
            "apiVersion": "v1",
            "status": "Failure",
            "code": status,
            "message": "disturbed",
        }
        return web.json_response(body, status=status, headers={"Retry-After": "1"} if status == 429 else {})

    server = ApiServer(faults=faults, **options)
    async with AsyncExitStack() as stack:
        url = await server.start(HOST, port)
        stack.push_async_callback(server.stop)
        kubeconfig = directory / "tests-kubeconfig"
        kubeconfig.write_text(KUBECONFIG.format(url=url))
        api = HttpApi(connect(kubeconfig), user_agent="tests")
        worlds.append(World(directory=directory, url=url, api=api, server=server))
        await stack.enter_async_context(api)
        try:
            await api.get(CRDS, FLEET_CRD["metadata"]["name"])
        except NotFound:
            await api.create(CRDS, FLEET_CRD)
        yield worlds[0]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with serving(tmp_path) as served:
        yield served


@asynccontextmanager
async def operating(world: World, **settings: Any) -> AsyncIterator[Operator]:
    """The operator, once it is connected; it has ended when this ends."""
    stop = asyncio.Event()
    operators: list[Operator] = []
    asked = OperatorSettings(
        kubeconfig=world.kubeconfig,
        health_address=Address(host=HOST),
        metrics_address=Address(host=HOST),
        **settings,
    )
    running = asyncio.create_task(
        run_operator(asked, stop=stop, controllers=(FleetController(),), started=operators.append)
    )
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not operators or not operators[0].connected:
                if running.done():
                    running.result()
                await asyncio.sleep(0.02)
        yield operators[0]
    finally:
        stop.set()
        await running


async def page(address: Address | None, path: str) -> tuple[int, str]:
    """What one of the operator's own pages says."""
    async with aiohttp.ClientSession() as session, session.get(f"http://{address}{path}") as response:
        return response.status, await response.text()


async def names(world: World, resource: Resource) -> list[str]:
    return sorted(item["metadata"]["name"] for item in (await world.api.list(resource, "default")).items)
