"""Groups: which exist, which should, and which step of a rollout or a change of their number comes next."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from tidewheel.api.pdservice import PDServiceSpec
from tidewheel.api.ranktable import Role
from tidewheel.planning.names import group_name, group_ordinal
from tidewheel.planning.observed import ObservedPod
from tidewheel.planning.rolling import roll

COMPUTE_ROLES: tuple[Role, Role] = ("prefill", "decode")


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The prefill and decode pods that hand requests to each other; its identity is (revision, ordinal)."""

    name: str
    revision: str
    ordinal: int
    pods: tuple[ObservedPod, ...] = ()

    def of_role(self, role: Role) -> tuple[ObservedPod, ...]:
        """Its pods of one role, leaving ones included."""
        return tuple(pod for pod in self.pods if pod.role == role)

    def ready(self, role: Role) -> int:
        """How many of its pods of that role take requests."""
        return sum(pod.ready and not pod.deleting for pod in self.pods if pod.role == role)

    @property
    def serves(self) -> bool:
        """Whether a request finds a prefill and a decode."""
        return all(self.ready(role) for role in COMPUTE_ROLES)

    @property
    def is_leaving(self) -> bool:
        """Whether every pod it has is being deleted."""
        return bool(self.pods) and all(pod.deleting for pod in self.pods)

    def is_complete(self, spec: PDServiceSpec) -> bool:
        """Whether it serves at the ratio that `spec` asks for."""
        return self.ready("prefill") >= spec.prefill.replicas and self.ready("decode") >= spec.decode.replicas


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupStep:
    """The groups to keep (new ones have no pods yet) and those to drain."""

    keep: tuple[Group, ...]
    #: With the reason.
    retire: tuple[tuple[Group, str], ...]
    create: tuple[Group, ...]


def groups_of(pods: Iterable[ObservedPod]) -> tuple[Group, ...]:
    """The groups that the pods form, by name."""
    members: Mapping[str, list[ObservedPod]] = defaultdict(list)
    for pod in pods:
        if pod.role != "gateway":
            members[pod.group].append(pod)
    return tuple(
        Group(name=name, revision=pods[0].revision, ordinal=group_ordinal(name), pods=tuple(pods))
        for name, pods in sorted(members.items())
    )


def step_groups(
    groups: Collection[Group],
    spec: PDServiceSpec,
    *,
    service: str,
    revision: str,
    routed: Collection[str],
) -> GroupStep:
    """The next step towards `spec.groups` groups of `revision`, at an unchanged ratio (P/D-Serve §3.3).

    Groups that serve, are in the routes and are the oldest stay longest. A group whose pods are all being deleted
    is not counted, unless nothing else can make up the number: then its members are substituted where they are.
    An old group retires for a new one only when the new one is complete and gateways know of it.
    """
    wanted = 0 if spec.suspend else spec.groups

    def is_routed(group: Group) -> bool:
        return any(pod.name in routed for pod in group.pods)

    def keep_longest(group: Group) -> tuple[bool, bool, bool, int]:
        return (not group.serves, group.is_leaving, not is_routed(group), group.ordinal)

    ours = sorted((group for group in groups if group.revision == revision), key=keep_longest)
    live = sum(not group.is_leaving for group in ours)
    current = ours[: max(live, wanted)]
    old = sorted(
        (group for group in groups if group.revision != revision and not group.is_leaving),
        key=keep_longest,
        reverse=True,
    )
    step = roll(
        current=current,
        available=sum(group.is_complete(spec) and is_routed(group) for group in current[:wanted]),
        old=old,
        leaving=len(groups) - len(current) - len(old),
        wanted=wanted,
        max_surge=spec.rollout.max_surge_groups,
        max_unavailable=spec.rollout.max_unavailable_groups,
    )
    taken = {group.ordinal for group in ours}
    free = (ordinal for ordinal in range(len(taken) + step.create) if ordinal not in taken)
    create = tuple(
        Group(name=group_name(service, revision, ordinal), revision=revision, ordinal=ordinal)
        for ordinal, _ in zip(free, range(step.create), strict=False)
    )
    return GroupStep(
        keep=step.keep + create,
        retire=tuple((group, _why_retired(group, spec, revision)) for group in step.retire),
        create=create,
    )


def _why_retired(group: Group, spec: PDServiceSpec, revision: str) -> str:
    if spec.suspend:
        return "the service is suspended"
    if group.revision != revision:
        return f"revision {revision} replaces {group.revision}"
    return f"spec.groups is {spec.groups}"
