"""Scalers: which PDServiceScalers a service follows, what they ask for, and what each of them is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from tidewheel.api.meta import LABEL_ROLE, LABEL_SCENARIO, LABEL_SERVICE
from tidewheel.api.pdservice import PDServiceSpec
from tidewheel.api.ranktable import Role
from tidewheel.api.reasons import ConditionType, Reason
from tidewheel.api.scaler import PDServiceScalerSpec, PDServiceScalerStatus
from tidewheel.api.scenarios import DEFAULT_SCENARIO
from tidewheel.api.status import Condition
from tidewheel.planning.observed import ObservedPod, ObservedScaler
from tidewheel.planning.targets import Target, targets_of
from tidewheel.planning.times import as_time


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether a service follows a scaler, and why."""

    is_active: bool
    reason: Reason
    message: str


def scaled_targets(spec: PDServiceSpec, scalers: Sequence[ObservedScaler]) -> Mapping[str, Target]:
    """The targets of the spec with those numbers replaced that a scaler drives; only scenarios that have one are named."""
    asked = targets_of(spec)
    scaled: dict[str, Target] = {}
    for one in sorted(scalers, key=_seniority):
        if not judge_scaler(one, spec, scalers).is_active:
            continue
        scenario = one.spec.scenario
        was = scaled.get(scenario, asked[scenario])
        reason = f"{was.reason}, PDServiceScaler {one.name} asks for {one.spec.replicas} {one.spec.role}"
        scaled[scenario] = replace(_with(was, one.spec), reason=reason)
    return scaled


def judge_scaler(
    scaler: ObservedScaler, spec: PDServiceSpec | None, scalers: Sequence[ObservedScaler]
) -> Verdict:
    """Whether the service follows a scaler. Of several for the same role the oldest is followed.

    Args:
        scaler: the one in question.
        spec: of the service it names; None if there is none, or none that can be read.
        scalers: all of that service.
    """
    asked = scaler.spec
    if spec is None:
        message = f"there is no PDService {asked.service} with a valid spec here; make one, or delete this"
        return Verdict(is_active=False, reason=Reason.SERVICE_NOT_FOUND, message=message)
    target = targets_of(spec).get(asked.scenario)
    if target is None:
        message = (
            f"PDService {asked.service} has no groups for scenario {asked.scenario}; "
            f"give spec.scenarios[{asked.scenario}] groups, or delete this"
        )
        return Verdict(is_active=False, reason=Reason.SCENARIO_HAS_NO_GROUPS, message=message)
    if spec.scaling.mode == "Auto":
        message = f"PDService {asked.service} scales itself: spec.scaling.mode is Auto; set Off or Advise, or delete this"
        return Verdict(is_active=False, reason=Reason.SCALED_BY_OPERATOR, message=message)
    if target.is_combined and asked.role == "prefill":
        message = (
            f"scenario {asked.scenario} of PDService {asked.service} has no prefill pods, as its disaggregation is Never; "
            "scale decode, set disaggregation to Always, or delete this"
        )
        return Verdict(is_active=False, reason=Reason.SCENARIO_IS_COMBINED, message=message)
    same = [one for one in scalers if _drives(one) == _drives(scaler)]
    first = min(same, key=_seniority, default=scaler)
    if first.uid != scaler.uid:
        message = f"PDServiceScaler {first.name} is older and scales the same pods; delete one of them"
        return Verdict(is_active=False, reason=Reason.SCALER_CONFLICT, message=message)
    possible = _with(target, asked).bounded().of(asked.role)
    if possible != asked.replicas:
        message = (
            f"{possible} {asked.role} pods, not {asked.replicas}: {target.groups} groups have 1 to 64 each"
        )
        return Verdict(is_active=True, reason=Reason.REPLICAS_BOUNDED, message=message)
    message = f"{asked.replicas} {asked.role} pods are asked for, over {target.groups} groups"
    return Verdict(is_active=True, reason=Reason.SCALED, message=message)


def scaler_status(
    scaler: ObservedScaler, verdict: Verdict, pods: Sequence[ObservedPod], *, now: datetime
) -> PDServiceScalerStatus:
    """What a scaler is told: the verdict, and the pods it is about, as a horizontal autoscaler counts them."""
    asked = scaler.spec
    ours = [
        pod for pod in pods if pod.role == asked.role and pod.scenario == asked.scenario and not pod.deleting
    ]
    status = "True" if verdict.is_active else "False"
    before = next((one for one in scaler.status.conditions if one.type == ConditionType.ACTIVE), None)
    is_same = before is not None and before.status == status
    return PDServiceScalerStatus(
        conditions=(
            Condition(
                type=ConditionType.ACTIVE,
                status=status,
                reason=verdict.reason,
                message=verdict.message,
                last_transition_time=before.last_transition_time if before and is_same else as_time(now),
                observed_generation=scaler.generation,
            ),
        ),
        observed_generation=scaler.generation,
        replicas=len(ours),
        ready_replicas=sum(pod.ready for pod in ours),
        selector=_selector(asked),
    )


def _selector(asked: PDServiceScalerSpec) -> str:
    scenario = (
        f"!{LABEL_SCENARIO}" if asked.scenario == DEFAULT_SCENARIO else f"{LABEL_SCENARIO}={asked.scenario}"
    )
    return f"{LABEL_SERVICE}={asked.service},{LABEL_ROLE}={asked.role},{scenario}"


def _with(target: Target, asked: PDServiceScalerSpec) -> Target:
    if asked.role == "prefill":
        return replace(target, prefill=asked.replicas)
    return replace(target, decode=asked.replicas)


def _drives(scaler: ObservedScaler) -> tuple[str, str, Role]:
    return scaler.spec.service, scaler.spec.scenario, scaler.spec.role


def _seniority(scaler: ObservedScaler) -> tuple[datetime, str]:
    return scaler.created, scaler.name
