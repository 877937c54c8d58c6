"""The status of a PDService: what a plan found, counted, and the Events that tell of a changed condition."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from tidewheel.api.allocation import AllocationStatus
from tidewheel.api.meta import LABEL_ROLE, LABEL_SCENARIO, LABEL_SERVICE
from tidewheel.api.pdservice import PDServiceSpec, PDServiceStatus, RoleStatus, ScenarioStatus
from tidewheel.api.ranktable import Role
from tidewheel.api.reasons import ConditionType, Reason
from tidewheel.api.scaling import ScalingStatus
from tidewheel.api.scenarios import DEFAULT_SCENARIO
from tidewheel.api.status import Decision
from tidewheel.planning.conditions import Facts, judge, judge_unbuildable
from tidewheel.planning.decisions import shorten
from tidewheel.planning.faults import Trouble, trouble_of
from tidewheel.planning.gateways import GatewayStep
from tidewheel.planning.groups import Group
from tidewheel.planning.members import StaffedGroup
from tidewheel.planning.observed import ObservedPod, ObservedService, PublishedMap
from tidewheel.planning.plan import EventNote
from tidewheel.planning.scenarios import ScenarioStep
from tidewheel.planning.validation import Objection

_QUIET = frozenset({Reason.STARTING, Reason.REPLACING_MEMBERS})
_ASKED_FOR = frozenset({Reason.SUSPENDED, Reason.SCALED_TO_ZERO})


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What the policies found, for those who tell of it."""

    spec: PDServiceSpec
    revision: str
    groups: tuple[Group, ...]
    scenarios: tuple[ScenarioStep, ...]
    staffed: tuple[StaffedGroup, ...]
    gateways: GatewayStep
    #: Whether this plan creates or takes away pods.
    is_scaling: bool

    @property
    def wanted_groups(self) -> int:
        """Groups asked for, of all scenarios."""
        return sum(one.target.groups for one in self.scenarios)

    @property
    def wanted_gateways(self) -> int:
        """Gateways asked for; none while suspended."""
        return 0 if self.spec.suspend else self.spec.gateway.replicas

    def wanted(self, role: Role) -> int:
        """Pods of a compute role asked for, over all scenarios."""
        return sum(one.target.of(role) for one in self.scenarios)

    @property
    def ratio(self) -> str:
        """Prefill to decode pods in the first group for everybody, or, without one, as the spec has it."""
        target = next(one.target for one in self.scenarios if one.name == DEFAULT_SCENARIO)
        if not target.groups:
            prefill = 0 if target.is_combined else self.spec.prefill.replicas
            return f"{prefill}:{self.spec.decode.replicas}"
        return f"{target.share('prefill', 0)}:{target.share('decode', 0)}"

    @property
    def retired(self) -> Iterator[tuple[Group, str]]:
        """Groups on their way out, with the reason."""
        for one in self.scenarios:
            yield from one.step.retire

    @property
    def members(self) -> Iterator[ObservedPod]:
        """All pods that are to stay."""
        for one in self.staffed:
            yield from one.stay
        yield from self.gateways.keep


def status_of(
    seen: ObservedService,
    progress: Progress,
    decisions: tuple[Decision, ...],
    *,
    scaling: ScalingStatus | None = None,
    allocation: AllocationStatus | None = None,
    now: datetime,
) -> PDServiceStatus:
    """The whole status."""
    spec = progress.spec
    facts = facts_of(seen, progress)
    return PDServiceStatus(
        conditions=judge(facts, seen.status.conditions, generation=seen.generation, now=now),
        observed_generation=seen.generation,
        groups=sum(not group.is_leaving for group in progress.groups),
        default_groups=sum(
            not group.is_leaving and group.scenario == DEFAULT_SCENARIO for group in progress.groups
        ),
        ready_groups=facts.serving_groups,
        updated_groups=facts.updated_groups,
        selector=f"{LABEL_SERVICE}={seen.name},{LABEL_ROLE} in (prefill,decode),!{LABEL_SCENARIO}",
        revision=progress.revision,
        address=f"http://{seen.name}.{seen.namespace}.svc:{spec.gateway.service.port}",
        ratio=progress.ratio,
        prefill=_role_status(seen.pods, "prefill", progress.wanted("prefill")),
        decode=_role_status(seen.pods, "decode", progress.wanted("decode")),
        gateway=_role_status(seen.pods, "gateway", progress.wanted_gateways),
        scenarios=tuple(_scenario_statuses(seen, progress)),
        scaling=scaling,
        allocation=allocation,
        decisions=decisions,
    )


def _scenario_statuses(seen: ObservedService, progress: Progress) -> Iterator[ScenarioStatus]:
    """One per scenario, if any has groups of its own, or somebody else than the spec may decide the numbers."""
    if len(progress.scenarios) == 1 and progress.spec.scaling.mode == "Off" and not seen.scalers:
        return
    for one in progress.scenarios:
        pods = [pod for group in one.groups for pod in group.pods]
        target = one.target
        yield ScenarioStatus(
            name=one.name,
            groups=target.groups,
            ready_groups=_serving(one, seen.routes),
            ratio=f"{target.prefill}:{target.decode}",
            prefill=_role_status(pods, "prefill", target.prefill),
            decode=_role_status(pods, "decode", target.decode),
            reason=shorten(target.reason, 1024),
        )


def _serving(scenario: ScenarioStep, routes: PublishedMap | None) -> int:
    return sum(_is_reachable(group, routes) for group in scenario.step.keep)


