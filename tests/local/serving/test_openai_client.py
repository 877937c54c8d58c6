"""The API in breadth, asked by OpenAI's own client, synchronous and asynchronous, streamed and whole."""

from __future__ import annotations

import asyncio

import openai
import pytest
from openai import OpenAI
from tests.local.serving.processes import MODEL, Service, ask, eventually


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with Service(
        directory=tmp_path_factory.mktemp("service"),
        # a prefill whose answer nobody reads any more keeps the KV until its lease ends
        environment={
            "TIDEWHEEL_MAX_CONTEXT_TOKENS": "200",
            "TIDEWHEEL_SLOTS": "4",
            "TIDEWHEEL_KV_LEASE_SECONDS": "2",
        },
        gateway_environment={"TIDEWHEEL_MAX_BODY_BYTES": "20000"},
    ) as running:
        yield running


@pytest.fixture
async def client(service):
    async with service.client() as one:
        yield one


def test_the_synchronous_client_chats_and_streams(service):
    with OpenAI(base_url=f"{service.gateway.url}/v1", api_key="none", max_retries=0) as client:
        answer = client.chat.completions.create(
            **ask("hello there", user="u", metadata={"a": "b"}, store=False)
        )
        assert answer.choices[0].message.content == "hello there"
        with client.chat.completions.stream(**ask("hello there")) as stream:
            assert "".join(e.delta for e in stream if e.type == "content.delta") == "hello there"
            assert stream.get_final_completion().choices[0].finish_reason == "stop"


async def test_several_choices_come_whole_and_interleaved(client):
    answer = await client.chat.completions.create(**ask("abc", n=3))
    assert [(c.index, c.message.content) for c in answer.choices] == [(0, "abc"), (1, "abc"), (2, "abc")]
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (
        3,
        9,
        12,
    )

    stream = await client.chat.completions.create(
        **ask("abc", n=2, stream=True, stream_options={"include_usage": True})
    )
    chunks = [chunk async for chunk in stream]
    *told, last = chunks
    assert [chunk.usage for chunk in told] == [None] * len(told)
    assert last.usage.completion_tokens == 6
    texts, ends = {0: "", 1: ""}, []
    for choice in (choice for chunk in told for choice in chunk.choices):
        texts[choice.index] += choice.delta.content
        ends += [(choice.index, choice.finish_reason)] if choice.finish_reason else []
    assert texts == {0: "abc", 1: "abc"}
    assert sorted(ends) == [(0, "stop"), (1, "stop")]
    assert {choice.index for chunk in told[:3] for choice in chunk.choices} == {0, 1}


async def test_more_choices_than_there_are_slots_are_refused(client):
    with pytest.raises(openai.BadRequestError, match="n: 5 choices are more than the 4 slots") as refused:
        await client.chat.completions.create(**ask("abc", n=5))
    assert refused.value.param == "n"


async def test_log_probabilities_are_those_of_each_endpoint(client):
    chat = await client.chat.completions.create(**ask("ab", logprobs=True, top_logprobs=2))
    assert [(e.token, e.logprob, e.bytes) for e in chat.choices[0].logprobs.content] == [
        ("a", 0.0, [97]),
        ("b", 0.0, [98]),
    ]
    completion = await client.completions.create(model=MODEL, prompt="ab", logprobs=1)
    assert completion.choices[0].logprobs.tokens == ["a", "b"]
    assert completion.choices[0].logprobs.text_offset == [0, 1]
    streamed = await client.chat.completions.create(**ask("ab", logprobs=True, stream=True))
    assert [c.choices[0].logprobs.content[0].token async for c in streamed] == ["a", "b"]


