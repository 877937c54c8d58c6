"""Role flips: a running pod of the role that has too many becomes one of the role that lacks some, with its model loaded."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from tidewheel.api.meta import WORKER_CONTAINER
from tidewheel.api.pdservice import ComputeRole, PDServiceSpec
from tidewheel.api.ranktable import Role
from tidewheel.planning.faults import trouble_of
from tidewheel.planning.groups import COMPUTE_ROLES, Group
from tidewheel.planning.names import Place
from tidewheel.planning.observed import ObservedPod, PublishedMap
from tidewheel.planning.staffing import keep_longest, staff
from tidewheel.planning.targets import Size

#: How long a pod may take to leave its role once it is marked, and to join in the other one beside the time to drain.
LEAVING_PATIENCE = timedelta(seconds=60)
JOINING_PATIENCE = timedelta(seconds=90)
#: What of a role says nothing of the pod: its process is told the other role's, too.
_TOLD = ("replicas", "slots", "kvCacheTokens", "batchTokens")
#: Variables that a template cannot set for one role only, as the pod keeps them in both.
_OF_ROLE = frozenset(
    {"TIDEWHEEL_ROLE", "TIDEWHEEL_SLOTS", "TIDEWHEEL_KV_CACHE_TOKENS", "TIDEWHEEL_BATCH_TOKENS"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Flip:
    """Pods of one group that change their role, one after the other."""

    giver: Role
    #: What the group should have in the end.
    asked: Size
    #: How many pods are still to change.
    pods: int
    #: The one whose turn it is: it takes no requests any more.
    leaver: ObservedPod | None = None
    #: Whether it is still in the rank table, because gateways may not have read the routes without it.
    in_ranks: bool = True

    @property
    def taker(self) -> Role:
        """The role that lacks pods."""
        return "decode" if self.giver == "prefill" else "prefill"


@dataclass(frozen=True, slots=True, kw_only=True)
class FlipStep:
    """What comes next for the flips of one group."""

    flip: Flip | None = None
    #: To be marked: it leaves its role once the mark is seen.
    mark: ObservedPod | None = None
    #: To get its new role now.
    turn: ObservedPod | None = None
    #: Whose mark is void: it stays what it is.
    unmark: tuple[ObservedPod, ...] = ()
    #: Who has arrived in the new role.
    arrived: tuple[ObservedPod, ...] = ()
    #: By name: who did not get on in time, and is replaced; with the reason.
    stuck: Mapping[str, str] = field(default_factory=dict)
    #: Time until something is to be done, or has taken too long.
    wait: timedelta | None = None


def roles_match(spec: PDServiceSpec) -> bool:
    """Whether a pod of one compute role could do for the other.

    Both ask for the same accelerator, devices, resources and template, and run the built-in worker. Slots, KV cache and
    batches may differ: the worker is told both, and takes the size of the role that it gets.
    """
    prefill, decode = (_shape(role) for role in (spec.prefill, spec.decode))
    return prefill == decode and _runs_worker(spec.prefill.template)


def _shape(role: ComputeRole) -> dict[str, Any]:
    return {name: value for name, value in role.to_wire().items() if name not in _TOLD}


def _runs_worker(template: Mapping[str, Any] | None) -> bool:
    """Whether a template leaves the worker's program and role to us."""
    containers = ((template or {}).get("spec") or {}).get("containers") or ()
    workers = [one for one in containers if one.get("name") == WORKER_CONTAINER]
    return not any(
        one.keys() & {"image", "command", "args"}
        or any(variable.get("name") in _OF_ROLE for variable in one.get("env") or ())
        for one in workers
    )


