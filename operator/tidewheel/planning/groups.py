"""Groups: which exist, which should, and which step of a rollout or a change of their number comes next."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from tidewheel.api.pdservice import Rollout
from tidewheel.api.ranktable import Role
from tidewheel.api.scenarios import DEFAULT_SCENARIO
from tidewheel.planning.names import group_ordinal
from tidewheel.planning.observed import ObservedPod
from tidewheel.planning.rolling import roll
from tidewheel.planning.targets import Size, Target, shares

COMPUTE_ROLES: tuple[Role, Role] = ("prefill", "decode")


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The prefill and decode pods that hand requests to each other; its identity is (revision, ordinal)."""

    name: str
    revision: str
    ordinal: int
    #: Whom it serves.
    scenario: str = DEFAULT_SCENARIO
    pods: tuple[ObservedPod, ...] = ()
    #: Whether its rank table says that its decodes compute the prompts, too.
    is_combined: bool = False

    def of_role(self, role: Role) -> tuple[ObservedPod, ...]:
        """Its pods of one role, leaving ones included."""
        return tuple(pod for pod in self.pods if pod.role == role)

    def ready(self, role: Role) -> int:
        """How many of its pods of that role take requests."""
        return sum(pod.ready and not pod.deleting for pod in self.pods if pod.role == role)

    @property
    def serves(self) -> bool:
        """Whether a request finds a prefill and a decode, or a decode that does both."""
        return all(self.ready(role) for role in self.needed_roles)

    @property
    def needed_roles(self) -> tuple[Role, ...]:
        """Those without which it does not serve."""
        return ("decode",) if self.is_combined else COMPUTE_ROLES

    @property
    def is_leaving(self) -> bool:
        """Whether every pod it has is being deleted."""
        return bool(self.pods) and all(pod.deleting for pod in self.pods)

    def is_complete(self, size: Size) -> bool:
        """Whether it serves with as many pods as it should have."""
        return all(self.ready(role) >= size.of(role) for role in COMPUTE_ROLES)

    @property
    def present(self) -> Size:
        """The places that are taken, those of failed and leaving pods included."""
        return Size(
            prefill=len({pod.ordinal for pod in self.of_role("prefill")}),
            decode=len({pod.ordinal for pod in self.of_role("decode")}),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupStep:
    """The groups to keep (new ones have no pods yet) and those to drain."""

    keep: tuple[Group, ...]
    #: With the reason.
    retire: tuple[tuple[Group, str], ...]
    create: tuple[Group, ...]


def groups_of(pods: Iterable[ObservedPod], combined: Collection[str] = ()) -> tuple[Group, ...]:
    """The groups that the pods form, by name; `combined` has the names of those whose rank tables say so."""
    members: Mapping[str, list[ObservedPod]] = defaultdict(list)
    for pod in pods:
        if pod.role != "gateway":
            members[pod.group].append(pod)
    return tuple(
        Group(
            name=name,
            revision=pods[0].revision,
            ordinal=group_ordinal(name),
            scenario=pods[0].scenario,
            pods=tuple(pods),
            is_combined=name in combined,
        )
        for name, pods in sorted(members.items())
    )


def sizes_of(target: Target, groups: Iterable[Group], *, grows: bool = True) -> Mapping[str, Size]:
    """What share of a scenario's pods each of its groups has; see `shares`."""
    return shares(target, {group.name: group.present for group in _by_age(groups)}, grows=grows)


def step_groups(
    groups: Collection[Group],
    target: Target,
    *,
    rollout: Rollout,
    revision: str,
    routed: Collection[str],
    new: Callable[[], Group],
) -> GroupStep:
    """The next step of one scenario towards its groups of `revision`, at an unchanged ratio (P/D-Serve §3.3).

    Groups that serve, are in the routes and are the oldest stay longest. A group whose pods are all being deleted
    is not counted, unless nothing else can make up the number: then its members are substituted where they are.
    An old group retires for a new one only when the new one is complete and gateways know of it.

    Args:
        groups: the scenario's.
        target: what it should have.
        rollout: how many more or fewer groups it may have meanwhile.
        revision: the one they should have.
        routed: names of the pods that gateways know.
        new: gives a group that is not there yet, one after the other.
    """

    def is_routed(group: Group) -> bool:
        return any(pod.name in routed for pod in group.pods)

    def keep_longest(group: Group) -> tuple[bool, bool, bool, int]:
        return (not group.serves, group.is_leaving, not is_routed(group), group.ordinal)

    ours = sorted((group for group in groups if group.revision == revision), key=keep_longest)
    live = sum(not group.is_leaving for group in ours)
    current = ours[: max(live, target.groups)]
    old = sorted(
        (group for group in groups if group.revision != revision and not group.is_leaving),
        key=keep_longest,
        reverse=True,
    )
    first = current[: target.groups]
    sizes = sizes_of(target, first)
    step = roll(
        current=current,
        available=sum(group.is_complete(sizes[group.name]) and is_routed(group) for group in first),
        old=old,
        leaving=len(groups) - len(current) - len(old),
        wanted=target.groups,
        max_surge=rollout.max_surge_groups,
        max_unavailable=rollout.max_unavailable_groups,
    )
    create = tuple(new() for _ in range(step.create))
    return GroupStep(
        keep=step.keep + create,
        retire=tuple((group, _why_retired(group, target, revision)) for group in step.retire),
        create=create,
    )


def _by_age(groups: Iterable[Group]) -> list[Group]:
    return sorted(groups, key=lambda group: group.ordinal)


def _why_retired(group: Group, target: Target, revision: str) -> str:
    if target.groups and group.revision != revision:
        return f"revision {revision} replaces {group.revision}"
    return target.reason
