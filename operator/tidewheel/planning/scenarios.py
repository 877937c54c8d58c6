"""Scenarios of one service: each has a target, groups of its own and a rollout of its own; none waits for another."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tidewheel.api.pdservice import PDServiceSpec
from tidewheel.planning.groups import Group, GroupStep, sizes_of, step_groups
from tidewheel.planning.handover import awaited, held_sizes
from tidewheel.planning.names import group_name
from tidewheel.planning.targets import Size, Target, targets_of


@dataclass(frozen=True, slots=True, kw_only=True)
class ScenarioStep:
    """The next step of one scenario."""

    name: str
    target: Target
    step: GroupStep
    #: Those it has now.
    groups: tuple[Group, ...] = ()
    #: Of the groups to keep, by name; those of a revision that nothing is known of are left out.
    sizes: Mapping[str, Size] = field(default_factory=dict)
    #: The same without what is held back until others are ready: what they should have in the end.
    asked: Mapping[str, Size] = field(default_factory=dict)


def step_scenarios(
    groups: Collection[Group],
    spec: PDServiceSpec,
    *,
    service: str,
    revision: str,
    routed: Collection[str],
    records: Mapping[str, PDServiceSpec],
    planned: Mapping[str, Target],
    refused: bool = False,
    without_room: Collection[str] = (),
) -> tuple[ScenarioStep, ...]:
    """The next step of each scenario: `default` first, then as in the spec, then those the spec no longer has.

    Groups of an old revision keep the numbers of the spec they were made from until they are replaced, unless a planner
    decides the numbers: then they follow it, too. Where pods move from group to group, because there shall be more or fewer
    groups, none goes before those that come instead are ready, unless these are in trouble or wait for its devices.

    Args:
        groups: all that there are.
        spec: what is asked for.
        service: the service's name.
        revision: of the spec.
        routed: names of the pods that gateways know.
        records: the specs of older revisions.
        planned: targets that replace those of the spec.
        refused: whether the API server lets no new pods in.
        without_room: the scenarios in which somebody waits for devices that others hold.
    """
    targets = dict(targets_of(spec, planned))
    for name in sorted({group.scenario for group in groups} - targets.keys()):
        reason = f"the spec has no groups for scenario {name}"
        targets[name] = Target(groups=0, prefill=0, decode=0, reason=reason)
    ordinals = _free_ordinals(groups, revision)
    steps = []
    for name, target in targets.items():
        ours = tuple(group for group in groups if group.scenario == name)

        def new(scenario: str = name) -> Group:
            ordinal = next(ordinals)
            return Group(
                name=group_name(service, revision, ordinal),
                revision=revision,
                ordinal=ordinal,
                scenario=scenario,
            )

        step = step_groups(ours, target, rollout=spec.rollout, revision=revision, routed=routed, new=new)
        current = [group for group in step.keep if group.revision == revision]
        sizes = dict(sizes_of(target, current))
        asked = dict(sizes)
        waiting = awaited(current, sizes, refused=refused or name in without_room)
        sizes = dict(held_sizes(current, sizes, waiting, routed=routed))
        if waiting:
            step, held = _hold(step, revision, routed)
            sizes |= {
                group.name: Size(
                    prefill=0 if group.is_combined else group.ready("prefill"), decode=group.ready("decode")
                )
                for group in held
            }
        for old in sorted({group.revision for group in step.keep} - {revision}):
            record = records.get(old)
            was = targets_of(record, planned).get(name) if record is not None else None
            if was is not None:
                kept = [group for group in step.keep if group.revision == old]
                sizes |= sizes_of(was if was.groups else target, kept, grows=False)
        steps.append(
            ScenarioStep(
                name=name, target=target, step=step, groups=ours, sizes=sizes, asked={**sizes, **asked}
            )
        )
    return tuple(steps)


def _hold(step: GroupStep, revision: str, routed: Collection[str]) -> tuple[GroupStep, list[Group]]:
    """The step without those that take requests and would leave for nothing but their number, and who they are."""
    held = [
        group
        for group, _ in step.retire
        if group.revision == revision and group.serves and any(pod.name in routed for pod in group.pods)
    ]
    retire = tuple((group, why) for group, why in step.retire if group not in held)
    return replace(step, keep=(*step.keep, *held), retire=retire), held


def _free_ordinals(groups: Collection[Group], revision: str) -> Iterator[int]:
    """Numbers no group of the revision has, whatever its scenario: a group's name is its revision and its number."""
    taken = {group.ordinal for group in groups if group.revision == revision}
    ordinal = 0
    while True:
        if ordinal not in taken:
            yield ordinal
        ordinal += 1


def all_kept(steps: Sequence[ScenarioStep]) -> Iterator[tuple[Group, Size | None, Size | None]]:
    """Every group that stays or comes, with its size now and in the end as far as they are known."""
    for one in steps:
        for group in one.step.keep:
            yield group, one.sizes.get(group.name), one.asked.get(group.name)
