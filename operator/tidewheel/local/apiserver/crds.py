"""From CustomResourceDefinitions to served resources: names accepted, conditions set, schemas read."""

from __future__ import annotations

from typing import Any

from tidewheel.local.apimachinery.schema import crd_schema
from tidewheel.local.apiserver.registry import CUSTOM_VERBS, Resource, ScalePaths, Subresource

Manifest = dict[str, Any]

CRD_STORAGE = "customresourcedefinitions.apiextensions.k8s.io"
CLEANUP_FINALIZER = "customresourcecleanup.apiextensions.k8s.io"


def established(crd: Manifest, now: str) -> Manifest:
    """The status of a CRD whose names are free: this server accepts them at once."""
    conditions = [
        _condition("NamesAccepted", "NoConflicts", "no conflicts found", now),
        _condition("Established", "InitialNamesAccepted", "the initial names have been accepted", now),
    ]
    kept = (crd.get("status") or {}).get("conditions") or []
    known = {condition["type"]: condition for condition in kept}
    return {
        "acceptedNames": crd["spec"]["names"],
        "conditions": [known.get(one["type"], one) for one in conditions]
        + [condition for condition in kept if condition["type"] not in ("NamesAccepted", "Established")],
        "storedVersions": stored_versions(crd),
    }


def stored_versions(crd: Manifest) -> list[str]:
    """Versions in which objects may be stored: those of before, and the storage version of now."""
    before = list((crd.get("status") or {}).get("storedVersions") or [])
    current = next((one["name"] for one in crd["spec"]["versions"] if one.get("storage")), None)
    return before if current is None or current in before else [*before, current]


def is_established(crd: Manifest) -> bool:
    """Whether a CRD's resources are to be served."""
    conditions = (crd.get("status") or {}).get("conditions") or []
    return any(one["type"] == "Established" and one["status"] == "True" for one in conditions)


def resources_of(crd: Manifest) -> list[Resource]:
    """One resource for each served version."""
    return [_resource(crd["spec"], version) for version in crd["spec"]["versions"] if version.get("served")]


def _resource(spec: Manifest, version: Manifest) -> Resource:
    names = spec["names"]
    raw = (version.get("schema") or {}).get("openAPIV3Schema") or {"type": "object"}
    below = version.get("subresources") or {}
    subresources = []
    if "status" in below:
        subresources.append(Subresource(name="status", kind=names["kind"], verbs=("get", "patch", "update")))
    scale = _scale(below.get("scale"))
    if scale is not None:
        subresources.append(
            Subresource(
                name="scale",
                kind="Scale",
                verbs=("get", "patch", "update"),
                group="autoscaling",
                version="v1",
            )
        )
    return Resource(
        group=spec["group"],
        version=version["name"],
        plural=names["plural"],
        kind=names["kind"],
        singular=names.get("singular") or names["kind"].lower(),
        namespaced=spec["scope"] == "Namespaced",
        list_kind=names.get("listKind") or f"{names['kind']}List",
        short_names=tuple(names.get("shortNames") or ()),
        categories=tuple(names.get("categories") or ()),
        verbs=CUSTOM_VERBS,
        subresources=tuple(subresources),
        has_status="status" in below,
        scale=scale,
        storage=f"{names['plural']}.{spec['group']}",
        counts_generation=True,
        custom=True,
        printer_columns=tuple(version.get("additionalPrinterColumns") or ()),
        schema=crd_schema(raw),
        raw_schema=raw,
        selectable=tuple(one["jsonPath"].lstrip(".") for one in version.get("selectableFields") or ()),
    )


def _scale(below: Manifest | None) -> ScalePaths | None:
    if below is None:
        return None
    selector = below.get("labelSelectorPath")
    return ScalePaths(
        spec_replicas=_path(below["specReplicasPath"]),
        status_replicas=_path(below["statusReplicasPath"]),
        selector=_path(selector) if selector else None,
    )


def _path(dotted: str) -> tuple[str, ...]:
    return tuple(dotted.strip(".").split("."))


def _condition(kind: str, reason: str, message: str, now: str) -> Manifest:
    return {"type": kind, "status": "True", "lastTransitionTime": now, "reason": reason, "message": message}
