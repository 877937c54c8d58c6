"""Servers and clients for the tests of this folder."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tidewheel.local.apiserver import ApiServer

CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"
PODS = "/api/v1/namespaces/default/pods"
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
GADGETS = "/apis/test.example.com/v1/namespaces/default/gadgets"
MERGE = "application/merge-patch+json"
APPLY = "application/apply-patch+yaml"

KUBECONFIG = """\
apiVersion: v1
kind: Config
clusters: [{{name: local, cluster: {{server: "{url}"}}}}]
contexts: [{{name: local, context: {{cluster: local, user: local, namespace: default}}}}]
current-context: local
users: [{{name: local, user: {{}}}}]
"""

GADGET_CRD: dict[str, Any] = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "gadgets.test.example.com"},
    "spec": {
        "group": "test.example.com",
        "scope": "Namespaced",
        "names": {
            "plural": "gadgets",
            "singular": "gadget",
            "kind": "Gadget",
            "shortNames": ["gd"],
            "categories": ["toys"],
        },
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "subresources": {
                    "status": {},
                    "scale": {"specReplicasPath": ".spec.size", "statusReplicasPath": ".status.replicas"},
                },
                "additionalPrinterColumns": [{"name": "Size", "type": "integer", "jsonPath": ".spec.size"}],
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {
                            "spec": {
                                "type": "object",
                                "description": "spec is what the gadget shall be.",
                                "properties": {
                                    "size": {
                                        "type": "integer",
                                        "minimum": 0,
                                        "default": 1,
                                        "description": "size is its size.",
                                    },
                                    "colour": {"type": "string", "enum": ["red", "blue"], "default": "red"},
                                },
                            },
                            "status": {
                                "type": "object",
                                "x-kubernetes-preserve-unknown-fields": True,
                                "properties": {"replicas": {"type": "integer"}},
                            },
                        },
                    }
                },
            }
        ],
    },
}


class ServerThread:
    """A running ApiServer with its own event loop, so that kubectl and helm can talk to it while a test waits."""

    def __init__(self, **options: Any) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="apiserver", daemon=True)
        self._thread.start()
        self.server = self.call(_made(options))
        self.url: str = self.call(self.server.start())

    def call(self, coroutine: Any) -> Any:
        """Run a coroutine on the server's loop and give its outcome."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(timeout=30)

    def stop(self) -> None:
        self.call(self.server.stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


async def _made(options: dict[str, Any]) -> ApiServer:
    return ApiServer(**options)


class Client:
    """Speaks JSON to a server and gives status and body."""

    def __init__(self, server: ApiServer, session: aiohttp.ClientSession) -> None:
        self.server = server
        self.session = session

    async def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        content_type: str = "application/json",
        **headers: str,
    ) -> tuple[int, Any]:
        payload = None if body is None else body if isinstance(body, bytes) else json.dumps(body)
        asked = {"Content-Type": content_type, "User-Agent": "test", **headers}
        async with self.session.request(method, path, data=payload, headers=asked) as response:
            text = await response.text()
            return response.status, json.loads(text) if "json" in response.content_type else text

    async def ok(self, method: str, path: str, body: Any = None, **options: Any) -> Any:
        status, answer = await self.ask(method, path, body, **options)
        assert status < 300, answer
        return answer

    async def get(self, path: str) -> Any:
        return await self.ok("GET", path)

    async def create(self, path: str, name: str, **parts: Any) -> Any:
        metadata = {"name": name, **parts.pop("metadata", {})}
        return await self.ok("POST", path, {"metadata": metadata, **parts})

    async def create_pod(
        self, name: str, *, labels: dict[str, str] | None = None, node: str = "", **metadata: Any
    ) -> Any:
        spec = {"containers": [{"name": "main", "image": "none"}]}
        pod = await self.create(PODS, name, metadata={"labels": labels or {}, **metadata}, spec=spec)
        if node:
            await self.ok("POST", f"{PODS}/{name}/binding", {"target": {"kind": "Node", "name": node}})
        return pod

    async def create_gadget(self, name: str, **metadata: Any) -> Any:
        gadget = {
            "apiVersion": "test.example.com/v1",
            "kind": "Gadget",
            "metadata": {"name": name, **metadata},
            "spec": {},
        }
        return await self.ok("POST", GADGETS, gadget)

    async def gone(self, path: str) -> None:
        """Wait until there is nothing at a path."""
        while (await self.ask("GET", path))[0] != 404:  # noqa: ASYNC110 - the server is asked, not this loop
            await asyncio.sleep(0.005)

    async def events(self, path: str) -> AsyncIterator[dict[str, Any]]:
        """The events of a watch, until it ends."""
        async with self.session.get(path) as response:
            async for line in response.content:
                yield json.loads(line)


@asynccontextmanager
async def serving(**options: Any) -> AsyncIterator[Client]:
    """A server on this loop, with a client."""
    server = ApiServer(**options)
    url = await server.start()
    try:
        async with aiohttp.ClientSession(url) as session:
            yield Client(server, session)
    finally:
        await server.stop()


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with serving() as made:
        yield made


@pytest.fixture
async def gadgets(client: Client) -> Client:
    """The client, with the Gadget resource served."""
    await client.ok("POST", CRDS, GADGET_CRD)
    return client


@pytest.fixture(scope="module")
def running_server() -> Iterator[ServerThread]:
    running = ServerThread()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def kubeconfig(running_server: ServerThread, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kube") / "config"
    path.write_text(KUBECONFIG.format(url=running_server.url))
    return path
