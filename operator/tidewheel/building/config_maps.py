"""ConfigMaps of a PDService: each group's rank table, the gateways' routes, and the record of each revision's spec."""

from __future__ import annotations

import json
from datetime import datetime

from tidewheel.api.manifest import CONFIG_MAPS, Manifest
from tidewheel.api.meta import (
    ANNOTATION_MAP_DIGEST,
    ANNOTATION_PUBLISHED,
    LABEL_GROUP,
    LABEL_REVISION,
    RANKS_KEY,
    ROUTES_KEY,
)
from tidewheel.api.pdservice import PDServiceSpec
from tidewheel.api.ranktable import Published, RankTable, Routes
from tidewheel.building.labels import metadata_of
from tidewheel.planning.names import boosts_name, ranks_name, record_name, routes_name, scaling_name
from tidewheel.planning.observed import ObservedService, PublishedMap
from tidewheel.planning.times import as_exact_time

RECORD_KEY = "spec.json"
MEMORY_KEY = "memory.json"


def ranks_map(seen: ObservedService, table: RankTable, *, now: datetime) -> Manifest:
    """The ConfigMap that the members of a group wait for."""
    labels = {LABEL_GROUP: table.group, LABEL_REVISION: table.revision}
    published = seen.ranks.get(table.group)
    return _published(seen, ranks_name(table.group), "ranks", RANKS_KEY, table, published, labels, now)


def routes_map(seen: ObservedService, routes: Routes, *, now: datetime) -> Manifest:
    """The ConfigMap that gateways follow."""
    return _published(seen, routes_name(seen.name), "routes", ROUTES_KEY, routes, seen.routes, {}, now)


def record_map(seen: ObservedService, revision: str, spec: PDServiceSpec) -> Manifest:
    """The ConfigMap that remembers what a revision's pods are built from, so that a member of an old group
    that fails during a rollout can still be substituted by its like."""
    return {
        "apiVersion": CONFIG_MAPS.api_version,
        "kind": CONFIG_MAPS.kind,
        "metadata": metadata_of(
            seen, record_name(seen.name, revision), "record", labels={LABEL_REVISION: revision}
        ),
        "data": {RECORD_KEY: json.dumps(spec.to_wire(), sort_keys=True)},
    }


def scaling_map(seen: ObservedService, memory: str) -> Manifest:
    """The ConfigMap that keeps what the planner of the numbers remembers; written before the pods that it asks for."""
    return _memory(seen, scaling_name(seen.name), "scaling", memory)


def boosts_map(seen: ObservedService, memory: str) -> Manifest:
    """The ConfigMap that keeps what was learnt of boosts; written before the pods that are lent."""
    return _memory(seen, boosts_name(seen.name), "boosts", memory)


def _memory(seen: ObservedService, name: str, component: str, memory: str) -> Manifest:
    return {
        "apiVersion": CONFIG_MAPS.api_version,
        "kind": CONFIG_MAPS.kind,
        "metadata": metadata_of(seen, name, component),
        "data": {MEMORY_KEY: memory},
    }


def _published(
    seen: ObservedService,
    name: str,
    component: str,
    key: str,
    document: Published,
    published: PublishedMap | None,
    labels: dict[str, str],
    now: datetime,
) -> Manifest:
    digest = document.digest()
    since = now
    if published is not None and published.digest == digest and published.since is not None:
        since = published.since
    return {
        "apiVersion": CONFIG_MAPS.api_version,
        "kind": CONFIG_MAPS.kind,
        "metadata": metadata_of(
            seen,
            name,
            component,
            labels=labels,
            annotations={ANNOTATION_MAP_DIGEST: digest, ANNOTATION_PUBLISHED: as_exact_time(since)},
        ),
        "data": {key: document.to_text()},
    }
