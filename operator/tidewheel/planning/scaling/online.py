"""The ratio without a profile: P/D-Serve's sign rule upwards, and evidence of what instances have carried downwards.

P/D-Serve (arXiv 2408.08147), §3.3: when E2E rises and T_p's share of it rises, prefill is the bottleneck; when E2E rises
and the share falls, decode is. The paper gives no thresholds, step or cool-down; those here are ours: E2E must lie a tenth
above its base line and beyond chance (three standard errors), one instance is added, and then nothing until it has
been ready for two windows. The paper's rule never shrinks: an instance is given back only if what the rest would then carry
has been carried before with the objective kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from tidewheel.planning.scaling.observed import RoleCounts, ScenarioLoad
from tidewheel.planning.scaling.sizing import Targets

#: E2E counts as risen from this much above the base line, and this many standard errors.
RISE, DEVIATIONS = 0.10, 3.0
#: A change of T_p's share that says something.
SHARE_CHANGE = 0.02
#: Windows in the base line before the rule speaks, and how many it remembers.
_LEAST, _MOST = 8, 40
#: How much of what was carried before the rest may be asked to carry.
_ROOM = 0.9

Sign = Literal["more prefill", "more decode", "fewer prefill", "fewer decode", "stay"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SignState:
    """The base line that the sign rule compares with, and the most that an instance was seen to carry in time."""

    windows: int = 0
    e2e: float = 0.0
    e2e_variance: float = 0.0
    share: float = 0.0
    risen: int = 0  # windows in a row that lay above the base line
    quiet_until: float = 0.0  # no change before this time
    carried_prefill: float = 0.0  # seconds of prefill per second and instance
    carried_decode: float = 0.0  # sequences per instance


def follow(
    state: SignState,
    load: ScenarioLoad,
    prefill: RoleCounts,
    decode: RoleCounts,
    targets: Targets,
    *,
    startup_seconds: float,
    now: float,
) -> tuple[Sign, SignState]:
    """What a window says, and the state after it. Windows without a finished request say nothing."""
    if not load.finished or load.e2e_seconds <= 0 or not load.arrivals:
        return "stay", state
    state = _evidence(state, load, prefill, decode, targets)
    above = load.e2e_seconds - state.e2e
    error = math.sqrt(state.e2e_variance * (1 + 1 / max(state.windows, 1)))
    has_risen = state.windows >= _LEAST and above > RISE * state.e2e and above > DEVIATIONS * error
    if has_risen and now >= state.quiet_until:
        change = load.ttft_share - state.share
        # two in a row, since windows are many and one of them lies high by chance
        if state.risen >= 1 and abs(change) >= SHARE_CHANGE:
            quiet = now + startup_seconds + 2 * load.seconds
            fresh = replace(
                SignState(quiet_until=quiet),
                carried_prefill=state.carried_prefill,
                carried_decode=state.carried_decode,
            )
            return ("more prefill" if change > 0 else "more decode"), fresh
        return "stay", replace(state, risen=state.risen + 1)
    state = _base_line(state, load)
    if now < state.quiet_until or state.windows < _LEAST:
        return "stay", state
    fewer = _fewer(state, load, prefill, decode)
    if fewer != "stay":
        state = replace(
            SignState(quiet_until=now + startup_seconds + 2 * load.seconds),
            carried_prefill=state.carried_prefill,
            carried_decode=state.carried_decode,
        )
    return fewer, state


def _evidence(
    state: SignState, load: ScenarioLoad, prefill: RoleCounts, decode: RoleCounts, targets: Targets
) -> SignState:
    carried_prefill, carried_decode = state.carried_prefill, state.carried_decode
    if load.ttft_attainment >= targets.attainment and prefill.ready:
        carried_prefill = max(carried_prefill, load.rate * load.prefill_seconds / prefill.ready)
    # decodes that compute the prompts, too, carry the first token as well
    in_time = load.tpot_attainment if prefill.asked else min(load.tpot_attainment, load.ttft_attainment)
    if in_time >= targets.attainment and decode.ready:
        carried_decode = max(carried_decode, load.rate * load.decode_seconds / decode.ready)
    return replace(state, carried_prefill=carried_prefill, carried_decode=carried_decode)


def _base_line(state: SignState, load: ScenarioLoad) -> SignState:
    windows = min(state.windows + 1, _MOST)
    share = 1 / windows
    above = load.e2e_seconds - state.e2e
    variance = 0.0 if windows == 1 else (1 - share) * (state.e2e_variance + share * above * above)
    return replace(
        state,
        windows=windows,
        e2e=state.e2e + share * above,
        e2e_variance=variance,
        share=state.share + share * (load.ttft_share - state.share),
        risen=0,
    )


def _fewer(state: SignState, load: ScenarioLoad, prefill: RoleCounts, decode: RoleCounts) -> Sign:
    """By Little's law λ T instances or sequences are at work; the rest must have carried that share each before."""
    at_prefill, at_decode = load.rate * load.prefill_seconds, load.rate * load.decode_seconds
    if (
        decode.asked > 1
        and state.carried_decode > 0
        and at_decode / (decode.asked - 1) <= _ROOM * state.carried_decode
    ):
        return "fewer decode"
    if (
        prefill.asked > 1
        and state.carried_prefill > 0
        and at_prefill / (prefill.asked - 1) <= _ROOM * state.carried_prefill
    ):
        return "fewer prefill"
    return "stay"
