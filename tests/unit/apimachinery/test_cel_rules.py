"""CEL rules: what they see, where they report, and the Kubernetes functions they may call."""

from __future__ import annotations

import pytest

from tidewheel.local.apimachinery.cel_rules import UncompilableRule, compile_rule, escape, rule_errors
from tidewheel.local.apimachinery.schema import Schema, crd_schema


def schema_with(rule, *, properties=None, **more):
    """A custom resource's schema whose spec has one rule."""
    spec = {
        "type": "object",
        "properties": properties or {"v": {"type": "string"}},
        "x-kubernetes-validations": [{"rule": rule, **more}],
    }
    return crd_schema({"type": "object", "properties": {"spec": spec}})


def holds(rule, value, schema):
    return not rule_errors({"spec": {"v": value}}, schema_with(rule, properties={"v": schema}))


TEXT = {"type": "string"}


@pytest.mark.parametrize(
    ("rule", "good", "bad", "schema"),
    [
        ("quantity(self.v).isGreaterThan(quantity('1Gi'))", "2Gi", "1024Mi", TEXT),
        ("isQuantity(self.v)", "1.5Gi", "1.5Gib", TEXT),
        ("quantity(self.v).add(quantity('1')) == quantity('1500m')", "500m", "1", TEXT),
        ("quantity(self.v).compareTo(quantity('1')) == 0", "1000m", "2", TEXT),
        ("isURL(self.v) && url(self.v).getScheme() == 'https'", "https://a.b/c", "http://a.b", TEXT),
        ("url(self.v).getHost() == 'a.b:80'", "http://a.b:80/x", "http://a.b", TEXT),
        ("isIP(self.v) && ip(self.v).family() == 4", "10.0.0.1", "::1", TEXT),
        ("cidr('10.0.0.0/8').containsIP(self.v)", "10.1.2.3", "11.0.0.0", TEXT),
        ("self.v.find('[0-9]+') == '12'", "ab12c", "ab", TEXT),
        ("self.v.findAll('[0-9]').size() == 2", "1a2", "1", TEXT),
        ("!format.dns1123Label().validate(self.v).hasValue()", "my-name", "My_Name", TEXT),
        ("self.v.split('-').size() == 2", "a-b", "ab", TEXT),
        ("self.v.isSorted()", [1, 2], [2, 1], {"type": "array", "items": {"type": "integer"}}),
        ("self.v.sum() == 3", [1, 2], [1], {"type": "array", "items": {"type": "integer"}}),
        ("self.v.exists_one(x, x == 'a')", ["a", "b"], ["a", "a"], {"type": "array", "items": TEXT}),
        (
            "self.v.all(key, key.startsWith('x'))",
            {"xa": ""},
            {"a": ""},
            {"type": "object", "additionalProperties": TEXT},
        ),
        ("self.v < duration('1m')", "59s", "61s", {"type": "string", "format": "duration"}),
        (
            "self.v > timestamp('2026-01-01T00:00:00Z')",
            "2026-06-01T00:00:00Z",
            "2025-01-01T00:00:00Z",
            {"type": "string", "format": "date-time"},
        ),
        ("self.v / 2.0 == 1.5", 3, 4, {"type": "number"}),
        (
            "type(self.v) == int ? self.v > 0 : self.v.endsWith('%')",
            "5%",
            0,
            {"x-kubernetes-int-or-string": True},
        ),
    ],
)
def test_a_rule_holds_for_good_values_only(rule, good, bad, schema):
    assert holds(rule, good, schema)
    assert not holds(rule, bad, schema)


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("plain", "plain"),
        ("namespace", "__namespace__"),
        ("a-b.c/d", "a__dash__b__dot__c__slash__d"),
        ("a__b", "a__underscores__b"),
        ("ab1_", "ab1_"),
        ("1a", None),
    ],
)
def test_property_names_are_escaped(name, want):
    assert escape(name) == want


