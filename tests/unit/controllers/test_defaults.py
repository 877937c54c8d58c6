"""What settings mean for the planners."""

from __future__ import annotations

from pathlib import Path

import pytest

from tidewheel.api.accelerators import UnknownAccelerator
from tidewheel.controllers.defaults import UnreadableAccelerators, accelerator_table, service_defaults
from tidewheel.controllers.settings import LeaseSettings, OperatorSettings


def written(directory: Path, text: str) -> Path:
    file = directory / "accelerators.yaml"
    file.write_text(text)
    return file


def test_the_rows_of_the_file_replace_the_built_in_ones(tmp_path: Path):
    table = accelerator_table(
        written(tmp_path, "- name: mine\n  resource: example.com/npu\n  torchDevice: npu\n")
    )
    assert table["mine"].resource == "example.com/npu"
    with pytest.raises(UnknownAccelerator):
        table["nvidia"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param("- resource: x\n", r"0\.name: Field required", id="a row without a name"),
        pytest.param("- name: [\n", "accelerators.yaml", id="no YAML"),
        pytest.param("rows: 1\n", "the file", id="no list"),
    ],
)
def test_a_wrong_file_names_the_row_and_the_field(tmp_path: Path, text: str, says: str):
    with pytest.raises(UnreadableAccelerators, match=says):
        accelerator_table(written(tmp_path, text))


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(UnreadableAccelerators, match=r"none\.yaml"):
        accelerator_table(tmp_path / "none.yaml")


def test_workers_report_where_the_operator_does_but_get_no_secret_headers():
    environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317",
        "OTEL_EXPORTER_OTLP_HEADERS": "authorization=secret",
        "OTEL_SERVICE_NAME": "tidewheel-operator",
    }
    handed_on = service_defaults(OperatorSettings(worker_image="mine:1"), environment)
    assert handed_on.environment == {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317"}
    assert handed_on.image == "mine:1"


def test_lease_times_that_would_let_two_act_at_a_time_are_refused():
    with pytest.raises(ValueError, match="two replicas could act"):
        LeaseSettings(duration_seconds=10, renew_deadline_seconds=15)
