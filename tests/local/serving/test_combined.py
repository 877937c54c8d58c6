"""Groups without prefills: decodes compute the prompts, too, with all that a gateway promises; and come and go as such."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress

import openai
import pytest
from tests.local.serving.processes import Service, ask, eventually

#: One token every 5 ms, for as long as max_tokens allows.
SLOW = "stand-in:tokens=1900,step_ms=5"
SCENARIOS = (
    {"name": "hurried", "match": {"headers": [{"name": "X-Class", "value": "fast"}]}, "ttftDeadlineSeconds": 1},
)  # fmt: skip


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with Service(
        directory=tmp_path_factory.mktemp("service"),
        prefills=0,
        decodes=2,
        combined=True,
        source=SLOW,
        environment={"TIDEWHEEL_SLOTS": "1"},
        # who waits in another process is not in the same line
        gateway_environment={"TIDEWHEEL_STREAM_IDLE_SECONDS": "1", "TIDEWHEEL_GATEWAY_PROCESSES": "1"},
        scenarios=SCENARIOS,
    ) as running:
        yield running


@pytest.fixture
async def client(service):
    async with service.client() as one:
        yield one
    await asyncio.to_thread(eventually, lambda: service.slots_used() == 0)


@asynccontextmanager
async def all_slots_busy(client):
    """Both decodes write long answers."""
    streams = [await client.chat.completions.create(**ask("held", stream=True)) for _ in range(2)]
    for stream in streams:
        await anext(stream)
    try:
        yield
    finally:
        for stream in streams:
            await stream.close()


def text_of(chunks) -> str:
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


async def test_prompts_of_any_length_are_answered_whole_and_as_streams(service, client):
    before = service.gateway.metric("tidewheel_gateway_prompts_to_decodes_total")
    text = "as long as a prompt may be " * 30
    whole = await client.chat.completions.create(**ask(text, max_tokens=20))
    assert whole.choices[0].message.content == text[:20]
    stream = await client.chat.completions.create(
        **ask(text, max_tokens=20, stream=True, stream_options={"include_usage": True})
    )
    chunks = [chunk async for chunk in stream]
    assert text_of(chunks) == text[:20]
    assert whole.usage.prompt_tokens == chunks[-1].usage.prompt_tokens == len(text)
    assert service.gateway.metric("tidewheel_gateway_prompts_to_decodes_total") - before == 2
    assert service.decode[0].health()["message"] == "the group is combined: decodes compute the prompts, too"


async def test_who_finds_no_slot_waits_in_the_gateway_and_no_longer_than_it_may(service, client):
    async with all_slots_busy(client):
        patient = asyncio.create_task(client.chat.completions.create(**ask("patient", max_tokens=7)))
        await asyncio.to_thread(
            eventually, lambda: service.gateway.metric("tidewheel_gateway_waiting_requests") == 1
        )
        with pytest.raises(openai.InternalServerError) as refused:
            await client.chat.completions.create(**ask("hurried"), extra_headers={"x-class": "fast"})
        assert refused.value.status_code == 503
        assert not patient.done()
    assert (await patient).choices[0].message.content == "patient"
    ended = "tidewheel_gateway_early_terminations_total"
    assert service.gateway.metric(ended, scenario="hurried") == 1
    assert service.gateway.metric(ended, scenario="default") == 0


async def test_a_stream_whose_decode_is_killed_goes_on_at_the_other(service, client):
    before = service.gateway.metric("tidewheel_gateway_resumed_streams_total")
    text = "the quick brown fox"
    stream = await client.chat.completions.create(**ask(text, stream=True, max_tokens=200))
    chunks = [await anext(stream) for _ in range(20)]
    serving = next(one for one in service.decode if one.metric("vllm:num_requests_running") == 1)
    await asyncio.to_thread(serving.kill)
    chunks += [chunk async for chunk in stream]
    assert text_of(chunks) == (text * 20)[:200]
    assert service.gateway.metric("tidewheel_gateway_resumed_streams_total") - before == 1
    serving.start()
    await asyncio.to_thread(serving.wait_ready)


async def test_prefills_join_and_leave_again_and_no_request_fails(tmp_path):
    outcomes: list[object] = []

    async def load(client) -> None:
        while True:
            try:
                stream = await client.chat.completions.create(**ask("what is up", stream=True, max_tokens=10))
                outcomes.append(text_of([chunk async for chunk in stream]))
            except openai.APIError as error:
                outcomes.append(error)

    with Service(
        directory=tmp_path,
        prefills=0,
        decodes=2,
        combined=True,
        source=SLOW,
        gateway_environment={"TIDEWHEEL_GATEWAY_PROCESSES": "1"},  # then it has read what its log tells
    ) as service:
        async with service.client() as client:

            async def all_read() -> None:
                table, routes = service.publish()
                for worker in service.decode:
                    await asyncio.to_thread(eventually, lambda w=worker: w.has_read("rank table", table))
                await asyncio.to_thread(eventually, lambda: service.gateway.has_read("routes", routes))

            async def some_more() -> None:
                seen = len(outcomes)
                await asyncio.to_thread(eventually, lambda: len(outcomes) >= seen + 10)

            running = [asyncio.create_task(load(client)) for _ in range(3)]
            try:
                await some_more()
                prefill = await asyncio.to_thread(service.add_prefill)
                assert prefill.metric("tidewheel_slots", state="used") == 0
                assert all(worker.health()["ready"] for worker in service.decode)
                service.combined = False
                await all_read()
                before = service.gateway.metric("tidewheel_gateway_prompts_to_decodes_total")
                await some_more()
                told = service.gateway.metric("tidewheel_gateway_prompts_to_decodes_total") - before
                assert told <= len(running), "those that were under way"
                assert prefill.metric("vllm:prompt_tokens_total") > 0
                service.combined = True
                await (
                    all_read()
                )  # as the operator does it: gateways first, the group's members when these know it
                service.prefill = []
                await all_read()
                await some_more()
                assert all(worker.health()["ready"] for worker in service.decode)
            finally:
                for task in running:
                    task.cancel()
                    with suppress(asyncio.CancelledError):
                        await task
                prefill.kill()
    assert set(outcomes) == {"what is up"}
