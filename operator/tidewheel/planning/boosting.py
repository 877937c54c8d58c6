"""Boosts of a service's scenarios, from what is seen of it: who is boosted now, and what that makes of the numbers of pods."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import datetime

from tidewheel.api.pdservice import PDServiceSpec
from tidewheel.api.ranktable import Role
from tidewheel.planning.autoscaling.measured import load_of
from tidewheel.planning.autoscaling.step import Lent
from tidewheel.planning.boosts.memory import StoredMemory
from tidewheel.planning.boosts.step import BoostsSeen, BoostStep, step_boosts
from tidewheel.planning.boosts.windows import Stretch, tally_of
from tidewheel.planning.groups import Group
from tidewheel.planning.observed import ObservedService
from tidewheel.planning.targets import Target, targets_of

NO_BOOSTS = BoostStep()


def stored_boosts(spec: PDServiceSpec, text: str) -> StoredMemory:
    """What boosts remembered, read where somebody looks at it."""
    is_planned = spec.allocation is not None and spec.allocation.mode != "Off" and not spec.suspend
    return StoredMemory.of(text) if is_planned else StoredMemory(text=text)


def lent_now(spec: PDServiceSpec, stored: StoredMemory) -> Mapping[str, Lent]:
    """What was lent when last decided: pods that are not the planner's to count, where it counts."""
    allocation = spec.allocation
    if spec.scaling.mode == "Off" or allocation is None or allocation.mode != "Auto":
        return {}
    decision = stored.memory.decision if stored.memory is not None else None
    if decision is None:
        return {}
    return {pick.uid: Lent(role=allocation.role, pods=allocation.pods_per_slot) for pick in decision.picks}


def step_boosting(
    seen: ObservedService,
    spec: PDServiceSpec,
    groups: Collection[Group],
    planned: Mapping[str, Target],
    *,
    stored: StoredMemory,
    now: datetime,
) -> BoostStep:
    """The boosts at `now`.

    Args:
        seen: with the last window.
        spec: the service's.
        groups: those there are.
        planned: the numbers without boosts that replace the spec's.
        stored: what was remembered.
        now: the time.
    """
    allocation = spec.allocation
    if allocation is None or spec.suspend:
        return NO_BOOSTS
    without = {
        name: target
        for name, target in targets_of(spec, planned).items()
        if target.groups and not (target.is_combined and allocation.role == "prefill")
    }
    serving = [
        name
        for name, target in without.items()
        if sum(group.ready(allocation.role) for group in groups if group.scenario == name)
        >= target.of(allocation.role) + allocation.pods_per_slot
    ]
    boosts = BoostsSeen(
        memory=stored,
        stretch=_stretch(seen, spec, tuple(without)) if allocation.mode != "Off" else None,
        serving=serving,
        status=seen.status.allocation,
    )
    return step_boosts(allocation, tuple(without), boosts, now=now.timestamp())


def with_boosts(targets: Mapping[str, Target], boosts: BoostStep) -> dict[str, Target]:
    """The numbers with what is lent to those that are boosted."""
    return {
        name: _with(target, boosts.role, boosts.pods[name]) if name in boosts.pods else target
        for name, target in targets.items()
    }


def _with(target: Target, role: Role, lent: int) -> Target:
    reason = f"{target.reason}, and {lent} {role} as a boost"
    if role == "prefill":
        return replace(target, prefill=target.prefill + lent, reason=reason)
    return replace(target, decode=target.decode + lent, reason=reason)


def _stretch(seen: ObservedService, spec: PDServiceSpec, names: Collection[str]) -> Stretch | None:
    """What was counted in the last window."""
    window = seen.window
    if window is None:
        return None
    tallies = {name: tally_of(load_of(seen, spec, window, name)) for name in names}
    return Stretch(since=window.first.at, until=window.last.at, tallies=tallies)
