"""OpenAPI v3 documents, from which kubectl and helm learn field types, explanations and what they may ask for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

from tidewheel.local.apimachinery.schema import builtin_definitions
from tidewheel.local.apiserver.encoding import dumps
from tidewheel.local.apiserver.registry import Registry, Resource

Manifest = dict[str, Any]

DEFS = "#/$defs/"
COMPONENTS = "#/components/schemas/"
OBJECT_META = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
LIST_META = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta"
PATCHES = ("application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml")
STRATEGIC = "application/strategic-merge-patch+json"


class OpenApi:
    """The documents of a registry, made when asked for and kept until the registry changes."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._changes = -1
        self._documents: dict[str, bytes] = {}

    def index(self) -> Manifest:
        """`GET /openapi/v3`: where the document of each group and version is, with a hash of its content."""
        places = {_place(one.group, one.version): (one.group, one.version) for one in self._registry.all()}
        return {
            "paths": {
                place: {"serverRelativeURL": f"/openapi/v3/{place}?hash={self._hash(*group_version)}"}
                for place, group_version in places.items()
            }
        }

    def document(self, place: str) -> bytes | None:
        """`GET /openapi/v3/<place>`, as JSON; None when nothing is served there."""
        if self._changes != self._registry.changes:
            self._documents.clear()
            self._changes = self._registry.changes
        parts = place.split("/")
        group, version = ("", parts[1]) if parts[0] == "api" and len(parts) == 2 else ("", "")
        if parts[0] == "apis" and len(parts) == 3:
            group, version = parts[1], parts[2]
        resources = self._registry.in_version(group, version)
        if not resources:
            return None
        if place not in self._documents:
            self._documents[place] = dumps(_document(resources))
        return self._documents[place]

    def _hash(self, group: str, version: str) -> str:
        resources = self._registry.in_version(group, version)
        custom = [one.raw_schema for one in resources if one.custom]
        named = [
            [one.plural, one.kind, one.namespaced, [sub.name for sub in one.subresources]]
            for one in resources
        ]
        return hashlib.sha256(dumps([named, custom])).hexdigest()[:32].upper()


def _place(group: str, version: str) -> str:
    return f"apis/{group}/{version}" if group else f"api/{version}"


def _document(resources: list[Resource]) -> Manifest:
    schemas: Manifest = {}
    paths: Manifest = {}
    for resource in resources:
        name = _schema_name(resource)
        if resource.custom:
            schemas[name] = _custom_schema(resource)
            schemas[f"{name}List"] = _list_schema(resource, name)
        elif name:
            schemas[name] = builtin_definitions()[name]
        if name:
            paths.update(_paths(resource, name))
    return {
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": "v1.36.2"},
        "paths": paths,
        "components": {"schemas": _closure(schemas)},
    }


def _schema_name(resource: Resource) -> str:
    """The name of a resource's schema, or nothing for a kind whose definition is not known."""
    if resource.custom:
        reversed_group = ".".join(reversed(resource.group.split(".")))
        return f"{reversed_group}.{resource.version}.{resource.kind}"
    return _names_by_kind().get((resource.group, resource.version, resource.kind), "")


@cache
def _names_by_kind() -> dict[tuple[str, str, str], str]:
    return {
        (gvk["group"], gvk["version"], gvk["kind"]): name
        for name, raw in builtin_definitions().items()
        for gvk in raw.get("x-kubernetes-group-version-kind", ())
    }


def _closure(roots: Manifest) -> Manifest:
    """The schemas with all definitions that they refer to, in OpenAPI's notation."""
    definitions = builtin_definitions()
    done: Manifest = {}
    todo: list[tuple[str, Any]] = list(roots.items())
    while todo:
        name, raw = todo.pop()
        done[name] = _converted(raw)
        todo.extend(
            (found, definitions[found])
            for found in _references(raw)
            if found not in done and found not in roots
        )
    return dict(sorted(done.items()))


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        reference = node.get("$ref")
        if isinstance(reference, str):
            yield reference.removeprefix(DEFS)
        for value in node.values():
            yield from _references(value)
    elif isinstance(node, list):
        for value in node:
            yield from _references(value)


