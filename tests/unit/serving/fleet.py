"""Gateways and servers in virtual time: the real forwarding and dispatch before made-up prefills, decodes and a network."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from tidewheel.api.ranktable import Backend, RouteGroup
from tidewheel_workers.serving.dispatch import Call, Dispatch, DispatchSettings
from tidewheel_workers.serving.forwarding import Forwarding
from tidewheel_workers.serving.forwarding_steps import (
    Answered,
    AskDecode,
    AskPrefill,
    Began,
    Event,
    Fail,
    OutOfTime,
    Prefilled,
    Refused,
    ReleaseKV,
    Wait,
    Woke,
)
from tidewheel_workers.serving.prompt_facts import PromptFacts


@dataclass
class Prefill:
    """Takes a prompt while slots are free and computes one at a time."""

    backend: Backend
    slots: int
    used: int = 0
    busy_until: float = 0.0
    busy_seconds: float = 0.0
    most_used: int = 0

    def take(self, at: float, seconds: float) -> float | None:
        """When the prompt will be computed; None for a refusal."""
        if self.used >= self.slots:
            return None
        self.used += 1
        self.most_used = max(self.most_used, self.used)
        self.busy_until = max(at, self.busy_until) + seconds
        self.busy_seconds += seconds
        return self.busy_until


@dataclass
class Request:
    """What became of one."""

    gateway: int
    arrived: float
    forwarding: Forwarding
    prompt_seconds: float
    began: float | None = None
    ended: float | None = None
    error: str = ""
    prefilled_by: str = ""
    generation: int = 0  # of what it is doing; a later one makes what was to happen void


@dataclass(kw_only=True)
class Fleet:
    """A world of its own; `run` plays arrivals out."""

    gateways: int = 1
    prefills: int = 4
    slots: int = 4
    prompt_seconds: float = 0.1
    ttft_seconds: float = 2.0
    answer_seconds: float = 0.5
    delay_seconds: float = 0.001
    fetch_seconds: float = 0.004
    settings: DispatchSettings = field(default_factory=DispatchSettings)
    with_hints: bool = True  # a prefill that refuses says when it expects a slot to be free
    seed: int = 1

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self.servers = {
            name: Prefill(Backend(name=name, address="127.0.0.1"), self.slots)
            for name in (f"p{i}" for i in range(self.prefills))
        }
        group = RouteGroup(
            name="g",
            prefill=tuple(server.backend for server in self.servers.values()),
            decode=(Backend(name="d0", address="127.0.0.1"),),
        )
        self.dispatches = [
            Dispatch(self.settings, random.Random(1000 * self.seed + i).random) for i in range(self.gateways)
        ]
        for dispatch in self.dispatches:
            dispatch.set_groups((group,), 0.0, gateways=self.gateways)
        self._timers = [math.inf] * self.gateways
        self._waiting: dict[object, Request] = {}
        self.requests: list[Request] = []
        self.asked: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.longest_line = 0

    # ---- what is seen afterwards

    @property
    def capacity(self) -> float:
        """Prompts per second that the prefills compute."""
        return self.prefills / self.prompt_seconds

    @property
    def refused_share(self) -> float:
        """Of all inquiries at prefills."""
        return self.refused.total() / max(1, self.asked.total())

    def in_time(self, since: float = 0.0, until: float = math.inf) -> list[Request]:
        """Requests whose first token came in time, between these times."""
        return [
            one for one in self.requests
            if one.began is not None and one.began - one.arrived <= self.ttft_seconds and since <= one.began < until
        ]  # fmt: skip

    @property
    def late(self) -> list[Request]:
        """Requests that a prefill computed and whose first token came too late."""
        return [
            one for one in self.requests
            if one.began is not None and one.began - one.arrived > self.ttft_seconds
        ]  # fmt: skip

    # ---- how it goes

    def offer(
        self, rate: float, seconds: float, *, of: int | None = None, facts: PromptFacts | None = None
    ) -> None:
        """Let requests arrive, as many a second, at one gateway or at all."""
        at = self.now
        while (at := at + self.random.expovariate(rate)) < self.now + seconds:
            gateway = self.random.randrange(self.gateways) if of is None else of
            self.arrive(at=at, gateway=gateway, facts=facts)

    def arrive(self, *, at: float, gateway: int = 0, facts: PromptFacts | None = None) -> None:
        """Let one request arrive."""
        self._at(at, lambda: self._arrive(gateway, facts or PromptFacts(characters=400)))

    def run(self, until: float = math.inf) -> None:
        """Play everything out."""
        while self._events and self._events[0][0] <= until:
            self.now, _, happen = heapq.heappop(self._events)
            happen()

    def _at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._numbers), what))

    def _delay(self) -> float:
        return self.delay_seconds * (0.5 + self.random.random())

    def _arrive(self, gateway: int, facts: PromptFacts) -> None:
        call = Call(ttft_seconds=self.ttft_seconds, facts=facts)
        forwarding = Forwarding(call=call, dispatch=self.dispatches[gateway])
        request = Request(gateway, self.now, forwarding, self.prompt_seconds)
        self.requests.append(request)
        self._perform(request, forwarding.start(self.now))

    def _tell(self, request: Request, event: Event, generation: int) -> None:
        if request.ended is None and generation == request.generation:
            self._perform(request, request.forwarding.handle(event, self.now))

    def _perform(self, request: Request, instructions: list) -> None:
        request.generation += 1
        generation = request.generation
        for instruction in instructions:
            match instruction:
                case AskPrefill(backend=backend, until=until):
                    self._at(
                        self.now + self._delay(),
                        lambda: self._at_prefill(request, backend, until, generation),
                    )
                case AskDecode(hand_over=kv):
                    self._at_decode(request, kv, generation)
                case ReleaseKV(backend=backend):
                    self._at(self.now + self._delay(), lambda: self._free(backend.name))
                case Wait(until=until):
                    self._waiting[request.forwarding.ticket] = request
                    self._at(until, lambda: self._tell(request, Woke(), generation))
                case Fail(error=error):
                    request.ended, request.error = self.now, error.code
                case _:
                    request.ended = self.now
        self._look_around(request.gateway)

    def _look_around(self, gateway: int) -> None:
        dispatch = self.dispatches[gateway]
        self.longest_line = max(self.longest_line, dispatch.waiting)
        for ticket in dispatch.take_woken():
            request = self._waiting.pop(ticket, None)
            if request is not None:
                self._at(self.now, lambda r=request, g=request.generation: self._tell(r, Woke(), g))
        when = max(self.now, dispatch.look_again_at)
        if when < math.inf and not self.now <= self._timers[gateway] <= when:
            self._timers[gateway] = when
            self._at(when, lambda: self._timer(gateway))

    def _timer(self, gateway: int) -> None:
        self._timers[gateway] = -math.inf
        self.dispatches[gateway].grant(self.now)
        self._look_around(gateway)

    def _at_prefill(self, request: Request, backend: Backend, until: float, generation: int) -> None:
        server = self.servers[backend.name]
        self.asked[backend.name] += 1
        done = server.take(self.now, request.prompt_seconds)
        if done is None:
            self.refused[backend.name] += 1
            hint = self.prompt_seconds if self.with_hints else None
            answer: Event = Refused(cause="busy", retry_after=hint)
            self._at(self.now + self._delay(), lambda: self._tell(request, answer, generation))
            return
        if done > until:
            # the gateway hangs up; the prefill computes on and frees the slot then
            self._at(until, lambda: self._tell(request, OutOfTime(), generation))
            self._at(done, lambda: self._free(backend.name))
            return
        request.prefilled_by = backend.name
        kv = Prefilled(hand_over={"backend": backend.name})
        self._at(done + self._delay(), lambda: self._tell(request, kv, generation))

    def _at_decode(self, request: Request, kv: dict, generation: int) -> None:
        fetched = self.now + self._delay() + self.fetch_seconds
        self._at(fetched, lambda: self._free(kv["backend"]))
        self._at(fetched + self._delay(), lambda: self._begin(request, generation))
        self._at(fetched + self.answer_seconds, lambda: self._tell(request, Answered(), generation))

    def _begin(self, request: Request, generation: int) -> None:
        if generation == request.generation:
            request.began = self.now
            request.forwarding.handle(Began(), self.now)
            self._look_around(request.gateway)

    def _free(self, name: str) -> None:
        self.servers[name].used -= 1
