"""One budget of accelerators over several scenarios: everybody's minimum, then a fair part, then where most requests gain.

The share of its requests that a scenario serves with n_p and n_d instances is at most min(1, n_p/N_p, n_d/N_d), with N what
it needs: P/D-Serve's Φ (arXiv 2408.08147, §2.1) is the min of two lines. So below its need a scenario's next accelerator is
worth the requests that it adds over its cost, and the greedy choice by worth is the best use, up to one pair of instances
per scenario (it is the fractional knapsack). Fairness comes before: `fairness` of the proportional share is nobody's to take.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What a scenario wants of the budget. Costs are accelerators per instance."""

    name: str
    need: tuple[int, int]  # prefill, decode; never below `least`; no prefill where decodes do both
    least: tuple[int, int] = (1, 1)
    rate: float = 1.0  # requests per second, to be served
    weight: float = 1.0  # what a request is worth beside others'
    costs: tuple[int, int] = (1, 1)

    def cost(self, counts: tuple[int, int]) -> int:
        """Accelerators of so many prefills and decodes."""
        return counts[0] * self.costs[0] + counts[1] * self.costs[1]

    def served(self, counts: tuple[int, int]) -> float:
        """The greatest share of its requests that they serve."""
        needs = zip(counts, self.need, strict=True)
        return min([1.0, *(count / need for count, need in needs if need > 0)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """Who gets what, and whether the budget was the reason."""

    granted: tuple[tuple[int, int], ...]  # in the order of the asks
    binds: bool
    is_feasible: bool  # whether everybody has its minimum
    reason: str


def share(budget: int | None, asks: Sequence[Ask], *, fairness: float = 0.5) -> Shares:
    """Divide a budget. Never grants more than it, nor more than is needed, nor, if it is feasible, less than the minimum.

    When not even all minima fit, whole scenarios get theirs by falling worth of it, and the others get nothing: half a
    scenario serves nobody.

    Args:
        budget: accelerators; None is no bound.
        asks: of all scenarios; their order breaks ties.
        fairness: the part of a proportional share, 0 to 1, that each gets before worth counts.
    """
    wanted = sum(ask.cost(ask.need) for ask in asks)
    if budget is None or wanted <= budget:
        return Shares(granted=tuple(ask.need for ask in asks), binds=False, is_feasible=True, reason="")
    least = sum(ask.cost(ask.least) for ask in asks)
    if least > budget:
        return _minima(budget, asks, least)
    counts = [ask.least for ask in asks]
    left = budget - least
    filling = _Filling(asks=asks, counts=counts, left=left)
    part = fairness * budget / wanted
    filling.fill(
        lambda index: asks[index].served(counts[index]),
        until=lambda index: asks[index].served(counts[index]) >= part,
    )
    filling.fill(lambda index: -filling.worth(index), until=lambda _: False)
    short = [ask.name for ask, got in zip(asks, counts, strict=True) if got != ask.need]
    return Shares(
        granted=tuple(counts),
        binds=True,
        is_feasible=True,
        reason=(
            f"{wanted} accelerators are needed and the budget is {budget}: {_named(short)} "
            f"get less than they need; raise the budget or lower their targets"
        ),
    )


@dataclass(slots=True, kw_only=True)
class _Filling:
    """Hands out accelerators one instance at a time, always to the first by some order."""

    asks: Sequence[Ask]
    counts: list[tuple[int, int]]
    left: int

    def fill(self, order: Callable[[int], float], until: Callable[[int], bool]) -> None:
        """Until nobody can take more, or each says that it has enough."""
        heap = [(order(index), index) for index in range(len(self.asks)) if not until(index)]
        heapq.heapify(heap)
        while heap and self.left > 0:
            _, index = heapq.heappop(heap)
            step = self.next_step(index)
            cost = self.asks[index].cost(step)
            if step == (0, 0) or cost > self.left:
                continue
            have = self.counts[index]
            self.counts[index] = (have[0] + step[0], have[1] + step[1])
            self.left -= cost
            if not until(index):
                heapq.heappush(heap, (order(index), index))

    def next_step(self, index: int) -> tuple[int, int]:
        """The instance that lifts what a scenario serves: of the role that is further from its need."""
        ask, (prefill, decode) = self.asks[index], self.counts[index]
        lacks_prefill, lacks_decode = prefill < ask.need[0], decode < ask.need[1]
        if lacks_prefill and (not lacks_decode or prefill * ask.need[1] <= decode * ask.need[0]):
            return 1, 0
        return (0, 1) if lacks_decode else (0, 0)

    def worth(self, index: int) -> float:
        """Requests per second that an accelerator adds on the way from here to the need."""
        ask, have = self.asks[index], self.counts[index]
        missing = ask.cost(ask.need) - ask.cost(have)
        return ask.weight * ask.rate * (1 - ask.served(have)) / missing if missing > 0 else 0.0


def _minima(budget: int, asks: Sequence[Ask], least: int) -> Shares:
    order = sorted(
        range(len(asks)),
        key=lambda i: (-asks[i].weight * asks[i].rate / max(asks[i].cost(asks[i].least), 1), i),
    )
    granted = [(0, 0)] * len(asks)
    left = budget
    for index in order:
        cost = asks[index].cost(asks[index].least)
        if cost <= left:
            granted[index] = asks[index].least
            left -= cost
    without = [ask.name for ask, got in zip(asks, granted, strict=True) if got == (0, 0)]
    return Shares(
        granted=tuple(granted),
        binds=True,
        is_feasible=False,
        reason=(
            f"the least of all scenarios together takes {least} accelerators and the budget is {budget}: "
            f"{_named(without)} cannot run; raise the budget or take scenarios away"
        ),
    )


def _named(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
