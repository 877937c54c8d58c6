"""The generated CRDs keep the API conventions: a linter of its own, which shares no code with the generator."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from tidewheel.api.crd import all_crds
from tidewheel.local.apimachinery.structural import crd_errors

CRDS = {crd["metadata"]["name"]: crd for crd in all_crds()}
FORBIDDEN = {
    "$ref", "$defs", "definitions", "dependencies", "deprecated", "discriminator", "id", "patternProperties",
    "readOnly", "writeOnly", "xml", "const", "prefixItems", "title", "examples", "oneOf", "allOf", "not",
    "nullable", "uniqueItems", "exclusiveMinimum", "exclusiveMaximum",
}  # fmt: skip
#: Maps whose keys are open by nature; everything else is an object with named fields, or a list of such.
OPEN_MAPS = {"requests", "limits"}
#: Booleans are accepted where the ecosystem has them.
ACCEPTED_BOOLEANS = {".spec.suspend"}


class Node(NamedTuple):
    """One schema with the name and path of its field."""

    path: str
    name: str
    schema: dict[str, Any]


def nodes(crd: dict[str, Any]) -> list[Node]:
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return [node for node in _walk("", "", schema) if node.path not in ("", ".metadata")]


def _walk(path: str, name: str, schema: dict[str, Any]) -> Iterator[Node]:
    yield Node(path, name, schema)
    for field, child in schema.get("properties", {}).items():
        yield from _walk(f"{path}.{field}", field, child)
    if "items" in schema:
        yield from _walk(f"{path}[]", "", schema["items"])
    if isinstance(schema.get("additionalProperties"), dict):
        yield from _walk(f"{path}{{}}", "", schema["additionalProperties"])


ALL = [
    pytest.param(node, id=f"{crd.partition('.')[0]}{node.path}") for crd in CRDS for node in nodes(CRDS[crd])
]


@pytest.mark.parametrize("crd", CRDS.values(), ids=CRDS)
def test_the_api_server_takes_the_crd(crd):
    assert crd_errors(crd) == []


@pytest.mark.parametrize("node", ALL)
def test_a_schema_has_a_type_and_no_forbidden_word(node):
    assert not FORBIDDEN & set(node.schema)
    if node.schema.get("x-kubernetes-int-or-string"):
        assert node.schema["anyOf"] == [{"type": "integer"}, {"type": "string"}]
        assert "type" not in node.schema
    else:
        assert node.schema["type"] in {"object", "array", "string", "integer", "boolean"}, (
            "floats have no place here"
        )
        assert "anyOf" not in node.schema
    assert not ("properties" in node.schema and "additionalProperties" in node.schema)
    assert node.schema.get("additionalProperties") is not False


@pytest.mark.parametrize("node", [param for param in ALL if param.values[0].name])
def test_a_description_begins_with_the_field(node):
    assert node.schema.get("description", "").startswith(f"{node.name} "), node.path
    assert node.schema["description"].endswith(".")


@pytest.mark.parametrize("node", [param for param in ALL if param.values[0].schema.get("type") == "string"])
def test_a_string_is_bounded(node):
    if node.path in (".apiVersion", ".kind"):
        return
    assert "maxLength" in node.schema or "enum" in node.schema


@pytest.mark.parametrize("node", [param for param in ALL if param.values[0].schema.get("type") == "array"])
def test_a_list_is_bounded_and_says_how_it_merges(node):
    assert "maxItems" in node.schema
    assert node.schema["x-kubernetes-list-type"] in {"atomic", "set", "map"}
    if node.schema["x-kubernetes-list-type"] == "map":
        assert set(node.schema["x-kubernetes-list-map-keys"]) <= set(node.schema["items"]["required"])


@pytest.mark.parametrize("node", [param for param in ALL if param.values[0].schema.get("type") == "integer"])
def test_an_integer_says_its_width_and_bounds(node):
    assert node.schema["format"] in {"int32", "int64"}
    assert "minimum" in node.schema, "without a lower bound a negative count would pass"


@pytest.mark.parametrize("node", ALL)
def test_maps_and_open_objects_are_the_accepted_ones(node):
    if "additionalProperties" in node.schema:
        assert node.name in OPEN_MAPS
        assert "maxProperties" in node.schema
    if node.schema.get("x-kubernetes-preserve-unknown-fields"):
        assert node.name == "template"
    if node.schema.get("type") == "boolean":
        assert node.path in ACCEPTED_BOOLEANS


@pytest.mark.parametrize("node", ALL)
def test_a_default_is_valid_and_its_field_is_not_required(node):
    properties = node.schema.get("properties", {})
    for field in node.schema.get("required", []):
        assert field in properties
        assert "default" not in properties[field]
    if (default := node.schema.get("default")) is not None and "enum" in node.schema:
        assert default in node.schema["enum"]


@pytest.mark.parametrize("node", [param for param in ALL if param.values[0].name])
def test_names_follow_the_conventions(node):
    name = node.name
    assert name[0].islower()
    assert "_" not in name
    assert name != "phase"
    assert not name.endswith(("Timestamp", "Duration", "Millis"))


@pytest.mark.parametrize("crd", CRDS.values(), ids=CRDS)
def test_status_is_optional_written_apart_and_begins_with_conditions(crd):
    version = crd["spec"]["versions"][0]
    schema = version["schema"]["openAPIV3Schema"]
    status = schema["properties"]["status"]
    assert "status" in version["subresources"]
    assert "status" not in schema.get("required", [])
    assert "required" not in status
    assert next(iter(status["properties"])) == "conditions"
    conditions = status["properties"]["conditions"]
    assert conditions["x-kubernetes-list-type"] == "map"
    assert conditions["x-kubernetes-list-map-keys"] == ["type"]
    assert set(conditions["items"]["required"]) == {
        "type",
        "status",
        "reason",
        "message",
        "lastTransitionTime",
    }
    assert "observedGeneration" in status["properties"]


@pytest.mark.parametrize("crd", CRDS.values(), ids=CRDS)
def test_columns_and_scale_lead_to_fields(crd):
    version = crd["spec"]["versions"][0]
    schema = version["schema"]["openAPIV3Schema"]
    paths = [column["jsonPath"] for column in version["additionalPrinterColumns"]]
    assert version["additionalPrinterColumns"][-1]["name"] == "Age"
    scale = version["subresources"].get("scale", {})
    for path in (*paths, *scale.values()):
        if path.startswith(".metadata"):
            continue
        found = schema
        for part in path.partition("[")[0].strip(".").split("."):
            found = found["properties"][part]
