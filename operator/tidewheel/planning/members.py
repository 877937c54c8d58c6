"""Members of a group, or gateways of a revision: who holds which place, who leaves it, and who takes it next."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from tidewheel.api.pdservice import PDServiceSpec
from tidewheel.api.ranktable import Role
from tidewheel.api.reasons import Reason
from tidewheel.planning.balance import RoleState, step_balance, step_combined
from tidewheel.planning.faults import may_be_replaced, trouble_of
from tidewheel.planning.groups import COMPUTE_ROLES, Group
from tidewheel.planning.names import Place
from tidewheel.planning.observed import ObservedPod
from tidewheel.planning.targets import Size


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
    #: As many pods as it should have; None if nothing says so.
    size: Size | None
    roles: Mapping[Role, Staffing]
    #: Those that take requests: the ready ones, but for those in reserve while the ratio changes.
    serving: tuple[ObservedPod, ...] = ()
    #: Whether its decodes compute the prompts, too, from now on.
    is_combined: bool = False

    @property
    def stay(self) -> tuple[ObservedPod, ...]:
        """Its members, prefills first."""
        return tuple(pod for role in COMPUTE_ROLES for pod in self.roles[role].stay)

    @property
    def has_surplus(self) -> bool:
        """Whether pods stay only until those that come for them are ready."""
        size = self.size
        return size is not None and any(len(self.roles[role].stay) > size.of(role) for role in COMPUTE_ROLES)

    @property
    def leave(self) -> tuple[tuple[ObservedPod, str], ...]:
        """Those who leave it, with the reason."""
        return tuple(leaving for role in COMPUTE_ROLES for leaving in self.roles[role].leave)

    @property
    def join(self) -> tuple[tuple[Role, Joining], ...]:
        """Those who join it."""
        return tuple((role, joining) for role in COMPUTE_ROLES for joining in self.roles[role].join)


def staff_group(
    group: Group,
    spec: PDServiceSpec | None,
    *,
    size: Size | None,
    now: datetime,
    routed: Collection[str],
    max_skew: float = 0.0,
    refused: bool = False,
) -> StaffedGroup:
    """Staffs both roles to `size`, and says who takes requests while they are on their way there.

    Without a spec or a size those who are well stay and nobody joins.

    Args:
        group: as it is.
        spec: what its pods are built from.
        size: what it should have.
        now: the time.
        routed: names of the pods that gateways know.
        max_skew: bound of `step_balance`.
        refused: whether the API server lets no new pods in.
    """
    if spec is None or size is None:
        left = {
            role: staff(pods := group.of_role(role), len(pods), now=now, routed=routed)
            for role in COMPUTE_ROLES
        }
        roles = {role: replace(staffing, join=()) for role, staffing in left.items()}
        well = tuple(pod for staffing in roles.values() for pod in staffing.stay if pod.ready)
        return StaffedGroup(
            group=group, spec=None, size=None, roles=roles, serving=well, is_combined=group.is_combined
        )

    crew = {role: group.of_role(role) for role in COMPUTE_ROLES}
    states = {
        role: _state_of(
            staff(pods, len(pods), now=now, routed=routed), size.of(role), routed, refused=refused
        )
        for role, pods in crew.items()
    }
    if size.prefill and not group.is_combined:
        balanced = step_balance(states["prefill"], states["decode"], max_skew=max_skew)
    else:
        balanced = step_combined(
            states["prefill"], states["decode"], is_combined=group.is_combined, max_skew=max_skew
        )
    serve = dict(zip(COMPUTE_ROLES, balanced, strict=True))
    roles = {
        role: staff(pods, max(size.of(role), serve[role]), now=now, routed=routed)
        for role, pods in crew.items()
    }
    serving = [
        pod
        for role, staffing in roles.items()
        for pod in sorted((pod for pod in staffing.stay if pod.ready), key=_keep_longest(routed))[
            : serve[role]
        ]
    ]
    return StaffedGroup(
        group=group,
        spec=spec,
        size=size,
        roles=roles,
        serving=tuple(serving),
        is_combined=serve["prefill"] == 0 and (group.is_combined or size.prefill == 0),
    )


def _state_of(well: Staffing, wanted: int, routed: Collection[str], *, refused: bool) -> RoleState:
    """Where a role stands, by those of its members that have not failed."""
    ready = [pod for pod in well.stay if pod.ready]
    troubles = [trouble_of(pod) for pod in well.stay if not pod.ready]
    unplaced = any(trouble is not None and trouble.reason == Reason.UNSCHEDULABLE for trouble in troubles)
    return RoleState(
        routed=sum(pod.name in routed for pod in ready),
        ready=len(ready),
        wanted=wanted,
        coming=not (unplaced or refused),
    )


def _keep_longest(routed: Collection[str]) -> Callable[[ObservedPod], tuple[bool, bool, int, int]]:
    """Order of those that stay: the ready ones, those in a map, the oldest."""
    return lambda pod: (not pod.ready, pod.name not in routed, pod.ordinal, pod.incarnation)


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

    stay: list[ObservedPod] = []
    held: set[int] = set()
    for pod in sorted(present, key=_keep_longest(routed)):
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
