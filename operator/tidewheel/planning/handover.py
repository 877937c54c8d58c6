"""Hand-over between groups: what a scenario has stays until what it gets instead is there."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from tidewheel.planning.faults import trouble_of
from tidewheel.planning.groups import COMPUTE_ROLES, Group
from tidewheel.planning.targets import Size


def awaited(groups: Collection[Group], sizes: Mapping[str, Size], *, refused: bool) -> frozenset[str]:
    """The groups that lack pods which will come; those whose pods are in trouble, or are refused, are not waited for."""
    if refused:
        return frozenset()
    return frozenset(
        group.name
        for group in groups
        if not group.is_complete(sizes[group.name])
        and all(pod.ready or pod.deleting or trouble_of(pod) is None for pod in group.pods)
    )


def held_sizes(
    groups: Collection[Group],
    sizes: Mapping[str, Size],
    waiting: Collection[str],
    *,
    routed: Collection[str],
) -> Mapping[str, Size]:
    """The sizes with which no group gives up pods that take requests while another one is awaited.

    Who has left the routes already is not called back: a ratio would go away from the wanted one.
    """
    return {
        group.name: _at_least_routed(group, sizes[group.name], routed)
        if any(name != group.name for name in waiting)
        else sizes[group.name]
        for group in groups
    }


def _at_least_routed(group: Group, size: Size, routed: Collection[str]) -> Size:
    prefill, decode = (
        max(
            size.of(role),
            sum(pod.ready and not pod.deleting and pod.name in routed for pod in group.of_role(role)),
        )
        for role in COMPUTE_ROLES
    )
    return Size(prefill=prefill, decode=decode)
