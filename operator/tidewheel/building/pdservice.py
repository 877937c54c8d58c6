"""From what planning wants of a PDService to the plan that the executor carries out."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from tidewheel.api.manifest import CONFIG_MAPS, PDBS, PODS, SERVICES, Manifest
from tidewheel.api.meta import (
    ANNOTATION_FLIP_BEGAN,
    ANNOTATION_FLIPS_TO,
    ANNOTATION_MAP_DIGEST,
    ANNOTATION_PLACE,
    LABEL_COMPONENT,
    LABEL_ROLE,
)
from tidewheel.building.config_maps import boosts_map, ranks_map, record_map, routes_map, scaling_map
from tidewheel.building.disruption import budgets
from tidewheel.building.pods import EXIT_SECONDS, worker_pod
from tidewheel.building.services import gateway_service
from tidewheel.planning.intent import Children, Intent, Marking
from tidewheel.planning.names import ranks_name, record_name
from tidewheel.planning.observed import ObservedService
from tidewheel.planning.plan import Annotation, Deletion, Plan
from tidewheel.planning.settings import ServiceDefaults
from tidewheel.planning.times import as_exact_time

_RESOURCES = {resource.kind: resource for resource in (CONFIG_MAPS, SERVICES, PDBS)}


def build_plan(seen: ObservedService, intent: Intent, *, now: datetime, defaults: ServiceDefaults) -> Plan:
    """The plan of an intent.

    `apply` holds every child that should stand, except the pods there are: the executor writes those that differ.
    """
    children = intent.children
    apply = tuple(_manifests(seen, children, now, defaults)) if children else ()
    deletions = tuple(
        Deletion(
            resource=PODS,
            namespace=seen.namespace,
            name=departure.pod.name,
            uid=departure.pod.uid,
            grace_seconds=departure.grace_seconds + EXIT_SECONDS,
            reason=departure.why,
        )
        for departure in intent.departures
    )
    if children:
        deletions += tuple(_obsolete(seen, children, apply))
    return Plan(
        apply=apply,
        annotate=(*_refreshed(seen), *(_marked(seen, marking) for marking in intent.markings)),
        delete=deletions,
        status=intent.status.to_wire() if intent.status else None,
        events=intent.events,
        look_again_in=intent.look_again_in,
    )


def _manifests(
    seen: ObservedService, children: Children, now: datetime, defaults: ServiceDefaults
) -> Iterator[Manifest]:
    spec = children.spec
    yield gateway_service(seen, spec.gateway.service)
    yield from budgets(seen, spec, groups=children.wanted_groups, members=children.wanted_members)
    yield record_map(seen, children.revision, spec)
    if children.scaling_memory is not None:
        yield scaling_map(seen, children.scaling_memory)
    if children.boosts_memory is not None:
        yield boosts_map(seen, children.boosts_memory)
    for table in children.rank_tables:
        yield ranks_map(seen, table, now=now)
    yield routes_map(seen, children.routes, now=now)
    for order in children.pods:
        yield worker_pod(seen, order, defaults)


def _obsolete(seen: ObservedService, children: Children, apply: tuple[Manifest, ...]) -> Iterator[Deletion]:
    """Children that nothing asks for any more, such as the rank table of a group that is gone."""
    stays = {(manifest["kind"], manifest["metadata"]["name"]) for manifest in apply}
    stays |= {("ConfigMap", ranks_name(group)) for group in children.groups}
    stays |= {("ConfigMap", record_name(seen.name, revision)) for revision in children.revisions}
    for child in seen.children:
        if (child.kind, child.name) not in stays and not child.deleting:
            yield Deletion(
                resource=_RESOURCES[child.kind],
                namespace=seen.namespace,
                name=child.name,
                uid=child.uid,
                reason="nothing of the service uses it any more",
            )


def _refreshed(seen: ObservedService) -> Iterator[Annotation]:
    """Pods whose mounted map changed since they were last told: an annotation makes the kubelet sync them at once."""
    for pod in seen.pods:
        published = seen.routes if pod.role == "gateway" else seen.ranks.get(pod.group)
        if published is None or pod.deleting or pod.map_digest == published.digest:
            continue
        yield Annotation(
            resource=PODS,
            namespace=seen.namespace,
            name=pod.name,
            uid=pod.uid,
            annotations={ANNOTATION_MAP_DIGEST: published.digest},
        )


def _marked(seen: ObservedService, marking: Marking) -> Annotation:
    """A pod's role, place and what it is to become, in one patch: nobody sees half of it."""
    annotations: dict[str, str | None] = {
        ANNOTATION_FLIPS_TO: marking.flips_to,
        ANNOTATION_FLIP_BEGAN: as_exact_time(marking.began) if marking.began is not None else None,
    }
    labels: dict[str, str] = {}
    if marking.turned is not None:
        role, place = marking.turned
        annotations[ANNOTATION_PLACE] = str(place)
        labels = {LABEL_ROLE: role, LABEL_COMPONENT: role}
    return Annotation(
        resource=PODS,
        namespace=seen.namespace,
        name=marking.pod.name,
        uid=marking.pod.uid,
        annotations=annotations,
        labels=labels,
    )
