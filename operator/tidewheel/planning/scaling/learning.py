"""What a window of load teaches: the series that forecasts follow, the season, and how far the profile is off."""

from __future__ import annotations

from dataclasses import replace

from tidewheel.planning.scaling.forecast import see
from tidewheel.planning.scaling.profile import DeviceProfile
from tidewheel.planning.scaling.queueing import PrefillWork
from tidewheel.planning.scaling.scenario import Scenario
from tidewheel.planning.scaling.sizing import prefill_work
from tidewheel.planning.scaling.state import ScalingState, corrected

#: How fast measured service times correct the profile's: a tenth per window.
_CORRECTION = 0.1
#: Measured service times of fewer requests correct nothing.
_ENOUGH = 20
#: The least share of an instance's time that its prompts are taken to leave.
_LEAST_FREE = 0.1


def work_unit(state: ScalingState, prefill: PrefillWork) -> float:
    """Seconds of a mean prompt as the series counts them: by the profile, uncorrected, so that a correction is no growth."""
    return prefill.mean / state.work.prefill_correction


def with_corrections(
    state: ScalingState, scenario: Scenario, profile: DeviceProfile, unit: float
) -> ScalingState:
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
        if not scenario.counts.prefill.ready:
            # prompts take a share of the time, as in `combined_for`; they make no device slower
            expected /= max(_LEAST_FREE, 1 - load.rate * unit * work.prefill_correction / instances)
        measured_decode = streaming / expected if expected > 0 else None
    return corrected(state, prefill=measured_prefill, decode=measured_decode, share=_CORRECTION)


def with_window(
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
