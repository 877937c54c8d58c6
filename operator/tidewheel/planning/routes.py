"""Routes: where gateways may send requests, and when a pod that left them may be deleted."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime, timedelta

from tidewheel.api.ranktable import Backend, RouteGroup, Routes
from tidewheel.api.scenarios import DEFAULT_SCENARIO, RouteScenario, Scenario
from tidewheel.planning.groups import Group
from tidewheel.planning.observed import ObservedPod, PublishedMap


def routes_to(
    *,
    service: str,
    model: str,
    groups: Iterable[tuple[Group, Sequence[ObservedPod]]],
    combined: Collection[str] = (),
    gateways: int = 1,
    scenarios: Sequence[Scenario] = (),
) -> Routes:
    """The members that take requests of those groups that have a prefill and a decode; a group without is left out.

    Of a combined group the decodes are enough, and no prefill is told of: one that joins it waits until the group is divided.

    A scenario's requests go to its groups and those of nobody else's; without groups of its own, and, if it is to be
    so, while none of them is in the routes, to the groups for everybody. Where no scenario has groups, all serve all.

    Args:
        service: the service's name.
        model: the name it is served under.
        groups: each with its ready members that take requests.
        combined: the names of those whose decodes compute the prompts, too.
        gateways: how many share them.
        scenarios: in the order in which they match.
    """
    routed = []
    by_scenario: dict[str, list[str]] = {}
    for group, members in sorted(groups, key=lambda one: one[0].name):
        prefill = _backends(pod for pod in members if pod.role == "prefill")
        decode = _backends(pod for pod in members if pod.role == "decode")
        is_combined = group.name in combined
        if decode and (prefill or is_combined):
            prefill = () if is_combined else prefill
            routed.append(RouteGroup(name=group.name, combined=is_combined, prefill=prefill, decode=decode))
            by_scenario.setdefault(group.scenario, []).append(group.name)
    is_divided = any(scenario.groups is not None for scenario in scenarios)
    everybodys = tuple(by_scenario.get(DEFAULT_SCENARIO, ())) if is_divided else None
    told = []
    for scenario in scenarios:
        served_by, own = everybodys, scenario.groups
        if own is not None and (scenario.name in by_scenario or own.when_down == "Wait"):
            served_by = tuple(by_scenario.get(scenario.name, ()))
        told.append(
            RouteScenario(
                name=scenario.name,
                match=scenario.match,
                ttft_deadline_seconds=scenario.ttft_deadline_seconds,
                groups=served_by,
                max_in_flight=scenario.limits.max_in_flight,
            )
        )
    return Routes(
        service=service,
        model=model,
        groups=tuple(routed),
        gateways=gateways,
        default_groups=everybodys,
        scenarios=tuple(told),
    )


def time_to_leave(
    pod: ObservedPod,
    *,
    routes: PublishedMap | None,
    ranks: PublishedMap | None,
    now: datetime,
    settle: timedelta,
) -> timedelta | None:
    """How long a pod that should go has to stay; None while a published map still sends others to it.

    Map first, then delete: a pod is deleted only when the routes (and, if its group goes on, the rank table)
    are seen without it. A ready pod stays `settle` longer, until gateways have read the routes.
    """
    if routes is not None and pod.name in routes.members:
        return None
    if ranks is not None and pod.uid in ranks.members:
        return None
    if not pod.ready or routes is None or routes.since is None:
        return timedelta(0)
    return max(timedelta(0), routes.since + settle - now)


def _backends(pods: Iterable[ObservedPod]) -> tuple[Backend, ...]:
    ready = sorted((pod for pod in pods if pod.ready and pod.ip), key=lambda pod: pod.ordinal)
    return tuple(Backend(name=pod.name, address=pod.ip) for pod in ready)
