"""What the scheduler knows: nodes with the pods on them, as values that planning reads and the loop keeps true."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from tidewheel.api.manifest import Manifest
from tidewheel.local.quantities import Amounts, amounts, pod_requests


@dataclass(frozen=True, slots=True)
class Taint:
    """A taint of a node."""

    key: str
    value: str
    effect: str

    def __str__(self) -> str:
        return f"{{{self.key}: {self.value}}}"


@dataclass(frozen=True, slots=True)
class PlacedPod:
    """What matters of a pod that has a node."""

    name: str
    namespace: str
    labels: Mapping[str, str]
    requests: Amounts
    manifest: Manifest
    is_terminating: bool = False

    @classmethod
    def of(cls, pod: Manifest) -> PlacedPod:
        """The pod as the scheduler sees it."""
        metadata = pod["metadata"]
        return cls(
            name=metadata["name"],
            namespace=metadata.get("namespace", ""),
            labels=metadata.get("labels") or {},
            requests=pod_requests(pod),
            manifest=pod,
            is_terminating=bool(metadata.get("deletionTimestamp")),
        )


@dataclass(slots=True, kw_only=True)
class NodeState:
    """A node, what it has, and what its pods hold."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: tuple[Taint, ...] = ()
    unschedulable: bool = False
    allocatable: Amounts = field(default_factory=dict)
    held: Amounts = field(default_factory=dict)
    pods: dict[str, PlacedPod] = field(default_factory=dict)
    #: Those of the pods that keep others away; few, and looked at for every pod that is placed.
    keepers: dict[str, PlacedPod] = field(default_factory=dict)

    def take(self, node: Manifest) -> None:
        """Takes over what the API says of the node; its pods stay."""
        spec, metadata = node.get("spec") or {}, node["metadata"]
        self.labels = metadata.get("labels") or {}
        self.taints = tuple(
            Taint(taint["key"], taint.get("value", ""), taint["effect"]) for taint in spec.get("taints") or []
        )
        self.unschedulable = bool(spec.get("unschedulable"))
        self.allocatable = amounts((node.get("status") or {}).get("allocatable"))

    def add(self, uid: str, pod: PlacedPod) -> None:
        """The pod is, or is assumed to be, on this node."""
        self.remove(uid)
        self.pods[uid] = pod
        if (pod.manifest["spec"].get("affinity") or {}).get("podAntiAffinity"):
            self.keepers[uid] = pod
        for name, amount in pod.requests.items():
            self.held[name] = self.held.get(name, 0) + amount

    def remove(self, uid: str) -> None:
        """The pod is not on this node any more."""
        pod = self.pods.pop(uid, None)
        self.keepers.pop(uid, None)
        if pod is not None:
            for name, amount in pod.requests.items():
                self.held[name] -= amount


@dataclass(slots=True)
class Snapshot:
    """All nodes, and what the pods on them forbid to others."""

    nodes: dict[str, NodeState] = field(default_factory=dict)

    def __iter__(self) -> Iterator[NodeState]:
        return iter(self.nodes.values())


def snapshot_of(nodes: Iterable[Manifest], pods: Iterable[Manifest]) -> Snapshot:
    """The state of a cluster as the API shows it."""
    snapshot = Snapshot()
    for node in nodes:
        state = NodeState(name=node["metadata"]["name"])
        state.take(node)
        snapshot.nodes[state.name] = state
    for pod in pods:
        placed = snapshot.nodes.get(pod["spec"].get("nodeName", ""))
        if placed is not None and holds_resources(pod):
            placed.add(pod["metadata"]["uid"], PlacedPod.of(pod))
    return snapshot


def holds_resources(pod: Manifest) -> bool:
    """Whether a bound pod still counts on its node."""
    return (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed")
