"""Reads the Kubernetes objects that typed clients insist on sending as protobuf, such as Helm's release Secrets."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from tidewheel.local.apiserver.protobuf_messages import KINDS, Field, messages

Manifest = dict[str, Any]

MAGIC = b"k8s\x00"
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5


class UnknownMessage(ValueError):
    """The body is no message that this server can read in full; a client can send JSON instead."""


def decode(body: bytes) -> Manifest:
    """The object in an `application/vnd.kubernetes.protobuf` body, as its JSON would be.

    Raises:
        UnknownMessage: the kind or one of its fields is not in the table, or the bytes are no such message.
    """
    if not body.startswith(MAGIC):
        raise UnknownMessage("the body does not start with the Kubernetes protobuf prefix")
    try:
        outer = dict(_fields(body[len(MAGIC) :]))
        type_meta = {number: value.decode() for number, value in _fields(outer.get(1, b""))}
        kind = type_meta.get(2, "")
        if kind not in KINDS:
            raise UnknownMessage(f"kind {kind!r} is not read from protobuf")
        return {"apiVersion": type_meta.get(1, ""), "kind": kind, **_message(kind, outer.get(2, b""))}
    except UnknownMessage:
        raise
    except (IndexError, AttributeError, TypeError, ValueError, OverflowError, OSError) as error:
        raise UnknownMessage(f"the body is no protobuf message: {error}") from error


def _message(name: str, data: bytes) -> Manifest:
    known = messages()[name]
    found: Manifest = {}
    for number, value in _fields(data):
        field = known.get(number)
        if field is None:
            # Go writes unset fields too. Anything else would be lost without a word, so it is refused.
            if value:
                raise UnknownMessage(f"field {number} of {name} is not read from protobuf")
            continue
        if field.kind == "ignored":
            continue
        if field.kind in ("map", "bytesmap"):
            key, text = _map_entry(value)
            stored = base64.b64encode(text).decode() if field.kind == "bytesmap" else text.decode()
            found.setdefault(field.name, {})[key] = stored
        elif field.repeated:
            found.setdefault(field.name, []).append(_read(field, value))
        elif (read := _read(field, value)) is not None:
            found[field.name] = read
    return found


def _read(field: Field, value: Any) -> Any:
    """A value as JSON has it; None for what Go writes although it is unset."""
    match field.kind:
        case "text":
            return value.decode() or ("" if field.repeated else None)
        case "int":
            return _signed(value) or None
        case "int?":
            return _signed(value)
        case "bool":
            return bool(value) or None
        case "bool?":
            return bool(value)
        case "time":
            seconds = dict(_fields(value)).get(1)
            return (
                None
                if seconds is None
                else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            )
        case "intstr":
            parts = dict(_fields(value))
            return parts.get(3, b"").decode() if parts.get(1) else _signed(parts.get(2, 0))
        case message:
            return _message(message, value)


def _map_entry(data: bytes) -> tuple[str, bytes]:
    entry = dict(_fields(data))
    return entry.get(1, b"").decode(), entry.get(2, b"")


def _signed(value: int) -> int:
    return value if value < 1 << 63 else value - (1 << 64)


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Number and value of each field: an int for a varint, bytes for anything longer."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        number, wire = tag >> 3, tag & 7
        if wire == VARINT:
            value, position = _varint(data, position)
            yield number, value
            continue
        if wire == LENGTH:
            size, position = _varint(data, position)
        elif wire in (FIXED64, FIXED32):
            size = 8 if wire == FIXED64 else 4
        else:
            raise UnknownMessage(f"wire type {wire} is not used by Kubernetes")
        if position + size > len(data):
            raise UnknownMessage("a field is longer than the message")
        yield number, data[position : position + size]
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
