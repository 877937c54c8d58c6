"""What a cluster runs beside its API server: scheduler, workload controllers and Service proxy, over shared informers."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from tidewheel.api.manifest import DEPLOYMENTS, LEASES, NODES, PDBS, PODS, REPLICA_SETS, SERVICES, Resource
from tidewheel.kube.client import Api, HttpApi
from tidewheel.kube.connection import connect
from tidewheel.local.events import EventRecorder
from tidewheel.local.informer import Informer
from tidewheel.local.proxy import ServiceProxy
from tidewheel.local.scheduler.loop import SCHEDULER, Scheduler
from tidewheel.local.signals import run_until_signalled
from tidewheel.local.workloads.deployments import Deployments
from tidewheel.local.workloads.disruption import DisruptionBudgets
from tidewheel.local.workloads.endpoints import ENDPOINT_SLICES, EndpointsController
from tidewheel.local.workloads.jobs import JOBS, Jobs
from tidewheel.local.workloads.node_lifecycle import NodeLifecycle
from tidewheel.local.workloads.replicasets import ReplicaSets


async def run_control_plane(api: Api, *, with_scheduler: bool = True, with_workloads: bool = True) -> None:
    """Runs until cancelled; a part that fails ends the whole."""
    informers: dict[Resource, Informer] = {}

    def informer(resource: Resource, *, namespace: str | None = None) -> Informer:
        return informers.setdefault(resource, Informer(api, resource, namespace=namespace))

    pods, nodes = informer(PODS), informer(NODES)
    work: list[Coroutine[Any, Any, None]] = []
    scheduler_events = EventRecorder(api, component=SCHEDULER)
    if with_scheduler:
        work += [Scheduler(api, pods, nodes, scheduler_events).run(), scheduler_events.run()]
    if with_workloads:
        recorder = EventRecorder(api, component="tidewheel-local")
        sets, services, slices = informer(REPLICA_SETS), informer(SERVICES), informer(ENDPOINT_SLICES)
        lifecycle = NodeLifecycle(api, nodes, informer(LEASES, namespace="kube-node-lease"), pods)
        work += [
            recorder.run(),
            lifecycle.run(),
            lifecycle.loop.run(),
            Deployments(api, informer(DEPLOYMENTS), sets, recorder).loop.run(),
            ReplicaSets(api, sets, pods, recorder).loop.run(),
            Jobs(api, informer(JOBS), pods).loop.run(),
            EndpointsController(api, services, pods, slices).loop.run(),
            DisruptionBudgets(api, informer(PDBS), pods).loop.run(),
            ServiceProxy(services, slices, recorder).run(),
        ]
    async with asyncio.TaskGroup() as group:
        for coroutine in work:
            group.create_task(coroutine)
        for each in informers.values():
            group.create_task(each.run())


async def run_against(kubeconfig: Path) -> None:
    """The control plane of the cluster of a kubeconfig, as a process of its own."""
    async with HttpApi(connect(kubeconfig), user_agent="tidewheel-local") as api:
        await run_control_plane(api)


if __name__ == "__main__":
    run_until_signalled(run_against(Path(sys.argv[1])))
