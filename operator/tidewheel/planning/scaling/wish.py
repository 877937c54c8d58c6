"""What one scenario would ask for if it were alone: forecast, sizing, floors, limits and holding, or the sign rule."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from tidewheel.planning.scaling.combining import (
    PAYS,
    Choice,
    as_chosen,
    choose,
    runs_combined,
    windows_needed,
)
from tidewheel.planning.scaling.floors import floor_at
from tidewheel.planning.scaling.forecast import Kind, outlook
from tidewheel.planning.scaling.learning import with_corrections, with_window, work_unit
from tidewheel.planning.scaling.online import Sign, SignState, follow
from tidewheel.planning.scaling.profile import DeviceProfile
from tidewheel.planning.scaling.queueing import DecodeWork, PrefillWork
from tidewheel.planning.scaling.scenario import Scenario
from tidewheel.planning.scaling.sizing import (
    Demand,
    combined_for,
    decode_work,
    decodes_for,
    prefill_work,
    prefills_for,
)
from tidewheel.planning.scaling.state import Held, ScalingState, remember

Reason = Literal[
    "Off",
    "NothingMeasured",
    "Balanced",
    "LoadGrows",
    "LoadFalls",
    "Holding",
    "ScheduledFloor",
    "AtMaximum",
    "BudgetBinds",
    "BudgetTooSmall",
    "NoRoom",
    "PrefillBound",
    "DecodeBound",
    "RestCarries",
    "Combines",
    "Divides",
]

#: What shrinking leaves to spare.
_SPARE = 1.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a scenario would ask for if it were alone."""

    scenario: Scenario
    wanted: tuple[int, int]
    needed: tuple[int, int]
    reason: Reason
    message: str
    rate: float = 0.0
    forecast: Kind | None = None
    demands: tuple[Demand, Demand] | None = None
    works: tuple[PrefillWork, DecodeWork] | None = None
    combined: int | None = None  # instances that would do both, if those are clearly fewer, or chosen


def wish_of(state: ScalingState, scenario: Scenario, *, now: float) -> tuple[Wish, ScalingState]:
    """What a scenario would ask for after a window, and what it then remembers."""
    state = remember(state, scenario.load)
    if scenario.profile is None:
        wish, state = _by_signs(state, scenario, now=now)
    else:
        wish, state = _by_profile(state, scenario, scenario.profile, now=now)
    if scenario.limits.mode == "Off":
        have = scenario.asked
        wish = replace(wish, wanted=have, reason="Off", message="the mode is Off: counts stay as they are")
    return wish, state


def _by_profile(
    state: ScalingState, scenario: Scenario, profile: DeviceProfile, *, now: float
) -> tuple[Wish, ScalingState]:
    load, limits, targets = scenario.load, scenario.limits, scenario.targets
    have = scenario.asked
    if not state.knows_requests:
        state, have = _unsized(state, scenario)
        wanted, floored = _bounded(have, scenario, now=now)
        reason, message = _told_otherwise(
            scenario, have, "NothingMeasured", "no request was seen yet: there is nothing to size for"
        )
        if floored and wanted != have:
            reason, message = "ScheduledFloor", "a scheduled floor holds"
        return Wish(scenario=scenario, wanted=wanted, needed=have, reason=reason, message=message), state
    prefill = prefill_work(state.work, profile, targets)
    decode = decode_work(state.work, profile, targets)
    unit = work_unit(state, prefill)
    state = with_corrections(state, scenario, profile, unit)
    state = with_window(state, scenario, profile, prefill, now=now)
    expected = [
        outlook(series, state.season, at=now, ahead=startup + load.seconds)
        for series, startup in zip((state.prefill, state.decode), limits.startups, strict=True)
    ]
    demands = tuple(
        Demand(mean=one.mean / unit, relative_variance=one.relative_variance)
        for one, unit in zip(expected, (unit, 1.0), strict=True)
    )
    needed = (
        prefills_for(demands[0], prefill, targets.attainment, most=limits.prefill[1]),
        decodes_for(demands[1], decode, targets.attainment, most=limits.decode[1]),
    )
    both = _Both(state=state, scenario=scenario, profile=profile, prefill=prefill)
    apart = needed
    state, combined = _chosen(state, both, demands[1], apart, now=now)
    spared = list(needed)
    if state.choice.is_combined:
        most = limits.decode[1]
        needed = (0, most if combined is None else combined)
        spared = list(needed)
        if needed[1] < have[1]:
            lasting = _lasting(demands[1], expected[1].now)
            spared[1] = both.needed(lasting, most=have[1]) or have[1]
    else:
        if needed[0] < have[0]:
            lasting = _lasting(demands[0], expected[0].now / unit)
            spared[0] = prefills_for(lasting, prefill, targets.attainment, most=have[0])
        if needed[1] < have[1]:
            lasting = _lasting(demands[1], expected[1].now)
            spared[1] = decodes_for(lasting, decode, targets.attainment, most=have[1])
    state = _holding(
        state, (spared[0], spared[1]), now=now, window=load.seconds, hold=limits.hold(load.seconds)
    )
    held = (max(one.prefill for one in state.held), max(one.decode for one in state.held))
    if state.watched < limits.hold(load.seconds):
        held = have  # who has not watched for so long cannot know how long a need has been lower
    follows = tuple(
        need if need >= here else min(here, kept) for need, here, kept in zip(needed, have, held, strict=True)
    )
    if state.choice.is_combined:
        follows = (0, follows[1])
    wanted, floored = _bounded((follows[0], follows[1]), scenario, now=now)
    reason, message = _why(scenario, needed, (follows[0], follows[1]), wanted, floored, expected[0].kind)
    if runs_combined(wanted) != runs_combined(have):
        reason = "Combines" if runs_combined(wanted) else "Divides"
        message = _why_otherwise(scenario, apart, combined, expected[0].kind)
    return Wish(
        scenario=scenario,
        wanted=wanted,
        needed=needed,
        reason=reason,
        message=message,
        rate=demands[1].mean,
        forecast=expected[0].kind,
        demands=(demands[0], demands[1]),
        works=(prefill, decode),
        combined=combined,
    ), state


