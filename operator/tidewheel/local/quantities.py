"""Resource amounts of pods and nodes as whole numbers: thousandths of a core, bytes, devices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import ROUND_CEILING, Decimal
from functools import lru_cache
from typing import Any

from tidewheel.api.manifest import Manifest
from tidewheel.local.apimachinery.quantities import MalformedQuantity, quantity

#: Amounts by resource name: cpu in thousandths, all others in their own unit.
Amounts = dict[str, int]


def parse_quantity(text: str | int) -> Decimal:
    """The number a quantity such as `500m` or `2Gi` stands for.

    Raises:
        ValueError: it is not a quantity.
    """
    try:
        return quantity(str(text))
    except MalformedQuantity as error:
        raise ValueError(f"{text!r} is not a quantity such as 2, 500m or 4Gi") from error


@lru_cache(maxsize=4096)
def whole(name: str, text: str | int) -> int:
    """A quantity of the resource `name` as a whole number, rounded up as the scheduler rounds."""
    amount = parse_quantity(text) * (1000 if name == "cpu" else 1)
    return int(amount.to_integral_value(ROUND_CEILING))


def amounts(quantities: Mapping[str, Any] | None) -> Amounts:
    """A resource list as whole numbers."""
    return {name: whole(name, text) for name, text in (quantities or {}).items()}


def pod_requests(pod: Manifest) -> Amounts:
    """What a pod asks of its node: its containers together, or more if an init container needs more.

    An init container that stays (restartPolicy Always) counts beside the others; one that ends counts
    only while it runs, together with those that stay and started before it.
    """
    spec = pod["spec"]
    staying: Amounts = {}
    peak: Amounts = {}
    for container in spec.get("initContainers") or []:
        asked = _asked(container)
        if container.get("restartPolicy") == "Always":
            staying = _sum((staying, asked))
            asked = {}
        peak = _most(peak, _sum((staying, asked)))
    running = _sum((staying, *(_asked(container) for container in spec.get("containers") or [])))
    total = _sum((_most(peak, running), amounts(spec.get("overhead"))))
    return total | {"pods": 1}


def _asked(container: Manifest) -> Amounts:
    resources = container.get("resources") or {}
    return amounts({**(resources.get("limits") or {}), **(resources.get("requests") or {})})


def _sum(parts: Iterable[Amounts]) -> Amounts:
    total: Amounts = {}
    for part in parts:
        for name, amount in part.items():
            total[name] = total.get(name, 0) + amount
    return total


def _most(one: Amounts, other: Amounts) -> Amounts:
    return {name: max(one.get(name, 0), other.get(name, 0)) for name in one | other}
