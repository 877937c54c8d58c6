"""What a request asks for: the target behind its path, its options, and its body as an object."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from aiohttp import web

from tidewheel.local.apiserver import errors, protobuf
from tidewheel.local.apiserver.errors import bad_request, unsupported_media_type
from tidewheel.local.apiserver.registry import Registry, Resource, Subresource

Manifest = dict[str, Any]

JSON = "application/json"
YAML = "application/yaml"
PROTOBUF = "application/vnd.kubernetes.protobuf"
JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"
BUILTIN_PATCHES = (JSON_PATCH, MERGE_PATCH, STRATEGIC_PATCH, APPLY_PATCH)
CUSTOM_PATCHES = (JSON_PATCH, MERGE_PATCH, APPLY_PATCH)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The object or collection that a path names."""

    resource: Resource
    namespace: str = ""
    name: str = ""
    subresource: Subresource | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteOptions:
    """How a write is to be made."""

    manager: str
    dry_run: bool = False
    field_validation: str = "Warn"
    force: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """A decoded request body; `duplicates` are keys that stood twice in one JSON object."""

    value: Any
    raw: bytes
    duplicates: tuple[str, ...] = ()


def find_target(registry: Registry, path: str) -> Target | None:
    """What `/api/v1/...` or `/apis/<group>/<version>/...` names; None when nothing is served there."""
    parts = path.strip("/").split("/")
    if parts[0] == "api" and len(parts) > 2:
        group, version, rest = "", parts[1], parts[2:]
    elif parts[0] == "apis" and len(parts) > 3:
        group, version, rest = parts[1], parts[2], parts[3:]
    else:
        return None
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 2 and not (not group and rest[2] in ("status", "finalize")):
        namespace, rest = rest[1], rest[2:]
    resource = registry.find(group, version, rest[0])
    if resource is None or len(rest) > 3 or (namespace and not resource.namespaced):
        return None
    if resource.namespaced and len(rest) > 1 and not namespace:
        return None
    name = rest[1] if len(rest) > 1 else ""
    if len(rest) < 3:
        return Target(resource=resource, namespace=namespace, name=name)
    subresource = resource.subresource(rest[2])
    if subresource is None:
        return None
    return Target(resource=resource, namespace=namespace, name=name, subresource=subresource)


def write_options(request: web.Request) -> WriteOptions:
    """The options in the query.

    Raises:
        ApiError: 422 for a dryRun or fieldValidation that does not exist.
    """
    query = request.query
    dry_run = query.get("dryRun", "")
    if dry_run not in ("", "All"):
        raise bad_request(f'dryRun: Unsupported value: "{dry_run}": supported values: "All"')
    validation = query.get("fieldValidation") or "Warn"
    if validation not in ("Strict", "Warn", "Ignore"):
        raise bad_request(
            f'fieldValidation: Unsupported value: "{validation}": supported values: "Ignore", "Strict", "Warn"'
        )
    return WriteOptions(
        manager=query.get("fieldManager") or _default_manager(request),
        dry_run=bool(dry_run),
        field_validation=validation,
        force=is_true(query, "force"),
    )


def is_true(query: Mapping[str, str], name: str) -> bool:
    """Whether a boolean query parameter is set; `?watch` alone counts, as in the real server."""
    return query.get(name, "false").lower() not in ("false", "0", "f", "") or query.get(name) == ""


def seconds(query: Mapping[str, str], name: str) -> int | None:
    """An integer query parameter.

    Raises:
        ApiError: 400 when it is no integer.
    """
    text = query.get(name)
    if not text:
        return None
    try:
        return int(text)
    except ValueError:
        raise bad_request(f'strconv.ParseInt: parsing "{text}": invalid syntax') from None


def media_type(request: web.Request) -> str:
    """The content type without parameters; JSON when none is given."""
    return request.headers.get("Content-Type", JSON).split(";")[0].strip() or JSON


async def read_object(request: web.Request, kind: str) -> Body:
    """The object in a POST or PUT.

    Raises:
        ApiError: 400 when it cannot be parsed, 415 when its type is unknown.
    """
    raw = await request.read()
    content = media_type(request)
    if content == PROTOBUF:
        try:
            return Body(value=protobuf.decode(raw), raw=raw)
        except protobuf.UnknownMessage as error:
            raise errors.ApiError(
                415,
                "UnsupportedMediaType",
                f"{error}; send JSON or YAML instead (with kubectl: --dry-run=client -o yaml | kubectl apply -f -)",
            ) from None
    if content in (YAML, "text/yaml"):
        return Body(value=_yaml(raw), raw=raw)
    if content != JSON:
        raise unsupported_media_type((JSON, YAML, PROTOBUF))
    strict = request.query.get("fieldValidation") == "Strict"
    duplicates: list[str] = []

    def notice(pairs: list[tuple[str, Any]]) -> Manifest:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            duplicates.extend(sorted({name for name in names if names.count(name) > 1}))
        return found

    try:
        value = json.loads(raw, object_pairs_hook=notice) if strict else json.loads(raw)
    except ValueError as error:
        raise bad_request(
            f"the object provided is unrecognized (must be of type {kind}): couldn't get version/kind; "
            f"json parse error: {error} ({raw[:200].hex()})"
        ) from None
    return Body(value=value, raw=raw, duplicates=tuple(duplicates))


