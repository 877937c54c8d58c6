"""Selectors match what they say, and are refused in the recorded words."""

from __future__ import annotations

import pytest

from tidewheel.local.apimachinery.fields import BadRequest, Gvk
from tidewheel.local.apimachinery.selectors import (
    LabelSelector,
    parse_field_selector,
    parse_label_selector,
    selector_errors,
    supported_fields,
)

LABELS = {
    "l1": {"app": "x", "tier": "1"},
    "l2": {"app": "x", "tier": "2"},
    "l3": {"app": "y"},
    "l4": {},
}


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("app=x", ["l1", "l2"]),
        ("app==x", ["l1", "l2"]),
        ("app!=x", ["l3", "l4"]),
        ("app in (x,y)", ["l1", "l2", "l3"]),
        ("app notin (x)", ["l3", "l4"]),
        ("tier", ["l1", "l2"]),
        ("!tier", ["l3", "l4"]),
        ("app=x,tier=2", ["l2"]),
        ("tier>1", ["l2"]),
        ("tier < 2", ["l1"]),
        ("app=", []),
        ("", ["l1", "l2", "l3", "l4"]),
    ],
)
def test_a_label_selector_matches(text, want):
    selector = parse_label_selector(text)
    assert [name for name, labels in LABELS.items() if selector.matches(labels)] == want


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a===b", "^unable to parse requirement: found '=', expected: identifier$"),
        ("a in b", "expected: '\\('"),
        ("a in (b", "expected: ',' or '\\)'"),
        ("a,", "identifier after ','"),
        ("a b", "expected: in, notin, =, ==, !=, gt, lt"),
        ("-a=b", "name part must consist of alphanumeric characters"),
        ("a=-b", "a valid label must be an empty string"),
        ("a>b", "must be an integer"),
    ],
)
def test_a_malformed_label_selector_is_a_bad_request(text, complaint):
    with pytest.raises(BadRequest, match=complaint):
        parse_label_selector(text)


def test_a_selector_object_matches_labels_and_expressions():
    selector = LabelSelector.from_object(
        {
            "matchLabels": {"app": "x"},
            "matchExpressions": [{"key": "tier", "operator": "NotIn", "values": ["2"]}],
        }
    )
    assert [name for name, labels in LABELS.items() if selector.matches(labels)] == ["l1"]


def test_a_wrong_expression_is_reported_by_field():
    selector = {"matchExpressions": [{"key": "a", "operator": "In"}, {"key": "a", "operator": "Near"}]}
    assert [error.field for error in selector_errors(selector, "spec.selector")] == [
        "spec.selector.matchExpressions[0].values",
        "spec.selector.matchExpressions[1].operator",
    ]


def test_a_field_selector_matches_pods_by_phase_and_node():
    fields = supported_fields(Gvk("", "v1", "Pod"))
    pod = {"metadata": {"name": "a"}, "spec": {}, "status": {"phase": "Pending"}}
    assert parse_field_selector("status.phase=Pending,spec.nodeName=", fields).matches(pod)
    assert parse_field_selector("status.phase!=Running", fields).matches(pod)
    assert not parse_field_selector("metadata.name=b", fields).matches(pod)
    assert parse_field_selector("metadata.name=b", fields).name == "b"


def test_an_absent_boolean_field_is_false():
    fields = supported_fields(Gvk("", "v1", "Node"))
    assert parse_field_selector("spec.unschedulable=false", fields).matches({"spec": {}})


def test_an_unsupported_field_is_refused_in_the_recorded_words():
    fields = supported_fields(Gvk("", "v1", "ConfigMap"))
    with pytest.raises(BadRequest) as refused:
        parse_field_selector("data.i=1", fields)
    assert str(refused.value) == (
        '"data.i" is not a known field selector: only "metadata.name", "metadata.namespace"'
    )


def test_a_field_that_a_crd_declares_can_be_selected():
    fields = supported_fields(Gvk("a.b", "v1", "C"), [".spec.color"])
    assert parse_field_selector("spec.color=red", fields).matches({"spec": {"color": "red"}})
