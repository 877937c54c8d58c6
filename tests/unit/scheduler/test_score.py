"""Which of several fitting nodes a pod gets."""

from __future__ import annotations

import pytest

from tidewheel.local.scheduler.fit import find_fit
from tidewheel.local.scheduler.model import PlacedPod, snapshot_of
from tidewheel.local.scheduler.score import best_node

from .world import near, node, pod, preferred, spread, term

ZONE = "topology.kubernetes.io/zone"
HOST = "kubernetes.io/hostname"


@pytest.mark.parametrize(
    ("new", "nodes", "placed", "want"),
    [
        pytest.param(pod(), [node("n2"), node("n1")], [], "n1", id="among equals the first name"),
        pytest.param(
            pod(requests={"cpu": "1"}),
            [node("n1"), node("n2")],
            [pod("a", on="n1", requests={"cpu": "3"})],
            "n2",
            id="the emptier node",
        ),
        pytest.param(
            pod(),
            [node("n1"), node("n2")],
            [pod("a", on="n1")],
            "n2",
            id="fewer pods when nobody asks for resources",
        ),
        pytest.param(
            pod(affinity=preferred("nodeAffinity", 50, term(("disk", "In", ["ssd"])))),
            [node("n1"), node("n2", labels={"disk": "ssd"})],
            [pod("a", on="n2", requests={"cpu": "3"})],
            "n2",
            id="a preference for a label beats emptiness",
        ),
        pytest.param(
            pod(),
            [node("n1", taints=("slow=:PreferNoSchedule",)), node("n2")],
            [pod("a", on="n2", requests={"cpu": "3"})],
            "n2",
            id="away from a taint that only asks",
        ),
        pytest.param(
            pod(affinity=preferred("podAffinity", 10, near({"app": "cache"}, ZONE))),
            [node("n1", labels={ZONE: "a"}), node("n2", labels={ZONE: "b"})],
            [pod("c", on="n2", labels={"app": "cache"})],
            "n2",
            id="towards a friend",
        ),
        pytest.param(
            pod(affinity=preferred("podAntiAffinity", 10, near({"app": "noisy"}, HOST))),
            [node("n1"), node("n2")],
            [pod("c", on="n1", labels={"app": "noisy"}), pod("d", on="n2", requests={"cpu": "3"})],
            "n2",
            id="away from a foe",
        ),
        pytest.param(
            pod(labels={"app": "w"}, topologySpreadConstraints=[spread({"app": "w"}, ZONE, hard=False)]),
            [node("n1", labels={ZONE: "a"}), node("n2", labels={ZONE: "b"})],
            [pod("w1", on="n1", labels={"app": "w"}), pod("x", on="n2", requests={"cpu": "3"})],
            "n2",
            id="soft spreading",
        ),
        pytest.param(
            pod(labels={"app": "w"}, topologySpreadConstraints=[spread({"app": "w"}, ZONE, hard=False)]),
            [node("n1"), node("n2", labels={ZONE: "b"})],
            [],
            "n2",
            id="soft spreading likes nodes that have the label",
        ),
    ],
)
def test_the_best_node(new, nodes, placed, want):
    snapshot = snapshot_of(nodes, placed)

    assert best_node(new, find_fit(new, snapshot).nodes, snapshot).name == want


def test_replicas_placed_one_after_another_end_up_even():
    snapshot = snapshot_of([node(f"n{i}") for i in range(4)], [])

    for number in range(12):
        new = pod(f"p{number}", requests={"cpu": "100m"})
        best_node(new, find_fit(new, snapshot).nodes, snapshot).add(f"uid-{number}", PlacedPod.of(new))

    assert [len(each.pods) for each in snapshot] == [3, 3, 3, 3]
