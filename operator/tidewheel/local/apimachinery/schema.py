"""One read-only view of OpenAPI nodes, so that custom and built-in kinds are walked by the same code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Final

_REF: Final = "#/$defs/"
_DEFINITIONS: Final = "kubernetes-json-schema/v1.36.0-local/_definitions.json"
_OBJECT_META: Final = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
_SCHEMA_PROPS: Final = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps"
# Definitions without properties that hold whatever JSON they are given.
_FREE_FORM: Final = frozenset({"RawExtension", "FieldsV1", "JSON", "Patch"})
# Definitions that hold a schema, or sometimes something simpler: a boolean or a list.
_SCHEMA_OR: Final = frozenset(
    {"JSONSchemaPropsOrArray", "JSONSchemaPropsOrBool", "JSONSchemaPropsOrStringArray"}
)
# The published OpenAPI leaves defaults out, but keyed lists need those of their keys to name an item that omits one.
_KEY_DEFAULTS: Final = {"protocol": "TCP"}


class Schema:
    """A node of an OpenAPI schema; children are made on first use and kept, so one `Schema` serves every object of a kind.

    Attributes:
        raw: the node as it was written, after `$ref` was followed.
        name: the short name of the definition that a `$ref` led to (`PodSpec`), or the empty string.
        type: `object`, `array`, `string`, `integer`, `number`, `boolean`, or the empty string when any type is allowed.
        nullable: whether `null` is a value here.
        required: names of the properties that must be given.
        additional: schema of properties that are not listed, or None when there is none.
        list_type: `atomic`, `set` or `map`; lists without a mark are atomic.
        list_map_keys: names of the properties that identify an item of a `map` list.
        is_atomic: whether a list or a map changes owner only as a whole.
        merge_key: key of a strategic merge patch, or the empty string.
        merge_strategy: strategies of a strategic merge patch (`merge`, `retainKeys`, `replace`).
        preserves_unknown: whether fields that are not listed stay.
        is_embedded: whether the value is a whole Kubernetes object.
        is_int_or_string: whether integers and strings are both allowed.
        is_quantity: whether the value is a Kubernetes quantity.
        has_default, default: the default of the schema.
    """

    def __init__(self, raw: Mapping[str, Any], name: str = "") -> None:
        self.raw = raw
        self.name = name
        declared = raw.get("type", "")
        self.nullable: bool = bool(raw.get("nullable", False))
        if isinstance(declared, list):
            self.nullable = "null" in declared
            declared = next((each for each in declared if each != "null"), "")
        self.type: str = declared
        self.required: tuple[str, ...] = tuple(raw.get("required") or ())
        self.list_type: str = raw.get("x-kubernetes-list-type") or "atomic"
        self.list_map_keys: tuple[str, ...] = tuple(sorted(raw.get("x-kubernetes-list-map-keys") or ()))
        self.merge_key: str = raw.get("x-kubernetes-patch-merge-key", "")
        self.merge_strategy: frozenset[str] = frozenset(
            filter(None, raw.get("x-kubernetes-patch-strategy", "").split(","))
        )
        self.is_embedded: bool = bool(raw.get("x-kubernetes-embedded-resource", False))
        self.preserves_unknown: bool = bool(raw.get("x-kubernetes-preserve-unknown-fields", False)) or (
            name in _FREE_FORM
        )
        self.is_quantity: bool = name == "Quantity"
        self.is_int_or_string: bool = name == "IntOrString" or bool(
            raw.get("x-kubernetes-int-or-string", False)
        )
        self.is_atomic: bool = (
            self.list_type == "atomic"
            if self.type == "array"
            else raw.get("x-kubernetes-map-type") == "atomic" or name in _FREE_FORM
        )
        self.has_default: bool = "default" in raw
        self.default: Any = raw.get("default")

    def __repr__(self) -> str:
        return f"Schema({self.name or self.type or 'any'})"

    @cached_property
    def properties(self) -> dict[str, Schema]:
        """The listed properties."""
        listed = {name: _node(raw) for name, raw in (self.raw.get("properties") or {}).items()}
        if self.is_embedded:
            listed = {**_type_meta(), **listed, "metadata": definition("ObjectMeta", _OBJECT_META)}
        return listed

    @cached_property
    def items(self) -> Schema | None:
        """The schema of a list's items."""
        raw = self.raw.get("items")
        return _node(raw) if raw else None

    @cached_property
    def additional(self) -> Schema | None:
        """The schema of properties that are not listed; None when there is none."""
        raw = self.raw.get("additionalProperties")
        if raw is True:
            return _ANYTHING
        return _node(raw) if raw else None

    @cached_property
    def key_defaults(self) -> dict[str, Any]:
        """Defaults of the properties that identify an item of a `map` list."""
        if self.items is None:
            return {}
        found: dict[str, Any] = {}
        for key in self.list_map_keys:
            prop = self.items.properties.get(key)
            if prop is not None and prop.has_default:
                found[key] = prop.default
            elif self.items.name and key in _KEY_DEFAULTS:
                found[key] = _KEY_DEFAULTS[key]
        return found

    def child(self, key: str) -> Schema | None:
        """The schema of the property `key`: listed, or that of additional properties, or None for an unknown one."""
        return self.properties.get(key) or self.additional


