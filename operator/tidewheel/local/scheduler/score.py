"""Which of the nodes that take a pod it should get: each preference gives 0 to 100, weighted as in kube-scheduler."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from tidewheel.api.manifest import Manifest
from tidewheel.local.quantities import pod_requests
from tidewheel.local.scheduler.fit import matches_node_term, spread_nodes, tolerates
from tidewheel.local.scheduler.model import NodeState, PlacedPod, Snapshot
from tidewheel.local.scheduler.topology import affinity_terms, counts, spread_selects, term_selects

#: Raw scores by node name; only their order and distances matter, they are normalised.
Scores: TypeAlias = Mapping[str, float]
Scorer = Callable[[Manifest, Sequence[NodeState], Snapshot], Scores]

_BEST = 100.0


def best_node(pod: Manifest, candidates: Sequence[NodeState], snapshot: Snapshot) -> NodeState:
    """The candidate with the highest weighted score; the first name among equals, so that plans repeat.

    Raises:
        ValueError: there are no candidates.
    """
    if len(candidates) == 1:
        return candidates[0]
    totals = total_scores(pod, candidates, snapshot)
    return min(candidates, key=lambda node: (-totals[node.name], node.name))


def total_scores(pod: Manifest, candidates: Sequence[NodeState], snapshot: Snapshot) -> dict[str, float]:
    """The weighted sum of all scorers by node name."""
    totals = dict.fromkeys((node.name for node in candidates), 0.0)
    for scorer, weight in SCORERS:
        for name, score in _normalised(scorer(pod, candidates, snapshot)).items():
            totals[name] += weight * score
    return totals


def _least_allocated(pod: Manifest, candidates: Sequence[NodeState], _: Snapshot) -> Scores:
    """Free cpu and memory after the pod, in percent. Not spread out to 0..100, so that it only breaks near ties."""
    requests = pod_requests(pod)

    def free(node: NodeState) -> float:
        shares = [
            max(0.0, 1 - (node.held.get(name, 0) + requests.get(name, 0)) / node.allocatable[name])
            for name in ("cpu", "memory")
            if node.allocatable.get(name)
        ]
        return 100 * sum(shares) / len(shares) if shares else 0.0

    # The pods resource parts nodes on which nothing asks for cpu or memory.
    return {node.name: free(node) - node.held.get("pods", 0) / 1000 for node in candidates}


def _tolerated_taints(pod: Manifest, candidates: Sequence[NodeState], _: Snapshot) -> Scores:
    tolerations = pod["spec"].get("tolerations") or []
    return {
        node.name: -float(
            sum(t.effect == "PreferNoSchedule" and not tolerates(tolerations, t) for t in node.taints)
        )
        for node in candidates
    }


def _node_preference(pod: Manifest, candidates: Sequence[NodeState], _: Snapshot) -> Scores:
    affinity = (pod["spec"].get("affinity") or {}).get("nodeAffinity") or {}
    terms = affinity.get("preferredDuringSchedulingIgnoredDuringExecution") or []
    return {
        node.name: float(sum(t["weight"] for t in terms if matches_node_term(t["preference"], node)))
        for node in candidates
    }


def _pod_preference(pod: Manifest, candidates: Sequence[NodeState], snapshot: Snapshot) -> Scores:
    scores = dict.fromkeys((node.name for node in candidates), 0.0)
    for kind, sign in (("podAffinity", 1), ("podAntiAffinity", -1)):
        for preferred in affinity_terms(pod, kind, "preferred"):
            term = preferred["podAffinityTerm"]
            found = counts(snapshot, term["topologyKey"], _selector(term, pod))
            for node in candidates:
                domain = node.labels.get(term["topologyKey"], "")
                scores[node.name] += sign * preferred["weight"] * found.get(domain, 0)
    return scores


def _spread_preference(pod: Manifest, candidates: Sequence[NodeState], snapshot: Snapshot) -> Scores:
    scores = dict.fromkeys((node.name for node in candidates), 0.0)
    for constraint in pod["spec"].get("topologySpreadConstraints") or []:
        if constraint.get("whenUnsatisfiable") != "ScheduleAnyway":
            continue
        key = constraint["topologyKey"]
        among = spread_nodes(pod, constraint, snapshot)
        found = counts(snapshot, key, _spread_selector(constraint, pod), among=among)
        fullest = max(found.values(), default=0)
        for node in candidates:
            domain = node.labels.get(key)
            scores[node.name] -= found.get(domain, 0) if domain is not None else fullest + 1
    return scores


def _selector(term: Manifest, owner: Manifest) -> Callable[[PlacedPod], bool]:
    return lambda placed: term_selects(term, owner, placed)


def _spread_selector(constraint: Manifest, owner: Manifest) -> Callable[[PlacedPod], bool]:
    return lambda placed: spread_selects(constraint, owner, placed)


def _normalised(scores: Scores) -> dict[str, float]:
    """The scores from 0 (the worst) to 100 (the best); all alike give nothing to choose."""
    lowest, highest = min(scores.values(), default=0.0), max(scores.values(), default=0.0)
    if highest == lowest:
        return {}
    return {name: _BEST * (score - lowest) / (highest - lowest) for name, score in scores.items()}


SCORERS: tuple[tuple[Scorer, float], ...] = (
    (_tolerated_taints, 3.0),
    (_node_preference, 2.0),
    (_pod_preference, 2.0),
    (_spread_preference, 2.0),
    (_least_allocated, 1.0),
)
