"""Planning one PDService: the small policies in the order in which each builds on the ones before."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime, timedelta

from tidewheel.api.pdservice import PDServiceSpec
from tidewheel.api.ranktable import RankTable, Routes
from tidewheel.planning.autoscaling.step import step_scaling
from tidewheel.planning.boosting import lent_now, step_boosting, stored_boosts, with_boosts
from tidewheel.planning.decisions import record
from tidewheel.planning.deeds import deeds_of
from tidewheel.planning.faults import is_lost, trouble_of
from tidewheel.planning.flips import step_flips
from tidewheel.planning.gateways import GatewayStep, step_gateways
from tidewheel.planning.groups import groups_of
from tidewheel.planning.intent import Children, Departure, Intent, PodOrder
from tidewheel.planning.members import StaffedGroup, markings_of, staff_group
from tidewheel.planning.names import gateway_name, member_name
from tidewheel.planning.observed import ObservedPod, ObservedService
from tidewheel.planning.ranks import rank_table
from tidewheel.planning.revision import gateway_revision, group_revision
from tidewheel.planning.room import free_devices, without_room
from tidewheel.planning.routes import routes_to, time_to_leave
from tidewheel.planning.scalers import scaled_targets
from tidewheel.planning.scenarios import ScenarioStep, all_kept, step_scenarios
from tidewheel.planning.settings import ServiceDefaults
from tidewheel.planning.staffing import Joining
from tidewheel.planning.status import Progress, condition_events, status_of, unbuildable_status
from tidewheel.planning.targets import Target, targets_of
from tidewheel.planning.validation import Objection, buildable

#: A pod to delete, why, and how long it still stays; None while a published map still names it.
_Leaving = tuple[ObservedPod, str, timedelta | None]


def plan_service(
    seen: ObservedService,
    *,
    now: datetime,
    defaults: ServiceDefaults,
    targets: Mapping[str, Target] | None = None,
) -> Intent:
    """What should change about a PDService.

    The steps: refuse a spec that cannot work; see what the load asks for and who is boosted; choose for each scenario the groups to keep, to drain and to create;
    staff each kept group, as far as the budget has room; staff the gateways; publish rank tables and routes; delete those pods that the published maps are seen
    without; and say all of it in the status. A settled service gets an intent that equals what is there.

    Args:
        seen: what is there.
        now: the time.
        defaults: the operator's.
        targets: numbers of groups and pods, by scenario, that replace those of the spec and of PDServiceScalers.
    """
    if seen.deleting:
        return Intent()
    spec = buildable(seen, defaults.accelerators)
    if isinstance(spec, Objection):
        status = unbuildable_status(seen, spec, now=now)
        return Intent(status=status, events=condition_events(seen.status, status))

    revision = group_revision(spec, image=defaults.image, accelerators=defaults.accelerators)
    groups = groups_of(seen.pods, [name for name, table in seen.ranks.items() if table.is_combined])
    routed = seen.routes.members if seen.routes else frozenset()
    refused = any(refusal.kind == "Pod" for refusal in seen.refusals)
    scaled = scaled_targets(spec, seen.scalers)
    stored = stored_boosts(spec, seen.boosts_memory)
    scaling = step_scaling(seen, spec, groups, lent=lent_now(spec, stored))
    planned = {**scaled, **scaling.targets, **(targets or {})}
    boosts = step_boosting(seen, spec, groups, planned, stored=stored, now=now)
    planned = with_boosts(targets_of(spec, planned), boosts) if boosts.pods else planned
    settle = timedelta(seconds=defaults.settle_seconds)

    def staffed_scenarios(
        without_room: Collection[str] = (),
    ) -> tuple[tuple[ScenarioStep, ...], tuple[StaffedGroup, ...]]:
        steps = step_scenarios(
            groups,
            spec,
            service=seen.name,
            revision=revision,
            routed=routed,
            records=seen.records,
            refused=refused,
            without_room=without_room,
            planned=planned,
        )
        staffed = (
            staff_group(
                group,
                spec if group.revision == revision else seen.records.get(group.revision),
                size=size,
                now=now,
                routed=routed,
                max_skew=spec.rollout.max_skew_percent / 100,
                refused=refused or group.scenario in without_room,
                flips=step_flips(
                    group,
                    asked,
                    is_enabled=spec.rollout.role_flips == "Enabled",
                    drain=timedelta(seconds=spec.drain_seconds),
                    settle=settle,
                    now=now,
                    routes=seen.routes,
                    ranks=seen.ranks.get(group.name),
                ),
            )
            for group, size, asked in all_kept(steps)
        )
        return steps, tuple(staffed)

    steps, staffed = staffed_scenarios()
    free = free_devices(
        spec,
        groups,
        [one.target for one in steps],
        revision=revision,
        records=seen.records,
    )
    if waiting := without_room(staffed, spec, free):
        steps, staffed = staffed_scenarios(frozenset(waiting.values()))
        waiting = without_room(staffed, spec, free)
    gateways = step_gateways(
        [pod for pod in seen.pods if pod.role == "gateway"],
        0 if spec.suspend else spec.gateway.replicas,
        revision=gateway_revision(spec, image=defaults.image),
        now=now,
    )
    settle = timedelta(seconds=defaults.settle_seconds)
    lingering = {one.group.name: tuple(_lingering(seen, one, now=now, settle=settle)) for one in staffed}
    children = Children(
        spec=spec,
        revision=revision,
        routes=_routes(seen, spec, staffed),
        wanted_groups=sum(one.target.groups for one in steps),
        wanted_members=sum(one.target.prefill + one.target.decode for one in steps),
        rank_tables=tuple(_rank_tables(seen, staffed, lingering)),
        pods=tuple(one for one in _orders(seen, spec, staffed, gateways) if one.name not in waiting),
        scaling_memory=scaling.memory,
        boosts_memory=boosts.memory,
        groups=frozenset(group.name for group in groups)
        | frozenset(group.name for one in steps for group in one.step.create),
        revisions=frozenset(group.revision for group in groups) | {revision},
    )
    leaving = tuple(_leaving(seen, steps, staffed, gateways, now=now, settle=settle))
    departures = tuple(
        Departure(pod=pod, grace_seconds=spec.drain_seconds, why=why)
        for pod, why, wait in leaving
        if wait == timedelta(0)
    )
    progress = Progress(
        spec=spec,
        revision=revision,
        groups=groups,
        scenarios=steps,
        staffed=staffed,
        gateways=gateways,
        is_scaling=bool(children.pods or leaving or any(one.flips.flip is not None for one in staffed)),
    )
    deeds = (*scaling.deeds, *boosts.deeds, *deeds_of(seen, progress, departures))
    decisions, events = record(seen.status.decisions, deeds, now=now)
    status = status_of(seen, progress, decisions, scaling=scaling.status, allocation=boosts.status, now=now)
    waits = [wait for _, _, wait in leaving if wait]
    waits += [wait for pods in lingering.values() for _, wait in pods if wait]
    waits += [
        staffing.wait for one in staffed for staffing in one.roles.values() if staffing.wait is not None
    ]
    waits += [one.flips.wait for one in staffed if one.flips.wait is not None]
    waits += [gateways.wait] if gateways.wait is not None else []
    waits += [timedelta(seconds=boosts.look_again_in)] if boosts.look_again_in is not None else []
    return Intent(
        children=children,
        departures=departures,
        markings=tuple(marking for one in staffed for marking in markings_of(one, now=now)),
        status=status,
        events=events + condition_events(seen.status, status),
        look_again_in=min(waits).total_seconds() if waits else None,
    )


def _routes(seen: ObservedService, spec: PDServiceSpec, staffed: Sequence[StaffedGroup]) -> Routes:
    return routes_to(
        service=seen.name,
        model=spec.model.name,
        groups=((one.group, one.serving) for one in staffed),
        combined={one.group.name for one in staffed if one.is_combined},
        gateways=spec.gateway.replicas,
        scenarios=spec.scenarios,
    )


def _lingering(
    seen: ObservedService, one: StaffedGroup, *, now: datetime, settle: timedelta
) -> Iterator[tuple[ObservedPod, timedelta | None]]:
    """The prefills of a group that is combined which gateways may still ask, as they have not read the new routes yet.

    All leave at once, so that a request whose KV could not be had from one of them would find no other: they stay in the
    rank table until the routes have been without them for a while. Gives how long still; None while the routes name them.
    """
    ranks = seen.ranks.get(one.group.name)
    if not one.is_combined or ranks is None:
        return
    for pod, _ in one.roles["prefill"].leave:
        wait = time_to_leave(pod, routes=seen.routes, ranks=None, now=now, settle=settle)
        if pod.uid in ranks.members and trouble_of(pod) is None and wait != timedelta(0):
            yield pod, wait


def _rank_tables(
    seen: ObservedService,
    staffed: Sequence[StaffedGroup],
    lingering: Mapping[str, Sequence[tuple[ObservedPod, timedelta | None]]],
) -> Iterator[RankTable]:
    for one in staffed:
        places = {pod.ordinal for pod in one.roles["prefill"].stay}
        stay = [pod for pod, _ in lingering[one.group.name] if pod.ordinal not in places]
        table = rank_table(
            service=seen.name,
            group=one.group.name,
            revision=one.group.revision,
            members=(*one.members, *stay),
            complete=not one.join,
            published=one.group.name in seen.ranks,
            combined=one.is_combined,
        )
        if table is not None:
            yield table


def _orders(
    seen: ObservedService, spec: PDServiceSpec, staffed: Sequence[StaffedGroup], gateways: GatewayStep
) -> Iterator[PodOrder]:
    for one in staffed:
        for role, joining in one.join:
            yield PodOrder(
                name=member_name(one.group.name, role, joining.place),
                role=role,
                group=one.group.name,
                revision=one.group.revision,
                scenario=one.group.scenario,
                spec=one.spec or spec,
            )
    for joining in gateways.create:
        yield PodOrder(
            name=gateway_name(seen.name, gateways.revision, joining.place),
            role="gateway",
            group="",
            revision=gateways.revision,
            spec=spec,
        )


def _leaving(
    seen: ObservedService,
    steps: Sequence[ScenarioStep],
    staffed: Sequence[StaffedGroup],
    gateways: GatewayStep,
    *,
    now: datetime,
    settle: timedelta,
) -> Iterator[_Leaving]:
    """Everyone who should go and is not going yet. A group that goes, goes as a whole, with its rank table."""
    for group, why in (retired for one in steps for retired in one.step.retire):
        pods = [pod for pod in group.pods if not pod.deleting]
        waits = [time_to_leave(pod, routes=seen.routes, ranks=None, now=now, settle=settle) for pod in pods]
        longest = None if None in waits else max(wait for wait in waits if wait is not None)
        yield from ((pod, why, longest) for pod in pods)
    for one in staffed:
        ranks = seen.ranks.get(one.group.name)
        for pod, why in one.leave:
            staffing = one.roles[pod.role]
            if not (is_lost(pod) and _awaits_substitute(pod, staffing.stay, staffing.join)):
                yield pod, why, time_to_leave(pod, routes=seen.routes, ranks=ranks, now=now, settle=settle)
    for pod, why in gateways.delete:
        if not (is_lost(pod) and _awaits_substitute(pod, gateways.keep, gateways.create)):
            yield pod, why, timedelta(0)


def _awaits_substitute(pod: ObservedPod, others: Sequence[ObservedPod], join: Sequence[Joining]) -> bool:
    """Whether somebody takes its place who does not serve yet: until then a pod on a lost node may come back."""
    held = [one for one in others if (one.ordinal, one.revision) == (pod.ordinal, pod.revision)]
    return any(not one.ready or is_lost(one) for one in held) or any(
        joining.replaces == pod for joining in join
    )
