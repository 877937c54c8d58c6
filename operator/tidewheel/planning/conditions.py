"""Conditions: what stands in `.status.conditions`, judged from a few facts, so that each says why in one word and one line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from tidewheel.api.reasons import ConditionType, Reason
from tidewheel.api.status import Condition
from tidewheel.planning.decisions import shorten
from tidewheel.planning.faults import Trouble
from tidewheel.planning.plan import Refusal
from tidewheel.planning.times import as_time
from tidewheel.planning.validation import Objection

#: The more specific a trouble, the earlier it is named when pods have several.
_SEVERITY = (
    Reason.MODEL_NOT_FOUND,
    Reason.MODEL_UNREADABLE,
    Reason.MODEL_UNSUPPORTED,
    Reason.MODEL_DOWNLOAD_FAILED,
    Reason.INVALID_SPEC,
    Reason.NODE_LOST,
    Reason.DEVICE_UNHEALTHY,
    Reason.DEVICE_UNAVAILABLE,
    Reason.OUT_OF_MEMORY,
    Reason.IMAGE_UNAVAILABLE,
    Reason.POD_REFUSED,
    Reason.PORT_TAKEN,
    Reason.CRASH_LOOP,
    Reason.UNSCHEDULABLE,
    Reason.PEERS_UNVERIFIED,
)
_LONGEST_MESSAGE = 2048
#: What an API error's text begins with; people who read a condition do not need it.
_REQUEST = re.compile(r"^[A-Z]+ /\S+: ")
Truth = Literal["True", "False", "Unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the conditions are judged by."""

    suspended: bool
    wanted_groups: int
    serving_groups: int
    #: Of the current revision.
    updated_groups: int
    wanted_gateways: int
    ready_gateways: int
    wanted_pods: int
    ready_pods: int
    leaving_pods: int
    revision: str
    is_rolling_out: bool
    #: Whether pods are created or taken away by this plan.
    is_scaling: bool
    #: What is being substituted, for people.
    replacing: tuple[str, ...]
    #: By pod name.
    troubles: tuple[tuple[str, Trouble], ...]
    refusals: tuple[Refusal, ...]
    #: Groups whose pods of one role stay until those that come for them are ready.
    changing_groups: tuple[str, ...] = ()
    #: For people: pods that change their role.
    flipping: tuple[str, ...] = ()
    #: For people: scenarios with groups of their own of which none serves.
    scenarios_down: tuple[str, ...] = ()

    @property
    def serves(self) -> bool:
        """Whether requests are answered."""
        return self.serving_groups > 0 and self.ready_gateways > 0


Verdict = tuple[Truth, Reason, str]


def judge(
    facts: Facts, past: Sequence[Condition], *, generation: int, now: datetime
) -> tuple[Condition, ...]:
    """Ready, Progressing and Degraded."""
    verdicts = {
        ConditionType.READY: _ready(facts, past),
        ConditionType.PROGRESSING: _progressing(facts),
        ConditionType.DEGRADED: _degraded(facts),
    }
    return _written(verdicts, past, generation=generation, now=now)


def judge_unbuildable(
    objection: Objection, past: Sequence[Condition], *, generation: int, now: datetime
) -> tuple[Condition, ...]:
    """The conditions of a spec from which nothing can be built; pods of an earlier one may serve on."""
    verdicts: dict[ConditionType, Verdict] = {
        ConditionType.READY: ("False", objection.reason, objection.message),
        ConditionType.PROGRESSING: (
            "False",
            objection.reason,
            "nothing is changed until the spec is corrected",
        ),
        ConditionType.DEGRADED: ("Unknown", objection.reason, "members are not judged by this spec"),
    }
    return _written(verdicts, past, generation=generation, now=now)


def refusal_reason(refusal: Refusal) -> Reason:
    """The documented word for a refused change."""
    if refusal.reason == Reason.NAME_TAKEN:
        return Reason.NAME_TAKEN
    told = " ".join((refusal.message, *(field for field, _ in refusal.causes))).lower()
    if refusal.kind == "Service" and refusal.status == 422 and "port" in told:
        return Reason.PORT_TAKEN
    return Reason.POD_REFUSED