def builtin_schema(group: str, version: str, kind: str) -> Schema | None:
    """The schema of a built-in kind of Kubernetes 1.36, or None when it knows no such kind."""
    name = _kinds().get((group, version, kind))
    return definition(name.rpartition(".")[2], name) if name else None


def crd_schema(open_api_v3_schema: Mapping[str, Any]) -> Schema:
    """The schema of a custom resource, with `apiVersion`, `kind` and the full `metadata` added."""
    schema = Schema(open_api_v3_schema)
    schema.properties.update(_type_meta())
    schema.properties["metadata"] = definition("ObjectMeta", _OBJECT_META)
    return schema


def builtin_definitions() -> Mapping[str, Any]:
    """The OpenAPI definitions of Kubernetes 1.36, by their full name."""
    return _definitions()


@cache
def definition(short: str, full: str) -> Schema:
    """The schema of one definition by its full name; every reference to it shares one `Schema`."""
    return Schema(_definitions()[full], short)


@cache
def _definitions() -> dict[str, Any]:
    import kubernetes_validate  # loaded on first use: 1.6 MB that a program without built-in kinds does not need

    text = Path(kubernetes_validate.__file__).with_name(_DEFINITIONS.partition("/")[0])
    loaded: dict[str, Any] = json.loads((text / _DEFINITIONS.partition("/")[2]).read_bytes())
    return loaded["$defs"]  # type: ignore[no-any-return]


@cache
def _kinds() -> dict[tuple[str, str, str], str]:
    kinds: dict[tuple[str, str, str], str] = {}
    for name, raw in _definitions().items():
        for gvk in raw.get("x-kubernetes-group-version-kind", ()):
            kinds[gvk["group"], gvk["version"], gvk["kind"]] = name
    return kinds


def _node(raw: Mapping[str, Any]) -> Schema:
    reference = raw.get("$ref")
    if not reference:
        return Schema(raw)
    full = reference.removeprefix(_REF)
    short = full.rpartition(".")[2]
    if short in _SCHEMA_OR:
        return Schema(_definitions()[_SCHEMA_PROPS], short)
    if raw.keys() <= {"$ref", "description"}:
        return definition(short, full)
    return Schema({**_definitions()[full], **raw}, short)


def _type_meta() -> dict[str, Schema]:
    return {"apiVersion": _TEXT, "kind": _TEXT}


_TEXT: Final = Schema({"type": "string"})
_ANYTHING: Final = Schema({"nullable": True, "x-kubernetes-preserve-unknown-fields": True})
