"""Reads the few Kubernetes messages that real clients insist on sending as protobuf, such as Helm's release Secrets."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

Manifest = dict[str, Any]

MAGIC = b"k8s\x00"
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5


class UnknownMessage(ValueError):
    """The body is no message that this server can read; a client can send JSON instead."""


class Field(NamedTuple):
    """How one field number is read: `kind` is a scalar name or the name of another message."""

    name: str
    kind: str = "string"
    repeated: bool = False


# Field numbers as in the generated.proto files of k8s.io/api and k8s.io/apimachinery.
MESSAGES: Mapping[str, Mapping[int, Field]] = {
    "ObjectMeta": {
        1: Field("name"),
        2: Field("generateName"),
        3: Field("namespace"),
        5: Field("uid"),
        6: Field("resourceVersion"),
        7: Field("generation", "int"),
        8: Field("creationTimestamp", "time"),
        9: Field("deletionTimestamp", "time"),
        10: Field("deletionGracePeriodSeconds", "int"),
        11: Field("labels", "map"),
        12: Field("annotations", "map"),
        13: Field("ownerReferences", "OwnerReference", repeated=True),
        14: Field("finalizers", repeated=True),
    },
    "OwnerReference": {
        1: Field("kind"),
        3: Field("name"),
        4: Field("uid"),
        5: Field("apiVersion"),
        6: Field("controller", "bool"),
        7: Field("blockOwnerDeletion", "bool"),
    },
    "Secret": {
        1: Field("metadata", "ObjectMeta"),
        2: Field("data", "bytesmap"),
        3: Field("type"),
        4: Field("stringData", "map"),
        5: Field("immutable", "bool"),
    },
    "ConfigMap": {
        1: Field("metadata", "ObjectMeta"),
        2: Field("data", "map"),
        3: Field("binaryData", "bytesmap"),
        4: Field("immutable", "bool"),
    },
    "Namespace": {1: Field("metadata", "ObjectMeta")},
    "DeleteOptions": {
        1: Field("gracePeriodSeconds", "int"),
        2: Field("preconditions", "Preconditions"),
        3: Field("orphanDependents", "bool"),
        4: Field("propagationPolicy"),
        5: Field("dryRun", repeated=True),
    },
    "Preconditions": {1: Field("uid"), 2: Field("resourceVersion")},
    "Eviction": {1: Field("metadata", "ObjectMeta"), 2: Field("deleteOptions", "DeleteOptions")},
    "SelfSubjectAccessReview": {1: Field("metadata", "ObjectMeta"), 2: Field("spec", "AccessReviewSpec")},
    "AccessReviewSpec": {
        1: Field("resourceAttributes", "ResourceAttributes"),
        2: Field("nonResourceAttributes", "NonResourceAttributes"),
    },
    "ResourceAttributes": {
        1: Field("namespace"),
        2: Field("verb"),
        3: Field("group"),
        4: Field("version"),
        5: Field("resource"),
        6: Field("subresource"),
        7: Field("name"),
    },
    "NonResourceAttributes": {1: Field("path"), 2: Field("verb")},
    "SelfSubjectReview": {1: Field("metadata", "ObjectMeta")},
    "SelfSubjectRulesReview": {1: Field("metadata", "ObjectMeta"), 2: Field("spec", "RulesReviewSpec")},
    "RulesReviewSpec": {1: Field("namespace")},
    "TokenRequest": {1: Field("metadata", "ObjectMeta"), 2: Field("spec", "TokenRequestSpec")},
    "TokenRequestSpec": {1: Field("audiences", repeated=True), 4: Field("expirationSeconds", "int")},
}

TOP_LEVEL = frozenset(
    {
        "ConfigMap",
        "DeleteOptions",
        "Eviction",
        "Namespace",
        "Secret",
        "SelfSubjectAccessReview",
        "SelfSubjectReview",
        "SelfSubjectRulesReview",
        "TokenRequest",
    }
)


def decode(body: bytes) -> Manifest:
    """The object in a `application/vnd.kubernetes.protobuf` body, as its JSON would be.

    Raises:
        UnknownMessage: the kind is not in the table above, or the bytes are no such message.
    """
    if not body.startswith(MAGIC):
        raise UnknownMessage("the body does not start with the Kubernetes protobuf prefix")
    try:
        outer = {number: value for number, _, value in _fields(body[len(MAGIC) :])}
        type_meta = {number: value.decode() for number, _, value in _fields(outer.get(1, b""))}
        kind = type_meta.get(2, "")
        if kind not in TOP_LEVEL:
            raise UnknownMessage(f"kind {kind!r} is not read from protobuf")
        return {"apiVersion": type_meta.get(1, ""), "kind": kind, **_message(kind, outer.get(2, b""))}
    except (IndexError, AttributeError, UnicodeDecodeError) as error:
        raise UnknownMessage(f"the body is no protobuf message: {error}") from error


def _message(name: str, data: bytes) -> Manifest:
    known = MESSAGES[name]
    found: Manifest = {}
    for number, _, value in _fields(data):
        field = known.get(number)
        if field is None:
            continue
        if field.kind in ("map", "bytesmap"):
            entry = {key: inner for key, _, inner in _fields(value)}
            text = entry.get(2, b"")
            stored = base64.b64encode(text).decode() if field.kind == "bytesmap" else text.decode()
            found.setdefault(field.name, {})[entry.get(1, b"").decode()] = stored
        elif field.repeated:
            found.setdefault(field.name, []).append(_scalar(field, value))
        else:
            scalar = _scalar(field, value)
            # Go writes empty strings and zero times of non-pointer fields too.
            if scalar not in ("", None):
                found[field.name] = scalar
    return found


def _scalar(field: Field, value: Any) -> Any:
    match field.kind:
        case "string":
            return value.decode()
        case "bool":
            return bool(value)
        case "int":
            return value if value < 1 << 63 else value - (1 << 64)
        case "time":
            seconds = {number: inner for number, _, inner in _fields(value)}.get(1)
            return (
                None
                if seconds is None
                else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            )
        case message:
            return _message(message, value)


def _fields(data: bytes) -> Iterator[tuple[int, int, Any]]:
    """Field number, wire type and value of each field: an int, or the bytes of anything longer."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        number, wire = tag >> 3, tag & 7
        if wire == VARINT:
            value, position = _varint(data, position)
            yield number, wire, value
            continue
        if wire == LENGTH:
            size, position = _varint(data, position)
        elif wire in (FIXED64, FIXED32):
            size = 8 if wire == FIXED64 else 4
        else:
            raise UnknownMessage(f"wire type {wire} is not used by Kubernetes")
        if position + size > len(data):
            raise UnknownMessage("a field is longer than the message")
        yield number, wire, data[position : position + size]
        position += size


def _varint(data: bytes, position: int) -> tuple[int, int]:
    result = shift = 0
    while True:
        byte = data[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return result, position
        shift += 7
