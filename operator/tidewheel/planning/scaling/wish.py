"""What one scenario would ask for if it were alone: forecast, sizing, floors, limits and holding, or the sign rule."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from tidewheel.planning.scaling.floors import floor_at
from tidewheel.planning.scaling.forecast import Kind, outlook, see
from tidewheel.planning.scaling.online import Sign, follow
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
from tidewheel.planning.scaling.state import Held, ScalingState, corrected, remember

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
]

#: What shrinking leaves to spare.
_SPARE = 1.05
#: Disaggregation must need this much less than combined instances, or it is said not to pay.
_PAYS = 0.95
#: How fast measured service times correct the profile's: a tenth per window.
_CORRECTION = 0.1
#: Measured service times of fewer requests correct nothing.
_ENOUGH = 20


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
    combined: int | None = None


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
        wanted, floored = _bounded(have, scenario, now=now)
        message = "no request was seen yet: there is nothing to size for"
        return Wish(
            scenario=scenario,
            wanted=wanted,
            needed=have,
            reason="ScheduledFloor" if floored and wanted != have else "NothingMeasured",
            message="a scheduled floor holds" if floored and wanted != have else message,
        ), state
    prefill = prefill_work(state.work, profile, targets)
    decode = decode_work(state.work, profile, targets)
    unit = _work_unit(state, prefill)
    state = _corrected(state, scenario, profile, unit)
    state = _seen(state, scenario, profile, prefill, now=now)
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
    spared = list(needed)
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
    wanted, floored = _bounded((follows[0], follows[1]), scenario, now=now)
    reason, message = _why(scenario, needed, (follows[0], follows[1]), wanted, floored, expected[0].kind)
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
        combined=_combined(state, scenario, profile, prefill, demands[1], needed),
    ), state


def _work_unit(state: ScalingState, prefill: PrefillWork) -> float:
    """Seconds of a mean prompt as the series counts them: by the profile, uncorrected, so that a correction is no growth."""
    return prefill.mean / state.work.prefill_correction


def _lasting(demand: Demand, now: float) -> Demand:
    """What the rest must carry after shrinking: the more of what is expected and what there is, and some to spare."""
    return replace(demand, mean=_SPARE * max(demand.mean, now))


def _seen(
    state: ScalingState, scenario: Scenario, profile: DeviceProfile, prefill: PrefillWork, *, now: float
) -> ScalingState:
    """With the window in both series and in the season."""
    load = scenario.load
    horizons = [startup + load.seconds for startup in scenario.limits.startups]
    work = state.work
    seconds = 0.0
    if load.arrivals:
        window = replace(
            work,
            prompt_tokens=load.prompt_tokens,
            prompt_tokens_squared=load.prompt_tokens_squared or work.prompt_tokens_squared,
            prefix_factor=load.prefix_factor,
            prefill_correction=1.0,
        )
        seconds = prefill_work(window, profile, scenario.targets).mean
    dispersion = max(work.arrival_dispersion, 0.05)
    service = max(0.0, 2 * prefill.variability - dispersion)
    count = max(load.arrivals, 1)
    return replace(
        state,
        prefill=see(
            state.prefill,
            load.rate * seconds,
            state.season,
            at=now,
            seconds=load.seconds,
            horizon=horizons[0],
            noise=(dispersion + service) / count,
        ),
        decode=see(
            state.decode,
            load.rate,
            state.season,
            at=now,
            seconds=load.seconds,
            horizon=horizons[1],
            noise=dispersion / count,
        ),
        season=state.season.see(load.rate, at=now, seconds=load.seconds),
    )


def _corrected(state: ScalingState, scenario: Scenario, profile: DeviceProfile, unit: float) -> ScalingState:
    """With service times as measured, where enough was measured: T_p, and TPOT at the batch that Little's law tells."""
    load, work = scenario.load, state.work
    measured_prefill = measured_decode = None
    if load.prefill_seconds > 0 and load.arrivals >= _ENOUGH:
        measured_prefill = load.prefill_seconds / unit
    instances = scenario.counts.decode.ready
    streaming = load.decode_seconds - load.transfer_seconds
    if streaming > 0 and load.finished >= _ENOUGH and instances and load.answer_tokens > 1:
        batch = max(1.0, load.finished / load.seconds * load.decode_seconds / instances)
        expected = profile.decode_seconds(batch, work.context_tokens) * load.answer_tokens
        measured_decode = streaming / expected if expected > 0 else None
    return corrected(state, prefill=measured_prefill, decode=measured_decode, share=_CORRECTION)


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
    have = scenario.asked
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
    needed = (max(1, have[0] + change[0]), max(1, have[1] + change[1]))
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


def _combined(
    state: ScalingState,
    scenario: Scenario,
    profile: DeviceProfile,
    prefill: PrefillWork,
    demand: Demand,
    needed: tuple[int, int],
) -> int | None:
    """Instances that would do both, if they are clearly fewer and cheaper than the pair."""
    total = needed[0] + needed[1]
    context = state.work.context_tokens
    most = max(1, profile.decode_batch(scenario.targets.tpot_seconds, context))
    batches = [float(most) ** (part / 7) for part in range(8)] if most > 1 else [1.0, 1.0]
    correction = state.work.decode_correction
    iterations = [(batch, correction * profile.decode_seconds(batch, context)) for batch in batches]
    least = combined_for(demand, prefill, iterations, state.work.answer_tokens, scenario.targets, most=total)
    return least if least <= _PAYS * total else None
