"""The scheduler against an API server: binding, waiting with a reason, and trying again."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tidewheel.api.manifest import NODES, PODS
from tidewheel.local.cluster import LocalCluster, local_cluster, node_agent
from tidewheel.local.node import AgentOptions
from tidewheel.local.nodes import NodesFile

from .world import condition, is_ready, pod, shell, until, until_event, until_gone

GPU = {"limits": {"nvidia.com/gpu": "1"}}


def nodes_file(*nodes: dict) -> NodesFile:
    return NodesFile.model_validate({"nodes": nodes})


@pytest.fixture
async def cluster() -> AsyncIterator[LocalCluster]:
    """A GPU node and a tainted NPU node whose pods only pretend to run."""
    nodes = nodes_file(
        {"name": "gpu", "labels": {"kind": "gpu"}, "capacity": {"nvidia.com/gpu": 4}},
        {
            "name": "npu",
            "capacity": {"huawei.com/Ascend910": 8},
            "taints": [{"key": "npu", "value": "yes", "effect": "NoSchedule"}],
        },
    )
    async with local_cluster(with_crds=False, nodes_file=nodes, stand_in=True) as running:
        yield running


@pytest.fixture
def api(cluster):
    return cluster.api


async def test_pods_go_where_their_accelerator_is(api):
    npu = pod(
        "npu",
        shell("", resources={"limits": {"huawei.com/Ascend910": "8"}}),
        tolerations=[{"key": "npu", "operator": "Exists"}],
    )
    await api.create(PODS, npu)
    await api.create(PODS, pod("gpu", shell("", resources=GPU)))

    assert (await until(api, PODS, "npu", is_ready))["spec"]["nodeName"] == "npu"
    assert (await until(api, PODS, "gpu", is_ready))["spec"]["nodeName"] == "gpu"
    assert (
        "Successfully assigned default/gpu to gpu" in (await until_event(api, "gpu", "Scheduled"))["message"]
    )


async def test_a_burst_never_overcommits_a_node(api):
    for number in range(10):
        await api.create(PODS, pod(f"p{number}", shell("", resources=GPU)))

    for number in range(10):
        await until(
            api,
            PODS,
            f"p{number}",
            lambda p: is_ready(p) or condition(p, "PodScheduled").get("reason") == "Unschedulable",
        )

    pods = (await api.list(PODS, "default")).items
    assert sum(p["spec"].get("nodeName") == "gpu" for p in pods) == 4


async def test_a_pod_that_fits_nowhere_says_why_and_is_placed_when_a_node_comes(api, cluster, tmp_path):
    await api.create(PODS, pod("amd", shell("", resources={"limits": {"amd.com/gpu": "1"}})))

    found = await until(api, PODS, "amd", lambda p: condition(p, "PodScheduled").get("status") == "False")
    want = "0/2 nodes are available: 1 Insufficient amd.com/gpu, 1 node(s) had untolerated taint {npu: yes}."
    assert condition(found, "PodScheduled")["message"] == want
    assert (await until_event(api, "amd", "FailedScheduling"))["message"] == want

    late = nodes_file({"name": "amd", "capacity": {"amd.com/gpu": 1}})
    async with node_agent(api, cluster.url, AgentOptions(nodes_file=late, data=tmp_path, stand_in=True)):
        found = await until(api, PODS, "amd", is_ready)
    assert found["spec"]["nodeName"] == "amd"
    assert condition(found, "PodScheduled")["status"] == "True"


async def test_a_waiting_pod_takes_the_place_of_one_that_leaves(api):
    whole = {"limits": {"nvidia.com/gpu": "4"}}
    await api.create(PODS, pod("first", shell("", resources=whole)))
    await until(api, PODS, "first", is_ready)
    await api.create(PODS, pod("second", shell("", resources=whole)))
    await until(api, PODS, "second", lambda p: condition(p, "PodScheduled").get("status") == "False")

    await api.delete(PODS, "first", "default")

    await until(api, PODS, "second", is_ready)


async def test_a_gated_pod_waits_for_its_gates(api):
    await api.create(PODS, pod("gated", shell(""), schedulingGates=[{"name": "example.com/wait"}]))
    await api.create(PODS, pod("free", shell("")))
    await until(api, PODS, "free", is_ready)
    assert "nodeName" not in (await api.get(PODS, "gated", "default"))["spec"]

    await api.patch(PODS, "gated", {"spec": {"schedulingGates": None}}, "default")

    await until(api, PODS, "gated", is_ready)


async def test_another_schedulers_pods_are_left_alone(api):
    await api.create(PODS, pod("theirs", shell(""), schedulerName="volcano"))
    await api.create(PODS, pod("ours", shell("")))
    await until(api, PODS, "ours", is_ready)

    theirs = await api.get(PODS, "theirs", "default")
    assert "nodeName" not in theirs["spec"]
    assert condition(theirs, "PodScheduled") == {}


async def test_hundreds_of_stand_in_pods_become_ready_and_go(api):
    names = [f"many-{number}" for number in range(200)]
    for name in names:
        await api.create(PODS, pod(name, shell(""), nodeName="npu"))
    for name in names:
        await until(api, PODS, name, is_ready)

    pods = (await api.list(PODS, "default")).items
    assert len({p["status"]["podIP"] for p in pods}) == 200
    for name in names:
        await api.delete(PODS, name, "default")
    for name in names:
        await until_gone(api, name)


async def test_a_node_whose_agent_left_takes_no_pods(api, cluster, tmp_path):
    guest = nodes_file({"name": "guest", "labels": {"kind": "guest"}})
    async with node_agent(api, cluster.url, AgentOptions(nodes_file=guest, data=tmp_path, stand_in=True)):
        await until(api, NODES, "guest", lambda n: not n["spec"].get("taints"), namespace=None)
        await api.create(PODS, pod("stays", shell(""), nodeSelector={"kind": "guest"}))
        await until(api, PODS, "stays", is_ready)

    await until(api, PODS, "stays", lambda p: condition(p, "Ready").get("reason") == "NodeNotReady")
    await api.create(PODS, pod("comes", shell(""), nodeSelector={"kind": "guest"}))

    found = await until(api, PODS, "comes", lambda p: condition(p, "PodScheduled").get("status") == "False")
    assert "untolerated taint {node.kubernetes.io/not-ready: }" in condition(found, "PodScheduled")["message"]
