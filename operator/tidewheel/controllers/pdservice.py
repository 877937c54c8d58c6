"""The PDService controller: which kinds it looks at, and the pure way from what is seen to a plan."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from tidewheel.api.manifest import (
    CONFIG_MAPS,
    NODES,
    PD_SERVICE_SCALERS,
    PD_SERVICES,
    PDBS,
    PODS,
    SERVICES,
    Manifest,
    Resource,
)
from tidewheel.api.meta import LABEL_SERVICE, MANAGER_PDSERVICE, MANAGER_PDSERVICE_STATUS
from tidewheel.building.pdservice import build_plan
from tidewheel.controllers.cache import Snapshot
from tidewheel.controllers.controller import Key
from tidewheel.controllers.load_watch import LoadBook
from tidewheel.controllers.observe import observe_service
from tidewheel.controllers.observe_nodes import faults_of, pods_on
from tidewheel.planning.pdservice import plan_service
from tidewheel.planning.plan import Plan, Refusal
from tidewheel.planning.settings import ServiceDefaults


class PDServiceController:
    """Serves every PDService: observe, plan, build."""

    kind: Resource = PD_SERVICES
    children: tuple[Resource, ...] = (PODS, CONFIG_MAPS, SERVICES, PDBS)
    manager = MANAGER_PDSERVICE
    status_manager = MANAGER_PDSERVICE_STATUS

    def __init__(
        self, defaults: ServiceDefaults, loads: LoadBook | None = None, *, watches_nodes: bool = False
    ) -> None:
        self._defaults = defaults
        self._loads = loads or LoadBook()
        self._watches_nodes = watches_nodes
        self._sick_nodes: set[str] = set()
        self.looks_at: tuple[Resource, ...] = (PD_SERVICE_SCALERS, *((NODES,) if watches_nodes else ()))

    def concerned_by(self, resource: Resource, manifest: Manifest, cache: Snapshot) -> Iterator[Key]:
        """See `Controller.concerned_by`."""
        if resource == PD_SERVICE_SCALERS:
            yield Key(manifest["metadata"]["namespace"], manifest["spec"]["service"])
        elif resource == NODES:
            yield from self._on_node(manifest["metadata"]["name"], cache)

    def plan(
        self, key: Key, cache: Snapshot, now: datetime, refusals: tuple[Refusal, ...] = ()
    ) -> Plan | None:
        """See `Controller.plan`."""
        manifest = cache.get(PD_SERVICES, key.namespace, key.name)
        if manifest is None:
            return None
        seen = observe_service(
            manifest,
            cache,
            refusals,
            window=self._loads.window(key),
            watches_nodes=self._watches_nodes,
        )
        intent = plan_service(seen, now=now, defaults=self._defaults)
        return build_plan(seen, intent, now=now, defaults=self._defaults)

    def _on_node(self, name: str, cache: Snapshot) -> Iterator[Key]:
        """Services with pods on a node that is, or was, sick. Healthy nodes tell of themselves all the time."""
        is_sick = any(faults_of(cache.get(NODES, "", name), seen_at=datetime.min.replace(tzinfo=UTC)))
        was_sick = name in self._sick_nodes
        (self._sick_nodes.add if is_sick else self._sick_nodes.discard)(name)
        if is_sick or was_sick:
            for pod in pods_on(name, cache.all_of(PODS)):
                metadata = pod["metadata"]
                if (service := (metadata.get("labels") or {}).get(LABEL_SERVICE)) is not None:
                    yield Key(metadata["namespace"], service)
