"""How tests ask an engine: requests by their essentials, sinks that note what came, answers put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tidewheel_workers.llm.engine import Engine
from tidewheel_workers.llm.requests import (
    ComputedPrompt,
    Event,
    FailureEvent,
    FinishReason,
    PromptEvent,
    Request,
    TokenEvent,
)
from tidewheel_workers.llm.sampling import SamplingParams


def request(
    name: str,
    tokens: Sequence[int],
    params: SamplingParams | None = None,
    *,
    choices: int = 1,
    resumed: Sequence[int] = (),
) -> Request:
    return Request(
        request_id=name,
        token_ids=tokens,
        params=params or SamplingParams(temperature=0, max_tokens=10, ignore_eos=True),
        choices=choices,
        resumed=resumed,
    )


@dataclass(slots=True)
class Answered:
    """One choice, as a client would have it."""

    tokens: list[int] = field(default_factory=list)
    text: str = ""
    ended: FinishReason | None = None

    def add(self, event: TokenEvent) -> None:
        assert self.ended is None, f"{event} came after the end"
        self.tokens.append(event.token)
        self.text += event.text
        self.ended = event.finish_reason


def collect(events: Sequence[Event], name: str) -> list[Answered]:
    """The choices of one request, in order."""
    found: dict[int, Answered] = {}
    for event in events:
        if isinstance(event, TokenEvent) and event.request_id == name:
            found.setdefault(event.choice, Answered()).add(event)
    return [found[choice] for choice in sorted(found)]


def finish(engine: Engine) -> list[Event]:
    events: list[Event] = []
    while engine.stats().running or engine.stats().waiting:
        events += engine.step()
    return events


def answers(engine: Engine, asked: Request) -> list[Answered]:
    """What the engine alone makes of a request."""
    engine.submit(asked)
    events = finish(engine)
    assert not failures(events)
    return collect(events, asked.request_id)


class NotingSink:
    """A sink that can tell in which parts it was filled."""

    def __init__(self, engine: Engine, asked: Request) -> None:
        self.memory = bytearray(b"\xff" * engine.kv.layout.bytes_for(asked.kv_tokens))
        self.buffer = memoryview(self.memory)
        self.parts: list[tuple[int, int, int]] = []

    def wrote(self, layer: int, start: int, tokens: int) -> None:
        self.parts.append((layer, start, tokens))


def computed(engine: Engine, asked: Request) -> ComputedPrompt:
    """The prompt as this engine computes it for another one."""
    sink = NotingSink(engine, asked)
    engine.submit(asked, sink)
    (event,) = (e for e in finish(engine) if not isinstance(e, TokenEvent))
    assert isinstance(event, PromptEvent), event
    return ComputedPrompt(first=event.first, tokens=asked.kv_tokens, kv=sink.memory)


def failures(events: Sequence[Event]) -> dict[str, str]:
    """Why requests failed."""
    return {e.request_id: str(e.error) for e in events if isinstance(e, FailureEvent)}
