"""The bridge between the engine's thread and the event loop."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from contextlib import aclosing

import pytest
from tests.unit.serving.group import buffer_of, prefilled

from tidewheel_workers.llm.errors import PromptTooLong, RequestFailed
from tidewheel_workers.serving.engine import Failed, Prefilled, Prompt, Sampling
from tidewheel_workers.serving.engine_loop import EngineFailed, EngineLoop
from tidewheel_workers.serving.stand_in import StandInEngine


class Broken(StandInEngine):
    """Breaks at the first step."""

    def step(self):
        raise RuntimeError("device lost")


class Picky(StandInEngine):
    """Takes every prompt, and cannot go on with those that hold an x."""

    def step(self):
        bad = [name for name, (asked, _) in self._waiting.items() if ord("x") in asked.token_ids]
        for name in bad:
            self.abort(name)
        return [
            Failed(request_id=name, error=RequestFailed("an x is in it")) for name in bad
        ] + super().step()


class Slow(StandInEngine):
    """Takes a prompt only when told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = threading.Event()

    def submit(self, prompt, sink):
        self.go_on.wait(5)
        super().submit(prompt, sink)


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
    asked = prompt(name, text, **sampling)
    async with aclosing(loop.generate(asked, await computed(loop, asked))) as events:
        return "".join([event.text async for event in events])


def prompt(name: str, text: str, **sampling) -> Prompt:
    return Prompt(request_id=name, token_ids=list(text.encode()), sampling=Sampling(**sampling))


async def computed(loop: EngineLoop, asked: Prompt) -> Prefilled:
    sink = buffer_of(asked.kv_tokens)
    return prefilled(sink, await loop.compute(asked, sink))


async def test_requests_are_answered_side_by_side_each_with_its_own_tokens(start):
    loop = start(StandInEngine(slots=8))
    texts = [f"prompt number {i}" for i in range(8)]
    assert await asyncio.gather(*(answer(loop, str(i), t) for i, t in enumerate(texts))) == texts


async def test_what_the_engine_refuses_reaches_the_caller_and_nobody_else(start):
    loop = start(StandInEngine(max_context=10))
    with pytest.raises(PromptTooLong, match="11 tokens"):
        await answer(loop, "a", "x" * 11)
    assert await answer(loop, "b", "fine") == "fine"


async def test_a_request_that_fails_later_fails_alone(start):
    loop = start(Picky())
    with pytest.raises(RequestFailed, match="an x"):
        await answer(loop, "a", "xyz")
    with pytest.raises(RequestFailed, match="an x"):
        async with aclosing(loop.generate(prompt("b", "xyz"), None)) as events:
            await anext(events)
    assert await answer(loop, "c", "abc") == "abc"


async def test_prompts_that_were_seen_before_count_as_cached(start):
    loop = start(StandInEngine())
    asked = prompt("a", "x" * 40)
    assert loop.engine.cached_tokens(asked.token_ids) == 0
    assert [(await computed(loop, asked)).cached_tokens for _ in range(2)] == [0, 32]
    assert loop.engine.cached_tokens(asked.token_ids[:32]) == 16
    load = await loop.call(lambda engine: engine.load())
    assert (load.prefix_queries, load.prefix_hits) == (80, 32)


async def test_leaving_early_aborts_the_request(start):
    loop = start(StandInEngine(tokens=100_000, max_context=200_000, step_seconds=0.001))
    asked = prompt("a", "hi")
    async with aclosing(loop.generate(asked, await computed(loop, asked))) as events:
        await anext(events)
        await anext(events)
    assert (await loop.call(lambda engine: engine.load())).running == 0


async def test_a_prompt_may_be_computed_and_answered_by_the_same_engine(start):
    loop = start(StandInEngine())
    async with aclosing(loop.generate(prompt("a", "hello"), None)) as events:
        assert "".join([event.text async for event in events]) == "hello"


async def test_every_choice_ends_before_the_answer_does(start):
    loop = start(StandInEngine())
    asked = dataclasses.replace(prompt("a", "hello"), choices=3)
    texts = dict.fromkeys(range(3), "")
    async with aclosing(loop.generate(asked, await computed(loop, asked))) as events:
        async for event in events:
            texts[event.choice] += event.text
    assert texts == dict.fromkeys(range(3), "hello")


