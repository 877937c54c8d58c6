"""Which nodes a pod can run on, and for the others why not, in the words of kube-scheduler."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from tidewheel.api.manifest import Manifest
from tidewheel.local.labels import meets_all
from tidewheel.local.quantities import Amounts, pod_requests
from tidewheel.local.scheduler.model import NodeState, PlacedPod, Snapshot, Taint
from tidewheel.local.scheduler.topology import affinity_terms, counts, spread_selects, term_selects

#: Says why a node does not take the pod; nothing if it does.
Filter = Callable[[NodeState], Sequence[str]]

_UNSCHEDULABLE = Taint("node.kubernetes.io/unschedulable", "", "NoSchedule")


@dataclass(frozen=True, slots=True)
class Fit:
    """The nodes that take a pod, and the reasons of those that do not."""

    nodes: tuple[NodeState, ...]
    refusals: Mapping[str, tuple[str, ...]]

    def message(self) -> str:
        """Why no node takes the pod, for its condition and event."""
        if not self.refusals:
            return "no nodes available to schedule pods"
        tally = Counter(reason for reasons in self.refusals.values() for reason in reasons)
        listed = sorted(f"{count} {reason}" for reason, count in tally.items())
        return f"0/{len(self.refusals)} nodes are available: {', '.join(listed)}."


def find_fit(pod: Manifest, snapshot: Snapshot) -> Fit:
    """Passes every node through the filters; the first filter that refuses a node gives its reasons."""
    filters = filters_for(pod, snapshot)
    fitting: list[NodeState] = []
    refusals: dict[str, tuple[str, ...]] = {}
    for node in snapshot:
        reasons = next((said for check in filters if (said := tuple(check(node)))), ())
        if reasons:
            refusals[node.name] = reasons
        else:
            fitting.append(node)
    return Fit(tuple(fitting), refusals)


def filters_for(pod: Manifest, snapshot: Snapshot) -> tuple[Filter, ...]:
    """The filters in kube-scheduler's order, with what each needs counted once for all nodes."""
    return (
        _schedulable(pod),
        _taints(pod),
        _node_affinity(pod),
        _host_ports(pod),
        _resources(pod_requests(pod)),
        _spread(pod, snapshot),
        _pod_affinity(pod, snapshot),
    )


def tolerates(tolerations: Iterable[Manifest], taint: Taint) -> bool:
    """Whether one of the tolerations covers a taint."""
    return any(
        (not t.get("effect") or t["effect"] == taint.effect)
        and (not t.get("key") or t["key"] == taint.key)
        and (t.get("operator", "Equal") == "Exists" or (t.get("key") and t.get("value", "") == taint.value))
        for t in tolerations
    )