def step_flips(
    group: Group,
    asked: Size | None,
    *,
    is_enabled: bool,
    drain: timedelta,
    settle: timedelta,
    now: datetime,
    routes: PublishedMap | None,
    ranks: PublishedMap | None,
) -> FlipStep:
    """The next step of the flips of a group, from what is seen of its pods and maps alone.

    A flip costs no new pod and no start-up. One pod changes at a time:

    1. It is marked. It is well, made for both roles, and those of its role that serve without it are as many as asked for.
    2. With the mark seen it leaves the routes; `settle` later, when gateways have read them, the rank table. Without a
       place in it the worker is not ready.
    3. Seen without readiness and in no map it gets its new role and place, by one patch of its labels and annotations.
       From then on it is a pod of that role that is not ready yet: the rank table names it, the worker drains, changes, and
       is ready again once its new peers are verified.
    4. Seen ready, it is like any other.

    As a role gives only what it has beyond `asked` and the other lacks, the ratio of those that serve comes nearer to the
    asked one with every step, so no bound of the skew is passed and each role keeps at least one pod. A mark whose reason
    is gone is taken back, and combined groups have no flips. Who has not left `LEAVING_PATIENCE` after its mark, or not joined `JOINING_PATIENCE` and a
    drain after it got its role, is replaced by a new pod.

    Args:
        group: as it is.
        asked: what it should have; None if nothing says so.
        is_enabled: whether pods may flip at all; one that has got its new role already goes on in any case.
        drain: how long a pod's requests may take.
        settle: how long gateways and workers get to read a map.
        now: the time.
        routes: as published.
        ranks: the group's rank table, as published.
    """
    pods = [pod for pod in group.pods if not pod.deleting]
    marked = [pod for pod in pods if pod.flips_to is not None]
    turned = [pod for pod in pods if pod.flips_to is None and pod.flip_began is not None]
    joining = [pod for pod in turned if not pod.ready]
    ends = {pod.name: _ends(pod, drain) for pod in (*marked, *joining)}
    stuck = {
        pod.name: _why_stuck(pod)
        for pod in (*marked, *joining)
        if now >= ends[pod.name] and (pod.ready or pod in joining)
    }
    routed = routes.members if routes is not None else frozenset()
    flip, mark, turn = None, None, None
    found = None
    if is_enabled and asked is not None and not group.is_combined:
        found = _numbers(group, asked, now, routed, stuck)
    if asked is not None and found is not None:
        giver, many, well = found
        flip = Flip(giver=giver, asked=asked, pods=many)
        leaver = next((pod for pod in marked if pod in well and pod.flips_to == flip.taker), None)
        if leaver is not None:
            has_left = _is_out(leaver.name, routes, now=now, settle=settle)
            flip = Flip(giver=giver, asked=asked, pods=many, leaver=leaver, in_ranks=not has_left)
            is_out = has_left and _is_out(leaver.uid, ranks, now=now, settle=settle)
            turn = leaver if is_out and not leaver.ready else None
        elif not (joining or marked):
            mark = _candidate(well, flip, routed)
            flip = flip if mark is not None else None
    leaver = flip.leaver if flip is not None else None
    waits = [end - now for name, end in ends.items() if name not in stuck]
    if leaver is not None:
        waits += [
            one.since + settle - now for one in (routes, ranks) if one is not None and one.since is not None
        ]
    return FlipStep(
        flip=flip,
        mark=mark,
        turn=turn,
        unmark=tuple(pod for pod in marked if pod is not leaver and pod.name not in stuck),
        arrived=tuple(pod for pod in turned if pod.ready),
        stuck=stuck,
        wait=min((wait for wait in waits if wait > timedelta(0)), default=None),
    )


def free_place(group: Group, role: Role, taken: Collection[int]) -> Place:
    """The first place of a role that nobody has or had, those of pods to come included."""
    held = {pod.ordinal for pod in group.of_role(role)} | set(taken)
    return Place(next(ordinal for ordinal in range(len(held) + 1) if ordinal not in held))


def _numbers(
    group: Group, asked: Size, now: datetime, routed: Collection[str], stuck: Mapping[str, str]
) -> tuple[Role, int, tuple[ObservedPod, ...]] | None:
    """Who gives, how many it can and the other needs, and the giver's pods that are well."""
    well = {
        role: staff(pods := group.of_role(role), len(pods), now=now, routed=routed, stuck=stuck).stay
        for role in COMPUTE_ROLES
    }
    beyond = {role: len(well[role]) - asked.of(role) for role in COMPUTE_ROLES}
    giver, taker = sorted(COMPUTE_ROLES, key=lambda role: -beyond[role])
    many = min(beyond[giver], -beyond[taker])
    if many <= 0 or not asked.of(giver):
        return None
    return giver, many, tuple(pod for pod in well[giver] if trouble_of(pod) is None)


def _candidate(well: Sequence[ObservedPod], flip: Flip, routed: Collection[str]) -> ObservedPod | None:
    """The first of the role to leave, if it can flip and enough others take requests without it."""
    ready = [pod for pod in sorted(well, key=keep_longest(routed)) if pod.ready and pod.ip]
    able = [pod for pod in ready if pod.may_flip and pod.flip_began is None]
    if not able:
        return None
    serve = sum(pod.name in routed for pod in ready if pod is not able[-1])
    return able[-1] if serve >= flip.asked.of(flip.giver) else None


def _is_out(member: str, published: PublishedMap | None, *, now: datetime, settle: timedelta) -> bool:
    """Whether a map is seen without a member, and has been read since."""
    if published is None:
        return True
    return member not in published.members and (published.since is None or now >= published.since + settle)


def _ends(pod: ObservedPod, drain: timedelta) -> datetime:
    began = pod.flip_began or pod.created
    return began + (LEAVING_PATIENCE if pod.flips_to is not None else JOINING_PATIENCE + drain)


def _why_stuck(pod: ObservedPod) -> str:
    if pod.flips_to is not None:
        return f"{pod.name} did not leave the role {pod.role} within {LEAVING_PATIENCE.seconds} s, to become {pod.flips_to}"
    return f"{pod.name} got the role {pod.role} and did not join in it in time"