async def test_an_answer_goes_on_behind_what_was_written_elsewhere(start):
    loop = start(StandInEngine())
    asked = dataclasses.replace(prompt("a", "hello"), resumed=tuple(b"hel"))
    async with aclosing(loop.generate(asked, await computed(loop, asked))) as events:
        got = [event async for event in events]
    assert ("".join(event.text for event in got), got[-1].output_tokens) == ("lo", 5)


async def test_a_call_that_was_cancelled_before_its_turn_never_runs(start):
    slow = Slow()
    loop = start(slow)
    first = asyncio.create_task(loop.call(lambda engine: engine.submit(prompt("a", "hi"), None)))
    ran = []
    second = asyncio.create_task(loop.call(lambda _: ran.append("second")))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.sleep(0)
    slow.go_on.set()
    await first
    await loop.call(lambda _: ran.append("third"))
    assert ran == ["third"]


async def test_answers_go_on_while_calls_keep_coming(start):
    loop = start(StandInEngine())
    event_loop, answered = asyncio.get_running_loop(), asyncio.Event()

    def again(_engine) -> None:
        """A call that does not return before the next one is asked for."""
        is_queued = threading.Event()

        def ask() -> None:
            if not answered.is_set():
                calls.append(asyncio.ensure_future(loop.call(again)))
            event_loop.call_soon(is_queued.set)

        event_loop.call_soon_threadsafe(ask)
        is_queued.wait(5)

    calls = [asyncio.ensure_future(loop.call(again))]
    assert await asyncio.wait_for(answer(loop, "a", "hello"), 30) == "hello"
    answered.set()
    await asyncio.gather(*calls)
    assert len(calls) > len("hello")


async def test_a_stopped_engine_ends_every_request_and_takes_no_more():
    slow = Slow()
    loop = EngineLoop(slow, on_failure=lambda _: None)
    inside = asyncio.create_task(answer(loop, "a", "hello"))
    await asyncio.sleep(0)
    waiting = asyncio.create_task(loop.call(lambda engine: engine.load()))
    await asyncio.sleep(0)
    stopped = asyncio.create_task(loop.stop())
    await asyncio.sleep(0)
    late = asyncio.create_task(loop.call(lambda engine: engine.load()))
    await asyncio.sleep(0)
    slow.go_on.set()
    await stopped
    await waiting
    for lost in (inside, late, loop.call(lambda engine: engine.load())):
        with pytest.raises(EngineFailed, match="stopped"):
            await lost


async def test_an_engine_that_breaks_ends_every_request_and_says_so(start):
    loop = start(Broken())
    ended = await asyncio.gather(*(answer(loop, str(i), "hello") for i in range(3)), return_exceptions=True)
    assert {type(error) for error in ended} == {EngineFailed}
    assert not loop.is_alive
    assert str(loop.failures[0]) == "device lost"
    with pytest.raises(EngineFailed, match="device lost"):
        await answer(loop, "later", "hello")


async def test_what_is_to_be_done_after_the_engines_calls_is_done_after_them(start):
    loop = start(Slow())
    done = []
    submitting = asyncio.create_task(computed(loop, prompt("a", "hello")))
    await asyncio.sleep(0)
    loop.after_calls(lambda: done.append(1))
    await asyncio.sleep(0.02)
    assert done == []
    loop.engine.go_on.set()
    await submitting
    assert done == [1]


async def test_a_broken_engine_holds_nothing_back(start):
    loop = start(Broken())
    done = []
    with pytest.raises(EngineFailed):
        await computed(loop, prompt("a", "hello"))
    loop.after_calls(lambda: done.append(1))
    assert done == [1]


async def test_whoever_computes_is_told_when_the_engine_has_the_prompt(start):
    loop, told = start(StandInEngine()), []

    async def taken() -> None:
        told.append(1)

    await loop.compute(prompt("a", "hello"), buffer_of(5), taken=taken)
    with pytest.raises(PromptTooLong):
        await loop.compute(prompt("b", "x" * 4000), buffer_of(4000), taken=taken)
    assert told == [1]
