"""Validates custom resources against their CRD's schema: types, bounds, keyed lists, and then the CEL rules."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from tidewheel.local.apimachinery import formats
from tidewheel.local.apimachinery.cel_rules import rule_errors
from tidewheel.local.apimachinery.fields import (
    FieldError,
    duplicate,
    invalid,
    not_supported,
    required,
    shown,
    too_long,
    too_many,
    wrong_type,
)
from tidewheel.local.apimachinery.fieldwalks import DuplicateItem, item_element
from tidewheel.local.apimachinery.metadata_rules import validate_metadata, validate_metadata_update
from tidewheel.local.apimachinery.schema import Schema

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tidewheel.local.apimachinery.fields import Gvk, Manifest

# Errors after which CEL rules are not evaluated, because they may rely on what is missing.
_BLOCKING: Final = frozenset(
    {
        "FieldValueNotSupported",
        "FieldValueRequired",
        "FieldValueTooLong",
        "FieldValueTooMany",
        "FieldValueTypeInvalid",
    }
)
_NOT_CHECKED: Final = FieldError(
    "<nil>",
    "FieldValueInvalid",
    "Invalid value: null: some validation rules were not checked because the object was invalid; "
    "correct the existing errors to complete validation",
)
_MISSING: Final = object()
_INT32: Final = range(-(2**31), 2**31)


def validate_custom_resource(
    obj: Manifest,
    *,
    gvk: Gvk,
    schema: Schema,
    namespaced: bool,
    old: Manifest | None = None,
    integer_paths: Iterable[tuple[str, ...]] = (),
) -> list[FieldError]:
    """Everything the API server checks in a custom resource, in its order.

    Args:
        old: the object before an update, None on create. What an update leaves as it was is not refused.
        integer_paths: where the scale subresource reads numbers, such as `("spec", "replicas")`.
    """
    if obj.get("kind") != gvk.kind:
        return [invalid("kind", obj.get("kind"), f"must be {gvk.kind}")]
    if obj.get("apiVersion") != gvk.api_version:
        return [invalid("apiVersion", obj.get("apiVersion"), f"must be {gvk.api_version}")]
    metadata = obj.get("metadata") or {}
    errors: list[FieldError] = []
    if old is None:
        errors += validate_metadata(metadata, namespaced=namespaced)
    else:
        # The registry and the strategy both check, and the real server reports both.
        errors += validate_metadata_update(metadata, old.get("metadata") or {}) * 2
        errors += [
            error
            for error in validate_metadata(metadata, namespaced=namespaced)
            if error.field not in ("metadata.name", "metadata.generateName", "metadata.namespace")
        ]
    errors += _schema_errors(obj, schema, "", _MISSING if old is None else old)
    for path in integer_paths:
        errors += _integer_errors(obj, path)
    errors += _list_errors(obj, schema, "", _MISSING if old is None else old)
    return _and_rules(errors, obj, schema, old)


def validate(obj: Manifest, schema: Schema, old: Manifest | None = None) -> list[FieldError]:
    """Check an object against a schema alone: no metadata, no kind."""
    before = _MISSING if old is None else old
    errors = [*_schema_errors(obj, schema, "", before), *_list_errors(obj, schema, "", before)]
    return _and_rules(errors, obj, schema, old)


def _and_rules(
    errors: list[FieldError], obj: Manifest, schema: Schema, old: Manifest | None
) -> list[FieldError]:
    if any(error.reason in _BLOCKING for error in errors):
        return [*errors, _NOT_CHECKED]
    return [*errors, *rule_errors(obj, schema, old)]


def _integer_errors(obj: Manifest, path: tuple[str, ...]) -> Iterator[FieldError]:
    value: Any = obj
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    where = "." + ".".join(path)
    if value is not None and type(value) is not int:
        kind = "string" if isinstance(value, str) else type(value).__name__
        yield invalid(where, 0, f"{where} accessor error: {value} is of the type {kind}, expected int64")
    elif isinstance(value, int) and value < 0:
        yield invalid(where, value, "should be a non-negative integer")


# --- schema ----------------------------------------------------------------------------------------------------------


def _schema_errors(value: Any, schema: Schema, path: str, old: Any) -> Iterator[FieldError]:
    if schema.name or (old is not _MISSING and old == value):
        return  # metadata has rules of its own; what did not change was accepted before
    if value is None:
        if not schema.nullable and schema.type:
            yield wrong_type(path, None, f'{path} in body must be of type {schema.type}: "null"')
        return
    wanted = _mismatch(value, schema)
    if wanted:
        error = wrong_type(path, value, "")
        printed = error.message.removeprefix("Invalid value: ").removesuffix(": ")
        yield FieldError(
            path, error.reason, f"{error.message}{path} in body must be of type {wanted}: {printed}"
        )
        return
    raw = schema.raw
    if "enum" in raw and not any(value == each and type(value) is type(each) for each in raw["enum"]):
        yield not_supported(path, value, raw["enum"])
    if isinstance(value, str):
        yield from _string_errors(value, raw, path)
    elif isinstance(value, bool):
        pass
    elif isinstance(value, int | float):
        yield from _number_errors(value, raw, path)
    elif isinstance(value, list):
        yield from _array_errors(value, schema, path, old)
    else:
        yield from _object_errors(value, schema, path, old)
    yield from _logic_errors(value, schema, path)


def _mismatch(value: Any, schema: Schema) -> str:
    """The type that the schema wants, when the value has another."""
    if schema.is_int_or_string:
        return "" if isinstance(value, str) or type(value) is int else "integer,string"
    match schema.type:
        case "object":
            fits = isinstance(value, dict)
        case "array":
            fits = isinstance(value, list)
        case "string":
            fits = isinstance(value, str)
        case "boolean":
            fits = isinstance(value, bool)
        case "integer":
            fits = type(value) is int or (isinstance(value, float) and value.is_integer())
        case "number":
            fits = isinstance(value, int | float) and not isinstance(value, bool)
        case _:
            fits = True
    return "" if fits else schema.type


def _string_errors(value: str, raw: Any, path: str) -> Iterator[FieldError]:
    most, least, pattern = raw.get("maxLength"), raw.get("minLength"), raw.get("pattern")
    if most is not None and len(value) > most:
        yield too_long(path, most)
    elif least is not None and len(value) < least:
        yield invalid(path, value, f"{path} in body should be at least {least} chars long")
    elif pattern and not _pattern(pattern).search(value):
        yield invalid(path, value, f"{path} in body should match '{pattern}'")
    name = raw.get("format")
    if name and not formats.has_format(value, name):
        yield invalid(path, value, f"{path} in body must be of type {name}: {shown(value)}")


def _number_errors(value: float, raw: Any, path: str) -> Iterator[FieldError]:
    most, least, step = raw.get("maximum"), raw.get("minimum"), raw.get("multipleOf")
    if raw.get("format") == "int32" and isinstance(value, int) and value not in _INT32:
        yield invalid(path, value, "Checked value must be of type integer with format int32")
    if step and value % step != 0:
        yield invalid(path, value, f"{path} in body should be a multiple of {step}")
    if most is not None:
        if raw.get("exclusiveMaximum") and value >= most:
            yield invalid(path, value, f"{path} in body should be less than {most}")
        elif value > most:
            yield invalid(path, value, f"{path} in body should be less than or equal to {most}")
    if least is not None:
        if raw.get("exclusiveMinimum") and value <= least:
            yield invalid(path, value, f"{path} in body should be greater than {least}")
        elif value < least:
            yield invalid(path, value, f"{path} in body should be greater than or equal to {least}")


def _array_errors(value: list[Any], schema: Schema, path: str, old: Any) -> Iterator[FieldError]:
    raw = schema.raw
    most, least = raw.get("maxItems"), raw.get("minItems")
    if most is not None and len(value) > most:
        yield too_many(path, len(value), most)
    if least is not None and len(value) < least:
        yield invalid(path, value, f"{path} in body should have at least {least} items")
    if schema.items is None:
        return
    before = _items_by_key(old, schema)
    for index, item in enumerate(value):
        yield from _schema_errors(
            item, schema.items, f"{path}[{index}]", before.get(_key(item, schema), _MISSING)
        )


def _object_errors(value: Manifest, schema: Schema, path: str, old: Any) -> Iterator[FieldError]:
    raw = schema.raw
    most, least = raw.get("maxProperties"), raw.get("minProperties")
    if most is not None and len(value) > most:
        yield FieldError(
            path, "FieldValueTooMany", f"Too many: {len(value)}: must have at most {most} properties"
        )
    if least is not None and len(value) < least:
        yield invalid(path, value, f"{path} in body should have at least {least} properties")
    names = (*schema.required, "apiVersion", "kind") if schema.is_embedded else schema.required
    for name in names:
        if name not in value:
            yield required(f"{path}.{name}" if path else name)
    before = old if isinstance(old, dict) else {}
    for key, child in value.items():
        known = schema.properties.get(key)
        if known is not None:
            yield from _schema_errors(
                child, known, f"{path}.{key}" if path else key, before.get(key, _MISSING)
            )
        elif schema.additional is not None:
            yield from _schema_errors(child, schema.additional, f"{path}.{key}", before.get(key, _MISSING))


def _logic_errors(value: Any, schema: Schema, path: str) -> Iterator[FieldError]:
    branches = _branches(schema)
    for keyword, schemas in branches.items():
        fitting = sum(not any(True for _ in _schema_errors(value, each, path, _MISSING)) for each in schemas)
        if keyword == "anyOf" and not fitting:
            yield invalid(path, value, f'"{path}" must validate at least one schema (anyOf)')
        elif keyword == "oneOf" and fitting != 1:
            found = "Found none valid" if not fitting else f"Found {fitting} valid alternatives"
            yield invalid(path, value, f'"{path}" must validate one and only one schema (oneOf). {found}')
        elif keyword == "allOf" and fitting != len(schemas):
            yield invalid(path, value, f'"{path}" must validate all the schemas (allOf)')
        elif keyword == "not" and fitting:
            yield invalid(path, value, f'"{path}" must not validate the schema (not)')


@cache
def _branches(schema: Schema) -> dict[str, tuple[Schema, ...]]:
    found = {
        keyword: tuple(Schema(raw) for raw in schema.raw[keyword])
        for keyword in ("allOf", "anyOf", "oneOf")
        if schema.raw.get(keyword) and not (keyword == "anyOf" and schema.is_int_or_string)
    }
    if schema.raw.get("not"):
        found["not"] = (Schema(schema.raw["not"]),)
    return found


@cache
def _pattern(source: str) -> re.Pattern[str]:
    return re.compile(go_pattern(source))


def go_pattern(source: str) -> str:
    """A pattern of Go's RE2 for Python: an unescaped `$` outside a class matches only at the very end.

    Named groups and the rest of what schemas use read the same in both.
    """
    out: list[str] = []
    in_class = False
    index = 0
    while index < len(source):
        character = source[index]
        if character == "\\" and index + 1 < len(source):
            out.append("\\Z" if source[index + 1] == "z" else source[index : index + 2])
            index += 2
            continue
        if in_class:
            in_class = character != "]"
        elif character == "[":
            in_class = True
            if source[index + 1 : index + 2] == "]":
                out.append("[\\]")
                index += 2
                continue
        out.append("\\Z" if character == "$" and not in_class else character)
        index += 1
    return "".join(out)


# --- keyed lists and sets --------------------------------------------------------------------------------------------


def _list_errors(value: Any, schema: Schema, path: str, old: Any) -> Iterator[FieldError]:
    if schema.name or (old is not _MISSING and old == value):
        return
    if isinstance(value, dict):
        before = old if isinstance(old, dict) else {}
        for key, child in value.items():
            known = schema.properties.get(key)
            if known is not None:
                yield from _list_errors(
                    child, known, f"{path}.{key}" if path else key, before.get(key, _MISSING)
                )
            elif schema.additional is not None:
                yield from _list_errors(child, schema.additional, f"{path}[{key}]", before.get(key, _MISSING))
    elif isinstance(value, list) and schema.items is not None:
        seen: set[str] = set()
        for index, item in enumerate(value):
            if schema.list_type in ("map", "set"):
                key = _key(item, schema)
                if key in seen:
                    yield duplicate(f"{path}[{index}]", _identity(item, schema))
                elif key:
                    seen.add(key)
            yield from _list_errors(item, schema.items, f"{path}[{index}]", _MISSING)


def _identity(item: Any, schema: Schema) -> Any:
    return {key: item.get(key) for key in schema.list_map_keys} if schema.list_type == "map" else item


def _key(item: Any, schema: Schema) -> str:
    try:
        return item_element(item, schema) if schema.list_type == "map" or schema.list_type == "set" else ""
    except DuplicateItem:
        return ""


def _items_by_key(old: Any, schema: Schema) -> dict[str, Any]:
    if not isinstance(old, list) or schema.list_type != "map":
        return {}
    return {_key(item, schema): item for item in old}
