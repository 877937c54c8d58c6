"""A gateway of several processes is one gateway to its clients, whatever becomes of a process."""

from __future__ import annotations

import asyncio
import json
import signal

import openai
import psutil
import pytest
from tests.local.serving.processes import Service, ask, eventually

SLOW = "stand-in:tokens=1900,step_ms=5"
PROCESSES = 3
#: Its supervisor finds sooner than others that a process hangs.
IMPATIENT = """\
from tidewheel_workers.serving import gateway, supervisor
supervisor.HANG_SECONDS, supervisor.REPORT_SECONDS = 0.5, 0.1
gateway.main()
"""


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    """A prefill and two decodes, and a gateway that does not run yet."""
    made = a_service(tmp_path_factory.mktemp("group"))
    made.publish()
    try:
        for worker in made.members:
            worker.start()
        for worker in made.members:
            worker.wait_ready()
        yield made
    finally:
        made.__exit__()


@pytest.fixture
def service(group):
    """The group behind a gateway of its own for each test."""
    group.gateway.program = ()
    group.gateway.start()
    group.gateway.wait_ready()
    yield group
    group.gateway.kill()


@pytest.fixture
def gateway_alone(tmp_path):
    """A gateway whose routes lead nowhere, for tests that ask it nothing."""
    made = a_service(tmp_path)
    made.publish()
    made.gateway.start()
    made.gateway.wait_ready()
    yield made
    made.gateway.kill()


def a_service(directory) -> Service:
    return Service(
        directory=directory,
        decodes=2,
        source=SLOW,
        environment={"TIDEWHEEL_SLOTS": "8"},
        gateway_environment={"TIDEWHEEL_GATEWAY_PROCESSES": str(PROCESSES)},
    )


def processes(service: Service) -> list[psutil.Process]:
    return psutil.Process(service.gateway.process.pid).children()


def processes_other_than(service: Service, gone: psutil.Process) -> list[psutil.Process]:
    """All of them, once another has taken the place of the one that is gone."""
    return eventually(
        lambda: (
            len(now := processes(service)) == PROCESSES and gone.pid not in {one.pid for one in now} and now
        )
    )


def requests_counted(service: Service) -> float:
    return service.gateway.metric("tidewheel_gateway_requests_total", code="200")


async def chat(service: Service, **fields) -> str:
    """On a connection of its own."""
    async with service.client() as client:
        answer = await client.chat.completions.create(**ask("tide", max_tokens=4, **fields))
    return answer.choices[0].message.content


async def chats(service: Service, count: int) -> None:
    for _ in range(count):
        assert await chat(service) == "tide"


async def streams_on_all(service: Service, clients: list, tokens: int) -> dict[int, list]:
    """Open streams, at least one at each process, by process."""
    streams: dict[int, list] = {one.pid: [] for one in processes(service)}
    while not all(streams.values()):
        before = connections(service)
        client = service.client()
        clients.append(client)
        stream = await client.chat.completions.create(**ask("tide", stream=True, max_tokens=tokens))
        await anext(stream)
        (pid,) = (pid for pid, count in connections(service).items() if count > before[pid])
        streams[pid].append(stream)
    return streams


def connections(service: Service) -> dict[int, int]:
    """How many clients each process has."""
    return {
        one.pid: sum(c.status == "ESTABLISHED" and c.laddr.port == 8000 for c in one.net_connections("tcp"))
        for one in processes(service)
    }


async def rest(stream) -> int:
    return len([chunk async for chunk in stream if chunk.choices])


async def test_a_scrape_tells_of_all_processes(service):
    assert len(processes(service)) == PROCESSES
    await chats(service, 12)
    assert [requests_counted(service) for _ in range(6)] == [12] * 6
    assert service.gateway.metric("tidewheel_gateway_groups") == 1


async def test_a_killed_process_takes_its_streams_along_and_nothing_else(service):
    clients: list = []
    streams = await streams_on_all(service, clients, tokens=1000)
    await chats(service, 6)
    counted = requests_counted(service)
    killed, *others = processes(service)
    killed.kill()
    for stream in streams.pop(killed.pid):
        with pytest.raises(openai.APIConnectionError):
            await rest(stream)
    await asyncio.to_thread(processes_other_than, service, killed)
    await chats(service, 9)
    assert requests_counted(service) == counted + 9
    finished = await asyncio.gather(*(rest(stream) for many in streams.values() for stream in many))
    assert set(finished) == {999}
    assert {one.pid for one in others} <= {one.pid for one in processes(service)}
    assert await asyncio.to_thread(eventually, lambda: service.slots_used() == 0)
    for client in clients:
        await client.close()


async def test_a_process_that_hangs_is_replaced(service):
    service.gateway.send(signal.SIGTERM)
    assert service.gateway.exit_code() == 0
    service.gateway.program = ("-c", IMPATIENT)
    service.gateway.start()
    await asyncio.to_thread(service.gateway.wait_ready)
    hanging = processes(service)[0]
    hanging.suspend()
    await asyncio.to_thread(processes_other_than, service, hanging)
    assert "hangs and is killed" in service.gateway.log
    await chats(service, 9)


async def test_all_processes_drain_together(service):
    clients: list = []
    streams = await streams_on_all(service, clients, tokens=400)
    members = processes(service)
    service.gateway.send(signal.SIGTERM)
    await asyncio.to_thread(eventually, lambda: service.gateway.health().get("reason") == "Draining")
    finished = await asyncio.gather(*(rest(stream) for many in streams.values() for stream in many))
    assert set(finished) == {399}
    assert service.gateway.exit_code() == 0
    assert not any(one.is_running() for one in members)
    for client in clients:
        await client.close()


async def test_a_process_that_dies_while_all_drain_is_not_replaced(service):
    clients: list = []
    streams = await streams_on_all(service, clients, tokens=400)
    killed, *_ = members = processes(service)
    service.gateway.send(signal.SIGTERM)
    await asyncio.to_thread(eventually, lambda: service.gateway.health().get("reason") == "Draining")
    killed.kill()
    del streams[killed.pid]
    finished = await asyncio.gather(*(rest(stream) for many in streams.values() for stream in many))
    assert set(finished) == {399}
    assert service.gateway.exit_code() == 0
    assert not any(one.is_running() for one in members)
    for client in clients:
        await client.close()


def test_no_process_outlives_its_supervisor(gateway_alone):
    members = processes(gateway_alone)
    gateway_alone.gateway.kill()
    eventually(lambda: not any(one.is_running() for one in members))
    gateway_alone.gateway.start()
    gateway_alone.gateway.wait_ready()


def test_a_gateway_whose_processes_die_again_and_again_ends_and_says_so(gateway_alone):
    for _ in range(5):
        killed = processes(gateway_alone)[0]
        killed.kill()
        processes_other_than(gateway_alone, killed)
        gateway_alone.gateway.wait_ready()
    processes(gateway_alone)[0].kill()
    assert gateway_alone.gateway.exit_code() == 1
    told = json.loads(gateway_alone.gateway.termination_log.read_text())
    assert told["message"] == "6 processes ended within 60 s, the last with -9"


def test_the_port_is_not_shared_with_another_gateway(gateway_alone):
    termination_log = gateway_alone.gateway.termination_log
    first, gateway_alone.gateway.process = gateway_alone.gateway.process, None
    gateway_alone.gateway.start()
    assert gateway_alone.gateway.exit_code() == 1
    assert json.loads(termination_log.read_text())["reason"] == "PortTaken"
    gateway_alone.gateway.process = first
    assert gateway_alone.gateway.health()["ready"]
