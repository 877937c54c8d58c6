"""CRDs from the API models: structural schemas, fail loudly on anything the API server would refuse."""

from __future__ import annotations

from typing import Any

from tidewheel.api.manifest import Manifest
from tidewheel.api.model import QUANTITY_PATTERN, ApiModel, CustomResource
from tidewheel.api.pdservice import PDService
from tidewheel.api.scaler import PDServiceScaler

KINDS: tuple[type[CustomResource], ...] = (PDService, PDServiceScaler)

_DROPPED = frozenset({"title", "examples", "deprecated"})
_KEPT = frozenset(
    {
        "type",
        "format",
        "description",
        "enum",
        "pattern",
        "minimum",
        "maximum",
        "minLength",
        "maxLength",
        "minItems",
        "maxItems",
        "minProperties",
        "maxProperties",
        "x-kubernetes-list-type",
        "x-kubernetes-list-map-keys",
    }
)


class NotStructural(TypeError):
    """A model says something a structural schema cannot; the message names the field."""


def all_crds() -> list[Manifest]:
    """The CRD of every kind."""
    return [crd_of(kind) for kind in KINDS]


def crd_of(kind: type[CustomResource]) -> Manifest:
    """The CustomResourceDefinition of one kind.

    Raises:
        NotStructural: a field's type has no structural form (a union, a tuple of unlike items, recursion).
    """
    name = kind.__name__
    version: Manifest = {
        "name": kind.version,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": schema_of(kind)},
        "subresources": {"status": {}},
        "additionalPrinterColumns": [column.to_schema() for column in kind.printer_columns],
    }
    if kind.scale is not None:
        version["subresources"]["scale"] = {
            "specReplicasPath": kind.scale.spec_replicas_path,
            "statusReplicasPath": kind.scale.status_replicas_path,
            "labelSelectorPath": kind.scale.label_selector_path,
        }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{kind.plural}.{kind.group}",
            "labels": {"app.kubernetes.io/name": "tidewheel", "app.kubernetes.io/part-of": "tidewheel"},
        },
        "spec": {
            "group": kind.group,
            "scope": "Namespaced",
            "names": {
                "kind": name,
                "listKind": f"{name}List",
                "plural": kind.plural,
                "singular": name.lower(),
                "shortNames": list(kind.short_names),
                "categories": list(kind.categories),
            },
            "versions": [version],
        },
    }


def schema_of(kind: type[CustomResource]) -> dict[str, Any]:
    """The structural OpenAPI schema of a kind, with its rules and defaults."""
    source = kind.model_json_schema(by_alias=True, mode="validation")
    definitions = source.get("$defs", {})
    models = _models_by_name(kind)
    schema = _Structural(definitions, models).convert(source, kind.__name__, ())
    envelope = {
        "apiVersion": {"type": "string", "description": "apiVersion is the version of this object's schema."},
        "kind": {"type": "string", "description": f"kind is {kind.__name__}."},
        "metadata": {"type": "object"},
    }
    schema["properties"] = envelope | schema["properties"]
    _add_rules(schema, kind)
    return schema


