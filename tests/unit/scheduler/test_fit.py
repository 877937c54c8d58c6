"""Which nodes take a pod, and what the scheduler says when none does."""

from __future__ import annotations

from typing import Any

import pytest

from tidewheel.local.scheduler.fit import find_fit
from tidewheel.local.scheduler.model import snapshot_of

from .world import near, node, node_affinity, pod, required, spread

ZONE = "topology.kubernetes.io/zone"
HOST = "kubernetes.io/hostname"


def zones(*names: str) -> list[dict[str, Any]]:
    """Nodes n1, n2, ... in the zones named."""
    return [node(f"n{i}", labels={ZONE: zone}) for i, zone in enumerate(names, start=1)]


@pytest.mark.parametrize(
    ("new", "nodes", "placed", "want"),
    [
        pytest.param(pod(), [node("n1"), node("n2")], [], {"n1", "n2"}, id="a plain pod fits everywhere"),
        pytest.param(
            pod(nodeSelector={"disk": "ssd"}),
            [node("n1", labels={"disk": "ssd"}), node("n2")],
            [],
            {"n1"},
            id="a node selector asks for the label",
        ),
        pytest.param(
            pod(affinity=node_affinity(("gpu.count", "Gt", ["3"]))),
            [node("n1", labels={"gpu.count": "8"}), node("n2", labels={"gpu.count": "3"}), node("n3")],
            [],
            {"n1"},
            id="Gt compares numbers, and needs one",
        ),
        pytest.param(
            pod(affinity=node_affinity(("disk", "NotIn", ["hdd"]), ("old", "DoesNotExist", []))),
            [node("n1", labels={"disk": "hdd"}), node("n2"), node("n3", labels={"old": ""})],
            [],
            {"n2"},
            id="NotIn and DoesNotExist hold where the label is missing",
        ),
        pytest.param(
            pod(requests={"nvidia.com/gpu": "2"}),
            [node("n1", nvidia_com__gpu=4), node("n2", nvidia_com__gpu=1), node("n3")],
            [pod("a", on="n1", requests={"nvidia.com/gpu": "2"})],
            {"n1"},
            id="an extended resource is counted with what others hold",
        ),
        pytest.param(
            pod(requests={"cpu": "1500m"}),
            [node("n1"), node("n2")],
            [pod("a", on="n1", requests={"cpu": "2600m"})],
            {"n2"},
            id="cpu is counted in thousandths",
        ),
        pytest.param(
            pod(requests={"cpu": "3"}),
            [node("n1")],
            [{**pod("a", on="n1", requests={"cpu": "3"}), "status": {"phase": "Succeeded"}}],
            {"n1"},
            id="a finished pod holds nothing",
        ),
        pytest.param(
            pod(tolerations=[{"key": "npu", "operator": "Exists"}]),
            [node("n1", taints=("npu=present:NoSchedule",)), node("n2", taints=("other=x:NoSchedule",))],
            [],
            {"n1"},
            id="a toleration covers its taint only",
        ),
        pytest.param(
            pod(),
            [node("n1", taints=("slow=:PreferNoSchedule",))],
            [],
            {"n1"},
            id="PreferNoSchedule refuses nobody",
        ),
        pytest.param(
            pod(affinity=required("podAffinity", near({"app": "db"}, ZONE))),
            zones("a", "a", "b"),
            [pod("db", on="n1", labels={"app": "db"})],
            {"n1", "n2"},
            id="pod affinity goes by zone, not by node",
        ),
        pytest.param(
            pod(labels={"app": "db"}, affinity=required("podAffinity", near({"app": "db"}, ZONE))),
            zones("a", "b"),
            [],
            {"n1", "n2"},
            id="the first of a group that wants to be together goes anywhere",
        ),
        pytest.param(
            pod(affinity=required("podAffinity", near({"app": "db"}, ZONE))),
            zones("a", "b"),
            [pod("db", on="n1", labels={"app": "db"}, namespace="elsewhere")],
            set(),
            id="pods of other namespaces do not count",
        ),
        pytest.param(
            pod(labels={"app": "web"}, affinity=required("podAntiAffinity", near({"app": "web"}, HOST))),
            zones("a", "b"),
            [pod("w", on="n1", labels={"app": "web"})],
            {"n2"},
            id="anti-affinity keeps away from its like",
        ),
        pytest.param(
            pod(labels={"app": "noisy"}),
            zones("a", "b"),
            [pod("q", on="n1", affinity=required("podAntiAffinity", near({"app": "noisy"}, HOST)))],
            {"n2"},
            id="a pod already there can keep others away",
        ),
        pytest.param(
            pod(labels={"app": "w"}, topologySpreadConstraints=[spread({"app": "w"}, ZONE)]),
            zones("a", "a", "b"),
            [pod("w1", on="n1", labels={"app": "w"})],
            {"n3"},
            id="hard spreading fills the emptiest zone",
        ),
        pytest.param(
            pod(
                labels={"app": "w"},
                nodeSelector={ZONE: "a"},
                topologySpreadConstraints=[spread({"app": "w"}, ZONE)],
            ),
            zones("a", "a", "b"),
            [pod("w1", on="n1", labels={"app": "w"})],
            {"n1", "n2"},
            id="zones the pod cannot go to are not compared",
        ),
        pytest.param(
            pod(
                labels={"app": "w", "rev": "2"},
                topologySpreadConstraints=[spread({"app": "w"}, ZONE, matchLabelKeys=["rev"])],
            ),
            zones("a", "b"),
            [pod("w1", on="n1", labels={"app": "w", "rev": "1"})],
            {"n1", "n2"},
            id="matchLabelKeys counts pods of the same revision only",
        ),
        pytest.param(
            pod(containers=[{"name": "m", "ports": [{"containerPort": 80, "hostPort": 80}]}]),
            [node("n1"), node("n2")],
            [pod("a", on="n1", containers=[{"name": "m", "ports": [{"containerPort": 1, "hostPort": 80}]}])],
            {"n2"},
            id="a host port is taken once per node",
        ),
    ],
)
def test_a_pod_fits(new, nodes, placed, want):
    assert {found.name for found in find_fit(new, snapshot_of(nodes, placed)).nodes} == want


