"""The rules of an allocation, asked through the API machinery as the API server would, and beside the planner's own admission."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidewheel.api.allocation import Allocation, AllocationStatus
from tidewheel.api.crd import crd_of
from tidewheel.api.model import CustomResource
from tidewheel.local.apimachinery.defaulting import apply_defaults
from tidewheel.local.apimachinery.schema import crd_schema
from tidewheel.local.apimachinery.structural import crd_errors
from tidewheel.local.apimachinery.validation import validate
from tidewheel.planning.allocation.bound import Gaps
from tidewheel.planning.allocation.rules import Contender, Infeasible, admit


class Allocated(CustomResource):
    """Allocated stands for a kind that has an allocation."""

    plural = "allocateds"
    short_names = ()
    printer_columns = ()

    spec: Allocation
    status: AllocationStatus | None = None


CRD = crd_of(Allocated)
SCHEMA = crd_schema(CRD["spec"]["versions"][0]["schema"]["openAPIV3Schema"])


def complaints(**spec: Any) -> list[str]:
    manifest = {
        "apiVersion": "tidewheel.dev/v1alpha1",
        "kind": "Allocated",
        "metadata": {"name": "one", "namespace": "ns"},
        "spec": {"goodRequestsPerMinute": 60} | spec,
    }
    apply_defaults(manifest, SCHEMA)
    return [f"{error.field}: {error.message}" for error in validate(manifest, SCHEMA)]


def test_the_api_server_takes_the_schema():
    assert crd_errors(CRD) == []


def test_the_schemas_defaults_are_the_models():
    spec: dict[str, Any] = {"goodRequestsPerMinute": 60}
    manifest = {
        "apiVersion": "tidewheel.dev/v1alpha1",
        "kind": "Allocated",
        "metadata": {"name": "one"},
        "spec": spec,
    }
    apply_defaults(manifest, SCHEMA)
    assert Allocation.model_validate(spec) == Allocation(good_requests_per_minute=60)
    assert (spec["mode"], spec["policy"], spec["slots"]) == ("Off", "Index", 1)


@pytest.mark.parametrize(
    ("good", "bad", "says"),
    [
        pytest.param(
            {"burnInSeconds": 300, "roundSeconds": 600},
            {"burnInSeconds": 301, "roundSeconds": 600},
            ("spec.burnInSeconds", "leave half of roundSeconds"),
            id="half a round is measured",
        ),
        pytest.param(
            {"scenarios": [{"name": "chat", "minGapRounds": 4, "maxGapRounds": 4}]},
            {"scenarios": [{"name": "chat", "minGapRounds": 5, "maxGapRounds": 4}]},
            ("spec.scenarios[0].maxGapRounds", "must not be below"),
            id="the longest gap is not the shorter one",
        ),
        pytest.param(
            {"scenarios": [{"name": "chat", "state": "Pinned"}]},
            {"scenarios": [{"name": "chat", "state": "Pinned", "maxGapRounds": 4}]},
            ("spec.scenarios[0].state", "leave out minGapRounds and maxGapRounds"),
            id="a pin has no gaps",
        ),
        pytest.param(
            {"slots": 2, "scenarios": [{"name": name, "state": "Pinned"} for name in "ab"]},
            {"slots": 1, "scenarios": [{"name": name, "state": "Pinned"} for name in "ab"]},
            ("spec.slots", "need more slots than there are"),
            id="every pin has its slot",
        ),
        pytest.param(
            {"scenarios": [{"name": name, "maxGapRounds": 4} for name in "abcd"]},
            {"scenarios": [{"name": name, "maxGapRounds": 4} for name in "abcde"]},
            ("spec.slots", "raise slots or maxGapRounds"),
            id="four boosts in four rounds fit a slot and five do not",
        ),
        pytest.param(
            {"scenarios": [{"name": "chat"}]},
            {"scenarios": [{"name": "chat"}, {"name": "chat"}]},
            ("spec.scenarios[1]", "Duplicate"),
            id="a scenario is there once",
        ),
        pytest.param(
            {"goodRequestsPerMinute": 1},
            {"goodRequestsPerMinute": 0},
            ("spec.goodRequestsPerMinute", "1"),
            id="a reward is in units of something",
        ),
    ],
)
def test_a_rule(good, bad, says):
    field, words = says
    assert complaints(**good) == []
    found = complaints(**bad)
    assert [one for one in found if one.startswith(field) and words in one], found


scenarios = st.lists(
    st.one_of(
        st.just({"state": "Pinned"}),
        st.builds(
            lambda state, least, more: {
                "state": state,
                "minGapRounds": least,
                "maxGapRounds": min(1024, least + more),
            },
            st.sampled_from(["Planned", "Frozen"]),
            st.integers(1, 1024),
            st.one_of(st.integers(0, 8), st.integers(0, 1023)),
        ),
        st.just({"state": "Planned"}),
    ),
    max_size=6,
)


@given(scenarios, st.integers(1, 4))
def test_what_the_api_server_admits_is_exactly_what_the_planner_can_keep(rules, slots):
    named = [{"name": f"s{place}"} | rule for place, rule in enumerate(rules)]
    contenders = [
        Contender(
            uid=rule["name"],
            pinned=rule["state"] == "Pinned",
            frozen=rule["state"] == "Frozen",
            gaps=Gaps(least=rule.get("minGapRounds", 1), most=rule.get("maxGapRounds")),
        )
        for rule in named
    ]
    try:
        admit(contenders, slots)
        fits = True
    except Infeasible:
        fits = False
    assert (complaints(slots=slots, scenarios=named) == []) == fits
