"""What a PDService's spec says, in the planner's terms: promises, limits and what its devices can do."""

from __future__ import annotations

from typing import get_args

from tidewheel.api.pdservice import PDServiceSpec
from tidewheel.api.scaling import Day, ScheduledFloor
from tidewheel.api.scenarios import DEFAULT_SCENARIO, Scenario
from tidewheel.planning.autoscaling.startup import Startups
from tidewheel.planning.scaling.floors import Floor
from tidewheel.planning.scaling.profile import DecodeLaw, DeviceProfile, PrefillLaw
from tidewheel.planning.scaling.scenario import Limits
from tidewheel.planning.scaling.sizing import Targets

_DAYS = get_args(Day)
#: Where no pace is promised: slower than anyone reads.
_ANY_PACE_SECONDS = 1.0
#: An objective of every single request can be sized for by no number of pods.
_MOST_ATTAINMENT = 0.999


def scenarios_with_groups(spec: PDServiceSpec) -> tuple[str, ...]:
    """The scenarios whose numbers are planned: those with groups of their own, and `default` for all others."""
    return (
        DEFAULT_SCENARIO,
        *(scenario.name for scenario in spec.scenarios if scenario.groups is not None),
    )


def labels_of(spec: PDServiceSpec, name: str) -> tuple[str, ...]:
    """The scenarios, as gateways label them, whose requests go to the groups of `name`."""
    if name != DEFAULT_SCENARIO:
        return (name,)
    return (name, *(scenario.name for scenario in spec.scenarios if scenario.groups is None))


def promises_of(spec: PDServiceSpec, name: str) -> Targets:
    """What is promised to those requests; where nobody promised anything, the deadline of the first token."""
    scenario = _scenario(spec, name)
    of_all, own = spec.slo, scenario.slo if scenario is not None else spec.slo
    ttft, tpot = own.ttft_ms or of_all.ttft_ms, own.tpot_ms or of_all.tpot_ms
    deadline = spec.gateway.ttft_deadline_seconds
    if scenario is not None and scenario.ttft_deadline_seconds is not None:
        deadline = scenario.ttft_deadline_seconds
    whole = own.end_to_end_ms or of_all.end_to_end_ms
    return Targets(
        ttft_seconds=ttft / 1000 if ttft is not None else float(deadline),
        tpot_seconds=tpot / 1000 if tpot is not None else _ANY_PACE_SECONDS,
        attainment=min(own.attainment_percent / 100, _MOST_ATTAINMENT),
        e2e_seconds=whole / 1000 if whole is not None else None,
    )


def limits_of(spec: PDServiceSpec, startups: Startups | None = None) -> Limits:
    """What each scenario may have.

    Args:
        spec: the service's.
        startups: those that were measured; until there are enough, and as the least, the spec's counts.
    """
    scaling = spec.scaling
    by_role = (startups or Startups()).or_longer(float(scaling.startup_seconds))
    return Limits(
        prefill=(scaling.prefill.min, scaling.prefill.max),
        decode=(scaling.decode.min, scaling.decode.max),
        startup_seconds=max(by_role),
        startup_by_role=by_role,
        hold_seconds=float(scaling.hold_seconds) if scaling.hold_seconds is not None else None,
        most_per_step=scaling.most_per_step,
        floors=tuple(_floor(floor) for floor in scaling.floors),
        mode=scaling.mode,
        costs=(spec.prefill.devices_per_pod, spec.decode.devices_per_pod),
    )


def profile_of(spec: PDServiceSpec) -> DeviceProfile | None:
    """What a prefill and a decode can do, if the spec says it."""
    given = spec.scaling.profile
    if given is None:
        return None
    prefill, decode = given.prefill, given.decode
    context = spec.model.max_context_tokens
    return DeviceProfile(
        name="spec.scaling.profile",
        prefill=PrefillLaw(
            base_seconds=prefill.base_microseconds * 1e-6,
            seconds_per_token=prefill.nanoseconds_per_token * 1e-9,
            seconds_per_token_squared=prefill.femtoseconds_per_token_squared * 1e-15,
        ),
        decode=DecodeLaw(
            base_seconds=decode.base_microseconds * 1e-6,
            seconds_per_sequence=decode.nanoseconds_per_sequence * 1e-9,
            seconds_per_kv_token=decode.picoseconds_per_kv_token * 1e-12,
        ),
        prefill_slots=spec.prefill.slots,
        decode_slots=spec.decode.slots,
        kv_tokens=spec.decode.kv_cache_tokens or spec.decode.slots * context,
    )


def _scenario(spec: PDServiceSpec, name: str) -> Scenario | None:
    return next((scenario for scenario in spec.scenarios if scenario.name == name), None)


def _floor(floor: ScheduledFloor) -> Floor:
    return Floor(
        days=tuple(_DAYS.index(day) for day in floor.days),
        from_minute=_minute(floor.start),
        to_minute=_minute(floor.end),
        prefill=floor.prefill,
        decode=floor.decode,
    )


def _minute(time: str) -> int:
    hours, minutes = time.split(":")
    return 60 * int(hours) + int(minutes)
