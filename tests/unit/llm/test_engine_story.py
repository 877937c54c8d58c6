"""Any order of events: every request ends exactly once with the answer it would get alone, and nothing leaks."""

from __future__ import annotations

from collections import Counter
from functools import cache

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule
from tests.unit.llm.driving import Answered, NotingSink, answers, computed
from tests.unit.llm.recalling import POISON, recalling_engine

from tidewheel_workers.llm.engine import Engine
from tidewheel_workers.llm.requests import Event, FailureEvent, PromptEvent, Request, TokenEvent
from tidewheel_workers.llm.sampling import SamplingParams

# few and alike, so that prefixes are shared; the last has a block of others behind another beginning
PROMPTS = (
    (1, 2, 3, 4, 5, 6, 7, 8),
    (1, 2, 3, 4, 5, 6, 7, 8, 9),
    (1, 2, 3, 4, 5, 6, 9, 9, 9, 9, 9, 9),
    (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18),
    (3,),
    (9, 9, 9, 9, 5, 6, 7, 8, 9),
)
PARAMS = (
    SamplingParams(temperature=0, max_tokens=6, ignore_eos=True),
    SamplingParams(temperature=1.0, seed=5, max_tokens=14),
    SamplingParams(temperature=2.0, seed=6, max_tokens=9, stop=("AB", "C"), min_tokens=2),
    SamplingParams(
        temperature=1.0, seed=7, top_p=0.9, max_tokens=20, frequency_penalty=1.0, repetition_penalty=1.3
    ),
)
requests = st.tuples(
    st.sampled_from(PROMPTS), st.sampled_from(PARAMS), st.sampled_from([1, 1, 1, 2, 4]), st.integers(0, 3)
)


@cache
def wanted(
    prompt: tuple[int, ...], params: SamplingParams, choices: int, resumed: tuple[int, ...]
) -> list[Answered]:
    """The answer of an engine with room for everything that has seen nothing else."""
    return answers(recalling_engine(), named("alone", prompt, params, choices, resumed))


def named(
    name: str, prompt: tuple[int, ...], params: SamplingParams, choices: int, resumed: tuple[int, ...]
) -> Request:
    return Request(request_id=name, token_ids=prompt, params=params, choices=choices, resumed=resumed)


def beginning(prompt: tuple[int, ...], params: SamplingParams, written: int) -> tuple[int, ...]:
    """As many tokens of the answer, as if another engine had written them; none of an answer that is shorter."""
    tokens = wanted(prompt, params, 1, ())[0].tokens
    return tuple(tokens[:written]) if written < len(tokens) else ()


class BrokenSink(NotingSink):
    """A sink whose other end is gone."""

    def wrote(self, *_: int) -> None:
        raise OSError("gone")


