"""What the API server asks of the schemas in a CRD: structural form, supported keywords, list markers, defaults, CEL that compiles."""

from __future__ import annotations

import re
from copy import deepcopy
from typing import TYPE_CHECKING, Any, Final

from tidewheel.local.apimachinery.cel_rules import UncompilableRule, compile_rule
from tidewheel.local.apimachinery.fields import FieldError, forbidden, invalid, not_supported, required
from tidewheel.local.apimachinery.pruning import unknown_paths
from tidewheel.local.apimachinery.schema import Schema
from tidewheel.local.apimachinery.validation import go_pattern, validate

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tidewheel.local.apimachinery.fields import Manifest

_TYPES: Final = ("array", "boolean", "integer", "number", "object", "string")
_UNSUPPORTED: Final = ("$ref", "definitions", "dependencies", "id", "patternProperties", "additionalItems")
_BRANCHES: Final = ("allOf", "anyOf", "oneOf")
_REASONS: Final = ("FieldValueInvalid", "FieldValueForbidden", "FieldValueRequired", "FieldValueDuplicate")
_INT_OR_STRING: Final = [{"type": "integer"}, {"type": "string"}]
_PRESERVE: Final = "x-kubernetes-preserve-unknown-fields"
_EMBEDDED: Final = "x-kubernetes-embedded-resource"
_EITHER: Final = "x-kubernetes-int-or-string"
_LIST_TYPE: Final = "x-kubernetes-list-type"
_LIST_KEYS: Final = "x-kubernetes-list-map-keys"
_MAP_TYPE: Final = "x-kubernetes-map-type"
_RULES: Final = "x-kubernetes-validations"
_LEVELS: Final = {
    "root": "at the root",
    "items": "for specified array items",
    "field": "for specified object fields",
}


def schema_errors(root: Manifest, path: str) -> list[FieldError]:
    """Everything that is wrong with a CRD's `openAPIV3Schema`; `path` is where it stands."""
    errors = list(_supported(root, path))
    if not errors:
        errors = [*_structural(root, path, "root"), *_complete(root, path)]
    if not errors:
        errors = [
            *_markers(root, path),
            *_defaults(root, path, in_metadata=False),
            *_rules(root, path, is_root=True),
        ]
    return errors


def _children(node: Mapping[str, Any], path: str) -> Iterator[tuple[Manifest, str, str]]:
    """The schemas directly below one, outside the logical keywords: schema, path, level."""
    items = node.get("items")
    if isinstance(items, dict):
        yield items, f"{path}.items", "items"
    additional = node.get("additionalProperties")
    if isinstance(additional, dict):
        yield additional, f"{path}.additionalProperties", "field"
    for name, child in (node.get("properties") or {}).items():
        yield child, f"{path}.properties[{name}]", "field"


def _branches(node: Mapping[str, Any], path: str) -> Iterator[tuple[Manifest, str]]:
    for keyword in _BRANCHES:
        for index, branch in enumerate(node.get(keyword) or ()):
            yield branch, f"{path}.{keyword}[{index}]"
    if isinstance(node.get("not"), dict):
        yield node["not"], f"{path}.not"


# --- keywords --------------------------------------------------------------------------------------------------------


def _supported(node: Manifest, path: str) -> Iterator[FieldError]:
    """Keywords and values that CRDs may not use anywhere."""
    for keyword in _UNSUPPORTED:
        if node.get(keyword):
            yield forbidden(f"{path}.{keyword}", f"{keyword} is not supported")
    if node.get("type") and node["type"] not in _TYPES:
        yield not_supported(f"{path}.type", node["type"], _TYPES)
    if node.get("uniqueItems"):
        text = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic"
        yield forbidden(f"{path}.uniqueItems", text)
    additional = node.get("additionalProperties")
    if additional is False:
        yield forbidden(f"{path}.additionalProperties", "additionalProperties cannot be set to false")
    if additional not in (None, False) and node.get("properties"):
        yield forbidden(
            f"{path}.additionalProperties", "additionalProperties and properties are mutual exclusive"
        )
    if isinstance(node.get("items"), list):
        yield forbidden(f"{path}.items", "items must be a schema object and not an array")
    if node.get("type") == "array" and node.get("items") is None:
        yield required(f"{path}.items", "must be specified")
    if node.get("pattern"):
        try:
            re.compile(go_pattern(node["pattern"]))
        except re.error:
            text = "must be a valid regular expression, but isn't"
            yield invalid(f"{path}.pattern", node["pattern"], text)
    if node.get(_PRESERVE) is False:
        yield invalid(f"{path}.{_PRESERVE}", False, "must be true or undefined")
    for child, where, _ in _children(node, path):
        yield from _supported(child, where)
    for branch, where in _branches(node, path):
        yield from _supported(branch, where)


