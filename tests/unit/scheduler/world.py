"""Nodes and pods for scheduling tables: a factory names only what matters."""

from __future__ import annotations

from typing import Any

Manifest = dict[str, Any]


def node(
    name: str, *, labels: dict[str, str] | None = None, taints: tuple[str, ...] = (), **capacity: Any
) -> Manifest:
    """A node; a taint is `key=value:Effect`, capacity words use `__` for `/` and `_` for `.` (nvidia_com__gpu)."""
    resources = {"cpu": "4", "memory": "8Gi", "pods": "10"}
    resources |= {key.replace("__", "/").replace("_", "."): str(amount) for key, amount in capacity.items()}
    return {
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, **(labels or {})}},
        "spec": {"taints": [_taint(text) for text in taints]},
        "status": {"allocatable": resources},
    }


def pod(
    name: str = "new",
    *,
    on: str | None = None,
    labels: dict[str, str] | None = None,
    requests: dict[str, str] | None = None,
    namespace: str = "default",
    **spec: Any,
) -> Manifest:
    """A pod with one container, on a node if `on` names one."""
    container: Manifest = {"name": "main"}
    if requests:
        container["resources"] = {"requests": requests}
    body: Manifest = {"containers": [container], **spec}
    if on is not None:
        body["nodeName"] = on
    metadata = {"name": name, "namespace": namespace, "uid": f"uid-{name}", "labels": labels or {}}
    return {"metadata": metadata, "spec": body, "status": {}}


def node_affinity(*expressions: tuple[str, str, list[str]]) -> Manifest:
    """A required node affinity of one term."""
    return {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term(*expressions)]}
        }
    }


def term(*expressions: tuple[str, str, list[str]]) -> Manifest:
    """A node selector term."""
    return {
        "matchExpressions": [
            {"key": key, "operator": operator, "values": values} for key, operator, values in expressions
        ]
    }


def near(labels: dict[str, str], key: str, **more: Any) -> Manifest:
    """A pod affinity term."""
    return {"labelSelector": {"matchLabels": labels}, "topologyKey": key, **more}


def required(kind: str, *terms: Manifest) -> Manifest:
    """A required pod affinity or anti-affinity."""
    return {kind: {"requiredDuringSchedulingIgnoredDuringExecution": list(terms)}}


def preferred(kind: str, weight: int, what: Manifest) -> Manifest:
    """A preferred affinity of any kind."""
    field = "preference" if kind == "nodeAffinity" else "podAffinityTerm"
    return {kind: {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": weight, field: what}]}}


def spread(labels: dict[str, str], key: str, *, skew: int = 1, hard: bool = True, **more: Any) -> Manifest:
    """A topology spread constraint."""
    return {
        "maxSkew": skew,
        "topologyKey": key,
        "whenUnsatisfiable": "DoNotSchedule" if hard else "ScheduleAnyway",
        "labelSelector": {"matchLabels": labels},
        **more,
    }


def _taint(text: str) -> Manifest:
    pair, _, effect = text.partition(":")
    key, _, value = pair.partition("=")
    return {"key": key, "value": value, "effect": effect}
