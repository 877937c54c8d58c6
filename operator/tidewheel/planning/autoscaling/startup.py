"""How long pods take to start: measured from those that did, so that the planner looks as far ahead as it must."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tidewheel.api.ranktable import Role
from tidewheel.planning.observed import ObservedPod

#: Start-ups of a role that are remembered, and how many it takes to go by them.
_REMEMBERED, _ENOUGH = 20, 8
#: Pods that are awaited; of more at once these are enough to measure by.
_MOST_AWAITED = 64
_LONGEST_SECONDS = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Startups:
    """The last start-ups, in seconds from a pod's creation until it is ready, the latest last."""

    prefill: tuple[float, ...] = ()
    decode: tuple[float, ...] = ()
    #: The uids of pods that were seen since they were created, and were never ready.
    awaited: tuple[str, ...] = ()

    def of(self, role: Role) -> tuple[float, ...]:
        """A role's."""
        return self.prefill if role == "prefill" else self.decode

    def seconds(self, role: Role) -> float | None:
        """What a pod of the role takes at most, as a rule; None while too few have started.

        Of n start-ups the longest tenth is left out, and one at least, so that a node that pulled an image, or loaded a
        model for the first time, does not count for all. What remains is the longest of them: capacity that comes late
        costs promises, and capacity that comes early costs only itself.
        """
        measured = self.of(role)
        if len(measured) < _ENOUGH:
            return None
        return sorted(measured)[-1 - max(1, len(measured) // 10)]

    def or_longer(self, configured: float) -> tuple[float, float]:
        """What is counted on for a prefill and a decode: what is configured, or longer if that was measured."""
        prefill, decode = self.seconds("prefill"), self.seconds("decode")
        return max(configured, prefill or 0.0), max(configured, decode or 0.0)

    def after(self, pods: Iterable[ObservedPod], *, since: float) -> Startups:
        """With those of the pods that became ready for the first time.

        A pod counts once: if it was awaited, or created since the last look; one that is ready again after it was not
        says nothing. Those that no node has room for, on nodes with faults, or that failed on the way are not awaited
        any more, nor those that change their role: how long they take is not how long a start takes.

        Args:
            pods: all prefills and decodes.
            since: when the last look was, in seconds since the Unix epoch.
        """
        found: dict[Role, list[float]] = {"prefill": list(self.prefill), "decode": list(self.decode)}
        before, awaited = frozenset(self.awaited), []
        for pod in sorted(pods, key=lambda pod: (pod.created, pod.uid)):
            # the API tells whole seconds, and most pods are created right after a look
            is_new = pod.uid in before or pod.created.timestamp() >= math.floor(since)
            has_flipped = pod.born is not None or pod.flip_began is not None
            hindered = (
                pod.deleting or pod.restarts or pod.unschedulable or pod.node_fault is not None or has_flipped
            )
            if pod.role == "gateway" or not is_new or hindered or pod.phase == "Failed":
                continue
            if not pod.ready:
                awaited.append(pod.uid)
            elif pod.ready_since is not None:
                took = (pod.ready_since - pod.created).total_seconds()
                found[pod.role].append(min(max(0.0, took), _LONGEST_SECONDS))
        return Startups(
            prefill=tuple(found["prefill"][-_REMEMBERED:]),
            decode=tuple(found["decode"][-_REMEMBERED:]),
            awaited=tuple(awaited[-_MOST_AWAITED:]),
        )

    def to_document(self) -> list[Any]:
        """As JSON can hold it."""
        return [self.prefill, self.decode, self.awaited]

    @classmethod
    def from_document(cls, document: list[Any]) -> Startups:
        """What `to_document` gave."""
        prefill, decode, awaited = document
        return cls(
            prefill=tuple(float(one) for one in prefill),
            decode=tuple(float(one) for one in decode),
            awaited=tuple(str(one) for one in awaited),
        )
