"""Between the stored form of an object and the version a request asks for."""

from __future__ import annotations

from typing import Any

from tidewheel.local.apiserver.encoding import encode_object, type_prefix
from tidewheel.local.apiserver.registry import Resource
from tidewheel.local.apiserver.store import Item

Manifest = dict[str, Any]

# events.k8s.io/v1 name -> core/v1 name, where they differ.
EVENT_NAMES = {
    "regarding": "involvedObject",
    "note": "message",
    "reportingController": "reportingComponent",
    "deprecatedSource": "source",
    "deprecatedFirstTimestamp": "firstTimestamp",
    "deprecatedLastTimestamp": "lastTimestamp",
    "deprecatedCount": "count",
}
CORE_NAMES = {core: new for new, core in EVENT_NAMES.items()}


def to_storage(resource: Resource, obj: Manifest) -> Manifest:
    """The form in which an object is kept: events as core/v1, everything else as it was written."""
    if resource.group == "events.k8s.io":
        return {**_renamed(obj, EVENT_NAMES), "apiVersion": "v1"}
    return obj


def presented_object(resource: Resource, item: Item) -> Manifest:
    """The object in the resource's version; a copy that the caller may change."""
    obj = item.object()
    if obj["apiVersion"] == resource.api_version:
        return obj
    if resource.group == "events.k8s.io":
        obj = _renamed(obj, CORE_NAMES)
    # The versions of a custom resource share a schema (conversion strategy None), so only the name changes.
    obj["apiVersion"] = resource.api_version
    return obj


def presented(resource: Resource, item: Item) -> bytes:
    """The object's JSON in the resource's version."""
    if item.encoded.startswith(type_prefix(resource.kind, resource.api_version)):
        return item.encoded
    return encode_object(presented_object(resource, item))


def _renamed(obj: Manifest, names: dict[str, str]) -> Manifest:
    return {names.get(key, key): value for key, value in obj.items()}
