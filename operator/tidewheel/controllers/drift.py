"""Whether what we applied still holds in the live object: a comparison of our fields only, apart from all I/O."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from tidewheel.api.manifest import Manifest
from tidewheel.api.meta import ANNOTATION_PUBLISHED

#: Fields that tell the items of a list apart, the more telling ones first.
_IDENTITIES = ("mountPath", "devicePath", "containerPort", "port", "uid", "type", "key", "name")


def digest_of(manifest: Manifest) -> str:
    """A short digest of what would be applied; equal for equal manifests whatever the order of their keys.

    When something was published is no part of it. Until it is, each plan says "now", and a write that was refused
    would look like another one every time and be sent again at once.
    """
    annotations = manifest.get("metadata", {}).get("annotations", {})
    if ANNOTATION_PUBLISHED in annotations:
        lasting = {key: value for key, value in annotations.items() if key != ANNOTATION_PUBLISHED}
        manifest = manifest | {"metadata": manifest["metadata"] | {"annotations": lasting}}
    canonical = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def differences(wanted: Manifest, live: Manifest) -> dict[str, Any]:
    """The fields of `wanted` that do not stand in `live`, each with what stands there instead.

    What `live` has beyond `wanted` (defaults, other managers' fields, injected list items) is not our business.
    Server-side normalisation, such as `0.5` for `500m`, does show up here: whoever compares must know which
    differences the server answered right after the write.
    """
    return dict(_differences("", wanted, live))


def _differences(path: str, wanted: Any, live: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(wanted, dict) and isinstance(live, dict):
        for key, value in wanted.items():
            if key in live:
                yield from _differences(f"{path}.{key}", value, live[key])
            elif not _is_empty(value):
                yield f"{path}.{key}", None
    elif isinstance(wanted, list) and isinstance(live, list):
        yield from _list_differences(path, wanted, live)
    elif wanted != live:
        yield path, live


def _list_differences(path: str, wanted: list[Any], live: list[Any]) -> Iterator[tuple[str, Any]]:
    if not all(isinstance(item, dict) for item in (*wanted, *live)):
        if wanted != live:
            yield path, live
        return
    identity = next((key for key in _IDENTITIES if _tells_apart(key, wanted)), None)
    if identity is None:
        # An atomic list of objects: admission may add items (tolerations) but ours must still be there.
        for index, item in enumerate(wanted):
            if all(any(_differences("", item, other)) for other in live):
                yield f"{path}[{index}]", live
        return
    by_identity = {item[identity]: item for item in live if identity in item}
    for item in wanted:
        where = f"{path}[{identity}={item[identity]}]"
        if item[identity] in by_identity:
            yield from _differences(where, item, by_identity[item[identity]])
        else:
            yield where, None


def _tells_apart(key: str, items: list[Any]) -> bool:
    values = [item.get(key) for item in items]
    return all(isinstance(value, str | int) for value in values) and len(set(values)) == len(values)


def _is_empty(value: Any) -> bool:
    return value is None or value in ({}, [], "", 0)
