"""Routes: where gateways may send requests, and when a pod that left them may be deleted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta

from tidewheel.api.ranktable import Backend, RouteGroup, Routes
from tidewheel.api.scenarios import RouteScenario, Scenario
from tidewheel.planning.observed import ObservedPod, PublishedMap


def routes_to(
    *,
    service: str,
    model: str,
    groups: Mapping[str, Sequence[ObservedPod]],
    gateways: int = 1,
    scenarios: Sequence[Scenario] = (),
) -> Routes:
    """The ready members of those groups that have a prefill and a decode; a group without is left out.

    Every group serves every scenario.
    """
    routed = []
    for name, members in sorted(groups.items()):
        prefill = _backends(pod for pod in members if pod.role == "prefill")
        decode = _backends(pod for pod in members if pod.role == "decode")
        if prefill and decode:
            routed.append(RouteGroup(name=name, prefill=prefill, decode=decode))
    told = tuple(RouteScenario.model_validate(scenario.model_dump()) for scenario in scenarios)
    return Routes(service=service, model=model, groups=tuple(routed), gateways=gateways, scenarios=told)


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
