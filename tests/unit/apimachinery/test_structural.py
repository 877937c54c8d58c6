"""CRDs that kube-apiserver refuses are refused here, at the same fields."""

from __future__ import annotations

import pytest

from tidewheel.local.apimachinery.fields import BadRequest
from tidewheel.local.apimachinery.structural import crd_errors

ROOT = "spec.validation.openAPIV3Schema"
X = f"{ROOT}.properties[spec].properties[x]"


def causes(crd):
    return [(error.field, error.reason) for error in crd_errors(crd)]


def spec_of(crd):
    return crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]


def test_the_recorded_crd_is_fine(gadget_crd):
    assert crd_errors(gadget_crd) == []


def test_a_number_for_exclusive_minimum_cannot_be_read(gadget_crd):
    spec_of(gadget_crd)["properties"]["size"]["exclusiveMinimum"] = 3
    with pytest.raises(BadRequest) as refused:
        crd_errors(gadget_crd)
    assert str(refused.value) == (
        'CustomResourceDefinition in version "v1" cannot be handled as a CustomResourceDefinition: json: cannot unmarshal '
        "number into Go struct field JSONSchemaProps.spec.versions.schema.openAPIV3Schema.properties.properties."
        "exclusiveMinimum of type bool"
    )


def test_a_type_inside_any_of_is_not_structural(gadget_crd):
    spec_of(gadget_crd)["properties"]["x"] = {"anyOf": [{"type": "string"}, {"type": "integer"}]}
    assert causes(gadget_crd) == [
        (f"{X}.anyOf[0].type", "FieldValueForbidden"),
        (f"{X}.anyOf[1].type", "FieldValueForbidden"),
        (f"{X}.type", "FieldValueRequired"),
    ]


def test_the_name_is_plural_and_group(gadget_crd):
    gadget_crd["metadata"]["name"] = "wrong"
    assert causes(gadget_crd) == [("metadata.name", "FieldValueInvalid")]


STRING = {"type": "string"}
KEYED = {"type": "array", "x-kubernetes-list-type": "map"}


@pytest.mark.parametrize(
    ("x", "want"),
    [
        pytest.param({"type": "text"}, ("type", "FieldValueNotSupported"), id="unknown type"),
        pytest.param({"type": "array"}, ("items", "FieldValueRequired"), id="array without items"),
        pytest.param(
            {"type": "array", "items": {}}, ("items.type", "FieldValueRequired"), id="items without type"
        ),
        pytest.param({"type": "array", "items": [STRING]}, ("items", "FieldValueForbidden"), id="tuple"),
        pytest.param(
            {"type": "array", "items": STRING, "uniqueItems": True},
            ("uniqueItems", "FieldValueForbidden"),
            id="uniqueItems",
        ),
        pytest.param(
            {"type": "object", "additionalProperties": False},
            ("additionalProperties", "FieldValueForbidden"),
            id="closed object",
        ),
        pytest.param(
            {"type": "object", "properties": {"a": STRING}, "additionalProperties": STRING},
            ("additionalProperties", "FieldValueForbidden"),
            id="properties and additionalProperties",
        ),
        pytest.param({"$ref": "#/x"}, ("$ref", "FieldValueForbidden"), id="reference"),
        pytest.param({"type": "string", "pattern": "("}, ("pattern", "FieldValueInvalid"), id="pattern"),
        pytest.param(
            {"type": "string", "default": 3},
            ("default", "FieldValueTypeInvalid"),
            id="default of another type",
        ),
        pytest.param(
            {"type": "object", "properties": {"a": STRING}, "default": {"b": 1}},
            ("default", "FieldValueInvalid"),
            id="default with unknown fields",
        ),
        pytest.param(
            {
                "type": "object",
                "properties": {"a": STRING},
                "allOf": [{"required": ["b"], "properties": {"b": {"minLength": 1}}}],
            },
            ("properties[b]", "FieldValueRequired"),
            id="a property only inside allOf",
        ),
        pytest.param(
            {"type": "string", "anyOf": [{"default": "a"}]},
            ("anyOf[0].default", "FieldValueForbidden"),
            id="default inside anyOf",
        ),
        pytest.param(
            {**KEYED, "items": {"type": "object"}},
            ("x-kubernetes-list-map-keys", "FieldValueRequired"),
            id="map without keys",
        ),
        pytest.param(
            {
                **KEYED,
                "x-kubernetes-list-map-keys": ["a"],
                "items": {"type": "object", "properties": {"a": STRING}},
            },
            ("items.properties[a].default", "FieldValueRequired"),
            id="a key that may be absent",
        ),
        pytest.param(
            {"type": "string", "x-kubernetes-list-type": "set"},
            ("type", "FieldValueInvalid"),
            id="set that is no list",
        ),
        pytest.param(
            {"type": "object", "x-kubernetes-embedded-resource": True},
            ("properties", "FieldValueRequired"),
            id="empty embedded object",
        ),
        pytest.param(
            {"type": "integer", "x-kubernetes-int-or-string": True},
            ("type", "FieldValueInvalid"),
            id="type beside int-or-string",
        ),
        pytest.param(
            {"type": "string", "x-kubernetes-validations": [{"rule": "self =="}]},
            ("x-kubernetes-validations[0].rule", "FieldValueInvalid"),
            id="CEL that does not compile",
        ),
        pytest.param(
            {"type": "string", "x-kubernetes-validations": [{"rule": " "}]},
            ("x-kubernetes-validations[0].rule", "FieldValueRequired"),
            id="empty rule",
        ),
        pytest.param(
            {"type": "string", "x-kubernetes-validations": [{"rule": "self != ''", "reason": "Because"}]},
            ("x-kubernetes-validations[0].reason", "FieldValueNotSupported"),
            id="unknown reason",
        ),
        pytest.param(
            {
                "type": "object",
                "properties": {"a": STRING},
                "x-kubernetes-validations": [{"rule": "true", "fieldPath": ".b"}],
            },
            ("x-kubernetes-validations[0].fieldPath", "FieldValueInvalid"),
            id="path to nowhere",
        ),
        pytest.param(
            {
                "type": "array",
                "items": {"type": "string", "x-kubernetes-validations": [{"rule": "self == oldSelf"}]},
            },
            ("items.x-kubernetes-validations[0].rule", "FieldValueInvalid"),
            id="transition rule in a list without keys",
        ),
    ],
)
def test_a_schema_is_refused_at_its_field(gadget_crd, x, want):
    spec_of(gadget_crd)["properties"]["x"] = x
    assert causes(gadget_crd) == [(f"{X}.{want[0]}", want[1])]