class _Structural:
    """Rewrites pydantic's JSON schema, inlining references."""

    def __init__(self, definitions: dict[str, Any], models: dict[str, type[ApiModel]]) -> None:
        self._definitions = definitions
        self._models = models

    def convert(self, node: dict[str, Any], path: str, inside: tuple[str, ...]) -> dict[str, Any]:
        node = dict(node)
        if (reference := node.pop("$ref", None)) is not None:
            name = reference.removeprefix("#/$defs/")
            if name in inside:
                raise NotStructural(f"{path}: {name} contains itself")
            schema = self.convert({**self._definitions[name], **node}, path, (*inside, name))
            if (model := self._models.get(name)) is not None:
                _add_rules(schema, model)
            return schema
        if "anyOf" in node:
            return self._convert_union(node, path, inside)
        if "const" in node:
            node["enum"] = [node.pop("const")]
        if "type" not in node and "enum" in node:
            node["type"] = "string" if isinstance(node["enum"][0], str) else "integer"
        match node.get("type"):
            case "object":
                schema = self._convert_object(node, path, inside)
            case "array":
                schema = self._convert_array(node, path, inside)
            case "string" | "boolean":
                schema = _keep(node, path)
            case "integer":
                schema = {"format": "int64" if _is_long(node) else "int32"} | _keep(node, path)
            case other:
                raise NotStructural(
                    f"{path}: type {other!r} has no place in an API (floats and unions do not)"
                )
        # The API server checks a default against the rules before it fills in the defaults inside it,
        # so an object's default is written out.
        if (default := _without_unset(node.get("default"))) not in (None, {}, []):
            schema["default"] = default
        return schema

    def _convert_union(self, node: dict[str, Any], path: str, inside: tuple[str, ...]) -> dict[str, Any]:
        members = [member for member in node.pop("anyOf") if member.get("type") != "null"]
        if node.get("default", ...) is None:
            del node["default"]
        if len(members) == 1:
            return self.convert({**members[0], **node}, path, inside)
        if [member.get("type") for member in members] == ["integer", "string"] and node.pop(
            "x-tidewheel-quantity", False
        ):
            return {
                "anyOf": [{"type": "integer"}, {"type": "string"}],
                "pattern": QUANTITY_PATTERN,
                "x-kubernetes-int-or-string": True,
                **_keep(node, path),
            }
        raise NotStructural(
            f"{path}: a union has no structural form; make its members optional fields of an object"
        )

    def _convert_object(self, node: dict[str, Any], path: str, inside: tuple[str, ...]) -> dict[str, Any]:
        schema = {key: value for key, value in node.items() if key in _KEPT}
        if "maxProperties" not in schema and "maxLength" in schema:
            schema["maxProperties"] = schema.pop("maxLength")
        if "properties" in node:
            schema["properties"] = {
                name: self.convert(child, f"{path}.{name}", inside)
                for name, child in node["properties"].items()
            }
            if required := [
                name for name in node.get("required", ()) if "default" not in schema["properties"][name]
            ]:
                schema["required"] = required
        elif isinstance(extra := node.get("additionalProperties"), dict):
            schema["additionalProperties"] = self.convert(extra, f"{path}[*]", inside)
        else:
            schema["x-kubernetes-preserve-unknown-fields"] = True
        return schema

    def _convert_array(self, node: dict[str, Any], path: str, inside: tuple[str, ...]) -> dict[str, Any]:
        if "items" not in node:
            raise NotStructural(f"{path}: a tuple of unlike items has no structural form")
        kept = {key: value for key, value in node.items() if key in _KEPT}
        return {
            "x-kubernetes-list-type": "set" if node.pop("uniqueItems", False) else "atomic",
            **kept,
            "items": self.convert(node["items"], f"{path}[]", inside),
        }


def _keep(node: dict[str, Any], path: str) -> dict[str, Any]:
    known = _KEPT | _DROPPED | {"default"}
    if unknown := set(node) - known:
        raise NotStructural(f"{path}: {', '.join(sorted(unknown))} has no structural form")
    return {key: value for key, value in node.items() if key in _KEPT}


def _without_unset(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    kept = {name: _without_unset(child) for name, child in value.items()}
    return {name: child for name, child in kept.items() if child not in (None, {}, [])}


def _is_long(node: dict[str, Any]) -> bool:
    return bool(node.get("maximum", 0) >= 2**31) or "maximum" not in node


def _add_rules(schema: dict[str, Any], model: type[ApiModel]) -> None:
    if model.cel_rules:
        schema["x-kubernetes-validations"] = [rule.to_schema() for rule in model.cel_rules]


def _models_by_name(kind: type[ApiModel]) -> dict[str, type[ApiModel]]:
    found: dict[str, type[ApiModel]] = {}
    waiting: list[type[ApiModel]] = list(ApiModel.__subclasses__())
    while waiting:
        model = waiting.pop()
        found[model.__name__] = model
        waiting += model.__subclasses__()
    found.pop(kind.__name__, None)
    return found
