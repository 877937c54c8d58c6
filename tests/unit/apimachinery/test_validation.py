"""Custom resources are refused with the fields and reasons that a real API server gave."""

from __future__ import annotations

import pytest

from tidewheel.local.apimachinery.decoding import decode_custom
from tidewheel.local.apimachinery.fields import summary
from tidewheel.local.apimachinery.schema import Schema, crd_schema
from tidewheel.local.apimachinery.validation import go_pattern, validate, validate_custom_resource

NOT_CHECKED = ("<nil>", "FieldValueInvalid")


@pytest.fixture
def refusals(gadget_schema, gadget_gvk):
    def check(gadget, old=None):
        for each in filter(None, (gadget, old)):
            decode_custom(each, gadget_gvk, gadget_schema)
        return validate_custom_resource(
            gadget,
            gvk=gadget_gvk,
            schema=gadget_schema,
            namespaced=True,
            old=old,
            integer_paths=(("spec", "size"), ("status", "replicas")),
        )

    return check


def causes(errors):
    return [(error.field, error.reason) for error in errors]


@pytest.mark.parametrize(
    ("spec", "want"),
    [
        pytest.param({}, [], id="fine"),
        pytest.param(
            {"size": "two"},
            [("spec.size", "FieldValueTypeInvalid"), (".spec.size", "FieldValueInvalid"), NOT_CHECKED],
            id="wrong type",
        ),
        pytest.param({"size": 101}, [("spec.size", "FieldValueInvalid")], id="above maximum"),
        pytest.param({"mode": "Slow"}, [("spec.mode", "FieldValueNotSupported"), NOT_CHECKED], id="enum"),
        pytest.param(
            {"label": "TOOLONGLABEL"}, [("spec.label", "FieldValueTooLong"), NOT_CHECKED], id="too long"
        ),
        pytest.param({"label": "ABC"}, [("spec.label", "FieldValueInvalid")], id="pattern"),
        pytest.param({"mode": "Fast", "size": 0}, [("spec", "FieldValueInvalid")], id="CEL rule"),
        pytest.param(
            {"ports": [{"name": "x"}, {"name": "x"}]},
            [("spec.ports[1]", "FieldValueDuplicate")],
            id="duplicate list-map key",
        ),
        pytest.param(
            {"ports": [{"name": str(index)} for index in range(9)]},
            [("spec.ports", "FieldValueTooMany"), NOT_CHECKED],
            id="too many items",
        ),
        pytest.param(
            {"ports": [{}]}, [("spec.ports[0].name", "FieldValueRequired"), NOT_CHECKED], id="required"
        ),
        pytest.param(
            {"target": True},
            [("spec.target", "FieldValueTypeInvalid"), NOT_CHECKED],
            id="neither integer nor string",
        ),
    ],
)
def test_a_spec_is_refused_by_field_and_reason(refusals, make_gadget, spec, want):
    assert causes(refusals(make_gadget(**spec))) == want


def test_a_missing_required_field_is_named_and_rules_are_not_run(refusals, make_gadget):
    gadget = make_gadget()
    del gadget["spec"]["size"]
    assert summary(refusals(gadget)) == (
        "[spec.size: Required value, <nil>: Invalid value: null: some validation rules were not checked because the object "
        "was invalid; correct the existing errors to complete validation]"
    )


def test_metadata_is_checked_before_the_spec(refusals, make_gadget):
    assert causes(refusals(make_gadget(name=None))) == [("metadata.name", "FieldValueRequired"), NOT_CHECKED]
    assert causes(refusals(make_gadget(name="Bad_8", size=101))) == [
        ("metadata.name", "FieldValueInvalid"),
        ("spec.size", "FieldValueInvalid"),
    ]


def test_another_kind_is_refused_outright(refusals, make_gadget):
    assert [str(error) for error in refusals({**make_gadget(), "kind": "Gizmo"})] == [
        'kind: Invalid value: "Gizmo": must be Gadget'
    ]


def test_a_transition_rule_compares_with_the_old_object(refusals, make_gadget):
    old = make_gadget(frozen="yes")
    assert [str(error) for error in refusals(make_gadget(frozen="no"), old)] == [
        'spec.frozen: Invalid value: "no": frozen is immutable'
    ]
    assert refusals(make_gadget(frozen="yes", size=9), old) == []
    assert refusals(make_gadget(frozen="new"), make_gadget()) == []


