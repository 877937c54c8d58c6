"""Moves objects from kubectl's client-side apply, which keeps its intent in an annotation, to server-side apply."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from tidewheel.local.apimachinery import fieldsets, fieldwalks

if TYPE_CHECKING:
    from tidewheel.local.apimachinery.fields import Manifest
    from tidewheel.local.apimachinery.schema import Schema

_ANNOTATION: Final = "kubectl.kubernetes.io/last-applied-configuration"
_MANAGER: Final = "kubectl"
_MOST_BYTES: Final = 256 * 1024


def forgiven_fields(live: Manifest | None, manager: str, schema: Schema) -> fieldsets.FieldSet:
    """The fields that kubectl may take over without force: it applied them from the client, and they are as it left them."""
    text = _last_applied(live) if manager == _MANAGER else None
    if text is None:
        return {}
    try:
        last = json.loads(text)
        applied = fieldwalks.owned_by_applying(last, schema)
    except ValueError:
        return {}  # not kubectl's writing; then nothing is forgiven
    changes = fieldwalks.compare(last, live, schema)
    return fieldsets.difference(fieldsets.difference(applied, changes.modified), changes.removed)


def remember_applied(obj: Manifest, applied: Manifest, manager: str, subresource: str) -> Manifest:
    """The object with kubectl's annotation brought up to date, so that client-side apply still works; only if it has one."""
    if manager != _MANAGER or subresource or _last_applied(obj) is None:
        return obj
    metadata = dict(applied.get("metadata") or {})
    metadata.pop("managedFields", None)
    annotations = {
        key: text for key, text in (metadata.get("annotations") or {}).items() if key != _ANNOTATION
    }
    if annotations or "annotations" in metadata:
        metadata["annotations"] = annotations
    text = json.dumps(
        {**applied, "metadata": metadata}, separators=(",", ":"), sort_keys=True, ensure_ascii=False
    )
    if len(text) > _MOST_BYTES:
        return obj
    kept: dict[str, Any] = obj["metadata"]
    return {**obj, "metadata": {**kept, "annotations": {**kept["annotations"], _ANNOTATION: f"{text}\n"}}}


def _last_applied(obj: Manifest | None) -> str | None:
    annotations: dict[str, str] = ((obj or {}).get("metadata") or {}).get("annotations") or {}
    return annotations.get(_ANNOTATION)
