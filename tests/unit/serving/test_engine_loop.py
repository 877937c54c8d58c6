"""The bridge between the engine's thread and the event loop."""

from __future__ import annotations

import asyncio
import threading
from contextlib import aclosing

import pytest

from tidewheel_workers.llm.errors import PromptTooLong
from tidewheel_workers.serving.engine import Sampling
from tidewheel_workers.serving.engine_loop import EngineFailed, EngineLoop
from tidewheel_workers.serving.stand_in import StandInEngine


class Broken(StandInEngine):
    """Breaks at the first step."""

    def step(self):
        raise RuntimeError("device lost")


class Slow(StandInEngine):
    """Takes a prompt only when told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = threading.Event()

    def prefill(self, request_id, token_ids, sampling):
        self.go_on.wait(5)
        return super().prefill(request_id, token_ids, sampling)


@pytest.fixture
async def start():
    loops = []

    def make(engine: StandInEngine) -> EngineLoop:
        failures: list[Exception] = []
        loop = EngineLoop(engine, on_failure=failures.append)
        loop.failures = failures
        loops.append(loop)
        return loop

    yield make
    for loop in loops:
        await loop.stop()


async def answer(loop: EngineLoop, name: str, text: str, **sampling) -> str:
    tokens = loop.engine.encode_text(text)
    params = Sampling(**sampling)
    computed = await loop.call(lambda engine: engine.prefill(name, tokens, params))
    async with aclosing(loop.generate(name, tokens, computed, params)) as events:
        return "".join([event.text async for event in events])


async def test_requests_are_answered_side_by_side_each_with_its_own_tokens(start):
    loop = start(StandInEngine(slots=8))
    texts = [f"prompt number {i}" for i in range(8)]
    assert await asyncio.gather(*(answer(loop, str(i), t) for i, t in enumerate(texts))) == texts


async def test_what_the_engine_refuses_reaches_the_caller_and_nobody_else(start):
    loop = start(StandInEngine(max_context=10))
    with pytest.raises(PromptTooLong, match="11 tokens"):
        await answer(loop, "a", "x" * 11)
    assert await answer(loop, "b", "fine") == "fine"


async def test_leaving_early_aborts_the_request(start):
    loop = start(StandInEngine(tokens=100_000, max_context=200_000, step_seconds=0.001))
    tokens = loop.engine.encode_text("hi")
    computed = await loop.call(lambda engine: engine.prefill("a", tokens, Sampling()))
    async with aclosing(loop.generate("a", tokens, computed, Sampling())) as events:
        await anext(events)
        await anext(events)
    assert (await loop.call(lambda engine: engine.load())).running == 0


async def test_a_call_that_was_cancelled_before_its_turn_never_runs(start):
    slow = Slow()
    loop = start(slow)
    first = asyncio.create_task(loop.call(lambda engine: engine.prefill("a", [1], Sampling())))
    ran = []
    second = asyncio.create_task(loop.call(lambda _: ran.append("second")))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.sleep(0)
    slow.go_on.set()
    await first
    await loop.call(lambda _: ran.append("third"))
    assert ran == ["third"]


async def test_an_engine_that_breaks_ends_every_request_and_says_so(start):
    loop = start(Broken())
    ended = await asyncio.gather(*(answer(loop, str(i), "hello") for i in range(3)), return_exceptions=True)
    assert {type(error) for error in ended} == {EngineFailed}
    assert not loop.is_alive
    assert str(loop.failures[0]) == "device lost"
    with pytest.raises(EngineFailed, match="device lost"):
        await answer(loop, "later", "hello")