def matches_node_affinity(pod: Manifest, node: NodeState) -> bool:
    """Whether a node has what `nodeSelector` and the required node affinity ask for."""
    selector = pod["spec"].get("nodeSelector") or {}
    if any(node.labels.get(key) != value for key, value in selector.items()):
        return False
    affinity = (pod["spec"].get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution")
    return required is None or any(
        matches_node_term(term, node) for term in required.get("nodeSelectorTerms") or []
    )


def matches_node_term(term: Manifest, node: NodeState) -> bool:
    """Whether a node selector term holds; an empty term selects nothing."""
    expressions, fields = term.get("matchExpressions") or [], term.get("matchFields") or []
    if not expressions and not fields:
        return False
    return meets_all(expressions, node.labels) and meets_all(fields, {"metadata.name": node.name})


def _schedulable(pod: Manifest) -> Filter:
    tolerated = tolerates(pod["spec"].get("tolerations") or [], _UNSCHEDULABLE)
    return lambda node: ("node(s) were unschedulable",) if node.unschedulable and not tolerated else ()


def _taints(pod: Manifest) -> Filter:
    tolerations = pod["spec"].get("tolerations") or []

    def check(node: NodeState) -> Sequence[str]:
        for taint in node.taints:
            if taint.effect in ("NoSchedule", "NoExecute") and not tolerates(tolerations, taint):
                return (f"node(s) had untolerated taint {taint}",)
        return ()

    return check


def _node_affinity(pod: Manifest) -> Filter:
    reason = ("node(s) didn't match Pod's node affinity/selector",)
    return lambda node: () if matches_node_affinity(pod, node) else reason


def _host_ports(pod: Manifest) -> Filter:
    wanted = _ports(pod)

    def check(node: NodeState) -> Sequence[str]:
        if wanted and any(wanted & _ports(placed.manifest) for placed in node.pods.values()):
            return ("node(s) didn't have free ports for the requested pod ports",)
        return ()

    return check


def _ports(pod: Manifest) -> set[tuple[int, str]]:
    return {
        (port["hostPort"], port.get("protocol", "TCP"))
        for container in pod["spec"]["containers"]
        for port in container.get("ports") or []
        if port.get("hostPort")
    }


def _resources(requests: Amounts) -> Filter:
    def check(node: NodeState) -> Sequence[str]:
        short = []
        for name, amount in requests.items():
            if amount and amount > node.allocatable.get(name, 0) - node.held.get(name, 0):
                short.append("Too many pods" if name == "pods" else f"Insufficient {name}")
        return short

    return check


def _spread(pod: Manifest, snapshot: Snapshot) -> Filter:
    checks = [
        _spread_check(pod, constraint, snapshot)
        for constraint in pod["spec"].get("topologySpreadConstraints") or []
        if constraint.get("whenUnsatisfiable", "DoNotSchedule") == "DoNotSchedule"
    ]
    return lambda node: next((reasons for check in checks if (reasons := check(node))), ())


def _spread_check(pod: Manifest, constraint: Manifest, snapshot: Snapshot) -> Filter:
    key, most_skew = constraint["topologyKey"], constraint["maxSkew"]
    found = counts(
        snapshot,
        key,
        lambda placed: spread_selects(constraint, pod, placed),
        among=spread_nodes(pod, constraint, snapshot),
    )
    least = min(found.values(), default=0)
    if len(found) < constraint.get("minDomains", 1):
        least = 0
    itself = int(spread_selects(constraint, pod, PlacedPod.of(pod)))

    def check(node: NodeState) -> Sequence[str]:
        domain = node.labels.get(key)
        if domain is None:
            return ("node(s) didn't match pod topology spread constraints (missing required label)",)
        if found.get(domain, 0) + itself - least > most_skew:
            return ("node(s) didn't match pod topology spread constraints",)
        return ()

    return check


def spread_nodes(pod: Manifest, constraint: Manifest, snapshot: Snapshot) -> list[NodeState]:
    """The nodes whose domains a spread constraint compares: by its policies, those the pod could choose."""
    honours_affinity = constraint.get("nodeAffinityPolicy", "Honor") == "Honor"
    honours_taints = constraint.get("nodeTaintsPolicy", "Ignore") == "Honor"
    untainted = _taints(pod)
    return [
        node
        for node in snapshot
        if (not honours_affinity or matches_node_affinity(pod, node))
        and (not honours_taints or not untainted(node))
    ]


def _pod_affinity(pod: Manifest, snapshot: Snapshot) -> Filter:
    near = affinity_terms(pod, "podAffinity", "required")
    away = affinity_terms(pod, "podAntiAffinity", "required")
    itself = PlacedPod.of(pod)
    near_counts = [
        counts(snapshot, term["topologyKey"], lambda placed, term=term: term_selects(term, pod, placed))  # type: ignore[misc]
        for term in near
    ]
    away_counts = [
        counts(snapshot, term["topologyKey"], lambda placed, term=term: term_selects(term, pod, placed))  # type: ignore[misc]
        for term in away
    ]
    # The first pod of a group that wants to be together may go anywhere.
    is_first = not any(sum(found.values()) for found in near_counts) and all(
        term_selects(term, pod, itself) for term in near
    )
    shunned = _shunned_domains(itself, snapshot)

    def check(node: NodeState) -> Sequence[str]:
        for term, found in zip(near, near_counts, strict=True):
            domain = node.labels.get(term["topologyKey"])
            if domain is None or (not found.get(domain) and not is_first):
                return ("node(s) didn't match pod affinity rules",)
        for term, found in zip(away, away_counts, strict=True):
            domain = node.labels.get(term["topologyKey"])
            if domain is not None and found.get(domain):
                return ("node(s) didn't match pod anti-affinity rules",)
        if any(node.labels.get(key) == domain for key, domain in shunned):
            return ("node(s) didn't satisfy existing pods anti-affinity rules",)
        return ()

    return check


def _shunned_domains(pod: PlacedPod, snapshot: Snapshot) -> set[tuple[str, str]]:
    """The domains that pods already placed keep free of this one."""
    shunned: set[tuple[str, str]] = set()
    for node in snapshot:
        for placed in node.keepers.values():
            for term in affinity_terms(placed.manifest, "podAntiAffinity", "required"):
                domain = node.labels.get(term["topologyKey"])
                if domain is not None and term_selects(term, placed.manifest, pod):
                    shunned.add((term["topologyKey"], domain))
    return shunned
