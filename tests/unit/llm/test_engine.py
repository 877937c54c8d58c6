"""Continuous batching: every sequence gets the tokens it would get alone, ends as it should, and gives its blocks back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tidewheel_workers.llm.engine import Engine, PrefillRequest, TokenEvent
from tidewheel_workers.llm.errors import (
    InvalidRequest,
    KVMismatch,
    NoFreeBlocks,
    NoFreeSequence,
    PromptTooLong,
)
from tidewheel_workers.llm.kv import KVBlob
from tidewheel_workers.llm.sampling import SamplingParams

NewEngine = Callable[..., Engine]

GREEDY = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True)
PROMPTS = ([5, 17, 3], [88, 41, 2, 60, 23, 9, 11], [1], [30, 31, 32, 33, 34])


def start(engine: Engine, name: str, prompt: Sequence[int], params: SamplingParams = GREEDY) -> TokenEvent:
    first = engine.prefill(name, prompt, params)
    return engine.admit(name, prompt, first.first_token, params)


def finish(engine: Engine) -> list[TokenEvent]:
    events = []
    while engine.stats().running:
        events += engine.step()
    return events


def answer(engine: Engine, prompt: Sequence[int], params: SamplingParams = GREEDY) -> list[TokenEvent]:
    return [start(engine, "alone", prompt, params), *finish(engine)]


def tokens(events: Sequence[TokenEvent], name: str | None = None) -> list[int | None]:
    return [event.token for event in events if name in (None, event.request_id)]


def test_sequences_that_come_and_go_get_what_they_get_alone(new_engine: NewEngine) -> None:
    alone = [tokens(answer(new_engine(), prompt)) for prompt in PROMPTS]
    engine = new_engine()
    events = []
    for index, prompt in enumerate(PROMPTS):
        events.append(start(engine, str(index), prompt))
        events += engine.step()
        events += engine.step()
    events += finish(engine)
    assert [tokens(events, str(index)) for index in range(len(PROMPTS))] == alone


def test_prompts_of_one_batch_get_what_they_get_alone(new_engine: NewEngine) -> None:
    engine = new_engine()
    requests = [PrefillRequest(request_id=str(i), token_ids=p, params=GREEDY) for i, p in enumerate(PROMPTS)]
    first = [result.first_token for result in engine.prefill_batch(requests)]
    assert first == [tokens(answer(new_engine(), prompt))[0] for prompt in PROMPTS]


def test_a_sequence_continues_the_same_on_another_engine(new_engine: NewEngine) -> None:
    prefill, decode = new_engine(), new_engine(block_size=16, blocks=8)
    for index, prompt in enumerate(PROMPTS):
        first = prefill.prefill(str(index), prompt, GREEDY)
        blob = prefill.export(str(index))
        wire = KVBlob.from_bytes(decode.kv.layout, first.kv_tokens, bytearray(blob.as_bytes()))
        assert prefill.release(str(index))
        event = decode.admit(str(index), prompt, first.first_token, GREEDY, blob=wire)
        assert tokens([event, *finish(decode)]) == tokens(answer(new_engine(), prompt))
    assert prefill.stats().kv_usage == decode.stats().kv_usage == 0


def test_a_seed_gives_the_same_answer_alone_in_a_batch_and_across_engines(new_engine: NewEngine) -> None:
    warm = SamplingParams(temperature=1.5, seed=11, max_tokens=12, ignore_eos=True)
    alone = tokens(answer(new_engine(), PROMPTS[1], warm))
    engine = new_engine()
    for index in range(3):
        start(engine, f"other {index}", PROMPTS[index], SamplingParams(max_tokens=30, ignore_eos=True))
    event = start(engine, "seeded", PROMPTS[1], warm)
    assert [event.token, *tokens(finish(engine), "seeded")] == alone
    assert alone != tokens(
        answer(new_engine(), PROMPTS[1], SamplingParams(temperature=1.5, seed=12, max_tokens=12))
    )


def test_max_tokens_ends_with_length(new_engine: NewEngine) -> None:
    events = answer(new_engine(), PROMPTS[0])
    assert len(events) == 10
    assert [event.finish_reason for event in events] == [None] * 9 + ["length"]
    assert [event.output_tokens for event in events] == list(range(1, 11))


def test_one_token_may_be_the_whole_answer(new_engine: NewEngine) -> None:
    engine = new_engine()
    event = start(engine, "short", PROMPTS[0], SamplingParams(temperature=0, max_tokens=1))
    assert event.finish_reason == "length"
    assert engine.stats().running == 0
    assert engine.stats().kv_usage == 0


def test_the_context_ends_an_answer_with_length(new_engine: NewEngine) -> None:
    greedy = SamplingParams(temperature=0, ignore_eos=True)
    events = answer(new_engine(max_context=16), PROMPTS[1], greedy)
    assert (len(events), events[-1].finish_reason) == (16 - len(PROMPTS[1]), "length")


def test_the_end_token_stops_and_is_not_text(new_engine: NewEngine) -> None:
    engine = new_engine()
    prompt = list(PROMPTS[0])
    engine.prefill("ends", prompt, GREEDY)
    event = engine.admit("ends", prompt, 0, SamplingParams(temperature=0))
    assert (event.token, event.text, event.finish_reason, event.output_tokens) == (0, "", "stop", 1)


def test_a_stop_string_ends_the_text_before_it(new_engine: NewEngine) -> None:
    whole = "".join(event.text for event in answer(new_engine(), PROMPTS[0]))
    stop = whole[4:6]
    at = whole.find(stop)
    engine = new_engine()
    events = answer(
        engine, PROMPTS[0], SamplingParams(temperature=0, max_tokens=10, ignore_eos=True, stop=("\n", stop))
    )
    assert "".join(event.text for event in events) == whole[:at]
    assert events[-1].finish_reason == "stop"
    assert len(events) == at + 2
    assert engine.stats().kv_usage == 0


def test_an_abort_frees_what_runs_and_what_is_held(new_engine: NewEngine) -> None:
    engine = new_engine()
    start(engine, "runs", PROMPTS[0])
    engine.prefill("held", PROMPTS[1], GREEDY)
    engine.step()
    aborted = engine.abort("runs")
    assert aborted is not None
    assert (aborted.finish_reason, aborted.token, aborted.output_tokens) == ("abort", None, 2)
    assert engine.abort("held") is None
    assert engine.abort("never seen") is None
    stats = engine.stats()
    assert (stats.running, stats.held, stats.kv_usage) == (0, 0, 0)
    assert engine.step() == []


def test_stats_tell_what_is_going_on(new_engine: NewEngine) -> None:
    engine = new_engine(blocks=8)
    engine.prefill("held", PROMPTS[1], GREEDY)
    start(engine, "runs", PROMPTS[0])
    engine.step()
    stats = engine.stats()
    assert (stats.running, stats.held, stats.prompt_tokens, stats.output_tokens) == (1, 1, 10, 3)
    # 7 held tokens in blocks of 4, and 3 + 10 - 1 reserved ones
    assert stats.kv_usage == (2 + 3) / 8


def test_a_full_cache_refuses_and_holds_what_it_held(new_engine: NewEngine) -> None:
    engine = new_engine(blocks=4)
    start(engine, "runs", PROMPTS[0])
    engine.prefill("held", [1], GREEDY)
    with pytest.raises(NoFreeBlocks):
        engine.prefill("too much", [1, 2], GREEDY)
    with pytest.raises(NoFreeBlocks, match="10 tokens need 3 KV blocks"):
        engine.admit("held", [1], 5, GREEDY)
    finish(engine)
    assert engine.admit("held", [1], 5, GREEDY).finish_reason is None


def test_a_batch_that_does_not_fit_takes_nothing(new_engine: NewEngine) -> None:
    engine = new_engine(blocks=2)
    requests = [PrefillRequest(request_id=str(i), token_ids=[1, 2, 3, 4, 5], params=GREEDY) for i in range(2)]
    with pytest.raises(NoFreeBlocks):
        engine.prefill_batch(requests)
    assert (engine.stats().held, engine.stats().kv_usage) == (0, 0)


def test_more_sequences_than_allowed_are_refused(new_engine: NewEngine) -> None:
    engine = new_engine(max_running=1)
    start(engine, "first", PROMPTS[0])
    engine.prefill("second", PROMPTS[1], GREEDY)
    with pytest.raises(NoFreeSequence):
        engine.admit("second", PROMPTS[1], 5, GREEDY)


def test_requests_that_cannot_be_are_refused(new_engine: NewEngine) -> None:
    engine = new_engine(max_context=8)
    engine.prefill("taken", [1, 2], GREEDY)
    blob = engine.export("taken")
    with pytest.raises(InvalidRequest, match="already in use"):
        engine.prefill("taken", [1], GREEDY)
    with pytest.raises(InvalidRequest, match="not held"):
        engine.admit("unknown", [1], 1, GREEDY)
    with pytest.raises(InvalidRequest, match="no tokens"):
        engine.prefill("empty", [], GREEDY)
    with pytest.raises(InvalidRequest, match="between 0 and 96"):
        engine.prefill("wild", [97], GREEDY)
    with pytest.raises(PromptTooLong, match="at most 7"):
        engine.prefill("long", [1] * 8, GREEDY)
    with pytest.raises(KVMismatch, match="holds 2 tokens, the prompt of short has 1"):
        engine.admit("short", [1], 1, GREEDY, blob=blob)
    with pytest.raises(KVMismatch, match="2 tokens are held"):
        engine.admit("taken", [1], 1, GREEDY)
    assert engine.stats().held == 1


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
@given(
    story=st.lists(
        st.one_of(
            st.tuples(st.just("start"), st.integers(0, 5), st.integers(1, 12)),
            st.tuples(st.just("abort"), st.integers(0, 5), st.just(0)),
            st.tuples(st.just("step"), st.just(0), st.just(0)),
        ),
        max_size=25,
    )
)
def test_every_request_ends_once_and_no_block_leaks(
    new_engine: NewEngine, story: list[tuple[str, int, int]]
) -> None:
    engine = new_engine(blocks=12, max_running=4)
    started, events = 0, []
    names: dict[int, str] = {}
    for action, who, length in story:
        if action == "step":
            events += engine.step()
        elif action == "abort" and who in names:
            aborted = engine.abort(names[who])
            events += [aborted] if aborted else []
        elif action == "start":
            name = f"request {started}"
            try:
                events.append(start(engine, name, [1 + who] * length))
            except (NoFreeBlocks, NoFreeSequence):
                engine.abort(name)
                continue
            started, names[who] = started + 1, name
    events += finish(engine)
    ended = [event.request_id for event in events if event.finish_reason is not None]
    assert sorted(ended) == sorted(f"request {index}" for index in range(started))
    assert engine.stats().kv_usage == 0
