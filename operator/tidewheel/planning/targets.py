"""Targets: how many groups and pods each scenario should have, who says so, and each group's share of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from tidewheel.api.pdservice import MOST_PODS, PDServiceSpec
from tidewheel.api.ranktable import Role
from tidewheel.api.scenarios import DEFAULT_SCENARIO


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """The pods of one group: its ratio, and its size; without prefills its decodes compute the prompts, too."""

    prefill: int
    decode: int

    def of(self, role: Role) -> int:
        """Pods of that role."""
        return self.prefill if role == "prefill" else self.decode

    def __str__(self) -> str:
        return f"{self.prefill}:{self.decode}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What one scenario should have. Pods are counted over all its groups, as autoscalers count them."""

    groups: int
    prefill: int
    decode: int
    #: Who wants it so, for people; such as `spec.groups is 2`.
    reason: str
    #: Whether decodes compute the prompts, too: there are no prefills then, whatever their number says.
    is_combined: bool = False

    def of(self, role: Role) -> int:
        """Pods of that role over all groups."""
        return self.prefill if role == "prefill" else self.decode

    def share(self, role: Role, index: int) -> int:
        """How many pods of the role the group of that index has: they differ by at most one, the first have more."""
        if self.groups == 0:
            return 0
        each, over = divmod(self.of(role), self.groups)
        return each + (index < over)

    def bounded(self) -> Target:
        """The nearest target that groups can have: 1 to 64 pods of each role in each; no prefills if they are combined."""
        prefill = _between(self.groups, self.prefill, MOST_PODS * self.groups)
        return replace(
            self,
            groups=max(self.groups, 0),
            prefill=0 if self.is_combined else prefill,
            decode=_between(self.groups, self.decode, MOST_PODS * self.groups),
        )


def targets_of(spec: PDServiceSpec, planned: Mapping[str, Target] | None = None) -> Mapping[str, Target]:
    """The target of every scenario that has groups of its own, and of `default`, which is first.

    Args:
        spec: what the user asks for.
        planned: what planners and autoscalers ask for instead, by scenario. What they say of scenarios without groups
            is left aside: those are served by the default groups. Suspension is the user's alone.
    """
    asked = {
        DEFAULT_SCENARIO: _of_spec(
            spec, DEFAULT_SCENARIO, spec.groups, spec.prefill.replicas, spec.decode.replicas, "spec.groups"
        )
    }
    for scenario in spec.scenarios:
        if (own := scenario.groups) is not None:
            asked[scenario.name] = _of_spec(
                spec,
                scenario.name,
                own.replicas,
                own.prefill or spec.prefill.replicas,
                own.decode or spec.decode.replicas,
                f"spec.scenarios[{scenario.name}].groups.replicas",
            )
    if spec.suspend:
        nothing = Target(groups=0, prefill=0, decode=0, reason="the service is suspended")
        return dict.fromkeys(asked, nothing)
    if spec.scaling.mode == "Auto":
        asked = {
            name: replace(target, reason=f"{target.reason}, as no planner has decided yet")
            for name, target in asked.items()
        }
    return {name: (planned or {}).get(name, target).bounded() for name, target in asked.items()}


def target_for(prefill: int, decode: int, *, groups: int, reason: str, pods_per_group: int) -> Target:
    """The target of a planner that knows how many pods a scenario needs, and not how many groups.

    The number of groups stays as long as they can hold the pods, with one of each role at least and `pods_per_group` at most;
    else it is the nearest that can. So a scenario first grows within its groups, and then by whole ones.

    Args:
        prefill: pods over all groups; 0 for combined groups.
        decode: pods over all groups.
        groups: as many as there are.
        reason: of the planner.
        pods_per_group: how large a group may become; a mesh costs every member memory for each peer.
    """
    if decode <= 0:
        return Target(groups=0, prefill=0, decode=0, reason=reason)
    is_combined = prefill <= 0
    least = max(-(-max(prefill, decode) // MOST_PODS), -(-(prefill + decode) // pods_per_group))
    most = decode if is_combined else min(prefill, decode)
    return Target(
        groups=max(min(max(groups, 1), most), min(least, most)),
        prefill=max(prefill, 0),
        decode=decode,
        reason=reason,
        is_combined=is_combined,
    )


def shares(target: Target, present: Mapping[str, Size], *, grows: bool = True) -> Mapping[str, Size]:
    """The size of each group.

    Where the pods do not divide evenly, the groups that have most now get one more, so that no pod moves from group
    to group when others come or go.

    Args:
        target: of the scenario.
        present: the places that are taken in each group, in the order of the groups.
        grows: whether groups may get more than they have, beyond their even share; those of an old revision do not.
    """
    sizes: dict[str, dict[Role, int]] = {name: {} for name in present}
    roles: Iterable[Role] = ("prefill", "decode")
    for role in roles:
        # sorted is stable: among equals the earlier group has more
        for index, name in enumerate(sorted(present, key=lambda name: -present[name].of(role))):
            share = target.share(role, index)
            if not grows:
                share = min(share, max(target.share(role, target.groups - 1), present[name].of(role)))
            sizes[name][role] = share
    return {name: Size(prefill=size["prefill"], decode=size["decode"]) for name, size in sizes.items()}


def _of_spec(
    spec: PDServiceSpec, scenario: str, groups: int, prefill: int, decode: int, field: str
) -> Target:
    is_combined = spec.disaggregation_of(scenario) == "Never"
    return Target(
        groups=groups,
        prefill=0 if is_combined else groups * prefill,
        decode=groups * decode,
        reason=f"{field} is {groups}" + (", and disaggregation Never" if is_combined else ""),
        is_combined=is_combined,
    )


def _between(least: int, number: int, most: int) -> int:
    return max(least, min(number, most), 0)
