"""Where pods of a kind are: counting by topology domain, for affinity between pods and for spreading."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tidewheel.api.manifest import Manifest
from tidewheel.local.labels import selects
from tidewheel.local.scheduler.model import NodeState, PlacedPod, Snapshot


def affinity_terms(pod: Manifest, kind: str, strength: str) -> list[Manifest]:
    """The terms of `podAffinity` or `podAntiAffinity`, required or preferred."""
    affinity = (pod["spec"].get("affinity") or {}).get(kind) or {}
    return list(affinity.get(f"{strength}DuringSchedulingIgnoredDuringExecution") or [])


def term_selects(term: Manifest, owner: Manifest, pod: PlacedPod) -> bool:
    """Whether an affinity term of the pod `owner` is about `pod`."""
    namespaces = term.get("namespaces") or []
    everywhere = term.get("namespaceSelector") == {}
    if not namespaces and not everywhere:
        namespaces = [owner["metadata"].get("namespace", "")]
    if not everywhere and pod.namespace not in namespaces:
        return False
    return selects(_with_match_label_keys(term, owner), pod.labels)


def counts(
    snapshot: Snapshot,
    key: str,
    wanted: Callable[[PlacedPod], bool],
    *,
    among: Iterable[NodeState] | None = None,
) -> dict[str, int]:
    """How many wanted pods each domain of a topology key has; domains without any count too."""
    found: dict[str, int] = {}
    for node in snapshot if among is None else among:
        domain = node.labels.get(key)
        if domain is not None:
            found[domain] = found.get(domain, 0) + sum(wanted(pod) for pod in node.pods.values())
    return found


def spread_selects(constraint: Manifest, owner: Manifest, pod: PlacedPod) -> bool:
    """Whether a spread constraint of the pod `owner` counts `pod`; one that is ending does not count."""
    return (
        not pod.is_terminating
        and pod.namespace == owner["metadata"].get("namespace", "")
        and selects(_with_match_label_keys(constraint, owner), pod.labels)
    )


def _with_match_label_keys(holder: Manifest, owner: Manifest) -> Manifest | None:
    selector: Manifest | None = holder.get("labelSelector")
    keys = holder.get("matchLabelKeys") or []
    if selector is None or not keys:
        return selector
    labels = owner["metadata"].get("labels") or {}
    own = {key: labels[key] for key in keys if key in labels}
    return {**selector, "matchLabels": {**(selector.get("matchLabels") or {}), **own}}
