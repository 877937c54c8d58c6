"""PodDisruptionBudgets: how many of a PDService's pods a node drain may take at a time."""

from __future__ import annotations

from collections.abc import Iterator

from tidewheel.api.manifest import PDBS, Manifest
from tidewheel.api.meta import LABEL_ROLE, LABEL_SERVICE
from tidewheel.api.pdservice import PDServiceSpec
from tidewheel.building.labels import metadata_of
from tidewheel.planning.names import budget_name
from tidewheel.planning.observed import ObservedService


def budgets(seen: ObservedService, spec: PDServiceSpec, *, groups: int, members: int) -> Iterator[Manifest]:
    """One for the gateways and one for the groups' pods; either loses one pod at a time.

    With a single group or gateway there is none: it could only block the drain for ever. They say minAvailable,
    not maxUnavailable: the disruption controller takes the number of pods behind the latter from the owner's scale
    subresource, and a PDService's counts groups.

    Args:
        seen: whose they are.
        spec: of the gateways.
        groups: how many there should be.
        members: how many pods these should have together.
    """
    if spec.suspend:
        return
    if groups > 1:
        yield _budget(seen, "compute", ["prefill", "decode"], members - 1)
    if spec.gateway.replicas > 1:
        yield _budget(seen, "gateway", ["gateway"], spec.gateway.replicas - 1)


def _budget(seen: ObservedService, part: str, roles: list[str], min_available: int) -> Manifest:
    return {
        "apiVersion": PDBS.api_version,
        "kind": PDBS.kind,
        "metadata": metadata_of(seen, budget_name(seen.name, part), part),
        "spec": {
            "minAvailable": min_available,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {
                "matchLabels": {LABEL_SERVICE: seen.name},
                "matchExpressions": [{"key": LABEL_ROLE, "operator": "In", "values": roles}],
            },
        },
    }
