"""Between the stored form of an object and the version a request asks for.

Events have two faces: events.k8s.io/v1 shows the core/v1 events under other field names. They are written in their core
face, whichever a client uses. The versions of a custom resource share a schema (conversion strategy None). A custom
resource that was written under an older schema is read with the defaults of the present one, and without the fields that
it does not know; what is stored changes at its next write.
"""

from __future__ import annotations

from typing import Any

from tidewheel.local.apimachinery.defaulting import apply_defaults
from tidewheel.local.apimachinery.pruning import prune
from tidewheel.local.apiserver.changes import Item
from tidewheel.local.apiserver.encoding import encode_object, type_prefix
from tidewheel.local.apiserver.registry import Resource

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


def has_other_face(resource: Resource) -> bool:
    """Whether objects are written in another form than the one that the resource shows."""
    return resource.group == "events.k8s.io"


def core_face(event: Manifest) -> Manifest:
    """An events.k8s.io event as a core one."""
    return {**_renamed(event, EVENT_NAMES), "apiVersion": "v1"}


def new_face(event: Manifest) -> Manifest:
    """A core event as one of events.k8s.io."""
    return {**_renamed(event, CORE_NAMES), "apiVersion": "events.k8s.io/v1"}


def shown_as(resource: Resource, obj: Manifest) -> Manifest:
    """A stored object in the resource's version; changes and gives `obj` where it can."""
    if obj["apiVersion"] == resource.api_version:
        return obj
    if has_other_face(resource):
        return new_face(obj)
    obj["apiVersion"] = resource.api_version
    return obj


def is_outdated(resource: Resource, item: Item) -> bool:
    """Whether the object was last written under an older schema."""
    return item.version < resource.schema_since


def stored_object(resource: Resource, item: Item) -> Manifest:
    """The object in the form in which it is stored, under the present schema; a copy that the caller may change."""
    obj = item.object()
    if is_outdated(resource, item):
        prune(obj, resource.schema)
        apply_defaults(obj, resource.schema)
    return obj


def presented_object(resource: Resource, item: Item) -> Manifest:
    """The object in the resource's version; a copy that the caller may change."""
    return shown_as(resource, stored_object(resource, item))


def presented(resource: Resource, item: Item) -> bytes:
    """The object's JSON in the resource's version."""
    is_written_so = item.encoded.startswith(type_prefix(resource.kind, resource.api_version))
    if is_written_so and not is_outdated(resource, item):
        return item.encoded
    return encode_object(presented_object(resource, item))


def _renamed(obj: Manifest, names: dict[str, str]) -> Manifest:
    return {names.get(key, key): value for key, value in obj.items()}
