"""The disruption controller: how many pods of each PodDisruptionBudget may be evicted now."""

from __future__ import annotations

import math
from datetime import UTC, datetime

from tidewheel.api.manifest import PDBS, Manifest
from tidewheel.kube.client import Api
from tidewheel.local.informer import Informer, Key, key_of
from tidewheel.local.labels import selects
from tidewheel.local.workloads.loop import Loop, is_active, is_ready


class DisruptionBudgets:
    """Keeps the status of every PodDisruptionBudget true."""

    def __init__(self, api: Api, budgets: Informer, pods: Informer) -> None:
        self._api = api
        self._budgets = budgets
        self._pods = pods
        self.loop = Loop("poddisruptionbudget", self._sync)
        budgets.subscribe(lambda _, after: self.loop.enqueue(key_of(after)) if after else None)
        pods.subscribe(self._pod_changed)

    def _pod_changed(self, before: Manifest | None, after: Manifest | None) -> None:
        pod = after or before
        if pod is None:
            return
        labels = pod["metadata"].get("labels") or {}
        for budget in self._budgets.in_namespace(pod["metadata"]["namespace"]):
            if selects(budget["spec"].get("selector"), labels):
                self.loop.enqueue(key_of(budget))

    async def _sync(self, key: Key) -> None:
        budget = self._budgets.get(*key)
        if budget is None or budget["metadata"].get("deletionTimestamp"):
            return
        selector = budget["spec"].get("selector")
        pods = [
            pod
            for pod in self._pods.in_namespace(key[0])
            if is_active(pod) and selects(selector, pod["metadata"].get("labels") or {})
        ]
        healthy = sum(is_ready(pod) for pod in pods)
        status = budget_status(budget, expected=len(pods), healthy=healthy)
        before = budget.get("status") or {}
        if any(before.get(name) != value for name, value in status.items()):
            allowed = status["disruptionsAllowed"] > 0
            condition = {
                "type": "DisruptionAllowed",
                "status": "True" if allowed else "False",
                "reason": "SufficientPods" if allowed else "InsufficientPods",
                "message": "",
                "observedGeneration": status["observedGeneration"],
                "lastTransitionTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            }
            patch = {
                # The server counts evictions down in between; a stale count must not overwrite that.
                "metadata": {"resourceVersion": budget["metadata"]["resourceVersion"]},
                "status": {**status, "disruptedPods": None, "conditions": [condition]},
            }
            await self._api.patch(PDBS, key[1], patch, key[0], subresource="status")


def budget_status(budget: Manifest, *, expected: int, healthy: int) -> Manifest:
    """The counts of a budget over `expected` pods of which `healthy` are ready."""
    spec = budget["spec"]
    if "maxUnavailable" in spec:
        desired = expected - _pods(spec["maxUnavailable"], expected)
    else:
        desired = _pods(spec.get("minAvailable", 1), expected)
    desired = max(desired, 0)
    return {
        "observedGeneration": budget["metadata"].get("generation", 1),
        "expectedPods": expected,
        "currentHealthy": healthy,
        "desiredHealthy": desired,
        "disruptionsAllowed": max(healthy - desired, 0) if expected else 0,
    }


def _pods(amount: int | str, of: int) -> int:
    if isinstance(amount, str) and amount.endswith("%"):
        return math.ceil(of * int(amount[:-1]) / 100)
    return int(amount)
