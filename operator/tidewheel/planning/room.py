"""Room in the budget of devices: which of the pods that are to come may come now, as others have to go first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tidewheel.api.pdservice import PDServiceSpec
from tidewheel.api.ranktable import Role
from tidewheel.planning.faults import is_lost
from tidewheel.planning.groups import Group
from tidewheel.planning.members import StaffedGroup
from tidewheel.planning.names import member_name
from tidewheel.planning.observed import ObservedPod
from tidewheel.planning.targets import Target


def free_devices(
    spec: PDServiceSpec,
    groups: Sequence[Group],
    targets: Iterable[Target],
    *,
    revision: str,
    records: Mapping[str, PDServiceSpec],
) -> int | None:
    """Devices that new pods may take now; None where no planner keeps a budget, and while a rollout has its surge.

    The numbers that are decided never need more than the budget, with what boosts lend (`autoscaling.step`), but pods move from
    group to group when groups and boosts come and go, and who goes holds its devices until it is gone. So who comes waits
    for them.

    Nobody waits for ever: the bound is no less than what is decided, so that there is room once all others are gone, and
    those go, or hold nothing because they have ended or their node is lost. Where the least of all scenarios does not
    fit the budget it is had all the same, and told.

    Args:
        spec: the service's.
        groups: those there are.
        targets: what is decided for each scenario, with what is lent.
        revision: the present one.
        records: the specs of older revisions.
    """
    budget = spec.scaling.device_budget
    if spec.scaling.mode != "Auto" or budget is None:
        return None
    if any(group.revision != revision and not group.is_leaving for group in groups):
        return None
    wanted = sum(
        one.prefill * devices_of(spec, "prefill") + one.decode * devices_of(spec, "decode") for one in targets
    )
    held = sum(
        devices_of(records.get(pod.revision, spec) if pod.revision != revision else spec, pod.role)
        for group in groups
        for pod in group.pods
        if _holds_devices(pod)
    )
    return max(0, max(budget, wanted) - held)


def without_room(staffed: Iterable[StaffedGroup], spec: PDServiceSpec, free: int | None) -> Mapping[str, str]:
    """The names of the pods that would join groups and have to wait, with their scenario; first groups are served first."""
    waiting: dict[str, str] = {}
    if free is None:
        return waiting
    for one in staffed:
        for role, joining in one.join:
            cost = devices_of(one.spec or spec, role)
            if cost <= free:
                free -= cost
            else:
                waiting[member_name(one.group.name, role, joining.place)] = one.group.scenario
    return waiting


def devices_of(spec: PDServiceSpec, role: Role) -> int:
    """Devices that a pod of a role holds; one without an accelerator counts as one."""
    return spec.prefill.devices_per_pod if role == "prefill" else spec.decode.devices_per_pod


def _holds_devices(pod: ObservedPod) -> bool:
    return pod.phase not in ("Failed", "Succeeded") and not is_lost(pod)
