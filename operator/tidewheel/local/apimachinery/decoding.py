"""Reads built-in objects as Go would: wrong types are refused, unset fields are dropped or printed as their empty value."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Final

from tidewheel.local.apimachinery import go_types
from tidewheel.local.apimachinery.defaulting import apply_defaults
from tidewheel.local.apimachinery.fields import BadRequest, Gvk, Manifest
from tidewheel.local.apimachinery.pruning import prune
from tidewheel.local.apimachinery.quantities import MalformedQuantity, canonical
from tidewheel.local.apimachinery.schema import Schema, builtin_schema

if TYPE_CHECKING:
    from collections.abc import Mapping

_SECONDS: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_MICROSECONDS: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
_FRACTION: Final = re.compile(r"\.(\d+)")
# Holds the schemas of a CRD: a single one, a list of them, or a boolean.
_NESTED_SCHEMAS: Final = frozenset(
    {"JSONSchemaPropsOrBool", "JSONSchemaPropsOrArray", "JSONSchemaPropsOrStringArray"}
)

# A reader takes a value, the name of the struct it stands in and its path, and gives the value as Go would print it.
_Reader = Callable[[Any, str, str], Any]


class _Malformed(ValueError):
    """A value that Go cannot read; the text is Go's complaint."""


def decode_builtin(obj: Manifest, gvk: Gvk) -> None:
    """Make an object of a built-in kind what Go would print after reading it.

    Raises:
        BadRequest: a field has the wrong type, or the kind is not known.
    """
    schema = builtin_schema(gvk.group, gvk.version, gvk.kind)
    if schema is None:
        raise BadRequest(f'no kind "{gvk.kind}" is registered for version "{gvk.api_version}"')
    _read(obj, schema, gvk)
    obj.setdefault("metadata", {})
    if gvk.kind == "Secret" and not gvk.group and "stringData" in obj:
        written = {
            key: base64.b64encode(text.encode()).decode() for key, text in obj.pop("stringData").items()
        }
        obj["data"] = {**obj.get("data", {}), **written}


def decode_custom(obj: Manifest, gvk: Gvk, schema: Schema) -> None:
    """Make a custom resource what the API server stores: metadata read as Go would, unknown fields pruned, defaults set.

    Raises:
        BadRequest: a field of the metadata has the wrong type.
    """
    metadata = obj.get("metadata")
    if metadata is not None:
        obj["metadata"] = decode_metadata(metadata, gvk)
    else:
        obj.pop("metadata", None)
    prune(obj, schema)
    apply_defaults(obj, schema)


def decode_metadata(metadata: Any, gvk: Gvk) -> Manifest:
    """The metadata as Go would print it after reading it.

    Raises:
        BadRequest: a field has the wrong type.
    """
    holder = {"metadata": metadata}
    _read(holder, _METADATA_HOLDER, gvk)
    decoded: Manifest = holder["metadata"]
    return decoded


@cache
def _empty(gvk: Gvk) -> Manifest:
    schema = builtin_schema(gvk.group, gvk.version, gvk.kind)
    return {} if schema is None else {"metadata": {}, **_zero_struct(schema)}


def empty_object(gvk: Gvk) -> Manifest:
    """An object of a built-in kind with nothing set, as Go prints it; do not change it.

    It is what a created object is compared with to tell which fields its manager set.
    """
    return _empty(gvk)


def _read(obj: Manifest, schema: Schema, gvk: Gvk) -> None:
    try:
        _struct_reader(schema)(obj, gvk.kind, "")
    except _Malformed as malformed:
        raise BadRequest(
            f'{gvk.kind} in version "{gvk.version}" cannot be handled as a {gvk.kind}: {malformed}'
        ) from malformed


def _kind_of(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "number"
    if isinstance(value, float):
        return f"number {value!r}"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list) else "object"


def _mismatch(value: Any, struct: str, path: str, go_type: str) -> _Malformed:
    return _Malformed(
        f"json: cannot unmarshal {_kind_of(value)} into Go struct field {struct}.{path} of type {go_type}"
    )