def test_escaped_properties_are_seen_under_their_escaped_name():
    properties = {"namespace": TEXT, "a-b": TEXT}
    schema = schema_with("self.__namespace__ == self.a__dash__b", properties=properties)
    assert rule_errors({"spec": {"namespace": "x", "a-b": "x"}}, schema) == []
    assert rule_errors({"spec": {"namespace": "x", "a-b": "y"}}, schema)


def test_a_keyword_that_is_not_escaped_says_how_to_write_it():
    schema = Schema({"type": "object", "properties": {"package": TEXT}})
    with pytest.raises(
        UncompilableRule, match=r"undefined field .package. .CEL sees this property as __package__"
    ):
        compile_rule({"rule": "has(self.package)"}, schema)


def test_the_root_sees_only_names_of_the_metadata():
    schema = crd_schema(
        {
            "type": "object",
            "x-kubernetes-validations": [
                {"rule": "!has(self.metadata.labels) && self.metadata.name.size() < 3"}
            ],
        }
    )
    assert rule_errors({"metadata": {"name": "ab", "labels": {}}}, schema) == []
    (error,) = rule_errors({"metadata": {"name": "abc"}}, schema)
    assert error.field == "<nil>"


def test_reason_path_and_message_expression_are_reported():
    schema = schema_with(
        "self.v != 'x'",
        reason="FieldValueForbidden",
        fieldPath=".v",
        messageExpression="'no ' + self.v",
        message="no",
    )
    (error,) = rule_errors({"spec": {"v": "x"}}, schema)
    assert (error.field, error.reason, error.message) == ("spec.v", "FieldValueForbidden", "Forbidden: no x")


def test_a_rule_without_a_message_reports_itself():
    (error,) = rule_errors({"spec": {"v": "x"}}, schema_with("self.v == 'y'"))
    assert error.message == "Invalid value: failed rule: self.v == 'y'"


def test_a_rule_that_fails_to_run_refuses_the_object():
    (error,) = rule_errors({"spec": {}}, schema_with("self.v == 'y'"))
    assert error.message.endswith("evaluation failed: no such key: v")


def test_items_of_keyed_lists_are_compared_with_their_former_selves():
    item = {
        "type": "object",
        "properties": {"name": TEXT, "v": {"type": "integer"}},
        "x-kubernetes-validations": [{"rule": "self.v >= oldSelf.v", "message": "may not shrink"}],
    }
    listed = {
        "type": "array",
        "items": item,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["name"],
    }
    schema = crd_schema({"type": "object", "properties": {"spec": listed}})
    old = {"spec": [{"name": "a", "v": 1}, {"name": "b", "v": 5}]}
    new = {"spec": [{"name": "b", "v": 4}, {"name": "a", "v": 2}, {"name": "c", "v": 0}]}
    assert [error.field for error in rule_errors(new, schema, old)] == ["spec[0]"]


def test_an_optional_old_self_lets_a_rule_run_on_create():
    rule = "oldSelf.hasValue() || self.v == 'first'"
    schema = schema_with(rule, optionalOldSelf=True)
    assert rule_errors({"spec": {"v": "first"}}, schema) == []
    assert rule_errors({"spec": {"v": "x"}}, schema)
    assert rule_errors({"spec": {"v": "x"}}, schema, {"spec": {"v": "first"}}) == []


@pytest.mark.parametrize(
    ("rule", "complaint"),
    [
        ("self.v ==", "Syntax error"),
        ("self.w == 'a'", "undefined field 'w'"),
        ("other.v == 'a'", "undeclared reference to 'other'"),
        ("self.v.frobnicate()", "undeclared reference to 'frobnicate'"),
        ("self.?v.orValue('')  == ''", "no optional syntax"),
    ],
)
def test_what_cannot_be_compiled_says_why(rule, complaint):
    with pytest.raises(UncompilableRule, match=complaint.replace("(", r"\(")):
        compile_rule({"rule": rule}, Schema({"type": "object", "properties": {"v": TEXT}}))