def _converted(node: Any) -> Any:
    """JSON Schema as in the definitions file -> OpenAPI v3: one type, references to components."""
    if isinstance(node, list):
        return [_converted(value) for value in node]
    if not isinstance(node, dict):
        return node
    out: Manifest = {}
    for key, value in node.items():
        if key == "$ref" and isinstance(value, str):
            reference = {"$ref": COMPONENTS + value.removeprefix(DEFS)}
            # What stands beside a reference, such as a description, would be lost on readers.
            out |= reference if len(node) == 1 else {"allOf": [reference]}
        elif key == "type" and isinstance(value, list):
            out[key] = next(kind for kind in value if kind != "null")
        else:
            out[key] = _converted(value)
    return out


def _custom_schema(resource: Resource) -> Manifest:
    text = {"type": "string"}
    schema = dict(resource.raw_schema)
    schema["properties"] = {
        **(schema.get("properties") or {}),
        "apiVersion": text,
        "kind": text,
        "metadata": {"$ref": DEFS + OBJECT_META},
    }
    schema["x-kubernetes-group-version-kind"] = [_gvk(resource)]
    return schema


def _list_schema(resource: Resource, name: str) -> Manifest:
    return {
        "type": "object",
        "required": ["items"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"$ref": DEFS + LIST_META},
            "items": {"type": "array", "items": {"$ref": DEFS + name}},
        },
        "x-kubernetes-group-version-kind": [{**_gvk(resource), "kind": resource.list_kind}],
    }


def _paths(resource: Resource, name: str) -> Manifest:
    base = f"/{_place(resource.group, resource.version)}"
    paths: Manifest = {}
    collection = f"{base}/{'namespaces/{namespace}/' if resource.namespaced else ''}{resource.plural}"
    paths[collection] = _operations(
        resource, name, {"list": "get", "create": "post", "deletecollection": "delete"}
    )
    one = _operations(resource, name, {"get": "get", "update": "put", "patch": "patch", "delete": "delete"})
    if one:
        paths[f"{collection}/{{name}}"] = one
    if resource.namespaced and "list" in resource.verbs:
        paths[f"{base}/{resource.plural}"] = _operations(resource, name, {"list": "get"})
    for below in resource.subresources:
        methods = {"get": "get", "update": "put", "patch": "patch", "create": "post"}
        shown = _operations(resource, name, methods, verbs=below.verbs)
        gvk = {
            "group": below.group or resource.group,
            "version": below.version or resource.version,
            "kind": below.kind,
        }
        for operation in shown.values():
            operation["x-kubernetes-group-version-kind"] = gvk
        paths[f"{collection}/{{name}}/{below.name}"] = shown
    return paths


def _operations(
    resource: Resource, name: str, methods: dict[str, str], *, verbs: Iterable[str] | None = None
) -> Manifest:
    served = resource.verbs if verbs is None else verbs
    return {method: _operation(resource, name, verb) for verb, method in methods.items() if verb in served}


def _operation(resource: Resource, name: str, verb: str) -> Manifest:
    schema = {"schema": {"$ref": COMPONENTS + name}}
    operation: Manifest = {
        "x-kubernetes-action": {"create": "post", "update": "put"}.get(verb, verb),
        "x-kubernetes-group-version-kind": _gvk(resource),
        "responses": {"200": {"description": "OK", "content": {"application/json": schema}}},
    }
    if verb in ("create", "update", "patch"):
        words = ["dryRun", "fieldManager", "fieldValidation"]
        operation["parameters"] = [_parameter(word, "string") for word in words]
        types = ["application/json"]
        if verb == "patch":
            operation["parameters"].append(_parameter("force", "boolean"))
            types = [*PATCHES] if resource.custom else [*PATCHES, STRATEGIC]
        operation["requestBody"] = {"content": dict.fromkeys(types, schema)}
    return operation


def _parameter(name: str, kind: str) -> Manifest:
    return {"name": name, "in": "query", "schema": {"type": kind, "uniqueItems": True}}


def _gvk(resource: Resource) -> Manifest:
    return {"group": resource.group, "version": resource.version, "kind": resource.kind}
