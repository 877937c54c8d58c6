"""The torch engine behind the servers' seam, with a model that recalls its context exactly."""

from __future__ import annotations

import asyncio
import dataclasses
from contextlib import aclosing

import pytest
import torch
from tests.unit.llm.recalling import CONFIG, POISON, Letters, Recalling
from tests.unit.serving.group import buffer_of, prefilled

from tidewheel_workers.llm.engine import EngineLimits
from tidewheel_workers.llm.errors import PromptTooLong, RequestFailed
from tidewheel_workers.llm.kv import KVCache, KVLayout
from tidewheel_workers.llm.loading import LoadedModel
from tidewheel_workers.serving import torch_engine
from tidewheel_workers.serving.engine import Failed, First, Logprob, Prompt, Sampling
from tidewheel_workers.serving.engine_loop import EngineLoop
from tidewheel_workers.serving.settings import WorkerSettings
from tidewheel_workers.serving.torch_engine import TorchEngine

LOADED = LoadedModel(model=Recalling(), tokenizer=Letters(), digest="recalling")
SEEDED = Sampling(seed=3, max_tokens=8, logprobs=1, ignore_eos=True)


def engine(*, blocks: int = 32, **limits: int) -> TorchEngine:
    kv = KVCache(KVLayout.of(CONFIG, torch.float32, 4), blocks=blocks)
    return TorchEngine(LOADED, kv, EngineLimits(**limits))


def prompt(name: str, *tokens: int, sampling: Sampling = SEEDED, **more: object) -> Prompt:
    return Prompt(request_id=name, token_ids=tokens or (1, 2, 3, 4, 5), sampling=sampling, **more)


@pytest.fixture
async def start():
    loops = []

    def make(one: TorchEngine) -> EngineLoop:
        loops.append(EngineLoop(one, on_failure=lambda _: None))
        return loops[-1]

    yield make
    for loop in loops:
        await loop.stop()


async def answer(loop: EngineLoop, asked: Prompt, prefill: EngineLoop | None = None) -> dict[int, list]:
    """Tokens, texts, log-probabilities and the end of each choice; the prompt computed by another engine, if there is one."""
    computed = None
    if prefill is not None:
        sink = buffer_of(asked.kv_tokens, prefill.engine.identity.kv)
        computed = prefilled(sink, await prefill.compute(asked, sink))
    choices: dict[int, list] = {}
    async with aclosing(loop.generate(asked, computed)) as events:
        async for event in events:
            choices.setdefault(event.choice, []).append(
                (event.token, event.text, event.output_tokens, event.logprob, event.finish_reason)
            )
    return dict(sorted(choices.items()))


async def test_answers_are_the_same_in_one_engine_and_in_two_whatever_runs_beside_them(start):
    asked = [
        prompt("alone"),
        prompt("many", choices=3),
        prompt("resumed", resumed=(9, 8)),
        prompt("biased", sampling=dataclasses.replace(SEEDED, logit_bias=((7, 5.0),), min_tokens=3)),
        prompt("alike", 1, 2, 3, 4, 5, 6),
    ]
    wanted = []
    for one in asked:
        wanted.append(await answer(start(engine()), one))
    prefill, decode = start(engine(batch_tokens=6)), start(engine(blocks=10, batch_tokens=6))
    assert await asyncio.gather(*(answer(decode, one, prefill) for one in asked)) == wanted
    assert prefill.load.prefix_hits > 0
    assert (await decode.call(lambda e: e.load())).running == 0
    combined = start(engine(blocks=10, batch_tokens=6))
    assert await asyncio.gather(*(answer(combined, one) for one in asked)) == wanted
    assert combined.load.preemptions > 0


async def test_the_first_token_is_told_with_what_was_asked_for(start):
    prefill = start(engine())
    asked = prompt("a", choices=2)
    sink = buffer_of(asked.kv_tokens, prefill.engine.identity.kv)
    await prefill.compute(prompt("before"), buffer_of(5, prefill.engine.identity.kv))
    computed = await prefill.compute(asked, sink)
    assert computed.cached_tokens == 4
    assert len(computed.first) == 2
    for first in computed.first:
        assert isinstance(first, First)
        assert isinstance(first.logprob, Logprob)
        assert first.logprob.token == first.token
        assert len(first.logprob.top) == 1
    assert prefill.engine.cached_tokens([1, 2, 3, 4, 9]) == 4


async def test_a_client_that_leaves_frees_its_blocks(start):
    loop = start(engine())
    events = loop.generate(prompt("a", sampling=Sampling(ignore_eos=True), choices=2), None)
    async with aclosing(events):
        await anext(events)
    load = await loop.call(lambda e: e.load())
    assert (load.running, load.waiting, load.kv_usage) == (0, 0, 0)


async def test_what_one_request_breaks_stays_its_own(start):
    loop = start(engine())
    results = await asyncio.gather(
        answer(loop, prompt("poisoned", 11, 12, 13, 14, POISON)),
        answer(loop, prompt("long", *[1] * 64)),
        answer(loop, prompt("fine")),
        return_exceptions=True,
    )
    assert isinstance(results[0], RequestFailed)
    assert "not a number" in str(results[0])
    assert isinstance(results[1], PromptTooLong)
    assert results[2] == await answer(start(engine()), prompt("fine"))
    # what was computed on the way to it is not reused
    assert loop.engine.cached_tokens([11, 12, 13, 14, POISON, 6]) == 0


def test_a_request_that_fails_is_told_by_name():
    one = engine()
    one.submit(prompt("poisoned", POISON), None)
    (happened,) = one.step()
    assert isinstance(happened, Failed)
    assert happened.request_id == "poisoned"


@pytest.mark.parametrize(
    ("role", "given", "blocks", "batch_tokens"),
    [
        pytest.param("decode", {}, 12, 256, id="a decode"),
        pytest.param("prefill", {}, 8, 2048, id="a prefill"),
        pytest.param("prefill", {"kv_cache_tokens": 70, "batch_tokens": 33}, 5, 33, id="as asked"),
    ],
)
def test_an_engine_is_as_large_as_its_settings_say(monkeypatch, role, given, blocks, batch_tokens):
    monkeypatch.setattr(torch_engine, "load_model", lambda *_, **__: LOADED)
    settings = WorkerSettings(model_name="m", model_source="x", role=role, group="g", slots=3, **given)
    loaded = TorchEngine.load_for(settings)
    assert loaded._engine.kv.blocks.total == blocks
    assert loaded._engine.limits == EngineLimits(max_running=16, max_context=64, batch_tokens=batch_tokens)
    assert loaded.max_context == 64


def test_an_engine_takes_the_size_of_another_role_with_the_weights_as_they_are(monkeypatch):
    monkeypatch.setattr(torch_engine, "load_model", lambda *_, **__: LOADED)
    settings = WorkerSettings(
        model_name="m",
        model_source="x",
        role="decode",
        group="g",
        slots=3,
        flip_slots=2,
        flip_batch_tokens=64,
    )
    one = TorchEngine.load_for(settings)
    identity, model = one.identity, one._engine.model
    one.fit(settings.flipped())
    assert one._engine.model is model
    assert one.identity == identity
    assert one._engine.kv.blocks.total == 8
    assert one._engine.limits == EngineLimits(max_running=16, max_context=64, batch_tokens=64)
    assert one.load().prefix_queries == 0
    one.fit(settings.flipped().flipped())
    assert one._engine.kv.blocks.total == 12