async def read_patch(request: web.Request) -> Any:
    """The patch in a PATCH.

    Raises:
        ApiError: 400 when it cannot be parsed.
    """
    raw = await request.read()
    if media_type(request) == APPLY_PATCH:
        # JSON is YAML, and by far the faster to read.
        try:
            return json.loads(raw)
        except ValueError:
            return _yaml(raw)
    try:
        return json.loads(raw)
    except ValueError as error:
        raise bad_request(f"error decoding patch: {error}") from None


def checked_body(resource: Resource, body: Body) -> Manifest:
    """The object in a body, which must be of the resource's kind.

    Raises:
        ApiError: 400 for what is no object or of another version, 422 for another kind of custom resource.
    """
    obj = body.value
    if not isinstance(obj, dict):
        kind = {str: "string", list: "array", bool: "bool"}.get(type(obj), "number")
        raise bad_request(
            f"the object provided is unrecognized (must be of type {resource.kind}): couldn't get version/kind; "
            f"json parse error: json: cannot unmarshal {kind} into Go value of type struct "
            '{ APIVersion string "json:\\"apiVersion,omitempty\\""; Kind string "json:\\"kind,omitempty\\"" } '
            f"({body.raw[:200].hex()})"
        )
    if not resource.custom:
        obj.setdefault("apiVersion", resource.api_version)
        obj.setdefault("kind", resource.kind)
    if not obj.get("kind"):
        text = body.raw.decode(errors="replace")
        raise bad_request(
            f"the object provided is unrecognized (must be of type {resource.kind}): "
            f"Object 'Kind' is missing in '{text}' ({text})"
        )
    if obj.get("apiVersion") != resource.api_version:
        raise bad_request(
            f"the API version in the data ({obj.get('apiVersion')}) does not match the expected API version "
            f"({resource.api_version})"
        )
    if obj["kind"] != resource.kind:
        if not resource.custom:
            raise bad_request(
                f'{obj["kind"]} in version "{resource.version}" cannot be handled as a {resource.kind}: '
                f'no kind "{obj["kind"]}" is registered for version "{resource.api_version}"'
            )
        problem = errors.cause(
            "kind", f'Invalid value: "{obj["kind"]}": must be {resource.kind}', "FieldValueInvalid"
        )
        raise errors.invalid(obj["kind"], resource.group, metadata_of(obj).get("name") or "", [problem])
    return obj


def metadata_of(obj: Manifest) -> Manifest:
    """The metadata of a body, which is added when it has none.

    Raises:
        ApiError: 400 when it is no object.
    """
    metadata = obj.get("metadata")
    if metadata is None:
        metadata = obj["metadata"] = {}
    if not isinstance(metadata, dict):
        raise bad_request("metadata must be an object")
    return metadata


def check_namespace_of(resource: Resource, metadata: Manifest, namespace: str) -> None:
    """Give an object the namespace of its path.

    Raises:
        ApiError: 400 when it names another one.
    """
    given = metadata.get("namespace")
    if not resource.namespaced:
        metadata.pop("namespace", None)
        return
    if given and given != namespace:
        raise bad_request(
            "the namespace of the provided object does not match the namespace sent on the request"
        )
    metadata["namespace"] = namespace


def check_name_of(metadata: Manifest, name: str) -> None:
    """Give an object the name of its path.

    Raises:
        ApiError: 400 when it has another one.
    """
    if (metadata.get("name") or name) != name:
        raise bad_request(
            f"the name of the object ({metadata['name']}) does not match the name on the URL ({name})"
        )
    metadata["name"] = name


def _yaml(raw: bytes) -> Any:
    try:
        return yaml.load(raw, Loader=_JsonLoader)  # noqa: S506 - a SafeLoader without timestamps
    except yaml.YAMLError as error:
        raise bad_request(f"error parsing YAML: {error}") from None


class _JsonLoader(yaml.CSafeLoader):
    """YAML as Kubernetes reads it: what JSON has no type for, such as a date, stays a string."""


_JsonLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.CSafeLoader.yaml_implicit_resolvers.items()
}


def _default_manager(request: web.Request) -> str:
    return request.headers.get("User-Agent", "unknown").split("/")[0][:128]
