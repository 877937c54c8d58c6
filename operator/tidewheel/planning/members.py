"""Members of a group, or gateways of a revision: who holds which place, who leaves it, and who takes it next."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from tidewheel.api.pdservice import PDServiceSpec
from tidewheel.api.ranktable import Role
from tidewheel.planning.faults import may_be_replaced, trouble_of
from tidewheel.planning.groups import COMPUTE_ROLES, Group
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


@dataclass(frozen=True, slots=True, kw_only=True)
class StaffedGroup:
    """A group that goes on, with the staffing of each role."""

    group: Group
    #: What its pods are built from; None if no record of its revision is left, so nobody can join it.
    spec: PDServiceSpec | None
    roles: Mapping[Role, Staffing]

    @property
    def stay(self) -> tuple[ObservedPod, ...]:
        """Its members, prefills first."""
        return tuple(pod for role in COMPUTE_ROLES for pod in self.roles[role].stay)

    @property
    def leave(self) -> tuple[tuple[ObservedPod, str], ...]:
        """Those who leave it, with the reason."""
        return tuple(leaving for role in COMPUTE_ROLES for leaving in self.roles[role].leave)

    @property
    def join(self) -> tuple[tuple[Role, Joining], ...]:
        """Those who join it."""
        return tuple((role, joining) for role in COMPUTE_ROLES for joining in self.roles[role].join)


def staff_group(
    group: Group, spec: PDServiceSpec | None, *, now: datetime, routed: Collection[str]
) -> StaffedGroup:
    """Staffs both roles as `spec` asks; without a spec those who are well stay and nobody joins."""
    roles: dict[Role, Staffing] = {}
    for role in COMPUTE_ROLES:
        pods = group.of_role(role)
        if spec is None:
            staffing = staff(pods, len(pods), now=now, routed=routed)
            roles[role] = replace(staffing, join=())
        else:
            wanted = spec.prefill.replicas if role == "prefill" else spec.decode.replicas
            roles[role] = staff(pods, wanted, now=now, routed=routed)
    return StaffedGroup(group=group, spec=spec, roles=roles)


def staff(
    pods: Sequence[ObservedPod], wanted: int, *, now: datetime, routed: Collection[str] = ()
) -> Staffing:
    """Brings one role to `wanted` members at the least cost (P/D-Serve §3.4).

    A failed pod leaves and one substitute takes its place under a new name; everyone else serves on. What the
    substitute is called follows from the pods there are, so planning twice creates one pod. Surplus members
    leave with those first that do not serve, are in no map (`routed` has the names of those that are), or are
    the youngest. A pod that is being deleted, by whomever, has left already.
    """
    leave: list[tuple[ObservedPod, str]] = []
    wait: timedelta | None = None
    present: list[ObservedPod] = []
    gone: dict[int, ObservedPod] = {}
    last: dict[int, int] = defaultdict(lambda: -1)
    for pod in pods:
        last[pod.ordinal] = max(last[pod.ordinal], pod.incarnation)
        if pod.deleting:
            gone[pod.ordinal] = pod
            continue
        remaining = may_be_replaced(pod, now=now)
        if remaining is None:
            present.append(pod)
        elif remaining > timedelta(0):
            wait = remaining if wait is None else min(wait, remaining)
            present.append(pod)
        else:
            gone[pod.ordinal] = pod
            leave.append((pod, _why_failed(pod)))

    def keep_longest(pod: ObservedPod) -> tuple[bool, bool, int, int]:
        return (not pod.ready, pod.name not in routed, pod.ordinal, pod.incarnation)

    stay: list[ObservedPod] = []
    held: set[int] = set()
    for pod in sorted(present, key=keep_longest):
        if pod.ordinal in held:
            leave.append((pod, "its place is held by another pod"))
        elif len(stay) == wanted:
            leave.append((pod, "the role has more pods than asked for"))
        else:
            stay.append(pod)
            held.add(pod.ordinal)

    vacant = sorted(ordinal for ordinal in gone if ordinal not in held)
    free = (ordinal for ordinal in range(wanted + len(pods)) if ordinal not in held and ordinal not in gone)
    join: list[Joining] = []
    for _ in range(wanted - len(stay)):
        if vacant:
            ordinal = vacant.pop(0)
            why = _why_failed(gone[ordinal])
            join.append(Joining(place=Place(ordinal, last[ordinal] + 1), replaces=gone[ordinal], why=why))
        else:
            join.append(Joining(place=Place(next(free), 0)))
    stay.sort(key=lambda pod: pod.ordinal)
    return Staffing(stay=tuple(stay), leave=tuple(leave), join=tuple(join), wait=wait)


def _why_failed(pod: ObservedPod) -> str:
    if pod.deleting:
        return f"{pod.name} is being deleted"
    trouble = trouble_of(pod)
    return f"{pod.name} failed: {trouble.message}" if trouble else f"{pod.name} failed"
