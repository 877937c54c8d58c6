"""Objects as rows of a `meta.k8s.io/v1` Table, which is what `kubectl get` prints."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Final

from tidewheel.local.apimachinery import jsonpath
from tidewheel.local.apimachinery.builtin_columns import COLUMNS, Column
from tidewheel.local.apimachinery.durations import ages
from tidewheel.local.apimachinery.schema import builtin_definitions

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from tidewheel.local.apimachinery.fields import Gvk, Manifest

_META: Final = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"


def table(
    objects: Iterable[Manifest],
    *,
    gvk: Gvk,
    now: datetime,
    columns: Iterable[Mapping[str, Any]] | None = None,
    include_object: str = "Metadata",
    list_metadata: Mapping[str, Any] | None = None,
    with_definitions: bool = True,
) -> Manifest:
    """A Table of objects of one kind.

    Args:
        columns: a CRD's `additionalPrinterColumns`; None stands for those of the built-in kind.
        include_object: `Metadata`, `Object` or `None`, as the query parameter `includeObject`.
        list_metadata: `resourceVersion` and the like of the list; a single object brings its own.
        with_definitions: whether the columns are described; the API leaves that out of all but a watch's first event.
    """
    rows: list[Manifest] = []
    listed = list(objects)
    chosen = _builtin_columns(gvk) if columns is None else None
    printers = (
        None
        if columns is None
        else [(dict(column), jsonpath.compile_path(column["jsonPath"])) for column in columns]
    )
    for obj in listed:
        if chosen is not None:
            cells = [column.cell(obj, now) for column in chosen]
        else:
            cells = [
                obj["metadata"].get("name", ""),
                *_custom_cells(obj, printers or (), now, is_bare=not printers),
            ]
        row: Manifest = {"cells": cells}
        if include_object == "Object":
            row["object"] = obj
        elif include_object != "None":
            row["object"] = {
                "apiVersion": "meta.k8s.io/v1",
                "kind": "PartialObjectMetadata",
                "metadata": obj["metadata"],
            }
        rows.append(row)
    if list_metadata is None:
        version = listed[0]["metadata"].get("resourceVersion", "") if len(listed) == 1 else ""
        list_metadata = {"resourceVersion": version}
    answer: Manifest = {
        "apiVersion": "meta.k8s.io/v1",
        "kind": "Table",
        "metadata": dict(list_metadata),
        "rows": rows,
    }
    definitions = (
        [_definition(column) for column in chosen]
        if chosen is not None
        else _custom_definitions(printers or ())
    )
    answer["columnDefinitions"] = definitions if with_definitions else None
    return answer


def _custom_cells(obj: Manifest, printers: Iterable[Any], now: datetime, *, is_bare: bool) -> list[Any]:
    if is_bare:
        return [ages(obj["metadata"].get("creationTimestamp"), now)]
    cells: list[Any] = []
    for column, path in printers:
        found = path.find(obj)
        cells.append(_cell(found, column["type"], now))
    return cells


def _cell(found: list[Any], kind: str, now: datetime) -> Any:
    """The first value that a path finds, as its column's type wants it; None when it finds none."""
    if not found or found[0] is None:
        return None
    value = found[0]
    match kind:
        case "date":
            return ages(value, now) if isinstance(value, str) else None
        case "integer":
            return int(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
        case "number":
            return value if isinstance(value, int | float) and not isinstance(value, bool) else None
        case "boolean":
            return value if isinstance(value, bool) else None
    return jsonpath.printed(found)


def _custom_definitions(printers: Iterable[Any]) -> list[Manifest]:
    definitions = [_name_definition()]
    for column, _ in printers:
        path = column["jsonPath"]
        default = f"Custom resource definition column (in JSONPath format): {path}"
        definitions.append(
            {
                "description": column.get("description") or default,
                "format": column.get("format") or "",
                "name": column["name"],
                "priority": column.get("priority") or 0,
                "type": column["type"],
            }
        )
    if len(definitions) == 1:
        age = {
            "description": _documented("creationTimestamp"),
            "format": "",
            "name": "Age",
            "priority": 0,
            "type": "date",
        }
        definitions.append(age)
    return definitions


@cache
def _builtin_columns(gvk: Gvk) -> tuple[Column, ...]:
    return COLUMNS.get((gvk.group, gvk.kind), COLUMNS["", ""])


def _definition(column: Column) -> Manifest:
    if column.name == "Name":
        return _name_definition()
    description = column.description
    if column.documents:
        definition, _, field = column.documents.partition(" ")
        description = builtin_definitions()[definition]["properties"][field].get("description", "")
    return {
        "description": description,
        "format": column.format,
        "name": column.name,
        "priority": column.priority,
        "type": column.type,
    }


def _name_definition() -> Manifest:
    return {
        "description": _documented("name"),
        "format": "name",
        "name": "Name",
        "priority": 0,
        "type": "string",
    }


def _documented(field: str) -> str:
    text: str = builtin_definitions()[_META]["properties"][field]["description"]
    return text
