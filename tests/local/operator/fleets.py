"""A small kind of the tests' own: a Fleet asks for so many pods of one colour and one config map."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tidewheel.api.manifest import CONFIG_MAPS, PODS, Manifest, Resource
from tidewheel.api.meta import LABEL_SERVICE
from tidewheel.controllers.cache import Snapshot
from tidewheel.controllers.controller import Key
from tidewheel.planning.plan import Deletion, EventNote, Plan, Refusal

FLEETS = Resource("test.tidewheel.dev", "v1", "fleets", "Fleet")

FLEET_CRD: dict[str, Any] = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "fleets.test.tidewheel.dev"},
    "spec": {
        "group": FLEETS.group,
        "scope": "Namespaced",
        "names": {"plural": "fleets", "singular": "fleet", "kind": "Fleet", "listKind": "FleetList"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "subresources": {"status": {}},
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {
                            "spec": {
                                "type": "object",
                                "properties": {
                                    "size": {"type": "integer"},
                                    "colour": {"type": "string"},
                                },
                            },
                            "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                        },
                    }
                },
            }
        ],
    },
}


def fleet(
    name: str, *, size: int = 2, colour: str = "red", namespace: str = "default", **metadata: Any
) -> Manifest:
    return {
        "apiVersion": FLEETS.api_version,
        "kind": "Fleet",
        "metadata": {"name": name, "namespace": namespace, **metadata},
        "spec": {"size": size, "colour": colour},
    }


@dataclass
class FleetController:
    """Level-triggered and as simple as can be: pods `<fleet>-<ordinal>`, a map `<fleet>-map`."""

    kind: Resource = FLEETS
    children: tuple[Resource, ...] = (CONFIG_MAPS, PODS)
    looks_at: tuple[Resource, ...] = ()
    manager: str = "test.tidewheel.dev/fleet"
    status_manager: str = "test.tidewheel.dev/fleet-status"

    def concerned_by(self, *_: object) -> Iterable[Key]:
        return ()

    def plan(
        self, key: Key, cache: Snapshot, now: datetime, refusals: tuple[Refusal, ...] = ()
    ) -> Plan | None:
        seen = cache.get(FLEETS, key.namespace, key.name)
        if seen is None or seen["metadata"].get("deletionTimestamp"):
            return None
        spec, uid = seen["spec"], seen["metadata"]["uid"]
        pods = cache.owned_by(uid, PODS)
        wanted = {f"{key.name}-{ordinal}" for ordinal in range(spec["size"])}
        status = {
            "observedGeneration": seen["metadata"]["generation"],
            "pods": len(pods),
            "refusals": [f"{refusal.kind} {refusal.name}: {refusal.reason}" for refusal in refusals],
            "conditions": [
                {
                    "type": "Ready",
                    "status": "True" if len(pods) == spec["size"] and not refusals else "False",
                    "reason": "Refused" if refusals else "Counted",
                    "message": "",
                    "lastTransitionTime": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
                }
            ],
        }
        grown = len(pods) != (seen.get("status") or {}).get("pods", 0)
        note = EventNote(type="Normal", reason="Counted", action="Count", message=f"{len(pods)} pods")
        missing = wanted - {pod["metadata"]["name"] for pod in pods}
        deed = EventNote(
            type="Normal", reason="Grown", action="Create", message=f"{', '.join(sorted(missing))} created"
        )
        return Plan(
            apply=(
                self._child(seen, "ConfigMap", f"{key.name}-map", {"data": {"colour": spec["colour"]}}),
                *(self._pod(seen, name) for name in sorted(wanted)),
            ),
            delete=tuple(
                Deletion(
                    resource=PODS,
                    namespace=key.namespace,
                    name=pod["metadata"]["name"],
                    uid=pod["metadata"]["uid"],
                    reason="TooMany",
                    grace_seconds=0,
                )
                for pod in pods
                if pod["metadata"]["name"] not in wanted
            ),
            status=status,
            events=((note,) if grown else ()) + ((deed,) if missing else ()),
        )

    def _pod(self, seen: Manifest, name: str) -> Manifest:
        containers = [{"name": "worker", "image": "none"}]
        return self._child(seen, "Pod", name, {"spec": {"containers": containers}})

    def _child(self, seen: Manifest, kind: str, name: str, content: Manifest) -> Manifest:
        metadata = seen["metadata"]
        return {
            "apiVersion": "v1",
            "kind": kind,
            "metadata": {
                "name": name,
                "namespace": metadata["namespace"],
                "labels": {LABEL_SERVICE: metadata["name"], "colour": seen["spec"]["colour"]},
                "ownerReferences": [
                    {
                        "apiVersion": FLEETS.api_version,
                        "kind": "Fleet",
                        "name": metadata["name"],
                        "uid": metadata["uid"],
                        "controller": True,
                        "blockOwnerDeletion": True,
                    }
                ],
            },
            **content,
        }