def _unsized(state: ScalingState, scenario: Scenario) -> tuple[ScalingState, tuple[int, int]]:
    """What there is, run as is allowed, where nothing is known by which to size it."""
    is_combined = scenario.disaggregation == "Never"
    if scenario.disaggregation == "Auto":
        is_combined = runs_combined(scenario.asked)
    choice = replace(state.choice, is_combined=is_combined)
    return _with_choice(state, choice), as_chosen(scenario.asked, is_combined=is_combined)


def _with_choice(state: ScalingState, choice: Choice) -> ScalingState:
    """After a change of it nothing is held: what was needed and carried one way says nothing of the other."""
    if state.choice.is_combined not in (None, choice.is_combined):
        state = replace(state, held=(), watched=0.0, sign=SignState())
    return replace(state, choice=choice)


def _told_otherwise(
    scenario: Scenario, have: tuple[int, int], reason: Reason, message: str
) -> tuple[Reason, str]:
    """The reason, unless what there is shall run the other way from now on, without being sized for it."""
    if runs_combined(have) == runs_combined(scenario.asked):
        return reason, message
    return (
        "Combines" if runs_combined(have) else "Divides",
        f"disaggregation is {scenario.disaggregation}, and nothing tells how many that needs: it begins with what there is",
    )


def _chosen(
    state: ScalingState, both: _Both, demand: Demand, apart: tuple[int, int], *, now: float
) -> tuple[ScalingState, int | None]:
    """With the choice after the window, and the instances that would do both, if those are clearly fewer, or chosen."""
    scenario, limits = both.scenario, both.scenario.limits
    clearly_fewer = int(PAYS * sum(apart))
    if scenario.disaggregation == "Always":
        combined = both.needed(demand, most=clearly_fewer)
    else:
        combined = both.needed(demand, most=limits.decode[1])

    def cost(counts: tuple[int, int]) -> int:
        bounded, _ = _bounded(counts, scenario, now=now)
        return bounded[0] * limits.costs[0] + bounded[1] * limits.costs[1]

    seconds = scenario.load.seconds
    choice = choose(
        state.choice,
        scenario.disaggregation,
        have=scenario.asked,
        apart=cost(apart),
        together=cost((0, combined)) if combined is not None else None,
        needed_windows=windows_needed(limits.hold(seconds), seconds),
    )
    if not choice.is_combined and combined is not None and combined > clearly_fewer:
        combined = None
    return _with_choice(state, choice), combined


def _lasting(demand: Demand, now: float) -> Demand:
    """What the rest must carry after shrinking: the more of what is expected and what there is, and some to spare."""
    return replace(demand, mean=_SPARE * max(demand.mean, now))


def _holding(
    state: ScalingState, need: tuple[int, int], *, now: float, window: float, hold: float
) -> ScalingState:
    """With the newest need, without those older than the holding time, and without those that later ones cover."""
    kept = [
        one
        for one in state.held
        if one.at > now - hold and not (one.prefill <= need[0] and one.decode <= need[1])
    ]
    watched = min(state.watched + window, hold)
    return replace(state, held=(*kept, Held(at=now, prefill=need[0], decode=need[1])), watched=watched)


