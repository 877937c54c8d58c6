"""Walks over objects and their schema that ownership needs: what is owned, what changed, merging and removing by sets of paths.

Lists whose items have keys are walked item by item, atomic ones as a whole; content that the schema does not know has
fields of its own, but atomic lists.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from tidewheel.local.apimachinery.fieldsets import LEAF, SELF, FieldSet, as_member, is_member, printed

if TYPE_CHECKING:
    from tidewheel.local.apimachinery.schema import Schema

_ABSENT: Final = object()
_CONTAINERS: Final = (dict, list)


class Comparison(NamedTuple):
    """How an object differs from an older one, as sets of paths."""

    added: FieldSet
    modified: FieldSet
    removed: FieldSet


class DuplicateItem(ValueError):
    """Two items of a set or keyed list are the same one."""


def _is_map(value: Any, schema: Schema | None) -> bool:
    return isinstance(value, dict) and (schema is None or not schema.is_atomic)


def _is_keyed(value: Any, schema: Schema | None) -> bool:
    """Whether a value is a list whose items have owners of their own."""
    return isinstance(value, list) and schema is not None and schema.type == "array" and not schema.is_atomic


def item_element(item: Any, schema: Schema) -> str:
    """The path element of an item of a set or keyed list."""
    if schema.list_type == "set":
        return "v:" + json.dumps(item, separators=(",", ":"), ensure_ascii=False)
    if not isinstance(item, dict):
        raise DuplicateItem(
            f"an item of a list with keys {', '.join(schema.list_map_keys)} is not an object: {item!r}"
        )
    key = {}
    for name in schema.list_map_keys:
        value = item.get(name)
        if value is None:
            value = schema.key_defaults.get(name)
        if value is not None:
            key[name] = value
    if not key:
        raise DuplicateItem(f'an item of a list lacks its key "{schema.list_map_keys[0]}"')
    if (
        len(key) == 1
        and isinstance(value, str)
        and value.isascii()
        and value.isprintable()
        and '"' not in value
        and "\\" not in value
    ):
        return f'k:{{"{name}":"{value}"}}'
    return "k:" + json.dumps(key, separators=(",", ":"), ensure_ascii=False)


def owned_by_applying(value: Any, schema: Schema) -> FieldSet:
    """The paths that an applied object claims: its leaves, the items of keyed lists, empty objects and nulls.

    Raises:
        DuplicateItem: a keyed list or set holds an item twice, or one without its key.
    """
    return _owned(value, schema) or {}


def _owned(value: Any, schema: Schema | None) -> FieldSet | None:
    if _is_map(value, schema):
        named = schema.properties if schema is not None else {}
        additional = schema.additional if schema is not None else None
        owned: FieldSet = {}
        for key, child in value.items():
            known = named.get(key)
            node = _owned(child, known or additional)
            if known is None or child is None or child == {}:
                node = as_member(node)
            if node is not None:
                owned[f"f:{key}"] = node
        return owned or None
    if _is_keyed(value, schema):
        schema = cast("Schema", schema)
        owned = {}
        for item in value:
            element = item_element(item, schema)
            if element in owned:
                raise DuplicateItem(f"duplicate entries for key {printed(element)}")
            owned[element] = as_member(_owned(item, schema.items))
        return owned or None
    return LEAF


def _everything(value: Any, schema: Schema | None) -> FieldSet:
    """Every path at and below a value that is new or gone."""
    if not value or type(value) not in _CONTAINERS:
        return LEAF
    if _is_map(value, schema):
        node: FieldSet = {SELF: LEAF}
        named = schema.properties if schema is not None else {}
        additional = schema.additional if schema is not None else None
        for key, child in value.items():
            node[f"f:{key}"] = _everything(child, named.get(key) or additional) if child else LEAF
        return node
    if _is_keyed(value, schema):
        schema = cast("Schema", schema)
        node = {SELF: LEAF}
        for element, item in _indexed(value, schema).items():
            node[element] = _everything(item, schema.items)
        return node
    return LEAF


def compare(old: Any, new: Any, schema: Schema) -> Comparison:
    """What was added, modified and removed between two objects."""
    added: FieldSet = {}
    modified: FieldSet = {}
    removed: FieldSet = {}
    if old != new:
        _compare_maps(old, new, schema, added, modified, removed)
    return Comparison(added, modified, removed)


def _compare_maps(
    old: Any, new: Any, schema: Schema | None, added: FieldSet, modified: FieldSet, removed: FieldSet
) -> None:
    named = schema.properties if schema is not None else {}
    additional = schema.additional if schema is not None else None
    for key, value in new.items():
        before = old.get(key, _ABSENT)
        if before is not value:
            _compare_child(f"f:{key}", before, value, named.get(key) or additional, added, modified, removed)
    for key, value in old.items():
        if key not in new:
            removed[f"f:{key}"] = _everything(value, named.get(key) or additional)


def _compare_child(
    element: str,
    old: Any,
    new: Any,
    schema: Schema | None,
    added: FieldSet,
    modified: FieldSet,
    removed: FieldSet,
) -> None:
    if old is _ABSENT:
        added[element] = _everything(new, schema)
        return
    if old == new and type(old) is type(new):
        return
    below: tuple[FieldSet, FieldSet, FieldSet] = ({}, {}, {})
    # An absent or empty container compared with a full one is not a leaf: only its content came or went.
    if (_is_map(new, schema) and (_is_map(old, schema) or old is None)) or (
        _is_map(old, schema) and new is None
    ):
        if not old and not new:
            modified[element] = LEAF
            return
        _compare_maps(old or {}, new or {}, schema, *below)
    elif (_is_keyed(new, schema) and (_is_keyed(old, schema) or old is None)) or (
        _is_keyed(old, schema) and new is None
    ):
        if not old and not new:
            modified[element] = LEAF
            return
        _compare_lists(old or [], new or [], cast("Schema", schema), *below)
    else:
        modified[element] = LEAF
        return
    for fields, found in zip((added, modified, removed), below, strict=True):
        if found:
            fields[element] = found


def _compare_lists(
    old: list[Any], new: list[Any], schema: Schema, added: FieldSet, modified: FieldSet, removed: FieldSet
) -> None:
    before, after = _indexed(old, schema), _indexed(new, schema)
    for element, item in after.items():
        _compare_child(element, before.get(element, _ABSENT), item, schema.items, added, modified, removed)
    for element, item in before.items():
        if element not in after:
            removed[element] = _everything(item, schema.items)


def _indexed(items: list[Any], schema: Schema) -> dict[str, Any]:
    """Items by path element; ones that stand there twice are one value, a list, so that any change of them is seen."""
    found: dict[str, Any] = {}
    for item in items:
        try:
            element = item_element(item, schema)
        except DuplicateItem:
            continue  # validation refuses the item by its own words
        found[element] = item if element not in found else [found[element], item]
    return found


def merge(live: Any, applied: Any, schema: Schema | None) -> Any:
    """The live value with the applied one merged in; items of keyed lists keep the applied order among themselves."""
    if _is_map(applied, schema) and (_is_map(live, schema) or live is None):
        if not live:
            live = {}
        merged = dict(live)
        for key, value in applied.items():
            known = schema.child(key) if schema is not None else None
            merged[key] = merge(live[key], value, known) if key in live else value
        return merged
    if _is_keyed(applied, schema) and _is_keyed(live, schema):
        return _merge_lists(live, applied, cast("Schema", schema))
    if applied is None and live and (_is_map(live, schema) or _is_keyed(live, schema)):
        return live
    return applied


def _merge_lists(live: list[Any], applied: list[Any], schema: Schema) -> list[Any]:
    mine = [item_element(item, schema) for item in live]
    theirs = [item_element(item, schema) for item in applied]
    live_items, applied_items = dict(zip(mine, live, strict=True)), dict(zip(theirs, applied, strict=True))
    shared = iter([element for element in theirs if element in live_items])
    next_shared = next(shared, None)
    out: list[Any] = []
    done: set[str] = set()

    def take(element: str) -> None:
        done.add(element)
        item = applied_items[element]
        out.append(merge(live_items[element], item, schema.items) if element in live_items else item)

    left = right = 0
    while left < len(mine) or right < len(theirs):
        if left < len(mine) and right < len(theirs):
            if mine[left] == theirs[right]:
                take(mine[left])
                left, right, next_shared = left + 1, right + 1, next(shared, None)
                continue
            if mine[left] in applied_items and next_shared is not None and next_shared != mine[left]:
                left += 1  # a shared item whose turn comes with a later applied one
                continue
        if left < len(mine):
            if mine[left] not in applied_items:
                out.append(live[left])
                left += 1
                continue
            if mine[left] in done:
                left += 1
        if right < len(theirs):
            element = theirs[right]
            take(element)
            right += 1
            if next_shared == element:
                next_shared = next(shared, None)
    return out


def remove(value: Any, fields: FieldSet, schema: Schema | None) -> Any:
    """The value without the paths of the set; a container that loses all its content stays, empty."""
    if not fields or not value:
        return value
    if _is_map(value, schema):
        kept_fields = {}
        for key, child in value.items():
            node = fields.get(f"f:{key}")
            if node is None:
                kept_fields[key] = child
            elif not is_member(node):
                kept_fields[key] = remove(child, node, schema.child(key) if schema is not None else None)
        return kept_fields
    if _is_keyed(value, schema):
        schema = cast("Schema", schema)
        kept_items = []
        for item in value:
            node = fields.get(item_element(item, schema))
            if node is None:
                kept_items.append(item)
            elif not is_member(node):
                kept_items.append(remove(item, node, schema.items))
        return kept_items
    return value


def with_named_fields(fields: FieldSet, schema: Schema | None) -> FieldSet:
    """The set with every field that the schema names, and that has something below it in the set, itself in it."""
    out: FieldSet = {}
    for element, node in fields.items():
        if element == SELF or not node:
            out[element] = node
            continue
        child: Schema | None = None
        named = False
        if schema is not None:
            if element[0] == "f":
                child = schema.child(element[2:])
                named = element[2:] in schema.properties
            else:
                child = schema.items
        below = with_named_fields(node, child)
        out[element] = as_member(below) if named else below
    return out
