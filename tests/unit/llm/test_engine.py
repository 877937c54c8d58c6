"""Every answer has the tokens it would have alone, ends as it should, and gives its blocks back; with a real, tiny model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from tests.unit.llm.driving import Answered, NotingSink, answers, collect, computed, failures, finish, request

from tidewheel_workers.llm.engine import Engine
from tidewheel_workers.llm.errors import InvalidRequest, KVMismatch, PromptTooLong
from tidewheel_workers.llm.requests import ComputedPrompt, Request, TokenEvent
from tidewheel_workers.llm.sampling import Sampled, SamplingParams

NewEngine = Callable[..., Engine]

GREEDY = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True)
WARM = SamplingParams(temperature=1.5, seed=11, max_tokens=12, ignore_eos=True)
PROMPTS = ([5, 17, 3], [88, 41, 2, 60, 23, 9, 11], [1], [30, 31, 32, 33, 34])
LONG = [(7 * index) % 89 + 1 for index in range(60)]


def tokens(found: Sequence[Answered]) -> list[list[int]]:
    return [one.tokens for one in found]


def start(engine: Engine, *asked: Request) -> list[TokenEvent]:
    for one in asked:
        engine.submit(one)
    return engine.step()


# ---- one engine ----


def test_sequences_that_come_and_go_get_what_they_get_alone(new_engine: NewEngine) -> None:
    alone = [answers(new_engine(), request("alone", prompt)) for prompt in PROMPTS]
    engine = new_engine()
    events = []
    for index, prompt in enumerate(PROMPTS):
        events += start(engine, request(str(index), prompt))
        events += engine.step()
    events += finish(engine)
    assert [collect(events, str(index)) for index in range(len(PROMPTS))] == alone


def test_prompts_of_one_pass_get_what_they_get_alone(new_engine: NewEngine) -> None:
    engine = new_engine()
    events = start(engine, *(request(str(index), prompt) for index, prompt in enumerate(PROMPTS)))
    wanted = [answers(new_engine(), request("a", prompt))[0].tokens[0] for prompt in PROMPTS]
    assert [event.token for event in events] == wanted


@pytest.mark.parametrize("batch_tokens", [1, 5, 16, 59])
def test_a_prompt_in_parts_gives_what_it_gives_whole(new_engine: NewEngine, batch_tokens: int) -> None:
    whole = answers(new_engine(), request("a", LONG))
    engine = new_engine(batch_tokens=batch_tokens)
    short = request("b", PROMPTS[0])
    engine.submit(short)
    engine.step()
    engine.submit(request("a", LONG))
    events = finish(engine)
    assert collect(events, "a") == whole


def test_a_seed_gives_the_same_answer_alone_in_a_batch_and_in_another_engine(new_engine: NewEngine) -> None:
    alone = answers(new_engine(), request("a", PROMPTS[1], WARM))
    engine = new_engine()
    others = [request(f"other {i}", PROMPTS[i], SamplingParams(max_tokens=30)) for i in range(3)]
    start(engine, *others)
    engine.submit(request("seeded", PROMPTS[1], WARM))
    assert collect(finish(engine), "seeded") == alone
    different = SamplingParams(temperature=1.5, seed=12, max_tokens=12, ignore_eos=True)
    assert answers(new_engine(), request("a", PROMPTS[1], different)) != alone


def test_without_a_seed_answers_differ(new_engine: NewEngine) -> None:
    params = SamplingParams(temperature=1.5, max_tokens=12, ignore_eos=True)
    engine = new_engine()
    assert answers(engine, request("a", PROMPTS[1], params)) != answers(
        engine, request("b", PROMPTS[1], params)
    )


def test_an_answer_behind_a_known_prompt_is_the_same(new_engine: NewEngine) -> None:
    engine = new_engine()
    first = answers(engine, request("a", LONG, WARM))
    computed_before = engine.stats().prompt_tokens
    assert engine.cached_tokens(LONG) == 56
    assert answers(engine, request("b", LONG, WARM)) == first
    stats = engine.stats()
    assert stats.prompt_tokens - computed_before == 4
    assert (stats.prefix_queries, stats.prefix_hits) == (120, 56)


def test_an_engine_that_is_short_of_blocks_writes_the_same(new_engine: NewEngine) -> None:
    params = SamplingParams(temperature=1.0, seed=3, max_tokens=40, ignore_eos=True)
    alone = [answers(new_engine(), request("a", prompt, params)) for prompt in PROMPTS]
    engine = new_engine(blocks=20, batch_tokens=9)
    for index, prompt in enumerate(PROMPTS):
        engine.submit(request(str(index), prompt, params))
    events = finish(engine)
    assert [collect(events, str(index)) for index in range(len(PROMPTS))] == alone
    assert engine.stats().preemptions > 0
    assert engine.stats().kv_usage == 0


def test_stats_tell_what_is_going_on(new_engine: NewEngine) -> None:
    engine = new_engine(blocks=8, max_running=1)
    start(engine, request("runs", PROMPTS[1], GREEDY), request("waits", PROMPTS[0], GREEDY))
    engine.step()
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.prompt_tokens, stats.output_tokens) == (1, 1, 7, 2)
    assert stats.kv_usage == 2 / 8  # 8 tokens in blocks of 4; the one that was just written has no place yet


# ---- ends ----


def test_max_tokens_ends_with_length(new_engine: NewEngine) -> None:
    engine = new_engine()
    engine.submit(request("a", PROMPTS[0]))
    events = finish(engine)
    assert [event.finish_reason for event in events] == [None] * 9 + ["length"]
    assert [event.output_tokens for event in events] == list(range(1, 11))


def test_one_token_may_be_the_whole_answer(new_engine: NewEngine) -> None:
    engine = new_engine()
    (event,) = start(engine, request("short", PROMPTS[0], SamplingParams(temperature=0, max_tokens=1)))
    assert event.finish_reason == "length"
    assert (engine.stats().running, engine.stats().kv_usage) == (0, 0)


def test_the_context_ends_an_answer_with_length(new_engine: NewEngine) -> None:
    greedy = SamplingParams(temperature=0, ignore_eos=True)
    (answer,) = answers(new_engine(max_context=16), request("a", PROMPTS[1], greedy))
    assert (len(answer.tokens), answer.ended) == (16 - len(PROMPTS[1]), "length")


def test_the_end_token_stops_and_is_not_text(new_engine: NewEngine) -> None:
    towards_the_end = SamplingParams(temperature=0, logit_bias=((0, 100.0),))
    (answer,) = answers(new_engine(), request("ends", PROMPTS[0], towards_the_end))
    assert answer == Answered(tokens=[0], text="", ended="stop")


def test_the_end_token_waits_for_the_least_number_of_tokens(new_engine: NewEngine) -> None:
    late = SamplingParams(temperature=0, logit_bias=((0, 100.0),), min_tokens=4)
    (answer,) = answers(new_engine(), request("ends", PROMPTS[0], late))
    assert (len(answer.tokens), answer.tokens[-1], answer.ended) == (5, 0, "stop")
    assert 0 not in answer.tokens[:4]


def test_a_stop_string_ends_the_text_before_it(new_engine: NewEngine) -> None:
    (whole,) = answers(new_engine(), request("a", PROMPTS[0]))
    stop = whole.text[4:6]
    at = whole.text.find(stop)
    engine = new_engine()
    params = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True, stop=("\n", stop))
    (answer,) = answers(engine, request("a", PROMPTS[0], params))
    assert answer == Answered(tokens=whole.tokens[: at + 2], text=whole.text[:at], ended="stop")
    assert engine.stats().kv_usage == 0
    late = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True, stop=(stop,), min_tokens=at + 3)
    assert answers(engine, request("a", PROMPTS[0], late)) == [whole]


# ---- what is refused, and what breaks ----


def test_requests_that_cannot_be_are_refused(new_engine: NewEngine) -> None:
    engine = new_engine(max_context=8, max_running=2)
    engine.submit(request("taken", [1, 2]))
    prompt = computed(new_engine(), request("a", [1, 2]))
    for name, asked, error in (
        ("already in use", request("taken", [1]), InvalidRequest),
        ("no tokens", request("empty", []), InvalidRequest),
        ("between 0 and 96", request("wild", [97]), InvalidRequest),
        ("between 0 and 96", request("wild", [1], resumed=[-1]), InvalidRequest),
        ("between 0 and 96", request("wild", [1 << 70]), InvalidRequest),
        ("logit_bias", request("bias", [1], SamplingParams(logit_bias=((97, 1.0),))), InvalidRequest),
        ("n: 3 choices", request("wide", [1], choices=3), InvalidRequest),
        ("n: 0 choices", request("none", [1], choices=0), InvalidRequest),
        ("8 tokens; at most 7", request("long", [1] * 8), PromptTooLong),
        ("8 tokens; at most 7", request("long", [1] * 6, resumed=[1, 2]), PromptTooLong),
    ):
        with pytest.raises(error, match=name):
            engine.submit(asked)
        with pytest.raises((error, KVMismatch)):
            engine.admit(asked, prompt)
    assert engine.cached_tokens([1 << 70]) == engine.cached_tokens([]) == 0
    assert (engine.stats().running, engine.stats().waiting) == (0, 1)


def test_keys_and_values_that_do_not_fit_the_request_are_refused(new_engine: NewEngine) -> None:
    engine = new_engine()
    prompt = computed(new_engine(), request("a", [1, 2], choices=2))
    for name, asked, what in (
        ("2 tokens came; the prompt of short has 1", request("short", [1], choices=2), {}),
        ("2 first tokens came for 1 choices", request("single", [1, 2]), {}),
        ("bytes came for 2 tokens", request("cut", [1, 2], choices=2), {"kv": prompt.kv[:-1]}),
        ("first tokens must be", request("wild", [1, 2], choices=2), {"first": [Sampled(token=97)] * 2}),
    ):
        given = {"first": prompt.first, "tokens": 2, "kv": prompt.kv} | what
        with pytest.raises(InvalidRequest, match=name):
            engine.admit(asked, ComputedPrompt(**given))
    sink = NotingSink(engine, request("a", [1, 2, 3]))
    with pytest.raises(KVMismatch, match="bytes came for 2 tokens"):
        engine.submit(request("small", [1, 2]), sink)
    assert (engine.stats().running, engine.stats().waiting) == (0, 0)


def test_a_prompt_that_never_fits_the_cache_is_refused_at_once(new_engine: NewEngine) -> None:
    with pytest.raises(PromptTooLong, match="16 tokens; at most 15"):
        new_engine(blocks=4).submit(request("a", [1] * 16))


def test_an_abort_frees_what_runs_what_waits_and_what_came(new_engine: NewEngine) -> None:
    engine = new_engine(max_running=4)
    arrives = request("arrives", PROMPTS[3])
    prompt = computed(new_engine(), arrives)
    start(engine, request("runs", PROMPTS[0]), request("wide", PROMPTS[1], choices=2))
    engine.submit(request("waits", PROMPTS[2], choices=4))
    engine.admit(arrives, prompt)
    for name in ("waits", "arrives", "wide", "runs"):
        assert engine.abort(name)
        assert not engine.abort(name)
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.kv_usage) == (0, 0, 0)
    assert engine.step() == []
    prompt.kv.append(0)  # nothing of the engine lies over these bytes any more


def test_an_id_can_be_used_again_when_its_request_is_done(new_engine: NewEngine) -> None:
    engine = new_engine()
    assert answers(engine, request("a", [1])) == answers(engine, request("a", [1]))


def test_a_sink_that_fails_ends_its_prompt_and_no_other(new_engine: NewEngine) -> None:
    class Broken(NotingSink):
        def wrote(self, *_: int) -> None:
            raise OSError("the peer is gone")

    alone = answers(new_engine(), request("good", PROMPTS[0]))
    engine = new_engine(batch_tokens=16)
    bad = request("bad", LONG)
    engine.submit(request("good", PROMPTS[0]))
    engine.submit(bad, Broken(engine, bad))
    events = engine.step()
    assert "the peer is gone" in failures(events)["bad"]
    assert collect([*events, *finish(engine)], "good") == alone
    assert engine.stats().kv_usage == 0


def test_a_text_that_cannot_be_made_ends_its_request_and_no_other(new_engine: NewEngine) -> None:
    engine = new_engine()
    prompt = computed(engine, request("bad", PROMPTS[1], choices=2))

    class Stumbling:
        def decode(self, ids: Sequence[int]) -> str:
            if prompt.first[0].token in ids:
                raise ValueError("no such letter")
            return "x" * len(ids)

    engine.tokenizer = Stumbling()
    with pytest.raises(Exception, match="no such letter"):
        engine.admit(request("bad", PROMPTS[1], choices=2), prompt)
    engine.submit(request("bad", PROMPTS[1], choices=2))
    good = SamplingParams(
        temperature=0, max_tokens=3, ignore_eos=True, logit_bias=((prompt.first[0].token, -100.0),)
    )
    engine.submit(request("good", PROMPTS[0], good))
    events = finish(engine)
    assert "no such letter" in failures(events)["bad"]
    assert collect(events, "good")[0].text == "xxx"
    assert (engine.stats().running, engine.stats().kv_usage) == (0, 0)
