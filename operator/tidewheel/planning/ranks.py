"""Rank tables: when a group's members are told of each other, and as what."""

from __future__ import annotations

from collections.abc import Iterable

from tidewheel.api.ranktable import DECODE_RANKS, Member, RankTable
from tidewheel.planning.observed import ObservedPod


def rank_table(
    *,
    service: str,
    group: str,
    revision: str,
    members: Iterable[ObservedPod],
    complete: bool,
    published: bool,
    combined: bool = False,
) -> RankTable | None:
    """The table a group should have, or None while it cannot have one.

    The first is published when the group is `complete` and every member has an address. After that the table
    follows the members that have one: a failed member leaves it at once, its substitute joins when it can be
    reached, and the others keep their ranks throughout. With `combined` it says that decodes serve without prefills.
    """
    staying = sorted(members, key=lambda pod: (pod.role != "prefill", pod.ordinal))
    reachable = [pod for pod in staying if pod.ip]
    if not published and not (complete and staying and len(reachable) == len(staying)):
        return None
    return RankTable(
        service=service,
        group=group,
        revision=revision,
        members=tuple(_member(pod) for pod in reachable),
        combined=combined,
    )


def _member(pod: ObservedPod) -> Member:
    is_prefill = pod.role == "prefill"
    return Member(
        rank=pod.ordinal if is_prefill else DECODE_RANKS + pod.ordinal,
        role="prefill" if is_prefill else "decode",
        name=pod.name,
        uid=pod.uid,
        address=pod.ip,
    )
