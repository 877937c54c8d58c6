"""What a node's health file means for the server whose devices it tells of."""

from __future__ import annotations

import json

import pytest

from tidewheel.api.health import HealthFile
from tidewheel_workers.serving.device_health import DeviceWatch, visible_devices
from tidewheel_workers.serving.start_errors import SickDevice

SICK = {"level": "Replace", "message": "uncorrectable ECC error"}
HOT = {"level": "Recovering", "message": "too hot"}


@pytest.mark.parametrize(
    ("told", "devices", "want"),
    [
        pytest.param({}, ["0"], "Healthy", id="nothing is said"),
        pytest.param({"1": SICK}, ["0"], "Healthy", id="another's device"),
        pytest.param({"0": HOT}, ["0", "1"], "Recovering", id="one of its own"),
        pytest.param({"0": HOT, "1": SICK}, ["0", "1"], "Replace", id="the worst counts"),
        pytest.param({"7": SICK}, None, "Replace", id="whose it is, is not known"),
        pytest.param({"0": {"level": "Healthy"}}, ["0"], "Healthy", id="it says that all is well"),
    ],
)
def test_a_pod_is_as_well_as_its_devices(told, devices, want):
    assert HealthFile.model_validate({"devices": told}).of(devices).level == want


@pytest.mark.parametrize(
    ("environment", "want"),
    [
        ({"CUDA_VISIBLE_DEVICES": "2, 3"}, {"2", "3"}),
        ({"CUDA_VISIBLE_DEVICES": "all"}, None),
        ({}, None),
    ],
    ids=["named", "all of them", "not told"],
)
def test_a_pods_devices_are_those_of_its_accelerators_variable(environment, want):
    assert visible_devices("CUDA_VISIBLE_DEVICES", environment) == want


async def test_a_sick_device_ends_the_server_with_its_reason(tmp_path):
    file = tmp_path / "health.json"
    file.write_text(json.dumps({"devices": {"0": SICK}}))
    with pytest.raises(SickDevice, match="uncorrectable ECC error") as ended:
        await DeviceWatch(file, frozenset({"0"})).watch()
    assert ended.value.reason == "DeviceUnhealthy"


def test_a_file_that_is_not_there_says_nothing_against_a_device(tmp_path):
    assert DeviceWatch(tmp_path / "none.json", None).health.level == "Healthy"