def _ready(facts: Facts, past: Sequence[Condition]) -> Verdict:
    if facts.suspended:
        return "False", Reason.SUSPENDED, "spec.suspend is true; set it to false to serve"
    if facts.wanted_groups == 0:
        return "False", Reason.SCALED_TO_ZERO, "spec.groups is 0; raise it to serve"
    for refusal in facts.refusals:
        if refusal.kind == "Service" or not facts.serves:
            return "False", refusal_reason(refusal), _told(refusal)
    if facts.serves:
        gateways = _count(facts.ready_gateways, facts.wanted_gateways, "gateway")
        return (
            "True",
            Reason.SERVING,
            f"{_count(facts.serving_groups, facts.wanted_groups, 'group')} and {gateways} answer requests",
        )
    if facts.troubles:
        return "False", *_worst(facts.troubles)
    if not _has_served(past):
        return "False", Reason.STARTING, f"{facts.ready_pods} of {facts.wanted_pods} pods are ready"
    if not facts.serving_groups:
        return (
            "False",
            Reason.NO_GROUP_READY,
            "no group has the ready pods that a request needs: a prefill and a decode, or a decode where it is combined",
        )
    return "False", Reason.GATEWAY_NOT_READY, "no gateway pod is ready"


def _has_served(past: Sequence[Condition]) -> bool:
    """Whether the service answered before it stopped doing so: then it is not merely starting."""
    return any(
        condition.type == ConditionType.READY
        and (
            condition.status == "True"
            or condition.reason in (Reason.NO_GROUP_READY, Reason.GATEWAY_NOT_READY)
        )
        for condition in past
    )


def _progressing(facts: Facts) -> Verdict:
    if facts.is_rolling_out:
        updated = _count(facts.updated_groups, facts.wanted_groups, "group")
        return "True", Reason.ROLLING_OUT, f"{updated} are of revision {facts.revision}"
    if facts.flipping:
        return "True", Reason.SCALING, "; ".join(facts.flipping)
    if facts.leaving_pods:
        return "True", Reason.SCALING, f"pods that finish their last requests: {facts.leaving_pods}"
    if facts.is_scaling or facts.ready_pods < facts.wanted_pods:
        return "True", Reason.SCALING, f"{facts.ready_pods} of {facts.wanted_pods} pods are ready"
    if facts.changing_groups:
        groups = ", ".join(facts.changing_groups)
        return "True", Reason.SCALING, f"pods leave when those that come for them are ready: {groups}"
    if facts.refusals:
        refusal = facts.refusals[0]
        return (
            "False",
            refusal_reason(refusal),
            f"{refusal.kind} {refusal.name} waits until it is no longer refused",
        )
    if facts.serving_groups < facts.wanted_groups:
        routed = _count(facts.serving_groups, facts.wanted_groups, "group")
        return "True", Reason.SCALING, f"{routed} are on the gateways' routes"
    return "False", Reason.SETTLED, "what runs is what the spec asks for"


def _degraded(facts: Facts) -> Verdict:
    if facts.scenarios_down:
        return "True", Reason.SCENARIO_DOWN, "; ".join(facts.scenarios_down)
    if facts.replacing:
        return "True", Reason.REPLACING_MEMBERS, "; ".join(facts.replacing)
    if facts.troubles:
        return "True", *_worst(facts.troubles)
    if facts.refusals:
        return "True", refusal_reason(facts.refusals[0]), _told(facts.refusals[0])
    return "False", Reason.ALL_MEMBERS_HEALTHY, "no pod is failed or missing"


def _worst(troubles: Sequence[tuple[str, Trouble]]) -> tuple[Reason, str]:
    def severity(named: tuple[str, Trouble]) -> tuple[int, str]:
        name, trouble = named
        known = trouble.reason in _SEVERITY
        return (_SEVERITY.index(trouble.reason) if known else len(_SEVERITY), name)

    name, worst = min(troubles, key=severity)
    others = len(troubles) - 1
    more = f" (and {others} more)" if others else ""
    return worst.reason, f"{name}: {worst.message}{more}"


def _told(refusal: Refusal) -> str:
    said = _REQUEST.sub("", refusal.message)
    return f"{refusal.kind} {refusal.name} was refused: {said}"


def _count(ready: int, wanted: int, what: str) -> str:
    return f"{ready} of {wanted} {what}{'s' if wanted != 1 else ''}"


def _written(
    verdicts: dict[ConditionType, Verdict], past: Sequence[Condition], *, generation: int, now: datetime
) -> tuple[Condition, ...]:
    """Conditions as they are written; the time moves only when a status flips."""
    before = {condition.type: condition for condition in past}
    written = []
    for type_, (status, reason, message) in verdicts.items():
        old = before.get(type_)
        since = old.last_transition_time if old is not None and old.status == status else as_time(now)
        written.append(
            Condition(
                type=type_,
                status=status,
                reason=reason,
                message=shorten(message, _LONGEST_MESSAGE),
                last_transition_time=since,
                observed_generation=generation,
            )
        )
    return tuple(written)
