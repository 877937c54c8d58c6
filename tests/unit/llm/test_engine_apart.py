"""An answer is the same wherever its prompt was computed and its beginning written, and each of several as if alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from tests.unit.llm.driving import Answered, NotingSink, answers, collect, computed, finish, request
from tests.unit.llm.recalling import recalling_engine

from tidewheel_workers.llm.engine import Engine
from tidewheel_workers.llm.errors import InvalidRequest
from tidewheel_workers.llm.requests import ComputedPrompt, PromptEvent
from tidewheel_workers.llm.sampling import Sampled, SamplingParams

NewEngine = Callable[..., Engine]

GREEDY = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True)
WARM = SamplingParams(temperature=1.5, seed=11, max_tokens=12, ignore_eos=True)
PROMPTS = ([5, 17, 3], [88, 41, 2, 60, 23, 9, 11], [1], [30, 31, 32, 33, 34])
LONG = [(7 * index) % 89 + 1 for index in range(60)]


# ---- prefill and decode apart ----


@pytest.mark.parametrize("params", [GREEDY, WARM], ids=["greedy", "seeded"])
@pytest.mark.parametrize("is_known", [False, True], ids=["nothing cached", "prefixes cached"])
def test_a_prompt_computed_elsewhere_gives_what_it_gives_here(
    new_engine: NewEngine, params: SamplingParams, is_known: bool
) -> None:
    prompts = [*PROMPTS, LONG]
    alone = [answers(new_engine(), request("a", prompt, params)) for prompt in prompts]
    prefill, decode = new_engine(batch_tokens=11), new_engine(block_size=16, blocks=16)
    if is_known:
        for engine in (prefill, decode):
            for index, prompt in enumerate(prompts):
                answers(engine, request(f"before {index}", prompt[: len(prompt) * 3 // 4 + 1]))
    events = []
    for index, prompt in enumerate(prompts):
        asked = request(str(index), prompt, params)
        events += decode.admit(asked, computed(prefill, asked))
        events += decode.step()
    events += finish(decode)
    assert [collect(events, str(index)) for index in range(len(prompts))] == alone
    assert prefill.stats().kv_usage == decode.stats().kv_usage == 0
    assert (prefill.stats().prefix_hits > 0) == is_known


@pytest.mark.parametrize("is_full", [False, True], ids=["at once", "when it is its turn"])
def test_the_memory_of_what_came_is_free_when_it_was_taken(new_engine: NewEngine, is_full: bool) -> None:
    asked = request("a", LONG, WARM, choices=2)
    prompt = computed(new_engine(), asked)
    engine = new_engine(max_running=3)
    if is_full:
        engine.submit(request("first", PROMPTS[0], GREEDY, choices=3))
        engine.step()
    events = list(engine.admit(asked, prompt))
    assert engine.stats().waiting == is_full
    prompt.kv[:] = bytes(len(prompt.kv))
    prompt.kv.append(0)  # which fails while a tensor lies over it
    events += finish(engine)
    assert collect(events, "a") == answers(new_engine(), asked)


def test_received_blocks_serve_later_prompts(new_engine: NewEngine) -> None:
    prefill, decode = new_engine(), new_engine()
    asked = request("a", LONG)
    decode.admit(asked, computed(prefill, asked))
    finish(decode)
    assert decode.cached_tokens(LONG) == 56
    before = decode.stats().prompt_tokens
    assert answers(decode, request("b", LONG)) == answers(new_engine(), asked)
    assert decode.stats().prompt_tokens - before == 4


@pytest.mark.parametrize("batch_tokens", [7, 64])
def test_a_sink_is_filled_layer_by_layer_while_the_prompt_is_computed(
    new_engine: NewEngine, tiny_config, batch_tokens: int
) -> None:
    whole = NotingSink(new_engine(), request("a", LONG))
    engine = new_engine()
    engine.submit(request("a", LONG), whole)
    finish(engine)
    assert whole.parts == [(layer, 0, 60) for layer in range(tiny_config.layers)]

    engine = new_engine(batch_tokens=batch_tokens)
    answers(engine, request("before", LONG[:30]))
    sink = NotingSink(engine, request("b", LONG))
    engine.submit(request("b", LONG), sink)
    (event,) = finish(engine)
    assert isinstance(event, PromptEvent)
    assert event.cached_tokens == 28
    # what is cached is there at once, then each layer as soon as it is computed
    ends = [*range(28, 60, batch_tokens), 60]
    parts = [(0, 28), *((start, end - start) for start, end in pairwise(ends))]
    assert sink.parts == [(layer, *part) for part in parts for layer in range(tiny_config.layers)]
    there, here = (torch.frombuffer(one.memory, dtype=torch.float32) for one in (whole, sink))
    torch.testing.assert_close(here, there, rtol=1e-4, atol=1e-4)


def test_what_is_told_of_a_sink_is_there_when_it_is_told(new_engine: NewEngine, tiny_config) -> None:
    engine = new_engine(batch_tokens=25)
    asked = request("a", LONG)
    layout = engine.kv.layout

    class Looking(NotingSink):
        def wrote(self, layer: int, start: int, tokens: int) -> None:
            super().wrote(layer, start, tokens)
            now = torch.frombuffer(self.memory, dtype=torch.float32).view(layout.shape(60))
            seen.append(now[layer, :, start : start + tokens].clone())

    seen: list[torch.Tensor] = []
    sink = Looking(engine, asked)
    engine.submit(asked, sink)
    finish(engine)
    final = torch.frombuffer(sink.memory, dtype=torch.float32).view(layout.shape(60))
    assert len(seen) == 3 * tiny_config.layers
    for (layer, start, count), part in zip(sink.parts, seen, strict=True):
        assert torch.equal(final[layer, :, start : start + count], part)


def test_what_went_out_does_not_go_again_when_a_prompt_has_to_give_way() -> None:
    asked = request("new", [3 + at % 20 for at in range(40)])
    engine = recalling_engine(blocks=14, batch_tokens=1)
    engine.submit(request("old", range(1, 12), SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)))
    for _ in range(3):
        engine.step()
    sink = NotingSink(engine, asked)
    engine.submit(asked, sink)
    finish(engine)
    assert engine.stats().preemptions == 1
    assert sink.memory == computed(recalling_engine(), asked).kv
    told = Counter((layer, at) for layer, start, count in sink.parts for at in range(start, start + count))
    assert told == {(layer, at): 1 for layer in range(2) for at in range(40)}


# ---- choices ----


def test_choices_are_drawn_apart_and_the_first_is_the_one_of_a_single_answer(new_engine: NewEngine) -> None:
    single = answers(new_engine(), request("a", LONG, WARM))
    engine = new_engine()
    found = answers(engine, request("a", LONG, WARM, choices=4))
    assert found[:1] == single
    assert len({tuple(one.tokens) for one in found}) == 4
    assert engine.stats().prompt_tokens == len(LONG)
    assert engine.stats().kv_usage == 0


@pytest.mark.parametrize("prompt", [PROMPTS[1], LONG], ids=["with a partial block", "of whole blocks"])
def test_choices_computed_elsewhere_are_those_of_one_engine(new_engine: NewEngine, prompt: list[int]) -> None:
    asked = request("a", prompt, WARM, choices=3)
    decode = new_engine()
    events = [*decode.admit(asked, computed(new_engine(), asked)), *finish(decode)]
    assert collect(events, "a") == answers(new_engine(), asked)
    assert decode.stats().prompt_tokens == 0


def test_choices_share_the_prompts_whole_blocks(new_engine: NewEngine) -> None:
    engine = new_engine(blocks=64)
    engine.submit(request("a", LONG[:38], WARM, choices=5))
    engine.step()
    engine.step()
    # nine whole blocks together, and one each
    assert 64 - engine.stats().kv_blocks_free == 9 + 5


def test_a_choice_that_ends_at_once_leaves_the_others(new_engine: NewEngine) -> None:
    asked = request("a", PROMPTS[0], SamplingParams(temperature=0, max_tokens=3), choices=3)
    engine = new_engine()
    prompt = computed(new_engine(), asked)
    at_once = ComputedPrompt(first=(Sampled(token=0), *prompt.first[1:]), tokens=prompt.tokens, kv=prompt.kv)
    found = collect([*engine.admit(asked, at_once), *finish(engine)], "a")
    assert [one.ended for one in found] == ["stop", "length", "length"]
    assert engine.stats().kv_usage == 0


# ---- answers that are resumed ----


@pytest.mark.parametrize("written", [1, 5, 11])
@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_a_resumed_answer_goes_on_as_if_nothing_had_happened(
    new_engine: NewEngine, written: int, where: str
) -> None:
    params = SamplingParams(
        temperature=1.5,
        seed=11,
        max_tokens=12,
        ignore_eos=True,
        frequency_penalty=1.0,
        presence_penalty=0.5,
        repetition_penalty=1.2,
    )
    (whole,) = answers(new_engine(), request("a", PROMPTS[1], params))
    asked = request("a", PROMPTS[1], params, resumed=whole.tokens[:written])
    engine = new_engine()
    if where == "here":
        engine.submit(asked)
        events = finish(engine)
    else:
        events = [*engine.admit(asked, computed(new_engine(), asked)), *finish(engine)]
    assert [event.output_tokens for event in events] == list(range(written + 1, 13))
    (rest,) = collect(events, "a")
    assert rest == Answered(tokens=whole.tokens[written:], text=whole.text[written:], ended="length")


def test_what_was_held_back_before_a_resumption_still_comes_out(new_engine: NewEngine) -> None:
    (whole,) = answers(new_engine(), request("a", PROMPTS[0]))
    # the third letter may begin a stop string, so that it was held back when the writer was lost
    stops = (whole.text[2] + "\n",)
    params = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True, stop=stops)
    (rest,) = answers(new_engine(), request("a", PROMPTS[0], params, resumed=whole.tokens[:3]))
    assert (rest.text, rest.tokens) == (whole.text[2:], whole.tokens[3:])


def test_a_stop_string_may_begin_before_a_resumption(new_engine: NewEngine) -> None:
    (whole,) = answers(new_engine(), request("a", PROMPTS[0]))
    params = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True, stop=(whole.text[2:5],))
    (rest,) = answers(new_engine(), request("a", PROMPTS[0], params, resumed=whole.tokens[:4]))
    assert (rest.text, rest.tokens, rest.ended) == ("", whole.tokens[4:5], "stop")


@pytest.mark.parametrize(
    ("params", "resumed", "why"),
    [
        pytest.param({"max_tokens": 3}, (1, 2, 3), "3 tokens of the answer are there", id="by its length"),
        pytest.param({}, (1, 0), "ended already", id="by the end token"),
        pytest.param({"stop": ("BC",)}, (1, 2), "ended already", id="by a stop string"),
    ],
)
def test_an_answer_that_has_ended_is_not_resumed(
    new_engine: NewEngine, params: dict[str, object], resumed: tuple[int, ...], why: str
) -> None:
    engine = new_engine()
    asked = request("a", [1, 2], SamplingParams(**params), resumed=resumed)
    with pytest.raises(InvalidRequest, match=why):
        engine.submit(asked)
    # whoever only computes the prompt does not judge the answer
    assert len(computed(engine, asked).first) == 1
