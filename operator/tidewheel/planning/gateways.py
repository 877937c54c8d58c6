"""Gateways: stateless, so one more may always run while an old one is replaced, and none leaves before that is ready."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from tidewheel.planning.observed import ObservedPod
from tidewheel.planning.rolling import roll
from tidewheel.planning.staffing import Joining, staff


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayStep:
    """The gateway pods to keep, to create and to delete."""

    revision: str
    keep: tuple[ObservedPod, ...]
    create: tuple[Joining, ...]
    #: With the reason. Clients reach gateways through a Service, which drops a pod as soon as it is deleted.
    delete: tuple[tuple[ObservedPod, str], ...]
    is_rolling_out: bool
    wait: timedelta | None


def step_gateways(
    gateways: Sequence[ObservedPod], wanted: int, *, revision: str, now: datetime
) -> GatewayStep:
    """The next step towards `wanted` gateways of `revision`: surge 1, none unavailable, ready before old ones go."""
    current = [pod for pod in gateways if pod.revision == revision]
    staffing = staff(current, wanted, now=now)
    old = sorted(
        (pod for pod in gateways if pod.revision != revision and not pod.deleting),
        key=lambda pod: (pod.ready, -pod.ordinal, pod.name),
    )
    step = roll(
        current=staffing.stay,
        available=sum(pod.ready for pod in staffing.stay),
        old=old,
        leaving=sum(pod.deleting for pod in gateways) + len(staffing.leave),
        wanted=wanted,
        max_surge=1,
        max_unavailable=0,
    )
    substitutes = sum(joining.replaces is not None for joining in staffing.join)
    return GatewayStep(
        revision=revision,
        keep=step.keep,
        create=staffing.join[: max(step.create, substitutes)],
        delete=staffing.leave + tuple((pod, f"revision {revision} replaces it") for pod in step.retire),
        is_rolling_out=bool(old),
        wait=staffing.wait,
    )
