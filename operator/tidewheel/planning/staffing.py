"""Staffing: who holds which place of a role, who leaves it, and who takes it next."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from tidewheel.planning.faults import may_be_replaced, trouble_of
from tidewheel.planning.names import Place
from tidewheel.planning.observed import ObservedPod


@dataclass(frozen=True, slots=True, kw_only=True)
class Joining:
    """A pod to create."""

    place: Place
    #: Whom it substitutes; None for one that was not there before.
    replaces: ObservedPod | None = None
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Staffing:
    """The pods of one role: who stays, who leaves, who joins."""

    stay: tuple[ObservedPod, ...] = ()
    #: Those to take out of every map and then delete, with the reason.
    leave: tuple[tuple[ObservedPod, str], ...] = ()
    join: tuple[Joining, ...] = ()
    #: Time until a failed pod's substitute may come.
    wait: timedelta | None = None


def keep_longest(routed: Collection[str]) -> Callable[[ObservedPod], tuple[bool, bool, int, int]]:
    """Order of those that stay: the ready ones, those in a map, the oldest."""
    return lambda pod: (not pod.ready, pod.name not in routed, pod.ordinal, pod.incarnation)


def staff(
    pods: Sequence[ObservedPod],
    wanted: int,
    *,
    now: datetime,
    routed: Collection[str] = (),
    stuck: Mapping[str, str] | None = None,
    named: Iterable[Place] = (),
) -> Staffing:
    """Brings one role to `wanted` members at the least cost (P/D-Serve §3.4).

    A failed pod leaves and one substitute takes its place under a new name; everyone else serves on. What the
    substitute is called follows from the pods there are, so planning twice creates one pod. Surplus members
    leave with those first that do not serve, are in no map (`routed` has the names of those that are), or are
    the youngest. A pod that is being deleted, by whomever, has left already.

    Args:
        pods: all of the role.
        wanted: how many there should be.
        now: the time.
        routed: names of the pods that gateways know.
        stuck: who counts as failed beside those whose pod says so, by name, with the reason.
        named: places whose names are those of pods that have another place or role by now; they come last.
    """
    stuck = stuck or {}
    leave: list[tuple[ObservedPod, str]] = []
    wait: timedelta | None = None
    present: list[ObservedPod] = []
    gone: dict[int, ObservedPod] = {}
    last: dict[int, int] = defaultdict(lambda: -1)
    for place in named:
        last[place.ordinal] = max(last[place.ordinal], place.incarnation)
    for pod in pods:
        last[pod.ordinal] = max(last[pod.ordinal], pod.incarnation)
        if pod.deleting:
            gone[pod.ordinal] = pod
            continue
        remaining = may_be_replaced(pod, now=now) if pod.name not in stuck else timedelta(0)
        if remaining is None:
            present.append(pod)
        elif remaining > timedelta(0):
            wait = remaining if wait is None else min(wait, remaining)
            present.append(pod)
        else:
            gone[pod.ordinal] = pod
            leave.append((pod, stuck.get(pod.name) or _why_failed(pod)))

    stay: list[ObservedPod] = []
    held: set[int] = set()
    for pod in sorted(present, key=keep_longest(routed)):
        if pod.ordinal in held:
            leave.append((pod, "its place is held by another pod"))
        elif len(stay) == wanted:
            leave.append((pod, "the role has more pods than asked for"))
        else:
            stay.append(pod)
            held.add(pod.ordinal)

    vacant = sorted(ordinal for ordinal in gone if ordinal not in held)
    free = iter(
        sorted(
            (ordinal for ordinal in range(wanted + len(pods)) if ordinal not in held and ordinal not in gone),
            key=lambda ordinal: (ordinal in last, ordinal),
        )
    )
    join: list[Joining] = []
    for _ in range(wanted - len(stay)):
        if vacant:
            ordinal = vacant.pop(0)
            why = stuck.get(gone[ordinal].name) or _why_failed(gone[ordinal])
            join.append(Joining(place=Place(ordinal, last[ordinal] + 1), replaces=gone[ordinal], why=why))
        else:
            ordinal = next(free)
            join.append(Joining(place=Place(ordinal, last[ordinal] + 1)))
    stay.sort(key=lambda pod: pod.ordinal)
    return Staffing(stay=tuple(stay), leave=tuple(leave), join=tuple(join), wait=wait)


def _why_failed(pod: ObservedPod) -> str:
    if pod.deleting:
        return f"{pod.name} is being deleted"
    trouble = trouble_of(pod)
    return f"{pod.name} failed: {trouble.message}" if trouble else f"{pod.name} failed"
