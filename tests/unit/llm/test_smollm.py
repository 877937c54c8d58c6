"""The real model answers, and the same whatever runs beside it and wherever its prompt was computed."""

from __future__ import annotations

import math

import pytest
from tests.unit.llm.driving import answers, collect, computed, finish, request

from tidewheel_workers.llm.engine import Engine, EngineLimits
from tidewheel_workers.llm.kv import KVCache, KVLayout
from tidewheel_workers.llm.loading import LoadedModel
from tidewheel_workers.llm.sampling import SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=12)
TEXTS = (
    "The capital of France is",
    "Once upon a time there was a",
    "def fibonacci(n):",
    "A recipe for bread: take flour, water and",
)


def engine(smollm: LoadedModel, *, blocks: int = 64, block_size: int = 16, **limits: int) -> Engine:
    kv = KVCache(KVLayout.of(smollm.model.config, smollm.model.dtype, block_size), blocks=blocks)
    return Engine(smollm.model, smollm.tokenizer, kv, EngineLimits(**limits))


def test_it_completes_a_sentence(smollm: LoadedModel) -> None:
    ids = smollm.tokenizer.encode("The capital of France is")
    (answer,) = answers(engine(smollm), request("r", ids, GREEDY))
    assert answer.text.startswith(" Paris.")
    assert answer.ended == "length"


def test_it_answers_a_question_and_stops(smollm: LoadedModel) -> None:
    ids = smollm.tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}]
    )
    asked = request("r", ids, GREEDY)
    decode = engine(smollm)
    events = [*decode.admit(asked, computed(engine(smollm), asked)), *finish(decode)]
    (answer,) = collect(events, "r")
    assert (answer.text, answer.ended) == ("The capital of France is Paris.", "stop")


@pytest.mark.slow
def test_apart_together_cached_and_preempted_it_writes_the_same(smollm: LoadedModel) -> None:
    prefix = smollm.tokenizer.encode("You are a helpful assistant who completes what people have begun. ")
    greedy = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True)
    seeded = SamplingParams(
        temperature=0.8, top_p=0.95, seed=1, max_tokens=12, frequency_penalty=0.3, ignore_eos=True
    )
    asked = [
        request(
            str(index),
            prefix + smollm.tokenizer.encode(text),
            greedy if index % 2 else seeded,
            choices=1 + index // 3,
        )
        for index, text in enumerate(TEXTS)
    ]
    alone = [answers(engine(smollm), one) for one in asked]

    prefill, apart = engine(smollm, block_size=4, batch_tokens=9), engine(smollm)
    events = []
    for one in asked:
        events += apart.admit(one, computed(prefill, one))
        events += apart.step()
    events += finish(apart)
    assert [collect(events, one.request_id) for one in asked] == alone
    assert prefill.stats().prefix_hits > 0

    crowded = engine(smollm, blocks=14, block_size=4, batch_tokens=24)
    for one in asked:
        crowded.submit(one)
    events = finish(crowded)
    assert [collect(events, one.request_id) for one in asked] == alone
    assert crowded.stats().preemptions > 0


def test_its_probabilities_are_those_of_an_independent_implementation(smollm: LoadedModel) -> None:
    params = SamplingParams(temperature=0, max_tokens=1, logprobs=3)
    ids = smollm.tokenizer.encode("The capital of France is")
    found = computed(engine(smollm), request("r", ids, params)).first[0].logprob
    assert found is not None
    # transformers 5.23 on the same file in float32
    wanted_top = [(7042, -0.2581), (260, -2.7407), (4528, -4.3844)]
    for (token, logprob), (wanted_token, wanted) in zip(found.top, wanted_top, strict=True):
        assert token == wanted_token
        assert math.isclose(logprob, wanted, abs_tol=2e-3)