def _by_signs(state: ScalingState, scenario: Scenario, *, now: float) -> tuple[Wish, ScalingState]:
    state, have = _unsized(state, scenario)
    sign, remembered = follow(
        state.sign,
        scenario.load,
        scenario.counts.prefill,
        scenario.counts.decode,
        scenario.targets,
        startup_seconds=scenario.limits.startup_seconds,
        now=now,
    )
    state = replace(state, sign=remembered)
    said: dict[Sign, tuple[tuple[int, int], Reason, str]] = {
        "more prefill": ((1, 0), "PrefillBound", "E2E rises and T_p's share with it: one prefill more"),
        "more decode": ((0, 1), "DecodeBound", "E2E rises and T_p's share falls: one decode more"),
        "fewer prefill": ((-1, 0), "RestCarries", "the other prefills have carried such a load in time"),
        "fewer decode": ((0, -1), "RestCarries", "the other decodes have carried such a load in time"),
        "stay": ((0, 0), "Balanced", "without a profile, E2E and T_p's share decide; neither has risen"),
    }
    change, reason, message = said[sign]
    reason, message = _told_otherwise(scenario, have, reason, message)
    needed = (max(1, have[0] + change[0]), max(1, have[1] + change[1]))
    if state.choice.is_combined:
        needed = (0, max(1, have[1] + sum(change)))
    wanted, floored = _bounded(needed, scenario, now=now)
    if wanted != needed:
        reason = "ScheduledFloor" if floored else "AtMaximum"
        message = "a scheduled floor holds" if floored else f"{message}; the limits do not allow it"
    return Wish(
        scenario=scenario,
        wanted=wanted,
        needed=needed,
        reason=reason,
        message=message,
        rate=scenario.load.rate,
    ), state


def _bounded(counts: tuple[int, int], scenario: Scenario, *, now: float) -> tuple[tuple[int, int], bool]:
    """Within limits and floors, and whether a floor made the difference."""
    limits = scenario.limits
    floor = floor_at(limits.floors, now=now, ahead=limits.startup_seconds + scenario.load.seconds)
    if runs_combined(counts):
        # those that do both are as many as the floor has of both
        decode = min(max(counts[1], limits.decode[0], sum(floor)), limits.decode[1])
        return (0, decode), sum(floor) > counts[1]
    floored = floor[0] > counts[0] or floor[1] > counts[1]
    bounds = (limits.prefill, limits.decode)
    first, second = (
        min(max(count, least, lowest), most)
        for count, lowest, (least, most) in zip(counts, floor, bounds, strict=True)
    )
    return (first, second), floored


def _why(
    scenario: Scenario,
    needed: tuple[int, int],
    follows: tuple[int, int],
    wanted: tuple[int, int],
    floored: bool,
    kind: Kind,
) -> tuple[Reason, str]:
    have, limits = scenario.asked, scenario.limits
    needs = f"{needed[0]} prefill and {needed[1]} decode are needed for the load ({kind})"
    if runs_combined(needed):
        needs = f"{needed[1]} decode that compute the prompts, too, are needed for the load ({kind})"
    if floored and wanted != follows:
        return "ScheduledFloor", f"{needs}; a scheduled floor asks for more"
    if needed[0] >= limits.prefill[1] > 1 or needed[1] >= limits.decode[1] > 1:
        return "AtMaximum", f"{needs}, which is the limit or more: raise the limits"
    if wanted[0] > have[0] or wanted[1] > have[1]:
        return "LoadGrows", needs
    if wanted[0] < have[0] or wanted[1] < have[1]:
        return "LoadFalls", needs
    if needed[0] < have[0] or needed[1] < have[1]:
        return (
            "Holding",
            f"{needs}, but not yet for {limits.hold(scenario.load.seconds):.0f} s with some to spare",
        )
    return "Balanced", needs


def _why_otherwise(scenario: Scenario, apart: tuple[int, int], combined: int | None, kind: Kind) -> str:
    """Why it shall run the other way from now on."""
    together = "no number" if combined is None else str(combined)
    compared = f"{apart[0]} prefill and {apart[1]} decode, or {together} that do both, are needed for the load ({kind})"
    if scenario.disaggregation != "Auto":
        return f"{compared}; disaggregation is {scenario.disaggregation}"
    seconds = scenario.load.seconds
    windows = windows_needed(scenario.limits.hold(seconds), seconds)
    return f"{compared}; the one has cost clearly less than the other for {windows} windows"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Both:
    """Sizes instances that do both."""

    state: ScalingState
    scenario: Scenario
    profile: DeviceProfile
    prefill: PrefillWork

    def needed(self, demand: Demand, *, most: int) -> int | None:
        """The least number, if it is not beyond `most`."""
        if most < 1:
            return None
        work, targets = self.state.work, self.scenario.targets
        context = work.context_tokens
        largest = max(1, self.profile.decode_batch(targets.tpot_seconds, context))
        batches = [float(largest) ** (part / 7) for part in range(8)] if largest > 1 else [1.0, 1.0]
        iterations = [
            (batch, work.decode_correction * self.profile.decode_seconds(batch, context)) for batch in batches
        ]
        least = combined_for(demand, self.prefill, iterations, work.answer_tokens, targets, most=most + 1)
        return least if least <= most else None
