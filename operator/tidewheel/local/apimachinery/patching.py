"""JSON patch, merge patch and strategic merge patch over plain dicts; what is patched is never changed in place."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any, Final, cast

import jsonpatch
from jsonpointer import JsonPointerException

from tidewheel.local.apimachinery.fields import BadRequest

if TYPE_CHECKING:
    from tidewheel.local.apimachinery.fields import Manifest
    from tidewheel.local.apimachinery.schema import Schema

_MOST_OPERATIONS: Final = 10_000
_DIRECTIVE: Final = "$patch"
_RETAIN: Final = "$retainKeys"
_ORDER: Final = "$setElementOrder/"
_DELETE_FROM: Final = "$deleteFromPrimitiveList/"


class PatchRefused(ValueError):
    """A well-formed patch cannot be applied to this object (a failed test, a path that is not there).

    The API answers 422 with reason Invalid, empty details and the text of this error.
    """

    def __init__(self, detail: str) -> None:
        super().__init__("the server rejected our request due to an error in our request")
        self.detail = detail


def json_patch(obj: Manifest, ops: Any) -> Manifest:
    """Apply RFC 6902 operations.

    Raises:
        BadRequest: the operations are not a list of operations.
        PatchRefused: an operation does not fit the object.
    """
    if not isinstance(ops, list) or not all(isinstance(op, dict) for op in ops):
        raise BadRequest("error decoding patch: the body of a JSON patch must be a list of operations")
    if len(ops) > _MOST_OPERATIONS:
        raise BadRequest(
            f"The allowed maximum operations in a JSON patch is {_MOST_OPERATIONS}, got {len(ops)}"
        )
    try:
        patched = jsonpatch.JsonPatch(ops).apply(obj)
    except jsonpatch.InvalidJsonPatch as error:
        raise BadRequest(f"error decoding patch: {error}") from error
    except (jsonpatch.JsonPatchException, JsonPointerException, TypeError) as error:
        raise PatchRefused(str(error)) from error
    if not isinstance(patched, dict):
        raise PatchRefused("the patch leaves no object")
    return patched


def merge_patch(obj: Manifest, patch: Any) -> Manifest:
    """Apply an RFC 7396 merge patch.

    Raises:
        BadRequest: the patch is not an object.
    """
    if not isinstance(patch, dict):
        raise BadRequest("error decoding patch: a merge patch must be a JSON object")
    return cast("Manifest", _merged(obj, patch))


def _merged(value: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return patch
    merged = dict(value) if isinstance(value, dict) else {}
    for key, change in patch.items():
        if change is None:
            merged.pop(key, None)
        else:
            merged[key] = _merged(merged.get(key), change)
    return merged


def strategic_merge_patch(obj: Manifest, patch: Any, schema: Schema) -> Manifest:
    """Apply a strategic merge patch: lists with a merge key are merged item by item, `$` directives are obeyed.

    Raises:
        BadRequest: the patch is not an object, or a directive in it makes no sense.
    """
    if not isinstance(patch, dict):
        raise BadRequest("error decoding patch: a strategic merge patch must be a JSON object")
    return _merge_map(obj, deepcopy(patch), schema)


def _merge_map(original: Manifest, patch: Manifest, schema: Schema | None) -> Manifest:
    directive = patch.pop(_DIRECTIVE, None)
    if directive == "replace":
        return patch
    if directive == "delete":
        return {}
    if directive not in (None, "merge"):
        raise BadRequest(f'invalid value "{directive}" for {_DIRECTIVE}: expected replace, delete or merge')
    merged = dict(original)
    if _RETAIN in patch:
        retained = patch.pop(_RETAIN)
        if not isinstance(retained, list):
            raise BadRequest(f"{_RETAIN} must be a list of field names")
        merged = {key: value for key, value in merged.items() if key in retained}
    orders = {key.removeprefix(_ORDER): patch.pop(key) for key in list(patch) if key.startswith(_ORDER)}
    doomed = {
        key.removeprefix(_DELETE_FROM): patch.pop(key) for key in list(patch) if key.startswith(_DELETE_FROM)
    }
    for key, values in doomed.items():
        if isinstance(merged.get(key), list):
            merged[key] = [item for item in merged[key] if item not in values]
    for key, change in patch.items():
        if change is None:
            merged.pop(key, None)
            continue
        known = schema.child(key) if schema is not None else None
        merged[key] = _merge_value(merged.get(key), change, known, orders.pop(key, None))
    for key, order in orders.items():
        known = schema.child(key) if schema is not None else None
        if isinstance(merged.get(key), list) and known is not None:
            merged[key] = _ordered(merged[key], order, merged[key], known.merge_key, order)
    return merged


def _merge_value(original: Any, change: Any, schema: Schema | None, order: list[Any] | None) -> Any:
    strategy = schema.merge_strategy if schema is not None else frozenset()
    if isinstance(change, dict):
        if isinstance(original, dict) and "replace" not in strategy:
            return _merge_map(original, change, schema)
        return _clean_map(change, schema)
    if isinstance(change, list):
        if schema is not None and "merge" in strategy:
            return _merge_list(original if isinstance(original, list) else [], change, schema, order)
        return change
    return change


def _clean_map(change: Manifest, schema: Schema | None) -> Manifest:
    """A patch of something that is not there: its directives are obeyed on nothing, its nulls dropped."""
    return _merge_map({}, change, schema)


def _merge_list(original: list[Any], change: list[Any], schema: Schema, order: list[Any] | None) -> list[Any]:
    key = schema.merge_key
    if not key:
        merged = [
            *original,
            *(
                item
                for index, item in enumerate(change)
                if item not in original and item not in change[:index]
            ),
        ]
        return _ordered(merged, order if order is not None else change, original, "", change)
    kept = list(original)
    wanted: list[Manifest] = []
    for item in change:
        if not isinstance(item, dict):
            raise BadRequest(f'a list that is merged by "{key}" must hold objects')
        directive = item.get(_DIRECTIVE)
        if directive == "replace" and key not in item:
            return [each for each in change if not (isinstance(each, dict) and _DIRECTIVE in each)]
        if key not in item:
            raise BadRequest(f"map: {item} does not contain declared merge key: {key}")
        if directive == "delete":
            kept = [each for each in kept if each.get(key) != item[key]]
        else:
            wanted.append(item)
    for item in wanted:
        index = next((index for index, each in enumerate(kept) if each.get(key) == item[key]), None)
        if index is None:
            kept.append(_clean_map(item, schema.items))
        else:
            kept[index] = _merge_map(kept[index], item, schema.items)
    return _ordered(
        kept, order if order is not None else wanted, original, key, wanted if order is None else order
    )


def _ordered(
    merged: list[Any], order: list[Any], original: list[Any], key: str, patched: list[Any]
) -> list[Any]:
    """Items of the patch in the order it asks for; items that only the server has keep their place before later ones."""

    def identity(item: Any) -> Any:
        return item.get(key) if key and isinstance(item, dict) else item

    def place(item: Any, items: list[Any]) -> int:
        wanted = identity(item)
        return next((index for index, each in enumerate(items) if identity(each) == wanted), -1)

    ours = sorted((item for item in merged if place(item, patched) >= 0), key=lambda item: place(item, order))
    servers = [item for item in merged if place(item, patched) < 0]
    servers.sort(key=lambda item: place(item, original))
    result: list[Any] = []
    while servers and ours:
        left, right = place(servers[0], original), place(ours[0], original)
        result.append(servers.pop(0) if 0 <= left < right else ours.pop(0))
    return [*result, *servers, *ours]