# --- structure -------------------------------------------------------------------------------------------------------


def _structural(node: Manifest, path: str, level: str) -> Iterator[FieldError]:
    for child, where, below in _children(node, path):
        yield from _structural(child, where, below)
    kind, is_either = node.get("type", ""), bool(node.get(_EITHER))
    if is_either and kind:
        yield invalid(f"{path}.type", kind, f"must be empty if {_EITHER} is true")
    for branch, where in _branches(node, path):
        is_pattern = where.startswith(f"{path}.anyOf") and is_either and node["anyOf"] == _INT_OR_STRING
        is_nested_pattern = (
            where == f"{path}.allOf[0]" and is_either and branch.get("anyOf") == _INT_OR_STRING
        )
        if not is_pattern and not is_nested_pattern:
            yield from _value_only(branch, where)
    if node.get(_EMBEDDED):
        yield from _embedded(node, path)
    elif not kind and not is_either and not node.get(_PRESERVE):
        yield required(f"{path}.type", f"must not be empty {_LEVELS[level]}")
    if level == "root" and kind not in ("", "object"):
        yield invalid(f"{path}.type", kind, "must be object at the root")
    if level == "root" or node.get(_EMBEDDED):
        metadata = (node.get("properties") or {}).get("metadata")
        if metadata is not None:
            yield from _metadata(metadata, f"{path}.properties[metadata]")


def _embedded(node: Manifest, path: str) -> Iterator[FieldError]:
    kind = node.get("type", "")
    if not kind:
        yield required(f"{path}.type", f"must be object if {_EMBEDDED} is true")
    elif kind != "object":
        yield invalid(f"{path}.type", kind, f"must be object if {_EMBEDDED} is true")
    if node.get("additionalProperties"):
        yield forbidden(f"{path}.additionalProperties", f"must not be used if {_EMBEDDED} is set")
    if not node.get("properties") and not node.get(_PRESERVE):
        yield required(f"{path}.properties", f"must not be empty if {_EMBEDDED} is true without {_PRESERVE}")


def _metadata(metadata: Manifest, path: str) -> Iterator[FieldError]:
    text = "must not specify anything other than name and generateName, but metadata is implicitly specified"
    if (
        metadata.keys() - {"type", "properties", "description"}
        or metadata.get("type", "object") != "object"
        or (metadata.get("properties") or {}).keys() - {"name", "generateName"}
    ):
        yield forbidden(path, text)


def _value_only(branch: Manifest, path: str) -> Iterator[FieldError]:
    """A schema inside a logical keyword may restrict values, but not describe the structure."""
    if isinstance(branch.get("items"), dict):
        yield from _value_only(branch["items"], f"{path}.items")
    for name, child in (branch.get("properties") or {}).items():
        yield from _value_only(child, f"{path}.properties[{name}]")
    for inner, where in _branches(branch, path):
        yield from _value_only(inner, where)
    for keyword in ("type", "title", "description"):
        if branch.get(keyword):
            yield forbidden(f"{path}.{keyword}", "must be empty to be structural")
    for keyword in ("default", "additionalProperties"):
        if branch.get(keyword) is not None:
            yield forbidden(f"{path}.{keyword}", "must be undefined to be structural")
    for keyword in ("nullable", _PRESERVE, _EMBEDDED, _EITHER):
        if branch.get(keyword):
            yield forbidden(f"{path}.{keyword}", "must be false to be structural")
    for keyword in (_LIST_TYPE, _LIST_KEYS, _MAP_TYPE, _RULES):
        if branch.get(keyword):
            yield forbidden(f"{path}.{keyword}", "must be undefined to be structural")


def _complete(node: Manifest, path: str) -> Iterator[FieldError]:
    """What a logical keyword speaks of must also be specified outside it."""
    for branch, where in _branches(node, path):
        yield from _specified(branch, where, node, path)
    for child, where, _ in _children(node, path):
        yield from _complete(child, where)