@pytest.mark.parametrize(
    "x",
    [
        pytest.param(
            {"x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}, {"type": "string"}]},
            id="int-or-string",
        ),
        pytest.param({"x-kubernetes-preserve-unknown-fields": True}, id="anything"),
        pytest.param({"type": "object", "additionalProperties": {"type": "string"}}, id="map"),
        pytest.param({"type": "array", "items": STRING, "x-kubernetes-list-type": "set"}, id="set"),
        pytest.param({"type": "string", "anyOf": [{"minLength": 1}, {"enum": ["x"]}]}, id="values in anyOf"),
        pytest.param({"type": "string", "nullable": True, "default": None}, id="nullable"),
    ],
)
def test_structural_forms_are_let_through(gadget_crd, x):
    spec_of(gadget_crd)["properties"]["x"] = x
    assert crd_errors(gadget_crd) == []


@pytest.mark.parametrize(
    ("change", "want"),
    [
        (lambda spec: spec.update(scope="Global"), ("spec.scope", "FieldValueNotSupported")),
        (lambda spec: spec["versions"][0].update(storage=False), ("spec.versions", "FieldValueInvalid")),
        (
            lambda spec: spec["versions"][0].pop("schema"),
            ("spec.versions[0].schema.openAPIV3Schema", "FieldValueRequired"),
        ),
        (lambda spec: spec["names"].update(listKind="Gadget"), ("spec.names.listKind", "FieldValueInvalid")),
        (
            lambda spec: spec["names"].update(shortNames=["GD"]),
            ("spec.names.shortNames[0]", "FieldValueInvalid"),
        ),
        (
            lambda spec: spec["versions"][0]["subresources"]["scale"].update(specReplicasPath=".status.x"),
            ("spec.subresources.scale.specReplicasPath", "FieldValueInvalid"),
        ),
        (
            lambda spec: spec["versions"][0]["additionalPrinterColumns"][0].update(type="text"),
            ("spec.additionalPrinterColumns[0].type", "FieldValueInvalid"),
        ),
        (
            lambda spec: spec["versions"][0]["schema"]["openAPIV3Schema"].update(type="array", items=STRING),
            (f"{ROOT}.type", "FieldValueInvalid"),
        ),
        (
            lambda spec: spec["versions"][0]["schema"]["openAPIV3Schema"]["properties"].update(
                metadata={"type": "object", "properties": {"labels": {"type": "object"}}}
            ),
            (f"{ROOT}.properties[metadata]", "FieldValueForbidden"),
        ),
    ],
)
def test_a_crd_is_refused_at_its_field(gadget_crd, change, want):
    change(gadget_crd["spec"])
    assert causes(gadget_crd) == [want]


def test_versions_with_schemas_of_their_own_are_named(gadget_crd):
    other = {
        "name": "v1beta1",
        "served": True,
        "storage": False,
        "schema": {"openAPIV3Schema": {"type": "object", "properties": {"x": {}}}},
    }
    gadget_crd["spec"]["versions"].append(other)
    assert causes(gadget_crd) == [
        ("spec.versions[1].schema.openAPIV3Schema.properties[x].type", "FieldValueRequired")
    ]
