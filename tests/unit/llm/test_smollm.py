"""The real model answers, and answers the same with prefill and decode apart."""

from __future__ import annotations

import dataclasses
import math

from tidewheel_workers.llm.engine import Engine
from tidewheel_workers.llm.kv import KVBlob, KVCache, KVLayout
from tidewheel_workers.llm.loading import LoadedModel
from tidewheel_workers.llm.sampling import SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=12)


def engine(smollm: LoadedModel) -> Engine:
    kv = KVCache(KVLayout.of(smollm.model.config, smollm.model.dtype), blocks=32)
    return Engine(smollm.model, smollm.tokenizer, kv)


def answer(smollm: LoadedModel, ids: list[int]) -> tuple[str, str | None]:
    """The text of a greedy answer whose KV crosses from one engine to another, and how it ended."""
    prefill, decode = engine(smollm), engine(smollm)
    first = prefill.prefill("r", ids, GREEDY)
    blob = KVBlob.from_bytes(decode.kv.layout, first.kv_tokens, bytearray(prefill.export("r").as_bytes()))
    events = [decode.admit("r", ids, first.first_token, GREEDY, blob=blob)]
    while decode.stats().running:
        events += decode.step()
    return "".join(event.text for event in events), events[-1].finish_reason


def test_it_completes_a_sentence(smollm: LoadedModel) -> None:
    text, ended = answer(smollm, smollm.tokenizer.encode("The capital of France is"))
    assert text.startswith(" Paris.")
    assert ended == "length"


def test_it_answers_a_question_and_stops(smollm: LoadedModel) -> None:
    ids = smollm.tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}]
    )
    assert answer(smollm, ids) == ("The capital of France is Paris.", "stop")


def test_its_probabilities_are_those_of_an_independent_implementation(smollm: LoadedModel) -> None:
    params = dataclasses.replace(GREEDY, logprobs=3)
    found = engine(smollm).prefill("r", smollm.tokenizer.encode("The capital of France is"), params).logprob
    assert found is not None
    # transformers 5.23 on the same file in float32
    wanted_top = [(7042, -0.2581), (260, -2.7407), (4528, -4.3844)]
    for (token, logprob), (wanted_token, wanted) in zip(found.top, wanted_top, strict=True):
        assert token == wanted_token
        assert math.isclose(logprob, wanted, abs_tol=2e-3)
