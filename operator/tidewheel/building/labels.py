"""Labels, owner and selectors of a PDService's children: what makes an object ours and finds it again."""

from __future__ import annotations

from tidewheel.api import meta
from tidewheel.api.manifest import PD_SERVICES, Manifest
from tidewheel.planning.observed import ObservedService


def labels_of(service: str, component: str) -> dict[str, str]:
    """The labels of a child. `component` is its role in the service, such as `gateway` or `routes`."""
    return {
        meta.LABEL_NAME: "tidewheel",
        meta.LABEL_INSTANCE: service,
        meta.LABEL_COMPONENT: component,
        meta.LABEL_PART_OF: "tidewheel",
        meta.LABEL_MANAGED_BY: meta.MANAGED_BY,
        meta.LABEL_SERVICE: service,
    }


def owner_of(seen: ObservedService) -> Manifest:
    """The controller ownerReference: the garbage collector removes the child with the service."""
    return {
        "apiVersion": PD_SERVICES.api_version,
        "kind": PD_SERVICES.kind,
        "name": seen.name,
        "uid": seen.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def metadata_of(
    seen: ObservedService,
    name: str,
    component: str,
    *,
    labels: dict[str, str] | None = None,
    annotations: dict[str, str] | None = None,
) -> Manifest:
    """The metadata of a child."""
    metadata: Manifest = {
        "name": name,
        "namespace": seen.namespace,
        "labels": labels_of(seen.name, component) | (labels or {}),
        "ownerReferences": [owner_of(seen)],
    }
    return metadata | ({"annotations": annotations} if annotations else {})
