"""The PDService controller: which kinds it looks at, and the pure way from what is seen to a plan."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from tidewheel.api.manifest import (
    CONFIG_MAPS,
    PD_SERVICE_SCALERS,
    PD_SERVICES,
    PDBS,
    PODS,
    SERVICES,
    Manifest,
    Resource,
)
from tidewheel.api.meta import MANAGER_PDSERVICE, MANAGER_PDSERVICE_STATUS
from tidewheel.building.pdservice import build_plan
from tidewheel.controllers.cache import Snapshot
from tidewheel.controllers.controller import Key
from tidewheel.controllers.observe import observe_service
from tidewheel.planning.pdservice import plan_service
from tidewheel.planning.plan import Plan, Refusal
from tidewheel.planning.settings import ServiceDefaults


class PDServiceController:
    """Serves every PDService: observe, plan, build."""

    kind: Resource = PD_SERVICES
    children: tuple[Resource, ...] = (PODS, CONFIG_MAPS, SERVICES, PDBS)
    looks_at: tuple[Resource, ...] = (PD_SERVICE_SCALERS,)
    manager = MANAGER_PDSERVICE
    status_manager = MANAGER_PDSERVICE_STATUS

    def __init__(self, defaults: ServiceDefaults) -> None:
        self._defaults = defaults

    def concerned_by(self, resource: Resource, manifest: Manifest, cache: Snapshot) -> Iterator[Key]:  # noqa: ARG002
        """See `Controller.concerned_by`."""
        if resource == PD_SERVICE_SCALERS:
            yield Key(manifest["metadata"]["namespace"], manifest["spec"]["service"])

    def plan(
        self, key: Key, cache: Snapshot, now: datetime, refusals: tuple[Refusal, ...] = ()
    ) -> Plan | None:
        """See `Controller.plan`."""
        manifest = cache.get(PD_SERVICES, key.namespace, key.name)
        if manifest is None:
            return None
        seen = observe_service(manifest, cache, refusals)
        intent = plan_service(seen, now=now, defaults=self._defaults)
        return build_plan(seen, intent, now=now, defaults=self._defaults)