@cache
def _struct_reader(schema: Schema) -> _Reader:
    name = schema.name
    readers: dict[str, tuple[_Reader, bool]] | None = None
    printed: list[tuple[str, Callable[[], Any]]] = []

    def prepare() -> dict[str, tuple[_Reader, bool]]:
        # Deferred, because a struct may hold itself.
        made = {
            key: (_reader(prop), _is_omitted_when_empty(schema, key, prop))
            for key, prop in schema.properties.items()
        }
        printed.extend(_printed_fields(schema))
        return made

    def read(value: Any, struct: str, path: str) -> Any:
        nonlocal readers
        if readers is None:
            readers = prepare()
        if not isinstance(value, dict):
            raise _mismatch(value, struct, path, f"v1.{name}")
        doomed: list[str] = []
        here = name or struct
        for key, child in value.items():
            known = readers.get(key)
            if known is None or child is None:
                doomed.append(key)
                continue
            reader, omitted_when_empty = known
            child = reader(child, here, f"{path}.{key}" if path else key)
            if omitted_when_empty and not child:
                doomed.append(key)
            else:
                value[key] = child
        for key in doomed:
            del value[key]
        for key, empty in printed:
            if key not in value:
                value[key] = empty()
        return value

    return read


def _is_omitted_when_empty(schema: Schema, key: str, prop: Schema) -> bool:
    if key in schema.required:
        return False
    if prop.type == "array" or (prop.type == "object" and prop.additional is not None):
        return True
    if prop.type == "string":
        only_here = go_types.POINTER_STRINGS_IN.get(schema.name, ())
        return key not in go_types.POINTER_STRINGS and key not in only_here
    if prop.type == "integer":
        return key in go_types.VALUE_INTEGERS and schema.name not in go_types.INTEGER_POINTERS.get(key, ())
    return prop.type == "boolean" and key in go_types.VALUE_BOOLEANS


def _printed_fields(schema: Schema) -> list[tuple[str, Callable[[], Any]]]:
    """The fields that Go prints even when they are not set, each with its empty value."""

    def listed(table: Mapping[str, tuple[str, ...]]) -> list[str]:
        return [key for key in table.get(schema.name, ()) if key in schema.properties]

    fields: dict[str, Callable[[], Any]] = {}
    for key in schema.required:
        fields[key] = _zero(schema.properties[key])
    for key in listed(go_types.PRINTED_STRUCTS):
        fields[key] = partial(_zero_struct, schema.properties[key])
    for key in listed(go_types.PRINTED_NULLS):
        fields[key] = lambda: None
    for key in listed(go_types.PRINTED_TEXTS):
        fields[key] = str
    return list(fields.items())


def _zero(schema: Schema) -> Callable[[], Any]:
    if schema.is_quantity:
        return lambda: "0"
    if schema.is_int_or_string:
        return lambda: 0
    if (
        schema.name in ("Time", "MicroTime")
        or schema.name in go_types.POINTER_STRUCTS
        or schema.preserves_unknown
    ):
        return lambda: None
    match schema.type:
        case "string" if schema.raw.get("format") != "byte":
            return str
        case "integer" | "number":
            return int
        case "boolean":
            return bool
        case "object" if schema.additional is None:
            return partial(_zero_struct, schema)
    return lambda: None


def _zero_struct(schema: Schema) -> Manifest:
    zero: Manifest = _struct_reader(schema)({}, schema.name, "")
    return zero


def _reader(schema: Schema) -> _Reader:
    if schema.name in _NESTED_SCHEMAS:
        return _nested_schema
    if schema.preserves_unknown:
        return _anything
    if schema.is_quantity:
        return _quantity
    if schema.is_int_or_string:
        return _int_or_string
    if schema.name == "Time":
        return _time
    if schema.name == "MicroTime":
        return _micro_time
    match schema.type:
        case "string":
            return _bytes if schema.raw.get("format") == "byte" else _string
        case "integer":
            return _integer if schema.raw.get("format") != "int32" else _int32
        case "number":
            return _number
        case "boolean":
            return _boolean
        case "array":
            return _list_reader(schema)
        case "object" if schema.additional is not None:
            return _map_reader(schema.additional)
        case "object":
            return _struct_reader(schema)
    return _anything


def _list_reader(schema: Schema) -> _Reader:
    if schema.items is None:
        return _anything
    reader = _reader(schema.items)
    name = schema.items.name or schema.items.type

    def read(value: Any, struct: str, path: str) -> Any:
        if not isinstance(value, list):
            raise _mismatch(value, struct, path, f"[]{'v1.' if name[:1].isupper() else ''}{name}")
        for index, item in enumerate(value):
            if item is not None:
                value[index] = reader(item, struct, path)
        return value

    return read