async def test_several_prompts_are_answered_in_their_order(service, client):
    prompts = ["one", "two!", "three"]
    before = service.prefill[0].metric("vllm:prompt_tokens_total")
    answer = await client.completions.create(model=MODEL, prompt=prompts, n=2)
    assert [(c.index, c.text) for c in answer.choices] == [(i, prompts[i // 2]) for i in range(6)]
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (12, 24)
    assert service.prefill[0].metric("vllm:prompt_tokens_total") - before == 12

    stream = await client.completions.create(
        model=MODEL,
        prompt=[list(prompt.encode()) for prompt in prompts],
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    texts = ["", "", ""]
    for choice in (choice for chunk in chunks for choice in chunk.choices):
        texts[choice.index] += choice.text
    assert texts == prompts
    assert [chunk.usage.total_tokens for chunk in chunks if chunk.usage] == [24]
    assert len({chunk.id for chunk in chunks}) == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_one_bad_prompt_of_several_is_the_requests_error(service, client, stream):
    with pytest.raises(openai.BadRequestError) as refused:
        await client.completions.create(model=MODEL, prompt=["fine", "x" * 200], stream=stream)
    assert refused.value.code == "context_length_exceeded"
    eventually(lambda: service.slots_used() == 0)


async def test_a_client_that_leaves_takes_all_its_prompts_with_it(service, client):
    waiting = asyncio.ensure_future(
        client.completions.create(model=MODEL, prompt=["a" * 150] * 8, max_tokens=150, n=2)
    )
    await asyncio.to_thread(eventually, lambda: service.slots_used() > 0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await asyncio.to_thread(eventually, lambda: service.slots_used() == 0)


async def test_answers_say_which_system_made_them(client):
    answers = [await client.chat.completions.create(**ask(text, seed=1)) for text in ("a", "b")]
    completion = await client.completions.create(model=MODEL, prompt="a")
    prints = {answer.system_fingerprint for answer in (*answers, completion)}
    assert len(prints) == 1
    assert prints.pop().startswith("fp_")


async def test_cached_tokens_are_told(client):
    prompt = "the same beginning, long enough for two blocks of sixteen"
    first, again = [await client.chat.completions.create(**ask(prompt)) for _ in range(2)]
    assert first.usage.prompt_tokens_details.cached_tokens == 0
    assert again.usage.prompt_tokens_details.cached_tokens == len(prompt) // 16 * 16


async def test_completions_are_short_unless_told_otherwise(client):
    short = await client.completions.create(model=MODEL, prompt="x" * 50)
    assert (len(short.choices[0].text), short.choices[0].finish_reason) == (16, "length")
    long = await client.completions.create(model=MODEL, prompt="x" * 50, max_tokens=100)
    assert (len(long.choices[0].text), long.choices[0].finish_reason) == (50, "stop")


async def test_each_error_is_the_clients_own_exception(client):
    cases = [
        (ask("x", temperature=9), openai.BadRequestError, 400, "invalid_value", "temperature"),
        (ask("x", top_logprobs=1), openai.BadRequestError, 400, "invalid_value", "top_logprobs"),
        (ask("x", stop=["a"] * 17), openai.BadRequestError, 400, "invalid_value", "stop"),
        (
            ask("x", response_format={"type": "json_object"}),
            openai.BadRequestError,
            400,
            "unsupported_parameter",
            "response_format",
        ),
        (ask("x" * 200), openai.BadRequestError, 400, "context_length_exceeded", None),
        (ask("x") | {"model": "other"}, openai.NotFoundError, 404, "model_not_found", "model"),
        (ask("x" * 30_000), openai.APIStatusError, 413, "body_too_large", None),
    ]
    for arguments, kind, status, code, param in cases:
        with pytest.raises(kind) as refused:
            await client.chat.completions.create(**arguments)
        assert (refused.value.status_code, refused.value.code, refused.value.param) == (status, code, param)
        assert refused.value.request_id


async def test_raw_answers_carry_the_request_id(client):
    raw = await client.chat.completions.with_raw_response.create(**ask("hi"))
    assert raw.headers["x-request-id"] == raw.request_id
    assert raw.parse().id == f"chatcmpl-{raw.request_id}"
    async with client.chat.completions.with_streaming_response.create(**ask("hi", stream=True)) as streamed:
        assert streamed.headers["content-type"] == "text/event-stream; charset=utf-8"
        lines = [line async for line in streamed.iter_lines()]
    assert lines[-2:] == ["data: [DONE]", ""] or lines[-1] == "data: [DONE]"
