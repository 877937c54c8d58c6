"""What a plan does, told for people: one deed per group, member or gateway that comes, goes or is replaced."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tidewheel.api.reasons import Reason
from tidewheel.api.scenarios import DEFAULT_SCENARIO
from tidewheel.planning.decisions import Deed
from tidewheel.planning.faults import trouble_of
from tidewheel.planning.intent import Departure
from tidewheel.planning.names import gateway_name, member_name
from tidewheel.planning.observed import ObservedPod, ObservedService
from tidewheel.planning.staffing import Joining
from tidewheel.planning.status import Progress


def deeds_of(seen: ObservedService, progress: Progress, departures: Sequence[Departure]) -> Iterator[Deed]:
    """The deeds of one plan, in the order in which they are done."""
    yield from _groups_created(progress)
    yield from _members_joining(progress)
    yield from _members_flipping(progress)
    yield from _gateways_joining(seen, progress)
    yield from _departures(progress, departures)


def _groups_created(progress: Progress) -> Iterator[Deed]:
    for one in progress.scenarios:
        old = sum(group.revision != progress.revision for group in one.groups)
        of_scenario = f" for scenario {one.name}" if one.name != DEFAULT_SCENARIO else ""
        for group in one.step.create:
            size = one.sizes[group.name]
            yield Deed(
                action="CreateGroup",
                reason=Reason.ROLLING_OUT if old else Reason.SCALING,
                message=(
                    f"group {group.name}{of_scenario} with {size.prefill} prefill and {size.decode} decode pods: "
                    f"{one.target.reason}, {len(one.groups) - old} of revision {progress.revision} "
                    f"and {old} older exist"
                ),
            )


def _members_joining(progress: Progress) -> Iterator[Deed]:
    created = {group.name for scenario in progress.scenarios for group in scenario.step.create}
    reasons = {scenario.name: scenario.target.reason for scenario in progress.scenarios}
    for one in progress.staffed:
        if one.group.name in created:
            continue
        for role, joining in one.join:
            name = member_name(one.group.name, role, joining.place)
            if joining.replaces is not None:
                yield _replaced(name, joining, joining.replaces)
            else:
                yield Deed(
                    action="AddMember",
                    reason=Reason.SCALING,
                    message=f"{name} joins {one.group.name}: its ratio is to be {one.size} ({reasons[one.group.scenario]})",
                )


def _members_flipping(progress: Progress) -> Iterator[Deed]:
    reasons = {scenario.name: scenario.target.reason for scenario in progress.scenarios}
    for one in progress.staffed:
        step, flip = one.flips, one.flips.flip
        if flip is not None and step.mark is not None:
            yield Deed(
                action="FlipMember",
                reason=Reason.SCALING,
                message=(
                    f"{flip.giver} pod {step.mark.name} of {one.group.name} is to become a {flip.taker} pod: it is warm, which "
                    f"saves the start-up; the ratio is to be {flip.asked} ({reasons[one.group.scenario]})"
                ),
            )
        for pod in step.arrived:
            was = "decode" if pod.role == "prefill" else "prefill"
            yield Deed(
                action="FlippedMember",
                reason=Reason.SCALING,
                message=f"flipped {was} pod {pod.name} of {one.group.name} to {pod.role}: its model stayed loaded",
            )


def _gateways_joining(seen: ObservedService, progress: Progress) -> Iterator[Deed]:
    for joining in progress.gateways.create:
        name = gateway_name(seen.name, progress.gateways.revision, joining.place)
        if joining.replaces is not None:
            yield _replaced(name, joining, joining.replaces)
        else:
            yield Deed(
                action="CreateGateway",
                reason=Reason.ROLLING_OUT if progress.gateways.is_rolling_out else Reason.SCALING,
                message=f"gateway {name}: spec.gateway.replicas is {progress.wanted_gateways}",
            )


def _departures(progress: Progress, departures: Sequence[Departure]) -> Iterator[Deed]:
    retired = {group.name: why for group, why in progress.retired}
    told: set[str] = set()
    for departure in departures:
        pod = departure.pod
        if pod.group in retired:
            if pod.group in told:
                continue
            told.add(pod.group)
            is_old = pod.revision != progress.revision
            yield Deed(
                action="RetireGroup",
                reason=Reason.ROLLING_OUT if is_old else Reason.SCALING,
                message=(
                    f"group {pod.group} has left the routes and gets {departure.grace_seconds} s "
                    f"to finish its requests: {retired[pod.group]}"
                ),
            )
        elif pod.role == "gateway":
            is_old = pod.revision != progress.gateways.revision
            yield Deed(
                action="RemoveGateway",
                reason=Reason.ROLLING_OUT if is_old else Reason.SCALING,
                message=f"{pod.name}: {departure.why}",
            )
        else:
            yield Deed(
                action="RemoveMember",
                reason=Reason.SCALING,
                message=f"{pod.name} has left every map: {departure.why}",
            )


def _replaced(name: str, joining: Joining, old: ObservedPod) -> Deed:
    trouble = trouble_of(old)
    return Deed(
        action="ReplaceMember",
        reason=trouble.reason if trouble and not old.deleting else Reason.REPLACING_MEMBERS,
        message=f"{name} takes the place of {old.name}: {joining.why}",
        type="Warning",
    )
