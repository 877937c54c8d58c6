"""A process that cannot start says why where Kubernetes looks, and one whose peers do not fit stays unready."""

from __future__ import annotations

import json
import socket

import pytest
from tests.local.serving.processes import Service, eventually


def failure(worker) -> dict[str, str]:
    worker.start()
    assert worker.exit_code() != 0, worker.log
    return json.loads(worker.termination_log.read_text())


@pytest.fixture
def service(tmp_path):
    made = []

    def make(**options) -> Service:
        service = Service(directory=tmp_path, **options)
        made.append(service)
        return service

    yield make
    for service in made:
        service.__exit__()


def test_a_model_that_is_not_there(service):
    told = failure(service(source="package:no-such-model").prefill[0])
    assert told["reason"] == "ModelNotFound"
    assert "no-such-model" in told["message"]


def test_an_http_port_that_is_taken(service):
    worker = service().gateway
    with socket.create_server((worker.host, 8000)):
        told = failure(worker)
    assert told == {
        "reason": "PortTaken",
        "message": f"{worker.host}:8000 is in use by another process; free it or choose another port",
    }


def test_a_kv_port_that_is_taken(service):
    worker = service().prefill[0]
    with socket.create_server((worker.host, 7001)):
        assert failure(worker)["reason"] == "PortTaken"


def test_an_environment_that_makes_no_sense(service):
    told = failure(service(environment={"TIDEWHEEL_SLOTS": "many"}).decode[0])
    assert told["reason"] == "InvalidSpec"
    assert "TIDEWHEEL_SLOTS" in told["message"]


def test_a_group_whose_members_cannot_reach_each_other_is_not_ready_and_says_so(service):
    group = service(environment={"TIDEWHEEL_PEER_TIMEOUT_SECONDS": "0.5"})
    group.publish()
    decode = group.decode[0]
    decode.start()
    health = eventually(lambda: (h := decode.health()).get("reason") == "PeersUnverified" and h)
    assert not health["ready"]
    assert f"prefill-0 at {group.prefill[0].host}:7001" in health["message"]
    assert decode.health("live") == {"alive": True}
    group.prefill[0].start()
    decode.wait_ready()


def test_without_a_rank_table_a_worker_waits_for_it(service):
    group = service()
    for worker in group.members:
        worker.start()
    message = "the group's rank table has not been published yet"
    eventually(lambda: group.decode[0].health().get("message") == message)
    group.publish()
    for worker in group.members:
        worker.wait_ready()