@pytest.mark.parametrize(
    ("new", "nodes", "want"),
    [
        pytest.param(pod(), [], "no nodes available to schedule pods", id="an empty cluster"),
        pytest.param(
            pod(requests={"nvidia.com/gpu": "1"}),
            [node("n1"), node("n2", taints=("nvidia.com/gpu=present:NoSchedule",)), node("n3")],
            "0/3 nodes are available: 1 node(s) had untolerated taint {nvidia.com/gpu: present}, "
            "2 Insufficient nvidia.com/gpu.",
            id="reasons are counted and sorted",
        ),
        pytest.param(
            pod(requests={"cpu": "64", "memory": "1Ti"}),
            [node("n1")],
            "0/1 nodes are available: 1 Insufficient cpu, 1 Insufficient memory.",
            id="every short resource is named",
        ),
        pytest.param(
            pod(nodeSelector={"x": "y"}),
            [node("n1")],
            "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.",
            id="the selector's words",
        ),
        pytest.param(
            pod(affinity=required("podAffinity", near({"app": "db"}, ZONE))),
            [node("n1")],
            "0/1 nodes are available: 1 node(s) didn't match pod affinity rules.",
            id="affinity's words",
        ),
        pytest.param(
            pod(topologySpreadConstraints=[spread({"app": "w"}, ZONE)]),
            [node("n1")],
            "0/1 nodes are available: 1 node(s) didn't match pod topology spread constraints "
            "(missing required label).",
            id="spreading needs the label",
        ),
        pytest.param(
            pod(),
            [node("n1", pods=0)],
            "0/1 nodes are available: 1 Too many pods.",
            id="a full node",
        ),
    ],
)
def test_the_message_says_why_no_node_takes_it(new, nodes, want):
    assert find_fit(new, snapshot_of(nodes, [])).message() == want


def test_a_cordoned_node_takes_no_new_pods():
    cordoned = node("n1")
    cordoned["spec"]["unschedulable"] = True

    assert find_fit(pod(), snapshot_of([cordoned], [])).message() == (
        "0/1 nodes are available: 1 node(s) were unschedulable."
    )


def test_a_pod_that_leaves_gives_back_what_it_held():
    snapshot = snapshot_of([node("n1")], [pod("a", on="n1", requests={"cpu": "4"})])
    assert not find_fit(pod(requests={"cpu": "1"}), snapshot).nodes

    snapshot.nodes["n1"].remove("uid-a")

    assert find_fit(pod(requests={"cpu": "4"}), snapshot).nodes
