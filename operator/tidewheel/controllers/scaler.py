"""The PDServiceScaler controller: it owns nothing and only says whether its PDService follows it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from tidewheel.api.manifest import PD_SERVICE_SCALERS, PD_SERVICES, PODS, Manifest, Resource
from tidewheel.api.meta import LABEL_SERVICE, MANAGER_SCALER, MANAGER_SCALER_STATUS
from tidewheel.controllers.cache import Snapshot
from tidewheel.controllers.controller import Key
from tidewheel.controllers.observe import observe_pod, observe_scalers, observe_spec
from tidewheel.planning.plan import Plan, Refusal
from tidewheel.planning.scalers import judge_scaler, scaler_status


class PDServiceScalerController:
    """Tells every PDServiceScaler what became of it; the PDService's controller does as it says."""

    kind: Resource = PD_SERVICE_SCALERS
    children: tuple[Resource, ...] = ()
    looks_at: tuple[Resource, ...] = (PD_SERVICES, PODS)
    manager = MANAGER_SCALER
    status_manager = MANAGER_SCALER_STATUS

    def concerned_by(self, resource: Resource, manifest: Manifest, cache: Snapshot) -> Iterator[Key]:
        """See `Controller.concerned_by`: a service's pods and mode matter to its scalers, a scaler to its rivals."""
        metadata = manifest["metadata"]
        if resource == PD_SERVICES:
            service = metadata["name"]
        elif resource == PODS:
            service = (metadata.get("labels") or {}).get(LABEL_SERVICE, "")
        else:
            service = manifest["spec"]["service"]
        for scaler in observe_scalers(cache, metadata["namespace"], service):
            yield Key(metadata["namespace"], scaler.name)

    def plan(
        self,
        key: Key,
        cache: Snapshot,
        now: datetime,
        refusals: tuple[Refusal, ...] = (),  # noqa: ARG002  (nothing is written but the status)
    ) -> Plan | None:
        """See `Controller.plan`."""
        manifest = cache.get(PD_SERVICE_SCALERS, key.namespace, key.name)
        if manifest is None:
            return None
        name = manifest["spec"]["service"]
        scalers = observe_scalers(cache, key.namespace, name)
        scaler = next((one for one in scalers if one.name == key.name), None)
        if scaler is None:
            # The CRD lets in only what can be read; another version of the operator may have written it.
            return Plan()
        service = cache.get(PD_SERVICES, key.namespace, name)
        spec = observe_spec(service.get("spec"))[0] if service is not None else None
        pods = [
            pod
            for raw in (cache.owned_by(service["metadata"]["uid"], PODS) if service is not None else ())
            if (pod := observe_pod(raw, service=name)) is not None
        ]
        verdict = judge_scaler(scaler, spec, scalers)
        return Plan(status=scaler_status(scaler, verdict, pods, now=now).to_wire())