def _specified(branch: Manifest, where: str, node: Manifest, path: str) -> Iterator[FieldError]:
    if node.get(_PRESERVE):
        return
    if branch.get("items") is not None:
        if not isinstance(node.get("items"), dict):
            yield required(f"{path}.items", f"because it is defined in {where}.items")
        else:
            yield from _specified(branch["items"], f"{where}.items", node["items"], f"{path}.items")
    for name, child in (branch.get("properties") or {}).items():
        outer = (node.get("properties") or {}).get(name)
        if outer is None:
            text = f"because it is defined in {where}.properties[{name}]"
            yield required(f"{path}.properties[{name}]", text)
        else:
            yield from _specified(child, f"{where}.properties[{name}]", outer, f"{path}.properties[{name}]")
    for inner, deeper in _branches(branch, where):
        yield from _specified(inner, deeper, node, path)


# --- list and map markers --------------------------------------------------------------------------------------------


def _markers(node: Manifest, path: str) -> Iterator[FieldError]:
    kind, list_type, keys = node.get("type", ""), node.get(_LIST_TYPE), node.get(_LIST_KEYS) or ()
    if node.get(_MAP_TYPE):
        if node[_MAP_TYPE] not in ("granular", "atomic"):
            yield not_supported(f"{path}.{_MAP_TYPE}", node[_MAP_TYPE], ("atomic", "granular"))
        if kind != "object":
            yield invalid(f"{path}.type", kind, f"must be object if {_MAP_TYPE} is specified")
    if list_type:
        if list_type not in ("atomic", "map", "set"):
            yield not_supported(f"{path}.{_LIST_TYPE}", list_type, ("atomic", "map", "set"))
        if kind != "array":
            yield invalid(f"{path}.type", kind, f"must be array if {_LIST_TYPE} is specified")
    if keys and list_type != "map":
        yield invalid(f"{path}.{_LIST_TYPE}", list_type or "", f"must be map if {_LIST_KEYS} is non-empty")
    items: Manifest = node.get("items") or {}
    if list_type == "map":
        yield from _keyed(node, items, path)
    elif list_type == "set":
        yield from _set(items, f"{path}.items")
    for child, where, _ in _children(node, path):
        yield from _markers(child, where)


def _keyed(node: Manifest, items: Manifest, path: str) -> Iterator[FieldError]:
    keys = node.get(_LIST_KEYS) or ()
    if not keys:
        yield required(f"{path}.{_LIST_KEYS}", f"must not be empty if {_LIST_TYPE} is map")
    if items.get("type") != "object":
        text = f"must be object if parent array's {_LIST_TYPE} is map"
        yield invalid(f"{path}.items.type", items.get("type", ""), text)
    for index, key in enumerate(keys):
        prop = (items.get("properties") or {}).get(key)
        if prop is None:
            text = "entries must all be names of item properties"
            yield invalid(f"{path}.{_LIST_KEYS}[{index}]", key, text)
            continue
        where = f"{path}.items.properties[{key}]"
        if prop.get("type") in ("array", "object"):
            yield invalid(
                f"{where}.type", prop["type"], f"must be a scalar type if parent array's {_LIST_TYPE} is map"
            )
        if "default" not in prop and key not in (items.get("required") or ()):
            text = f"this property is in {_LIST_KEYS}, so it must have a default or be a required property"
            yield required(f"{where}.default", text)
        if prop.get("nullable"):
            yield forbidden(
                f"{where}.nullable", f"this property is in {_LIST_KEYS}, so it cannot be nullable"
            )
    if len(set(keys)) != len(keys):
        yield invalid(f"{path}.{_LIST_KEYS}", list(keys), "must not contain duplicate entries")


def _set(items: Manifest, path: str) -> Iterator[FieldError]:
    kind = items.get("type")
    if items.get("nullable"):
        yield forbidden(f"{path}.nullable", f"cannot be nullable when {_LIST_TYPE} is set")
    if kind == "array" and items.get(_LIST_TYPE, "atomic") != "atomic":
        yield invalid(
            f"{path}.{_LIST_TYPE}", items[_LIST_TYPE], "must be atomic as item of a list with set type"
        )
    if kind == "object" and items.get(_MAP_TYPE) != "atomic":
        yield invalid(
            f"{path}.{_MAP_TYPE}", items.get(_MAP_TYPE), "must be atomic as item of a list with set type"
        )


