"""Removes, or names, the fields that a schema does not know; apart because strict validation asks before pruning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from tidewheel.local.apimachinery.fields import Manifest
    from tidewheel.local.apimachinery.schema import Schema

_CONTAINERS = (dict, list)


def prune(obj: Manifest, schema: Schema) -> None:
    """Remove every field that the schema neither lists nor preserves."""
    _walk(obj, schema, "", _ignore, remove=True)


def unknown_fields(obj: Manifest, schema: Schema) -> list[str]:
    """What strict field validation complains about, sorted: `unknown field "spec.ports[0].x"`."""
    return [f'unknown field "{path}"' for path in unknown_paths(obj, schema)]


def unknown_paths(obj: Manifest, schema: Schema) -> list[str]:
    """The paths of the fields that the schema neither lists nor preserves, sorted."""
    paths: list[str] = []
    _walk(obj, schema, "", paths.append, remove=False)
    return sorted(paths)


def _ignore(_: str) -> None: ...


def _walk(value: Any, schema: Schema, path: str, report: Callable[[str], None], *, remove: bool) -> None:
    if isinstance(value, dict):
        properties = schema.properties
        additional = schema.additional
        if additional is None and not properties and schema.preserves_unknown:
            return
        unknown: list[str] = []
        for key, child in value.items():
            known = properties.get(key) or additional
            if known is None:
                if not schema.preserves_unknown:
                    unknown.append(key)
            elif isinstance(child, _CONTAINERS):
                _walk(child, known, f"{path}.{key}" if path else key, report, remove=remove)
        for key in unknown:
            report(f"{path}.{key}" if path else key)
            if remove:
                del value[key]
    elif isinstance(value, list) and schema.items is not None:
        items = schema.items
        for index, child in enumerate(value):
            if isinstance(child, _CONTAINERS):
                _walk(child, items, f"{path}[{index}]", report, remove=remove)
