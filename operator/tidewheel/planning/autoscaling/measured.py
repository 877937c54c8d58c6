"""What the last window tells of the requests that go to a scenario's groups."""

from __future__ import annotations

from collections.abc import Iterable

from tidewheel.api.pdservice import PDServiceSpec
from tidewheel.api.ranktable import Role
from tidewheel.planning.autoscaling.terms import labels_of, promises_of
from tidewheel.planning.load.window import Staff, Window, load_in
from tidewheel.planning.observed import ObservedPod, ObservedService
from tidewheel.planning.scaling.observed import ScenarioLoad


def load_of(
    seen: ObservedService,
    spec: PDServiceSpec,
    window: Window,
    name: str,
    pods: Iterable[ObservedPod] = (),
) -> ScenarioLoad:
    """The load of a scenario in a window.

    Args:
        seen: with the gateways.
        spec: which labels are the scenario's, and what is promised.
        window: between which looks.
        name: the scenario with groups of its own, or `default`.
        pods: those of its groups; without them nothing is known of T_p, T_d and ξ.
    """
    pods = tuple(pods)
    promises = promises_of(spec, name)
    return load_in(
        window,
        scenarios=labels_of(spec, name),
        staff=Staff(
            gateways=_uids(seen.pods, "gateway"),
            prefills=_uids(pods, "prefill"),
            decodes=_uids(pods, "decode"),
        ),
        ttft_seconds=promises.ttft_seconds,
        tpot_seconds=promises.tpot_seconds,
    )


def _uids(pods: Iterable[ObservedPod], role: Role) -> tuple[str, ...]:
    return tuple(pod.uid for pod in pods if pod.role == role)
