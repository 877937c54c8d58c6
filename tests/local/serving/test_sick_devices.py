"""A node's detector writes its file, and real servers on that node follow it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.local.serving.processes import Service, Worker, ask, eventually


@pytest.fixture
def service(tmp_path: Path):
    environment = {
        "TIDEWHEEL_DEVICE_HEALTH_FILE": str(tmp_path / "health.json"),
        "TIDEWHEEL_DEVICES_VARIABLE": "EXAMPLE_DEVICES",
    }
    service = Service(directory=tmp_path, decodes=2, environment=environment)
    for number, worker in enumerate(service.members):
        worker.environment = {**worker.environment, "EXAMPLE_DEVICES": str(number)}
    with service:
        yield service


def tell(service: Service, **levels: str) -> None:
    devices: dict[str, Any] = {
        name.removeprefix("device_"): {"level": level, "message": "ECC"} for name, level in levels.items()
    }
    new = service.directory / "health.json.new"
    new.write_text(json.dumps({"devices": devices}))
    new.replace(service.directory / "health.json")


def reason(worker: Worker) -> str:
    return str(worker.health().get("reason"))


async def test_a_device_that_recovers_takes_its_pod_out_for_a_while(service):
    tell(service, device_1="Recovering")
    eventually(lambda: reason(service.decode[0]) == "DeviceUnhealthy")
    assert service.decode[1].health()["ready"] is True
    assert service.prefill[0].health()["ready"] is True
    tell(service, device_1="Healthy")
    eventually(lambda: service.decode[0].health().get("ready"))


async def test_a_device_to_be_replaced_ends_its_pod_with_the_reason_and_nobody_else(service):
    tell(service, device_1="Replace")
    assert service.decode[0].exit_code() != 0
    assert json.loads(service.decode[0].termination_log.read_text()) == {
        "reason": "DeviceUnhealthy",
        "message": "a device of this pod is sick: ECC",
    }
    async with service.client() as client:
        answer = await client.chat.completions.create(**ask("who is there?"))
    assert answer.choices[0].message.content == "who is there?"
    service.decode[0].start()
    assert service.decode[0].exit_code() != 0, "started again it says so again, whatever loads"
