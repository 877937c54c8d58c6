"""One step of a service's scaling: a window that ended becomes numbers of pods, or the numbers in force go on.

A decision is made once for each window, and remembered with the window's end before anything is done about it. So a plan that
is made again, by this operator or by its successor, finds the window decided and does the same.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from tidewheel.api.pdservice import PDServiceSpec
from tidewheel.api.ranktable import Role
from tidewheel.api.reasons import Reason
from tidewheel.api.scaling import ScalingStatus, ScenarioScaling, StartupStatus
from tidewheel.planning.autoscaling.measured import load_of
from tidewheel.planning.autoscaling.memory import Memory, Numbers
from tidewheel.planning.autoscaling.startup import Startups
from tidewheel.planning.autoscaling.startup_told import startup_deeds, startup_status
from tidewheel.planning.autoscaling.terms import (
    limits_of,
    profile_of,
    promises_of,
    scenarios_with_groups,
)
from tidewheel.planning.decisions import Deed, shorten
from tidewheel.planning.groups import Group
from tidewheel.planning.load.window import Window
from tidewheel.planning.observed import ObservedPod, ObservedService
from tidewheel.planning.scaling.decide import Decision, decide_all
from tidewheel.planning.scaling.observed import RoleCounts
from tidewheel.planning.scaling.scenario import Counts, Scenario
from tidewheel.planning.scaling.state import ScalingState
from tidewheel.planning.stored import UnreadableState
from tidewheel.planning.targets import Target, target_for, targets_of
from tidewheel.planning.times import as_time


@dataclass(frozen=True, slots=True, kw_only=True)
class Lent:
    """Pods that a scenario has for a while, beyond what the load asks for."""

    role: Role
    pods: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingStep:
    """What a plan does about the numbers of pods."""

    #: By scenario; empty where the spec's own numbers stand.
    targets: Mapping[str, Target] = field(default_factory=dict)
    #: To be written before anything is done; None where nothing is planned.
    memory: str | None = None
    status: ScalingStatus | None = None
    deeds: tuple[Deed, ...] = ()


def step_scaling(
    seen: ObservedService,
    spec: PDServiceSpec,
    groups: Collection[Group],
    *,
    lent: Mapping[str, Lent] | None = None,
) -> ScalingStep:
    """The numbers after the last window.

    Args:
        seen: with the last window and what was remembered.
        spec: the service's.
        groups: the groups there are.
        lent: pods among them that are not counted, by scenario.
    """
    if spec.scaling.mode == "Off" or spec.suspend:
        return ScalingStep()
    before, forgotten = _remembered(seen, spec, groups, lent or {})
    window = seen.window
    if window is None or window.last.at <= before.at:
        return ScalingStep(
            targets=_targets(spec, before.numbers, groups),
            memory=before.to_text() if forgotten else seen.scaling_memory or None,
            status=seen.status.scaling,
            deeds=forgotten,
        )
    pods = [pod for group in groups for pod in group.pods]
    startups = before.startups.after(pods, since=before.at or window.first.at)
    decisions, states = _decide(seen, spec, groups, window, before, lent or {}, startups)
    numbers = {name: _numbers(one, before.numbers.get(name)) for name, one in decisions.items()}
    after = Memory(
        at=window.last.at,
        numbers=numbers if spec.scaling.mode == "Auto" else {},
        states=states,
        startups=startups,
    )
    counted_on = startup_status(spec, startups)
    return ScalingStep(
        targets=_targets(spec, after.numbers, groups),
        memory=after.to_text(),
        status=_status(decisions, window, counted_on),
        deeds=(
            *forgotten,
            *startup_deeds(spec, counted_on, seen.status.scaling),
            *_deeds(spec, before, after, decisions, seen.status.scaling),
        ),
    )


def _remembered(
    seen: ObservedService, spec: PDServiceSpec, groups: Collection[Group], lent: Mapping[str, Lent]
) -> tuple[Memory, tuple[Deed, ...]]:
    """What was remembered. Where that is gone, or of another release, planning begins anew, from the pods there are.

    That is written down at once, so that it is told once, and no pod goes before a window has ended.
    """
    if seen.scaling_memory:
        try:
            return Memory.from_text(seen.scaling_memory), ()
        except UnreadableState as error:
            why = str(error)
    elif seen.status.scaling is None:
        return Memory(), ()
    else:
        why = "the stored memory of scaling is gone"
    there = _as_they_stand(spec, groups, lent) if spec.scaling.mode == "Auto" else {}
    forgotten = Deed(
        action="ForgetLoads",
        reason="LearningBegins",
        message=f"{why}; the load is learnt anew, and until then the pods stay as they are",
        type="Warning",
    )
    return Memory(numbers=there), (forgotten,)


def _as_they_stand(
    spec: PDServiceSpec, groups: Collection[Group], lent: Mapping[str, Lent]
) -> dict[str, Numbers]:
    """The numbers of those scenarios that have pods of both roles, or of one that does both."""
    numbers = {}
    for name in scenarios_with_groups(spec):
        pods = [pod for group in groups if group.scenario == name for pod in group.pods]
        counts = _counts(pods, None, lent.get(name))
        is_combined = any(group.is_combined for group in groups if group.scenario == name)
        if counts.decode.asked and (counts.prefill.asked or is_combined):
            numbers[name] = Numbers(
                prefill=counts.prefill.asked,
                decode=counts.decode.asked,
                reason="what was planned is forgotten: the pods stay as they are",
            )
    return numbers


def _decide(
    seen: ObservedService,
    spec: PDServiceSpec,
    groups: Collection[Group],
    window: Window,
    before: Memory,
    lent: Mapping[str, Lent],
    startups: Startups,
) -> tuple[dict[str, Decision], dict[str, ScalingState]]:
    limits, profile = limits_of(spec, startups), profile_of(spec)
    scenarios = []
    for name in scenarios_with_groups(spec):
        pods = [pod for group in groups if group.scenario == name for pod in group.pods]
        scenarios.append(
            Scenario(
                name=name,
                load=load_of(seen, spec, window, name, pods),
                counts=_counts(pods, before.numbers.get(name), lent.get(name)),
                targets=promises_of(spec, name),
                limits=limits,
                profile=profile,
                disaggregation=spec.disaggregation_of(name),
            )
        )
    decisions, states, _ = decide_all(
        before.states, scenarios, budget=_budget(spec, len(scenarios)), now=window.last.at
    )
    return decisions, states


def _budget(spec: PDServiceSpec, scenarios: int) -> int | None:
    """Devices for what the load asks for: those of all boosts that there may be are kept free."""
    budget, boosts = spec.scaling.device_budget, spec.allocation
    if budget is None or boosts is None or boosts.mode != "Auto":
        return budget
    role = spec.prefill if boosts.role == "prefill" else spec.decode
    return max(0, budget - min(boosts.slots, scenarios) * boosts.pods_per_slot * role.devices_per_pod)


def _counts(pods: Iterable[ObservedPod], numbers: Numbers | None, lent: Lent | None) -> Counts:
    pods = tuple(pods)

    def of(role: Role, asked: int) -> RoleCounts:
        return _role_counts(pods, role, asked, lent.pods if lent is not None and lent.role == role else 0)

    return Counts(
        prefill=of("prefill", numbers.prefill if numbers else 0),
        decode=of("decode", numbers.decode if numbers else 0),
    )


def _role_counts(pods: Iterable[ObservedPod], role: Role, asked: int, lent: int) -> RoleCounts:
    """The pods there are, without those that are lent; those asked for that are not there yet count as starting."""
    ours = [pod for pod in pods if pod.role == role]
    staying = [pod for pod in ours if not pod.deleting]
    own = max(0, len(staying) - lent)
    ready = min(own, sum(pod.ready for pod in staying))
    unplaceable = min(own - ready, sum(bool(pod.unschedulable) for pod in staying))
    return RoleCounts(
        ready=ready,
        starting=own - ready - unplaceable + max(0, asked - own),
        leaving=len(ours) - len(staying),
        unplaceable=unplaceable,
    )


def _numbers(decision: Decision, before: Numbers | None) -> Numbers:
    """What is asked for, no prefill where decodes do both; where not even the least fits the budget, what there was, if anything.

    A budget that is too small is a mistake in the spec to be told of, and no reason to stop answering a scenario's requests.
    """
    prefill, decode = decision.prefill, decision.decode
    if not decode:
        least = (min(1, decision.needed[0]), 1)
        prefill, decode = (before.prefill, before.decode) if before is not None else least
    return Numbers(prefill=prefill, decode=decode, reason=f"{decision.reason}: {decision.message}")


def _targets(
    spec: PDServiceSpec, numbers: Mapping[str, Numbers], groups: Collection[Group]
) -> dict[str, Target]:
    """The numbers as groups: no more groups than are needed to keep each within its size, and none given up for it."""
    planned = scenarios_with_groups(spec)
    targets = {}
    for name, one in {**_first_numbers(spec), **numbers}.items():
        if name not in planned:
            continue
        there = sum(group.scenario == name and not group.is_leaving for group in groups)
        targets[name] = target_for(
            one.prefill,
            one.decode,
            groups=there,
            reason=one.reason,
            pods_per_group=spec.scaling.pods_per_group,
        )
    return targets


def _first_numbers(spec: PDServiceSpec) -> dict[str, Numbers]:
    """Where the spec's own numbers, which stand until a window has ended, are less than its planner's least."""
    if spec.scaling.mode != "Auto":
        return {}
    least = (spec.scaling.prefill.min, spec.scaling.decode.min)
    return {
        name: Numbers(
            prefill=max(asked.prefill, least[0]) if asked.prefill else 0,
            decode=max(asked.decode, least[1]),
            reason=f"spec.scaling: {least[0]} prefill and {least[1]} decode at least",
        )
        for name, asked in targets_of(spec).items()
        if asked.groups and (0 < asked.prefill < least[0] or asked.decode < least[1])
    }


def _status(decisions: Mapping[str, Decision], window: Window, startup: StartupStatus) -> ScalingStatus:
    return ScalingStatus(
        time=as_time(datetime.fromtimestamp(window.last.at, UTC)),
        startup=startup,
        scenarios=tuple(
            ScenarioScaling(
                name=name,
                prefill=one.advised[0],
                decode=one.advised[1],
                needed=f"{one.needed[0]}:{one.needed[1]}",
                bottleneck=one.bottleneck,
                reason=one.reason,
                message=shorten(one.message, 1024),
                requests_per_minute=round(60 * one.expected_rate),
                forecast=one.forecast or "",
                combined=one.combined,
            )
            for name, one in decisions.items()
        ),
    )


def _deeds(
    spec: PDServiceSpec,
    before: Memory,
    after: Memory,
    decisions: Mapping[str, Decision],
    told: ScalingStatus | None,
) -> Iterator[Deed]:
    """What changed, once: in Auto the numbers, in Advise the advice."""
    advised = {one.name: (one.prefill, one.decode) for one in told.scenarios} if told else {}
    asked = targets_of(spec)
    for name, one in decisions.items():
        old, new = before.numbers.get(name), after.numbers.get(name)
        if new is not None:
            was = (old.prefill, old.decode) if old else (asked[name].prefill, asked[name].decode)
            now, action = (new.prefill, new.decode), "Scale"
        else:
            was = advised.get(name, (asked[name].prefill, asked[name].decode))
            now, action = one.advised, "AdviseScale"
        if was != now:
            yield Deed(
                action=action,
                reason=Reason.SCALING,
                message=(
                    f"scenario {name}: {was[0]} prefill and {was[1]} decode to {now[0]} and {now[1]}; "
                    f"{one.reason}: {one.message}"
                ),
            )