class EngineStory(RuleBasedStateMachine):
    """One engine that is short of everything, and whatever may be asked of it."""

    running = Bundle("running")

    def __init__(self) -> None:
        super().__init__()
        self.engine: Engine = recalling_engine(blocks=10, max_running=5, batch_tokens=7)
        self.elsewhere: Engine = recalling_engine()
        self.asked: dict[str, Request] = {}
        self.sinks: dict[str, NotingSink] = {}
        self.aborted: set[str] = set()
        self.failing: set[str] = set()
        self.failed: set[str] = set()
        self.got: dict[str, dict[int, Answered]] = {}
        self.prompts: dict[str, PromptEvent] = {}

    def ask(self, what: tuple, *, resumed: bool = True) -> Request:
        prompt, params, choices, written = what
        before = beginning(prompt, params, written) if resumed and choices == 1 else ()
        made = named(f"r{len(self.asked)}", prompt, params, choices, before)
        self.asked[made.request_id] = made
        self.got[made.request_id] = {}
        return made

    @rule(target=running, what=requests)
    def submit(self, what: tuple) -> str:
        made = self.ask(what)
        self.engine.submit(made)
        return made.request_id

    @rule(target=running, what=requests)
    def submit_with_a_sink(self, what: tuple) -> str:
        made = self.ask(what)
        self.sinks[made.request_id] = NotingSink(self.engine, made)
        self.engine.submit(made, self.sinks[made.request_id])
        return made.request_id

    @rule(target=running, what=requests)
    def admit(self, what: tuple) -> str:
        made = self.ask(what)
        prompt = computed(self.elsewhere, made)
        self.hear(self.engine.admit(made, prompt))
        prompt.kv[:] = b"\xff" * len(prompt.kv)
        return made.request_id

    @rule(target=running, what=requests, is_poisoned=st.booleans())
    def submit_what_cannot_be_done(self, what: tuple, is_poisoned: bool) -> str:
        prompt, params, choices, _ = what
        if is_poisoned:
            prompt = (*prompt[:-1], POISON)
        made = self.ask((prompt, params, choices, 0), resumed=False)
        sink = None if is_poisoned else BrokenSink(self.engine, made)
        self.engine.submit(made, sink)
        self.failing.add(made.request_id)
        return made.request_id

    @rule(steps=st.integers(1, 4))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            self.hear(self.engine.step())

    @rule(name=running)
    def abort(self, name: str) -> None:
        if self.engine.abort(name):
            self.aborted.add(name)

    @rule()
    def finish(self) -> None:
        for _ in range(2000):
            stats = self.engine.stats()
            if not stats.running and not stats.waiting:
                return
            self.hear(self.engine.step())
        raise AssertionError("the engine does not come to an end")

    def hear(self, events: list[Event] | list[TokenEvent]) -> None:
        for event in events:
            name = event.request_id
            assert name not in self.aborted | self.failed
            if isinstance(event, FailureEvent):
                assert name in self.failing
                self.failed.add(name)
            elif isinstance(event, PromptEvent):
                assert name not in self.prompts
                self.prompts[name] = event
            else:
                assert isinstance(event, TokenEvent), event
                self.got[name].setdefault(event.choice, Answered()).add(event)

    @invariant()
    def blocks_belong_to_those_who_run(self) -> None:
        scheduler, pool = self.engine._scheduler, self.engine.kv.blocks
        held = Counter(block for sequence in scheduler.running for block in sequence.blocks)
        assert {b: pool.holders(b) for b in range(pool.total) if pool.holders(b)} == dict(held)
        assert pool.free == pool.total - len(held)
        assert not any(sequence.blocks for sequence in scheduler.waiting)
        assert sum(sequence.width for sequence in scheduler.running) <= self.engine.limits.max_running

    def teardown(self) -> None:
        self.finish()
        for name, made in self.asked.items():
            if name in self.aborted:
                continue
            assert (name in self.failing) == (name in self.failed)
            if name in self.failed:
                continue
            alone = wanted(made.token_ids, made.params, made.choices, made.resumed)
            if name in self.sinks:
                first = [one.token for one in self.prompts[name].first]
                assert first == [answer.tokens[0] for answer in alone]
                same_as(self.sinks[name], made)
            else:
                assert [self.got[name][choice] for choice in range(made.choices)] == alone
        assert self.engine.stats().kv_usage == 0
        assert not self.engine._works
        assert not self.engine._answers


def same_as(sink: NotingSink, made: Request) -> None:
    """The sink holds what an engine alone computes, and every part of it was told exactly once."""
    assert sink.memory == computed(recalling_engine(), made).kv
    told = Counter((layer, at) for layer, start, tokens in sink.parts for at in range(start, start + tokens))
    assert told == {(layer, at): 1 for layer in range(2) for at in range(made.kv_tokens)}


EngineStory.TestCase.settings = settings(
    max_examples=40, stateful_step_count=30, deadline=None, phases=set(Phase) - {Phase.explain}
)
test_the_story_of_an_engine = EngineStory.TestCase