def unbuildable_status(seen: ObservedService, objection: Objection, *, now: datetime) -> PDServiceStatus:
    """The status of a spec from which nothing can be built: the last counts, and why."""
    return seen.status.model_copy(
        update={
            "conditions": judge_unbuildable(
                objection, seen.status.conditions, generation=seen.generation, now=now
            ),
            "observed_generation": seen.generation,
        }
    )


def facts_of(seen: ObservedService, progress: Progress) -> Facts:
    """What the conditions are judged by."""
    spec = progress.spec
    members = tuple(progress.members)
    staying = {pod.uid for pod in members}
    return Facts(
        suspended=spec.suspend,
        wanted_groups=progress.wanted_groups,
        serving_groups=sum(_serving(one, seen.routes) for one in progress.scenarios),
        updated_groups=sum(
            group.revision == progress.revision and not group.is_leaving for group in progress.groups
        ),
        wanted_gateways=progress.wanted_gateways,
        ready_gateways=sum(pod.ready for pod in progress.gateways.keep),
        wanted_pods=progress.wanted("prefill") + progress.wanted("decode") + progress.wanted_gateways,
        ready_pods=sum(pod.ready for pod in members),
        leaving_pods=sum(pod.deleting or pod.uid not in staying for pod in seen.pods),
        revision=progress.revision,
        is_rolling_out=progress.wanted_groups > 0
        and (
            any(group.revision != progress.revision for group in progress.groups)
            or progress.gateways.is_rolling_out
        ),
        is_scaling=progress.is_scaling,
        replacing=tuple(_replacing(progress)),
        troubles=tuple(_troubles(members)),
        refusals=seen.refusals,
        flipping=tuple(_flipping(progress)),
        changing_groups=tuple(one.group.name for one in progress.staffed if one.has_surplus),
        scenarios_down=tuple(_scenarios_down(seen, progress)),
    )


def _scenarios_down(seen: ObservedService, progress: Progress) -> Iterator[str]:
    """What became of the scenarios that had groups in the routes and have none any more."""
    had = {one.name for one in seen.status.scenarios if one.ready_groups}
    was_down = any(one.reason == Reason.SCENARIO_DOWN for one in seen.status.conditions)
    rules = {scenario.name: scenario for scenario in progress.spec.scenarios}
    for one in progress.scenarios:
        rule = rules.get(one.name)
        if rule is None or rule.groups is None or not one.target.groups or _serving(one, seen.routes):
            continue
        if one.name in had or was_down:
            falls_back = rule.groups.when_down == "UseDefault"
            does = "the groups for everybody serve it" if falls_back else "its requests wait"
            lacks = "decode" if one.target.is_combined else "prefill and decode"
            yield f"scenario {one.name} has no group with a ready {lacks}: {does}"


def condition_events(before: PDServiceStatus, after: PDServiceStatus) -> tuple[EventNote, ...]:
    """An Event when Ready, or else Degraded, changed its reason to one that people should hear of.

    Starting, and members being replaced, have Events of their own when pods are created.
    """
    known = {condition.type: condition.reason for condition in before.conditions}
    events: dict[str, EventNote] = {}
    for condition in after.conditions:
        is_ready = condition.type == ConditionType.READY
        is_told = is_ready or (condition.type == ConditionType.DEGRADED and condition.status == "True")
        if not is_told or condition.reason in _QUIET or known.get(condition.type) == condition.reason:
            continue
        is_welcome = condition.status == "True" or condition.reason in _ASKED_FOR
        note = EventNote(
            type="Normal" if is_ready and is_welcome else "Warning",
            reason=condition.reason,
            action="Judge",
            message=shorten(condition.message, 1024),
        )
        events.setdefault(note.reason, note)
    return tuple(events.values())


def _is_reachable(group: Group, routes: PublishedMap | None) -> bool:
    """Whether the published routes lead to a ready prefill and a ready decode of the group; to a decode of a combined one."""
    if routes is None:
        return False
    routed = {pod.role for pod in group.pods if pod.ready and not pod.deleting and pod.name in routes.members}
    return routed.issuperset(group.needed_roles)


def _replacing(progress: Progress) -> Iterator[str]:
    for one in progress.staffed:
        for role, joining in one.join:
            if joining.replaces is not None:
                yield f"{one.group.name} gets a new {role}: {joining.why}"
        for pod in one.stay:
            if pod.incarnation and not pod.ready:
                yield f"{pod.name} takes its place in {one.group.name}"
    for joining in progress.gateways.create:
        if joining.replaces is not None:
            yield f"a new gateway comes: {joining.why}"
    for pod in progress.gateways.keep:
        if pod.incarnation and not pod.ready:
            yield f"{pod.name} takes its place"


def _flipping(progress: Progress) -> Iterator[str]:
    for one in progress.staffed:
        flip = one.flips.flip
        if flip is not None and flip.leaver is not None:
            yield f"{flip.leaver.name} leaves the role {flip.giver} to become a {flip.taker} pod"
        for pod in one.stay:
            if pod.flip_began is not None and pod.flips_to is None:
                yield f"{pod.name} joins as a {pod.role} pod"


def _troubles(pods: Iterable[ObservedPod]) -> Iterator[tuple[str, Trouble]]:
    for pod in pods:
        if (trouble := trouble_of(pod)) is not None:
            yield pod.name, trouble


def _role_status(pods: Iterable[ObservedPod], role: Role, desired: int) -> RoleStatus:
    ours = [pod for pod in pods if pod.role == role]
    ready = sum(pod.ready and not pod.deleting for pod in ours)
    return RoleStatus(
        desired=desired,
        ready=ready,
        draining=sum(pod.deleting for pod in ours),
        summary=f"{ready}/{desired}",
    )
