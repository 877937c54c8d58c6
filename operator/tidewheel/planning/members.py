"""Members of a group: the staffing of both roles, and who of them takes requests while their numbers change."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from tidewheel.api.pdservice import PDServiceSpec
from tidewheel.api.ranktable import Role
from tidewheel.api.reasons import Reason
from tidewheel.planning.balance import RoleState, step_balance, step_combined
from tidewheel.planning.faults import trouble_of
from tidewheel.planning.flips import Flip, FlipStep, free_place
from tidewheel.planning.groups import COMPUTE_ROLES, Group
from tidewheel.planning.intent import Marking
from tidewheel.planning.names import Place
from tidewheel.planning.observed import ObservedPod
from tidewheel.planning.staffing import Joining, Staffing, keep_longest, staff
from tidewheel.planning.targets import Size


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
    #: What comes next for those of its pods that change their role.
    flips: FlipStep = field(default_factory=FlipStep)
    #: Whether its decodes compute the prompts, too, from now on.
    is_combined: bool = False

    @property
    def stay(self) -> tuple[ObservedPod, ...]:
        """Its pods that do not go, prefills first, and last the one that changes its role."""
        leaver = self._leaver
        flipping = (leaver,) if leaver is not None else ()
        return (*(pod for role in COMPUTE_ROLES for pod in self.roles[role].stay), *flipping)

    @property
    def members(self) -> tuple[ObservedPod, ...]:
        """Those that the rank table names."""
        flip = self.flips.flip
        return tuple(pod for pod in self.stay if flip is None or pod is not flip.leaver or flip.in_ranks)

    @property
    def _leaver(self) -> ObservedPod | None:
        return self.flips.flip.leaver if self.flips.flip is not None else None

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
    flips: FlipStep | None = None,
) -> StaffedGroup:
    """Staffs both roles to `size`, and says who takes requests while they are on their way there.

    Without a spec or a size those who are well stay and nobody joins. What is to come by a flip is not created, and those
    who are to flip stay until it is their turn.

    Args:
        group: as it is.
        spec: what its pods are built from.
        size: what it should have.
        now: the time.
        routed: names of the pods that gateways know.
        max_skew: bound of `step_balance`.
        refused: whether the API server lets no new pods in.
        flips: what comes next for those that change their role.
    """
    flips = flips or FlipStep()
    flip, stuck = flips.flip, flips.stuck

    def staffed(role: Role, wanted: int | None = None) -> Staffing:
        pods = tuple(pod for pod in group.of_role(role) if flip is None or pod is not flip.leaver)
        return staff(
            pods,
            len(pods) if wanted is None else wanted,
            now=now,
            routed=routed,
            stuck=stuck,
            named=_names(group, role),
        )

    if spec is None or size is None:
        roles = {role: replace(staffed(role), join=()) for role in COMPUTE_ROLES}
        well = tuple(pod for staffing in roles.values() for pod in staffing.stay if pod.ready)
        return StaffedGroup(
            group=group,
            spec=None,
            size=None,
            roles=roles,
            serving=well,
            flips=flips,
            is_combined=group.is_combined,
        )

    states = {
        role: _state_of(
            staffed(role),
            size.of(role),
            routed,
            refused=refused,
            flips=flip is not None and role == flip.taker,
        )
        for role in COMPUTE_ROLES
    }
    if size.prefill and not group.is_combined:
        balanced = step_balance(states["prefill"], states["decode"], max_skew=max_skew)
    else:
        balanced = step_combined(
            states["prefill"], states["decode"], is_combined=group.is_combined, max_skew=max_skew
        )
    serve = dict(zip(COMPUTE_ROLES, balanced, strict=True))
    roles = {
        role: staffed(role, max(_without_flips(role, size.of(role), flip, routed), serve[role]))
        for role in COMPUTE_ROLES
    }
    serving = [
        pod
        for role, staffing in roles.items()
        for pod in sorted((pod for pod in staffing.stay if pod.ready), key=keep_longest(routed))[
            : serve[role]
        ]
    ]
    return StaffedGroup(
        group=group,
        spec=spec,
        size=size,
        roles=roles,
        serving=tuple(serving),
        flips=flips,
        is_combined=serve["prefill"] == 0 and (group.is_combined or size.prefill == 0),
    )


def markings_of(staffed: StaffedGroup, *, now: datetime) -> Iterator[Marking]:
    """What the pods of a group that change their role say of it from now on."""
    step, flip = staffed.flips, staffed.flips.flip
    if flip is not None and step.mark is not None:
        yield Marking(pod=step.mark, flips_to=flip.taker, began=now)
    if flip is not None and step.turn is not None:
        coming = [joining.place.ordinal for joining in staffed.roles[flip.taker].join]
        place = free_place(staffed.group, flip.taker, coming)
        yield Marking(pod=step.turn, turned=(flip.taker, place), began=now)
    for pod in (*step.unmark, *step.arrived):
        yield Marking(pod=pod)


def _without_flips(role: Role, size: int, flip: Flip | None, routed: Collection[str]) -> int:
    """How many pods a role has beside the one whose turn it is: what flips bring later is not created, nor is it deleted."""
    if flip is None:
        return size
    if role == flip.taker:
        return flip.asked.of(role) - flip.pods
    if flip.leaver is None:
        return max(flip.asked.of(role) + flip.pods, size)
    return max(flip.asked.of(role) + flip.pods - 1, size - (flip.leaver.name in routed))


def _names(group: Group, role: Role) -> Iterator[Place]:
    """Places of a role whose names are taken by pods that are elsewhere now."""
    for pod in group.pods:
        if pod.born is not None and pod.born[0] == role:
            yield pod.born[1]


def _state_of(
    well: Staffing, wanted: int, routed: Collection[str], *, refused: bool, flips: bool
) -> RoleState:
    """Where a role stands, by those of its members that have not failed; a pod that flips to it needs no room."""
    ready = [pod for pod in well.stay if pod.ready]
    troubles = [trouble_of(pod) for pod in well.stay if not pod.ready]
    unplaced = any(trouble is not None and trouble.reason == Reason.UNSCHEDULABLE for trouble in troubles)
    return RoleState(
        routed=sum(pod.name in routed for pod in ready),
        ready=len(ready),
        wanted=wanted,
        coming=flips or not (unplaced or refused),
    )
