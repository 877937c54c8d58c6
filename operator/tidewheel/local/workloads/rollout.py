"""How a Deployment's ReplicaSets should be sized at this moment: pure arithmetic of the rolling update."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from tidewheel.api.manifest import Manifest

_SAFE = "bcdfghjklmnpqrstvwxz2456789"


@dataclass(frozen=True, slots=True, kw_only=True)
class SetSize:
    """One ReplicaSet: how many pods it asks for, and how many of them are available."""

    name: str
    replicas: int
    available: int


def template_hash(template: Manifest) -> str:
    """Ten letters that change with the pod template; in kube-controller-manager's alphabet."""
    number = int.from_bytes(hashlib.sha256(json.dumps(template, sort_keys=True).encode()).digest()[:8], "big")
    letters = []
    for _ in range(10):
        number, rest = divmod(number, len(_SAFE))
        letters.append(_SAFE[rest])
    return "".join(letters)


def bounds(spec: Manifest) -> tuple[int, int]:
    """maxSurge and maxUnavailable in pods. Percentages of the first round up, of the second down; not both are 0."""
    wanted = int(spec.get("replicas", 1))
    rolling = (spec.get("strategy") or {}).get("rollingUpdate") or {}
    surge = math.ceil(_share(rolling.get("maxSurge", "25%"), wanted))
    unavailable = math.floor(_share(rolling.get("maxUnavailable", "25%"), wanted))
    return (surge, unavailable) if surge or unavailable else (0, 1)


def next_sizes(spec: Manifest, new: SetSize, old: Sequence[SetSize]) -> dict[str, int]:
    """The replicas each set should have now. Call again when pods became available or went away.

    RollingUpdate: never more than replicas + maxSurge pods, never fewer than replicas - maxUnavailable
    available ones. Recreate: the old ones go first.
    """
    wanted = int(spec.get("replicas", 1))
    old_total = sum(each.replicas for each in old)
    if (spec.get("strategy") or {}).get("type") == "Recreate":
        if old_total:
            return {each.name: 0 for each in old} | {new.name: new.replicas}
        return {new.name: wanted}
    surge, unavailable = bounds(spec)
    if not old_total:
        return {new.name: wanted}
    room = max(wanted + surge - old_total - new.replicas, 0)
    sizes = {new.name: min(wanted, new.replicas + room) if new.replicas <= wanted else wanted}
    available = new.available + sum(each.available for each in old)
    # What is unavailable in the old sets can go at once; of the rest, what the budget allows.
    spare = max(available - (wanted - unavailable), 0)
    for each in sorted(old, key=lambda one: one.name):
        broken = max(each.replicas - each.available, 0)
        healthy = min(each.replicas - broken, spare)
        spare -= healthy
        sizes[each.name] = each.replicas - broken - healthy
    return sizes


def _share(amount: int | str, of: int) -> float:
    if isinstance(amount, str) and amount.endswith("%"):
        return of * int(amount[:-1]) / 100
    return int(amount)