# --- defaults --------------------------------------------------------------------------------------------------------


def _defaults(node: Manifest, path: str, *, in_metadata: bool) -> Iterator[FieldError]:
    if "default" in node:
        yield from _default(node, f"{path}.default", in_metadata=in_metadata)
    for child, where, _ in _children(node, path):
        below = in_metadata or (path.endswith("openAPIV3Schema") and where.endswith(".properties[metadata]"))
        yield from _defaults(child, where, in_metadata=below)


def _default(node: Manifest, path: str, *, in_metadata: bool) -> Iterator[FieldError]:
    if in_metadata:
        yield forbidden(path, "must not be set in metadata")
        return
    schema, value = Schema(node), node["default"]
    if isinstance(value, dict):
        unknown = unknown_paths(deepcopy(value), schema)
        if unknown:
            yield invalid(path, value, f"must not have unknown fields: {', '.join(unknown)}")
            return
    holder = Schema({"type": "object", "properties": {"value": node}})
    for error in validate({"value": value}, holder):
        if error.field.startswith("value"):
            where = path + error.field.removeprefix("value")
            yield FieldError(where, error.reason, error.message.replace("value in body", "default in body"))


# --- CEL -------------------------------------------------------------------------------------------------------------


def _rules(
    node: Manifest, path: str, *, is_root: bool = False, is_correlatable: bool = True
) -> Iterator[FieldError]:
    schema = _with_type_meta(node) if is_root else Schema(node)
    for index, raw in enumerate(node.get(_RULES) or ()):
        where = f"{path}.{_RULES}[{index}]"
        if not (raw.get("rule") or "").strip():
            yield required(f"{where}.rule", "rule is not specified")
            continue
        if "\n" in raw["rule"].strip() and not raw.get("message"):
            yield required(f"{where}.message", "message must be specified if rule contains line breaks")
        if "\n" in (raw.get("message") or ""):
            yield invalid(f"{where}.message", raw["message"], "message must not contain line breaks")
        if raw.get("reason") and raw["reason"] not in _REASONS:
            yield not_supported(f"{where}.reason", raw["reason"], _REASONS)
        if raw.get("fieldPath"):
            yield from _field_path(raw["fieldPath"], node, f"{where}.fieldPath")
        if not node.get("type") and not node.get(_EITHER):
            yield invalid(f"{where}.rule", raw["rule"], "rules need a type to be declared")
            continue
        try:
            rule = compile_rule(raw, schema)
        except UncompilableRule as error:
            yield invalid(f"{where}.rule", raw["rule"], str(error))
            continue
        if raw.get("optionalOldSelf") is not None and not rule.uses_old:
            text = "may not be set if oldSelf is not used in rule"
            yield invalid(f"{where}.optionalOldSelf", raw["optionalOldSelf"], text)
        elif rule.uses_old and not is_correlatable:
            text = "oldSelf cannot be used on the uncorrelatable portion of the schema"
            yield invalid(f"{where}.rule", raw["rule"], text)
    for child, where, level in _children(node, path):
        # Items can be told apart between two versions of an object only in keyed lists.
        below = is_correlatable and (level != "items" or node.get(_LIST_TYPE) == "map")
        yield from _rules(child, where, is_correlatable=below)


def _field_path(field: str, node: Manifest, path: str) -> Iterator[FieldError]:
    here: Any = node
    for name in re.findall(r"\.([A-Za-z_]\w*)|\['([^']*)'\]", field):
        properties = here.get("properties") or {}
        key = name[0] or name[1]
        here = properties.get(key) or here.get("additionalProperties")
        if not isinstance(here, dict):
            yield invalid(
                path, field, f"fieldPath must be a valid path: does not refer to a valid field: {key}"
            )
            return
    if not re.fullmatch(r"(\.[A-Za-z_]\w*|\['[^']*'\])+", field):
        yield invalid(path, field, "fieldPath must be a valid path")


def _with_type_meta(node: Manifest) -> Schema:
    text = {"type": "string"}
    properties = dict(node.get("properties") or {})
    properties.update(apiVersion=text, kind=text)
    properties["metadata"] = {"type": "object", "properties": {"name": text, "generateName": text}}
    return Schema({**node, "properties": properties})
