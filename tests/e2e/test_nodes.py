"""A node agent is killed under load: the service goes on, each lost pod gets one substitute, and the node may come back."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.e2e.cluster import Namespace, Process, eventually, pd_service, steady_load, tidewheel
from tests.e2e.test_serving import ask

#: Longer than Kubernetes gives a silent node, and than the operator gives one that is not ready.
LONG = timedelta(minutes=10)


@pytest.fixture
def agents(namespace: Namespace, tmp_path: Path) -> Iterator[dict[str, Process]]:
    """Two node agents with a node each, for the pods of this test's namespace alone."""
    if not namespace.cluster.is_local:
        pytest.skip("the control plane of `tidewheel up` is told that time has passed")
    running = {}
    for side in ("east", "west"):
        node = f"{side}-{namespace.name}"
        file = tmp_path / f"{side}.yaml"
        taint = {"key": "tests", "value": namespace.name, "effect": "NoSchedule"}
        file.write_text(
            yaml.safe_dump(
                {"nodes": [{"name": node, "labels": {"tests": namespace.name}, "taints": [taint]}]}
            )
        )
        arguments = ("--kubeconfig", str(namespace.cluster.kubeconfig), "--nodes", str(file))
        data = ("--data", str(tmp_path / side), "--delete-nodes")
        running[node] = Process(tidewheel("node", *arguments, *data), tmp_path / f"{side}.log").start()
    for node, process in running.items():
        eventually(lambda node=node: is_ready(namespace, node), process)
    yield running
    namespace.kubectl("delete", "pds", "--all", "--wait=false")
    for process in running.values():
        process.stop()


def is_ready(namespace: Namespace, node: str) -> bool:
    nodes = {one["metadata"]["name"]: one for one in namespace.cluster.get("nodes")["items"]}
    conditions = nodes.get(node, {}).get("status", {}).get("conditions", ())
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def bound(service: dict[str, Any], namespace: Namespace, gateway_on: str) -> dict[str, Any]:
    """Its pods run on the agents of this test, the gateway on that node, prefills and decodes spread over both."""
    for role in ("prefill", "decode", "gateway"):
        selector = {"tests": namespace.name}
        placed: dict[str, Any] = {"tolerations": [{"key": "tests", "operator": "Exists"}]}
        if role == "gateway":
            selector["kubernetes.io/hostname"] = gateway_on
        else:
            labels = {"tidewheel.dev/service": "chat", "tidewheel.dev/role": role}
            spread = {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": labels},
            }
            placed["topologySpreadConstraints"] = [spread]
        pod = service["spec"][role]["template"]["spec"]
        service["spec"][role]["template"] = {"spec": {**pod, **placed, "nodeSelector": selector}}
    return service


def let_time_pass(namespace: Namespace, node: str) -> None:
    """The silence of a node whose agent is dead, without waiting for it: its last beats are made older."""
    past = datetime.now(UTC) - LONG
    lease = {"spec": {"renewTime": past.strftime("%Y-%m-%dT%H:%M:%S.%fZ")}}
    kubectl = namespace.cluster.kubectl
    kubectl("-n", "kube-node-lease", "patch", "lease", node, "--type=merge", "-p", json.dumps(lease))
    eventually(lambda: not is_ready(namespace, node))
    condition = {
        "type": "Ready",
        "status": "Unknown",
        "lastTransitionTime": past.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    status = {"status": {"conditions": [condition]}}
    kubectl("patch", "node", node, "--subresource=status", "--type=strategic", "-p", json.dumps(status))


def pods_with_nodes(namespace: Namespace) -> dict[str, tuple[str, str]]:
    """Uid and node of each pod that is not being deleted."""
    return {
        pod["metadata"]["name"]: (pod["metadata"]["uid"], pod["spec"].get("nodeName", ""))
        for pod in namespace.pods()
    }


@pytest.mark.timeout(500)
async def test_a_killed_node_costs_one_substitute_for_each_of_its_pods_and_may_come_back(
    namespace: Namespace, agents: dict[str, Process]
) -> None:
    east, west = agents
    service = pd_service(prefill={"replicas": 2}, decode={"replicas": 2})
    namespace.apply(bound(service, namespace, east))
    await asyncio.to_thread(namespace.wait_settled)
    first = pods_with_nodes(namespace)
    lost = {name for name, (_, node) in first.items() if node == west}
    assert len([name for name in lost if "-prefill-" in name]) == 1
    assert len([name for name in lost if "-decode-" in name]) == 1
    stayed = {name: one for name, one in first.items() if name not in lost}

    async with steady_load(lambda: ask(namespace)) as outcomes:
        agents[west].stop(signal.SIGKILL)
        await asyncio.to_thread(let_time_pass, namespace, west)
        substitutes = {f"{name}-1" for name in lost}
        await asyncio.to_thread(
            eventually, lambda: pods_with_nodes(namespace).keys() == stayed.keys() | substitutes
        )
        await asyncio.to_thread(
            eventually, lambda: namespace.condition("Degraded")["reason"] == "AllMembersHealthy"
        )
        told = len(outcomes)
        await asyncio.to_thread(eventually, lambda: len(outcomes) >= told + 6)
    assert [one for one in outcomes if isinstance(one, BaseException)] == []

    last = pods_with_nodes(namespace)
    assert stayed.items() <= last.items(), "those on the other node are the pods they were"
    assert {node for _, node in last.values()} == {east}
    decisions = namespace.get("pds", "chat")["status"]["decisions"]
    because = [one["message"] for one in decisions if one["reason"] == "NodeLost"]
    assert len(because) == len(lost)
    assert all(any(name in message for message in because) for name in lost)

    agents[west].start()
    await asyncio.to_thread(eventually, lambda: is_ready(namespace, west), agents[west])
    # what was deleted while nobody answered for it is gone now
    await asyncio.to_thread(
        eventually,
        lambda: {pod["metadata"]["name"] for pod in namespace.get("pods")["items"]} == last.keys(),
    )
    await asyncio.to_thread(namespace.wait_settled)
    assert pods_with_nodes(namespace) == last
    for pod in namespace.pods():
        restarts = [one["restartCount"] for one in pod["status"]["containerStatuses"]]
        assert restarts == [0], f"{pod['metadata']['name']} restarted"
    assert await ask(namespace)