def _map_reader(additional: Schema) -> _Reader:
    reader = _reader(additional)
    name = additional.name or additional.type

    def read(value: Any, struct: str, path: str) -> Any:
        if not isinstance(value, dict):
            raise _mismatch(value, struct, path, f"map[string]{name}")
        for key, item in value.items():
            value[key] = "" if item is None and additional.type == "string" else reader(item, struct, path)
        return value

    return read


def _anything(value: Any, _struct: str, _path: str) -> Any:
    return value


def _string(value: Any, struct: str, path: str) -> Any:
    if isinstance(value, str):
        return value
    raise _mismatch(value, struct, path, "string")


def _integer(value: Any, struct: str, path: str) -> Any:
    if type(value) is int:
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    raise _mismatch(value, struct, path, "int64")


def _int32(value: Any, struct: str, path: str) -> Any:
    if type(value) is int and -(2**31) <= value < 2**31:
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if type(value) is int:
        raise _Malformed(
            f"json: cannot unmarshal number {value} into Go struct field {struct}.{path} of type int32"
        )
    raise _mismatch(value, struct, path, "int32")


def _number(value: Any, struct: str, path: str) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    raise _mismatch(value, struct, path, "float64")


def _boolean(value: Any, struct: str, path: str) -> Any:
    if isinstance(value, bool):
        return value
    raise _mismatch(value, struct, path, "bool")


def _quantity(value: Any, struct: str, path: str) -> Any:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise _mismatch(value, struct, path, "resource.Quantity")
    try:
        return canonical(str(value))
    except MalformedQuantity as malformed:
        raise _Malformed(f"{malformed} ({struct}.{path} is {value!r})") from malformed


def _int_or_string(value: Any, struct: str, path: str) -> Any:
    if isinstance(value, str) or type(value) is int:
        return value
    raise _mismatch(value, struct, path, "int32")


def _bytes(value: Any, struct: str, path: str) -> Any:
    if not isinstance(value, str):
        raise _mismatch(value, struct, path, "[]uint8")
    try:
        base64.b64decode(value, validate=True)
    except binascii.Error as error:
        raise _Malformed(f"illegal base64 data in {struct}.{path}") from error
    return value


def _time(value: Any, struct: str, path: str) -> Any:
    if isinstance(value, str) and _SECONDS.fullmatch(value):
        return value
    return _instant(value, struct, path).strftime("%Y-%m-%dT%H:%M:%SZ")


def _micro_time(value: Any, struct: str, path: str) -> Any:
    if isinstance(value, str) and _MICROSECONDS.fullmatch(value):
        return value
    return _instant(value, struct, path).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _instant(value: Any, struct: str, path: str) -> datetime:
    if not isinstance(value, str):
        raise _mismatch(value, struct, path, "v1.Time")
    instant: datetime | None = None
    with suppress(ValueError):
        # Go reads nanoseconds, Python microseconds.
        instant = datetime.fromisoformat(_FRACTION.sub(lambda found: f".{found[1][:6]:0<6}", value))
    if instant is None or instant.tzinfo is None or "T" not in value:
        raise _Malformed(
            f'parsing time "{value}" as "2006-01-02T15:04:05Z07:00": cannot parse it ({struct}.{path})'
        )
    return instant.astimezone(UTC)


def _nested_schema(value: Any, struct: str, path: str) -> Any:
    if isinstance(value, dict):
        return _struct_reader(_schema_props())(value, struct, path)
    if isinstance(value, list):
        return [_nested_schema(item, struct, path) for item in value]
    return value


def _schema_props() -> Schema:
    crd = builtin_schema("apiextensions.k8s.io", "v1", "CustomResourceDefinition")
    assert crd is not None  # noqa: S101 - the definitions ship with the library
    versions = crd.properties["spec"].properties["versions"].items
    assert versions is not None  # noqa: S101
    return versions.properties["schema"].properties["openAPIV3Schema"]


def _metadata_holder() -> Schema:
    raw: Mapping[str, Any] = {
        "type": "object",
        "properties": {"metadata": {"$ref": "#/$defs/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"}},
    }
    return Schema(raw, "ObjectMeta")


_METADATA_HOLDER: Final = _metadata_holder()
