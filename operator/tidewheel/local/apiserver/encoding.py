"""JSON as it leaves the server: compact bytes with `kind` and `apiVersion` in front."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

Manifest = dict[str, Any]

_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, check_circular=False).encode


def dumps(value: Any) -> bytes:
    """Compact UTF-8 JSON."""
    return _encode(value).encode()


def encode_object(obj: Manifest) -> bytes:
    """An object's JSON with `kind` and `apiVersion` first, so that `without_type` can cut them off."""
    rest = {key: value for key, value in obj.items() if key not in ("kind", "apiVersion")}
    return type_prefix(obj["kind"], obj["apiVersion"]) + dumps(rest)[1:]


def type_prefix(kind: str, api_version: str) -> bytes:
    """How the JSON of every object of a kind begins."""
    return f'{{"kind":{_encode(kind)},"apiVersion":{_encode(api_version)},'.encode()


def encode_list(kind: str, api_version: str, metadata: Manifest, items: Iterable[bytes]) -> bytes:
    """A list object around items that are JSON already."""
    head = type_prefix(kind, api_version) + b'"metadata":' + dumps(metadata) + b',"items":['
    return head + b",".join(items) + b"]}"


def encode_event(event_type: str, obj: bytes) -> bytes:
    """One line of a watch."""
    return b'{"type":"' + event_type.encode() + b'","object":' + obj + b"}\n"
