"""Every value is documented, and wrong ones are refused before anything reaches a cluster."""

from __future__ import annotations

import json
import tomllib

import pytest
import yaml
from tests.chart.rendering import CHART, Refused, render

from tidewheel.api.accelerators import DEFAULT_ACCELERATORS, Accelerator

VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA = json.loads((CHART / "values.schema.json").read_text())


def leaves(values, schema, path=""):
    """Path and schema of each value that a person can set, in values.yaml's order."""
    for name, value in values.items():
        child = schema["properties"][name]
        if isinstance(value, dict) and value and "properties" in child:
            yield from leaves(value, child, f"{path}{name}.")
        else:
            yield f"{path}{name}", child


def own_objects(schema):
    if "properties" in schema:
        yield schema
        for child in schema["properties"].values():
            yield from own_objects(child)


def test_every_value_has_a_description_in_the_schema():
    for path, schema in leaves(VALUES, SCHEMA):
        assert schema.get("description"), path


def undocumented(node, lines, path=""):
    """Paths of the values that have no comment above them, nor has what they are part of."""
    for key, value in node.value:
        name = f"{path}{key.value}"
        if lines[key.start_mark.line - 1].lstrip().startswith("# "):
            continue
        if isinstance(value, yaml.MappingNode) and value.value:
            yield from undocumented(value, lines, f"{name}.")
        else:
            yield name


def test_every_value_has_a_comment():
    text = (CHART / "values.yaml").read_text()

    assert list(undocumented(yaml.compose(text), text.splitlines())) == []


def test_the_schema_names_no_value_that_is_not_there():
    stale = [name for name in SCHEMA["properties"] if name not in VALUES and name != "global"]
    assert stale == []
    for own in own_objects(SCHEMA):
        assert own["additionalProperties"] is False


@pytest.mark.parametrize(
    ("values", "said"),
    [
        pytest.param({"replicas": 3}, "additional properties 'replicas' not allowed", id="an unknown key"),
        pytest.param(
            {"image": {"name": "x"}}, "additional properties 'name' not allowed", id="an unknown inner key"
        ),
        pytest.param({"replicaCount": 0}, "/replicaCount", id="no replica"),
        pytest.param({"replicaCount": "2"}, "/replicaCount", id="text for a number"),
        pytest.param({"image": {"digest": "sha256:abc"}}, "/image/digest", id="half a digest"),
        pytest.param({"log": {"level": "loud"}}, "/log/level", id="an unknown level"),
        pytest.param({"otel": {"protocol": "http/json"}}, "/otel/protocol", id="an unknown protocol"),
        pytest.param(
            {"otel": {"endpoint": "collector:4317"}}, "/otel/endpoint", id="an endpoint without scheme"
        ),
        pytest.param({"metrics": {"port": 70000}}, "/metrics/port", id="no port"),
        pytest.param({"watchNamespaces": ["Team_A"]}, "/watchNamespaces/0", id="no namespace name"),
        pytest.param(
            {"extraAccelerators": [{"resource": "x/y"}]}, "missing property 'name'", id="a nameless row"
        ),
        pytest.param({"extraAccelerators": [{"name": "cpu"}]}, 'two rows named "cpu"', id="a row twice"),
        pytest.param(
            {"leaderElection": {"enabled": False}},
            "must be true when replicaCount is more than 1",
            id="two leaders",
        ),
        pytest.param({"health": {"port": 8080}}, "8080 is metrics.port too", id="one port for two servers"),
        pytest.param(
            {"extraEnv": [{"name": "POD_NAME"}]}, "POD_NAME is set by the chart", id="a variable twice"
        ),
    ],
)
def test_a_wrong_value_is_refused_by_name(values, said):
    with pytest.raises(Refused) as refused:
        render(values)
    assert said in str(refused.value)


def test_the_default_rows_are_the_operators_own():
    rows = tuple(Accelerator.model_validate(row) for row in VALUES["accelerators"])

    assert rows == DEFAULT_ACCELERATORS


def test_the_schema_of_a_row_knows_every_field_of_the_model():
    fields = {field.alias or name for name, field in Accelerator.model_fields.items()}

    assert SCHEMA["$defs"]["accelerator"]["properties"].keys() == fields


def test_versions_agree():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = tomllib.loads((CHART.parents[1] / "pyproject.toml").read_text())["project"]["version"]

    assert chart["version"] == chart["appVersion"] == project
    assert f":{project}" in chart["annotations"]["artifacthub.io/images"]
