"""Requests that arrive at random times drawn from a seed, how they are sent, and when each of their tokens came."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import aiohttp

Kind = Literal["short", "long"]

#: Token ids of plain text in SmolLM2's vocabulary.
TOKENS = range(1_000, 40_000)
RETRY_SECONDS = 0.02
TOKEN_IDS_HEADER = "x-tidewheel-token-ids"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What one kind of request looks like."""

    kind: Kind
    prompt_tokens: int
    answer_tokens: int
    rate: float  # arrivals per second


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One request."""

    at: float  # seconds since the beginning
    kind: Kind
    prompt_tokens: int
    answer_tokens: int

    def prompt(self) -> list[int]:
        """Tokens that nobody has seen: an engine that knew the beginning of a prompt would not compute it."""
        return random.choices(TOKENS, k=self.prompt_tokens)


@dataclass(slots=True, kw_only=True)
class Answered:
    """When things happened, in seconds since the beginning."""

    kind: Kind
    arrived: float
    prompt_tokens: int
    tokens: list[float] = field(default_factory=list)
    fault: str = ""

    @property
    def ttft(self) -> float:
        """Seconds to the first token."""
        return self.tokens[0] - self.arrived

    @property
    def tpot(self) -> float:
        """Mean seconds between two tokens."""
        return (self.tokens[-1] - self.tokens[0]) / (len(self.tokens) - 1)

    @property
    def gaps(self) -> list[float]:
        """Seconds between each two tokens."""
        return [after - before for before, after in zip(self.tokens, self.tokens[1:], strict=False)]


def arrivals(seed: int, seconds: float, shapes: Sequence[Shape]) -> list[Arrival]:
    """Independent Poisson arrivals of each kind, by time."""
    drawn = []
    for shape in shapes:
        draw = random.Random(f"{seed}/{shape.kind}")
        at = draw.expovariate(shape.rate)
        while at < seconds:
            drawn.append(
                Arrival(
                    at=at,
                    kind=shape.kind,
                    prompt_tokens=shape.prompt_tokens,
                    answer_tokens=shape.answer_tokens,
                )
            )
            at += draw.expovariate(shape.rate)
    return sorted(drawn, key=lambda one: one.at)


class Combined:
    """Each request goes to the engine with the fewest open ones, which computes and writes it."""

    def __init__(self, session: aiohttp.ClientSession, urls: Sequence[str], model: str) -> None:
        self._session, self._model = session, model
        self._open = dict.fromkeys(urls, 0)

    async def __call__(self, arrival: Arrival, token: Callable[[], None]) -> None:
        url = min(self._open, key=self._open.__getitem__)
        self._open[url] += 1
        try:
            await _stream(self._session, url, _body(arrival, self._model), token)
        finally:
            self._open[url] -= 1


class Disaggregated:
    """A prefill computes the prompt and a decode writes, as a gateway has it done.

    Prompts of at most `decode_computes` tokens are computed by the decode: its clients wait for no long prompt.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        prefill: str,
        decode: str,
        model: str,
        *,
        decode_computes: int = 0,
    ) -> None:
        self._session, self._prefill, self._decode, self._model = session, prefill, decode, model
        self._decode_computes = decode_computes

    async def __call__(self, arrival: Arrival, token: Callable[[], None]) -> None:
        body = _body(arrival, self._model)
        if arrival.prompt_tokens > self._decode_computes:
            asked = body | {
                "stream": False,
                "max_tokens": 1,
                "kv_transfer_params": {"do_remote_decode": True},
            }
            body["kv_transfer_params"] = (await _whole(self._session, self._prefill, asked))[
                "kv_transfer_params"
            ]
        await _stream(self._session, self._decode, body, token)


Way = Callable[[Arrival, Callable[[], None]], Any]


async def play(drawn: Sequence[Arrival], way: Way) -> list[Answered]:
    """Send each request at its time, whatever became of those before, and wait for the last answer."""
    began = time.monotonic()

    async def one(arrival: Arrival) -> Answered:
        await asyncio.sleep(began + arrival.at - time.monotonic())
        answered = Answered(kind=arrival.kind, arrived=arrival.at, prompt_tokens=arrival.prompt_tokens)
        try:
            await way(arrival, lambda: answered.tokens.append(time.monotonic() - began))
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            answered.fault = f"{type(error).__name__}: {error}"
        if len(answered.tokens) != arrival.answer_tokens:
            answered.fault = answered.fault or f"{len(answered.tokens)} of {arrival.answer_tokens} tokens"
        return answered

    return await asyncio.gather(*(one(arrival) for arrival in drawn))


def _body(arrival: Arrival, model: str) -> dict[str, Any]:
    return {
        "model": model,
        "prompt": arrival.prompt(),
        "max_tokens": arrival.answer_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
    }


async def _whole(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> dict[str, Any]:
    while True:
        async with session.post(f"{url}/v1/completions", json=body) as answer:
            if answer.status == 200:
                return await answer.json()
            if answer.status != 429:
                raise RuntimeError(f"{answer.status}: {await answer.text()}")
        await asyncio.sleep(RETRY_SECONDS)


async def _stream(
    session: aiohttp.ClientSession, url: str, body: dict[str, Any], token: Callable[[], None]
) -> None:
    """Tell of each token as it comes; a server that tells tokens' ids may put several into an event."""
    while True:
        async with session.post(
            f"{url}/v1/completions", json=body, headers={TOKEN_IDS_HEADER: "1"}
        ) as answer:
            if answer.status == 200:
                count = 1
                async for line in answer.content:
                    if line.startswith(b"id: "):
                        count = line.count(b",") + 1
                    elif line.startswith(b'data: {"error"'):
                        raise RuntimeError(json.loads(line[6:])["error"]["message"])
                    elif line.startswith(b"data: {"):
                        for _ in range(count):
                            token()
                return
            if answer.status != 429:
                raise RuntimeError(f"{answer.status}: {await answer.text()}")
        await asyncio.sleep(RETRY_SECONDS)
