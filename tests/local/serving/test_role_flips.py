"""A running member takes the other role: its process and its weights stay, and no request is lost."""

from __future__ import annotations

import asyncio

import pytest
from tests.local.serving.processes import Service, Worker, ask, eventually

from tidewheel.api.ranktable import Role

TEXT = "the quick brown fox"
#: A token every 5 ms, so that streams are open while something happens.
SLOW = "stand-in:tokens=1900,step_ms=5"


def repeated(tokens: int) -> str:
    return (TEXT * tokens)[:tokens]


@pytest.fixture
def service(tmp_path):
    environment = {"TIDEWHEEL_SLOTS": "8", "TIDEWHEEL_FLIP_SLOTS": "5"}
    with Service(directory=tmp_path, prefills=2, decodes=2, source=SLOW, environment=environment) as running:
        yield running


def leave_routes(service: Service, worker: Worker) -> None:
    """As the operator does first: the gateways send it nothing new."""
    members = {"prefill": service.prefill, "decode": service.decode}[worker.role]
    members.remove(worker)
    routes = service.publish_routes()
    eventually(lambda: service.gateway.has_read("routes", routes))


def flip(service: Service, worker: Worker, role: Role) -> None:
    """As the operator does then: out of the rank table, into it in the other role, and into the routes when it is ready."""
    service.publish_ranks()
    eventually(lambda: worker.health()["ready"] is False)
    worker.role = role
    {"prefill": service.prefill, "decode": service.decode}[role].append(worker)
    service.publish_ranks()
    worker.wait_ready()
    routes = service.publish_routes()
    eventually(lambda: service.gateway.has_read("routes", routes))


class Load:
    """Chats that go on all the time."""

    def __init__(self, service: Service) -> None:
        self._client = service.client()
        self._on = True
        self.wrong: list[str] = []
        self.answered = 0

    async def one(self, tokens: int) -> str:
        stream = await self._client.chat.completions.create(**ask(TEXT, stream=True, max_tokens=tokens))
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])

    async def run(self, tokens: int) -> None:
        while self._on:
            text = await self.one(tokens)
            self.answered += 1
            if text != repeated(tokens):
                self.wrong.append(text)

    def end(self) -> None:
        self._on = False

    async def __aenter__(self) -> Load:
        self._tasks = [asyncio.create_task(self.run(tokens)) for tokens in (3, 20, 60, 150)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.end()
        await asyncio.gather(*self._tasks)
        await self._client.close()


@pytest.mark.parametrize(("old", "new"), [("decode", "prefill"), ("prefill", "decode")])
async def test_a_member_takes_the_other_role_under_load_and_no_request_is_lost(service, old, new):
    worker = getattr(service, old)[1]
    process = worker.process.pid
    async with Load(service) as load:
        await asyncio.to_thread(eventually, lambda: load.answered > 4)
        await asyncio.to_thread(leave_routes, service, worker)
        await asyncio.to_thread(flip, service, worker, new)
        before = load.answered
        works = "vllm:prompt_tokens_total" if new == "prefill" else "tidewheel_kv_transfer_bytes_total"
        await asyncio.to_thread(eventually, lambda: worker.metric(works) > 0 and load.answered > before + 4)
    assert load.wrong == []
    assert worker.process.poll() is None
    assert worker.process.pid == process
    assert worker.log.count("loaded stand-in") == 1, "the engine is not loaded anew"
    assert f"changed from {old} to {new}" in worker.log
    assert worker.metric("tidewheel_slots") == 5, "as many slots as the other role has"
    assert worker.metric("tidewheel_kv_transfer_seconds_count", role=new) > 0
    assert eventually(lambda: service.slots_used() == 0)


async def test_a_member_flips_there_and_back(service):
    worker = service.decode[1]
    for role in ("prefill", "decode"):
        await asyncio.to_thread(leave_routes, service, worker)
        await asyncio.to_thread(flip, service, worker, role)
    async with Load(service) as load:
        await asyncio.to_thread(
            eventually, lambda: worker.metric("tidewheel_kv_transfer_seconds_count", role="decode") > 0
        )
    assert load.wrong == []
    assert worker.metric("tidewheel_slots") == 8
    assert worker.log.count("loaded stand-in") == 1


async def test_a_flip_waits_for_the_streams_that_run_and_stays_alive_meanwhile(service):
    other, worker = service.decode
    await asyncio.to_thread(leave_routes, service, other)
    async with service.client() as client:
        stream = await client.chat.completions.create(**ask(TEXT, stream=True, max_tokens=1500))
        first = await anext(stream)
        await asyncio.to_thread(leave_routes, service, worker)
        service.publish_ranks()
        await asyncio.to_thread(eventually, lambda: worker.health()["ready"] is False)
        worker.role = "prefill"
        service.prefill.append(worker)
        service.publish_ranks()
        await asyncio.to_thread(eventually, lambda: worker.health().get("reason") == "Draining")
        assert worker.health("live") == {"alive": True}
        rest = "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])
        assert first.choices[0].delta.content + rest == repeated(1500)
    await asyncio.to_thread(eventually, lambda: "changed from decode to prefill" in worker.log)


async def test_a_stream_that_outlasts_the_drain_goes_on_elsewhere(tmp_path):
    environment = {"TIDEWHEEL_DRAIN_SECONDS": "0.2"}
    with Service(directory=tmp_path, prefills=1, decodes=2, source=SLOW, environment=environment) as service:
        async with service.client() as client:
            stream = await client.chat.completions.create(**ask(TEXT, stream=True, max_tokens=600))
            first = await anext(stream)
            worker = next(one for one in service.decode if one.metric("vllm:num_requests_running") == 1)
            await asyncio.to_thread(leave_routes, service, worker)
            await asyncio.to_thread(flip, service, worker, "prefill")
            rest = "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])
            assert first.choices[0].delta.content + rest == repeated(600)


async def test_a_process_that_starts_again_takes_the_role_of_the_rank_table(service):
    worker = service.decode[1]
    await asyncio.to_thread(leave_routes, service, worker)
    await asyncio.to_thread(flip, service, worker, "prefill")
    worker.kill()
    worker.program = ("-m", "tidewheel_workers.serving.decode")  # what its pod was made with
    worker.start()
    await asyncio.to_thread(worker.wait_ready)
    assert worker.log.count("changed from decode to prefill") == 2
    async with Load(service) as load:
        await asyncio.to_thread(eventually, lambda: worker.metric("vllm:prompt_tokens_total") > 0)
    assert load.wrong == []