def test_no_finalizer_is_added_while_an_object_is_being_deleted(refusals, make_gadget):
    going = {"deletionTimestamp": "2026-11-22T08:52:02Z", "deletionGracePeriodSeconds": 0}
    old = make_gadget(metadata={**going, "finalizers": ["a.example.com/hold"]})
    new = make_gadget(metadata={**going, "finalizers": ["a.example.com/hold", "a.example.com/more"]})
    assert causes(refusals(new, old)) == [("metadata.finalizers", "FieldValueForbidden")] * 2


def test_what_was_invalid_before_and_did_not_change_is_let_through(refusals, make_gadget):
    old = make_gadget(label="ABC", mode="Fast", size=0)
    assert refusals(make_gadget(label="ABC", mode="Fast", size=0, metadata={"labels": {"x": "y"}}), old) == []
    assert causes(refusals(make_gadget(label="ABD", mode="Safe"), old)) == [
        ("spec.label", "FieldValueInvalid")
    ]


@pytest.mark.parametrize(
    ("schema", "good", "bad", "reason"),
    [
        ({"type": "integer", "minimum": 3, "exclusiveMinimum": True}, 4, 3, "FieldValueInvalid"),
        ({"type": "integer", "maximum": 3, "exclusiveMaximum": True}, 2, 3, "FieldValueInvalid"),
        ({"type": "number", "multipleOf": 5}, 10, 11, "FieldValueInvalid"),
        ({"type": "integer", "format": "int32"}, 1, 2**31, "FieldValueInvalid"),
        ({"type": "string", "minLength": 2}, "ab", "a", "FieldValueInvalid"),
        ({"type": "string", "format": "date-time"}, "2026-01-01T00:00:00Z", "now", "FieldValueInvalid"),
        ({"type": "string", "format": "duration"}, "1h30m", "1 hour", "FieldValueInvalid"),
        ({"type": "string", "format": "ipv4"}, "10.0.0.1", "10.0.0.256", "FieldValueInvalid"),
        (
            {"type": "string", "format": "uuid"},
            "140dcb94-8261-4fb4-956d-b981168a27ea",
            "x",
            "FieldValueInvalid",
        ),
        ({"type": "string", "format": "byte"}, "YQ==", "a!", "FieldValueInvalid"),
        ({"type": "string", "format": "made-up"}, "x", None, "FieldValueTypeInvalid"),
        ({"type": "array", "items": {"type": "string"}, "minItems": 1}, ["a"], [], "FieldValueInvalid"),
        (
            {"type": "object", "additionalProperties": {"type": "string"}},
            {"a": "b"},
            {"a": 1},
            "FieldValueTypeInvalid",
        ),
        (
            {"type": "object", "maxProperties": 1, "additionalProperties": {"type": "string"}},
            {},
            {"a": "", "b": ""},
            "FieldValueTooMany",
        ),
        (
            {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"},
            ["a"],
            ["a", "a"],
            "FieldValueDuplicate",
        ),
        ({"type": "string", "anyOf": [{"enum": ["a"]}, {"pattern": "^b"}]}, "bc", "c", "FieldValueInvalid"),
        ({"type": "integer", "oneOf": [{"minimum": 5}, {"minimum": 3}]}, 4, 6, "FieldValueInvalid"),
        ({"type": "integer", "allOf": [{"minimum": 5}, {"maximum": 8}]}, 6, 9, "FieldValueInvalid"),
        ({"type": "integer", "not": {"minimum": 5}}, 4, 5, "FieldValueInvalid"),
        ({"type": "boolean"}, True, 1, "FieldValueTypeInvalid"),
    ],
)
def test_each_keyword_lets_good_values_pass_and_refuses_bad_ones(schema, good, bad, reason):
    holder = Schema({"type": "object", "properties": {"v": schema}})
    assert validate({"v": good}, holder) == []
    assert reason in {error.reason for error in validate({"v": bad}, holder)}


def test_a_go_pattern_matches_only_to_the_very_end():
    assert go_pattern(r"^a$|[$]\$") == r"^a\Z|[$]\$"
    schema = Schema({"type": "object", "properties": {"v": {"type": "string", "pattern": "^[a-z]*$"}}})
    assert validate({"v": "abc\n"}, schema)


def test_an_embedded_object_needs_a_kind():
    schema = crd_schema(
        {
            "type": "object",
            "properties": {
                "t": {
                    "type": "object",
                    "x-kubernetes-embedded-resource": True,
                    "x-kubernetes-preserve-unknown-fields": True,
                }
            },
        }
    )
    assert causes(validate({"t": {"apiVersion": "v1"}}, schema))[0] == ("t.kind", "FieldValueRequired")
