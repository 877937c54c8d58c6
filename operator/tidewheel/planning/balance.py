"""Balance: how many of a group's ready pods take requests while their numbers change, so that its ratio never strays."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleState:
    """Where one role of a group stands."""

    #: Pods that take requests and are well.
    routed: int
    #: Pods that could: the routed ones, and those that are ready and not yet routed.
    ready: int
    #: Pods it should have.
    wanted: int
    #: Whether those that it lacks will come; not so where no node has room for them.
    coming: bool = True

    @property
    def goal(self) -> int:
        """As many as it can have now of those it should have."""
        return min(self.wanted, self.ready)


def skew(prefill: int, decode: int, wanted_prefill: int, wanted_decode: int) -> float:
    """How far a ratio lies beside the wanted one: 0 on it, 1 at its double or its half; infinite with an empty role."""
    if not (prefill and decode and wanted_prefill and wanted_decode):
        return math.inf
    beside = prefill * wanted_decode / (decode * wanted_prefill)
    return max(beside, 1 / beside) - 1


def step_balance(prefill: RoleState, decode: RoleState, *, max_skew: float) -> tuple[int, int]:
    """How many prefill and decode pods should take requests now.

    Pods are started all at once, as start-up is slow, but they are taken into the routes in step: of all pairs between
    what is routed and what could be, the nearest to the goal whose skew is at most `max_skew`, or not more than it is.
    One map is published at a time, so gateways see each pair as a whole. Pods of the role that is not the bottleneck
    (P/D-Serve, arXiv 2408.08147, Eq. 1) wait in reserve: they could not raise the throughput min(n_p b_p/T_p, n_d b_d/T_d).

    A role gives up pods only when those that the other role lacks are there, unless they cannot come: then the devices
    that are set free may be what they wait for. So a ratio is changed without a dip where there is room, and in place
    where there is none.

    Bound: from one call to the next the skew does not exceed max(`max_skew`, the skew before) unless pods are lost; a
    group that is new, and has no pair within the bound, starts with the pair of least skew.
    """
    pairs = tuple(_pairs(prefill, decode))
    if not pairs:
        return prefill.goal, decode.goal

    def skew_of(pair: tuple[int, int]) -> float:
        return skew(*pair, prefill.wanted, decode.wanted)

    now = skew(prefill.routed, decode.routed, prefill.wanted, decode.wanted)
    least = now if prefill.routed and decode.routed else min(map(skew_of, pairs))
    bound = max(max_skew, least) + _ROUNDING
    allowed = [pair for pair in pairs if skew_of(pair) <= bound]
    return min(
        allowed,
        key=lambda pair: (
            abs(prefill.goal - pair[0]) + abs(decode.goal - pair[1]),
            skew_of(pair),
            -pair[0],
        ),
    )


def step_combined(
    prefill: RoleState, decode: RoleState, *, is_combined: bool, max_skew: float
) -> tuple[int, int]:
    """How many take requests of a group that is combined, or shall be: (0, n) where decodes compute the prompts, too.

    The change is made in one map, both ways, and by whoever takes over being there first:

    - to be combined, prefills serve on, and nobody's ratio moves, until the decodes that the group lacks are ready;
    - to be divided, decodes serve on by themselves, and none leaves, until the prefills that the group lacks are ready. Then
      it is balanced as a new group is (`step_balance`), and so starts within `max_skew`, or as near as it can.

    Whoever cannot come is not waited for, since what the others set free may be what it waits for. So there is a decode at
    every step if there was one, and a prefill wherever the group is not combined.

    Args:
        prefill: `wanted` is 0 where the group shall be combined.
        decode: of the group.
        is_combined: whether it is combined now.
        max_skew: bound of `step_balance`.
    """
    if not prefill.wanted:
        serves_apart = not is_combined and prefill.routed and decode.routed
        if serves_apart and decode.coming and decode.ready < decode.wanted:
            return prefill.routed, decode.routed
        return 0, decode.goal
    if prefill.coming and prefill.ready < prefill.wanted:
        return 0, max(decode.goal, min(decode.routed, decode.ready))
    if not prefill.goal:
        return 0, decode.goal
    return step_balance(replace(prefill, routed=0), replace(decode, routed=0), max_skew=max_skew)


def _pairs(prefill: RoleState, decode: RoleState) -> Iterator[tuple[int, int]]:
    """All pairs between what is routed and the goal; none if a role has nobody."""
    if not (prefill.goal and decode.goal):
        return
    for one in _numbers(prefill, decode):
        for other in _numbers(decode, prefill):
            yield one, other


def _numbers(role: RoleState, other: RoleState) -> range:
    low, high = sorted((role.routed, role.goal))
    waits_for_other = other.coming and other.ready < other.wanted
    if role.goal < role.routed and waits_for_other:
        low = role.routed
    return range(max(low, 1), high + 1)
