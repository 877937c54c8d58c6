"""A simulated prefill instance: prompts computed in chunks, first come first served, each holding a slot until its KV left."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tidewheel.simulation.prefix_cache import PrefixCache

if TYPE_CHECKING:
    from tidewheel.planning.scaling.profile import DeviceProfile
    from tidewheel.simulation.clock import Clock
    from tidewheel.simulation.flights import Flight


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillRules:
    """How an engine computes prompts."""

    #: Tokens of one iteration; prompts that are longer take several, and what is left of one is filled with the next.
    chunk_tokens: int = 8192
    #: Otherwise an iteration has tokens of one prompt only.
    fills_chunks: bool = True
    block_tokens: int = 512
    #: Prefix blocks kept; 0 for none.
    cached_blocks: int = 0
    #: An iteration takes what one prompt of all its tokens would, as in the mocker of NVIDIA Dynamo.
    counts_as_one_prompt: bool = False
    #: A computed prompt stays for as many more iterations as its answer has tokens, or until no other is left: what the
    #: replay of ai-dynamo 1.4.2 does to requests of trace files ("planned output token count differs from
    #: max_output_tokens"). Only of use to compare with it.
    echoes_answers: bool = False


@dataclass(slots=True, eq=False)
class _Job:
    flight: Flight
    done: int  # tokens whose KV is there
    left: int
    echoes: int = 0


class Prefill:
    """One instance.

    Args:
        name: unique in its service.
        clock: simulated time.
        profile: of its device.
        rules: of its engine.
        on_computed: told when a prompt's KV is there.
    """

    def __init__(
        self,
        name: str,
        clock: Clock,
        profile: DeviceProfile,
        rules: PrefillRules,
        on_computed: Callable[[Flight], None],
    ) -> None:
        self.name = name
        self.held: set[Flight] = set()  # in slots: computed, waiting, or with KV not fetched yet
        self.busy_seconds = 0.0
        self.is_leaving = False
        self.is_lost = False
        self.link_free_at = 0.0
        self._clock = clock
        self._profile = profile
        self._rules = rules
        self._on_computed = on_computed
        self._cache = PrefixCache(rules.cached_blocks, rules.block_tokens)
        self._chunk_seconds = profile.prefill_batch_seconds(())
        self._waiting: deque[_Job] = deque()
        self._echoing: list[_Job] = []
        self._admitted: set[Flight] = set()  # have KV here
        self._kv_tokens = 0  # theirs
        self._iteration_ends = 0.0
        self._is_running = False
        self._is_beginning = False
        self._work = 0.0  # estimated seconds of the waiting ones

    def take(self, flight: Flight) -> None:
        """A request holds a slot from now on."""
        flight.prefill, flight.asked_at = self, self._clock.now
        self.held.add(flight)
        job = _Job(flight, 0, flight.context_tokens)
        self._waiting.append(job)
        self._work += self.alone_seconds(job.left)
        self._begin()

    def release(self, flight: Flight) -> None:
        """Its KV has left, or nobody wants it any more."""
        self.held.discard(flight)
        if flight in self._admitted:
            self._admitted.discard(flight)
            self._kv_tokens -= flight.context_tokens
            self._begin()

    def ready_at(self, prompt_tokens: int) -> float:
        """About when a prompt that came now would be computed."""
        current = self._iteration_ends if self._is_running else self._clock.now
        return current + self._work + self.alone_seconds(prompt_tokens)

    def alone_seconds(self, prompt_tokens: int) -> float:
        """What a prompt takes when nothing else is there: the constant part is paid for each chunk."""
        more_chunks = math.ceil(prompt_tokens / self._rules.chunk_tokens) - 1
        return self._profile.prefill_seconds(prompt_tokens) + more_chunks * self._chunk_seconds

    def withdraw(self, flight: Flight) -> bool:
        """Nobody waits for it any more; False when it is being computed already."""
        for job in self._waiting:
            if job.flight is flight and flight not in self._admitted:
                self._waiting.remove(job)
                self._work -= self.alone_seconds(job.left)
                self.release(flight)
                return True
        return False

    @property
    def backlog_tokens(self) -> int:
        """Tokens that wait to be computed."""
        return sum(job.left for job in self._waiting)

    @property
    def queued_tokens(self) -> int:
        """Those of prompts of which nothing is computed yet."""
        return sum(job.left for job in self._waiting if job.flight not in self._admitted)

    def lose(self) -> list[Flight]:
        """The instance is gone at once; these were in it."""
        self.is_lost = True
        lost, self.held = sorted(self.held, key=lambda flight: flight.number), set()
        self._waiting.clear()
        self._echoing.clear()
        return lost

    def _begin(self) -> None:
        """An idle instance begins with all that come at this very time, not with the first of them alone."""
        if not (self._is_running or self._is_beginning or self.is_lost):
            self._is_beginning = True
            self._clock.at_last(self._iterate)

    def _iterate(self) -> None:
        self._is_beginning = False
        parts, finished = self._fill()
        if not parts:
            self._is_running = False
            echoing, self._echoing = self._echoing, []
            for job in echoing:
                self._on_computed(job.flight)
            return
        self._is_running = True
        if self._rules.counts_as_one_prompt:
            seconds = self._profile.prefill_seconds(sum(new for new, _ in parts))
        else:
            seconds = self._profile.prefill_batch_seconds(parts)
        self.busy_seconds += seconds
        self._iteration_ends = self._clock.now + seconds
        echoed, self._echoing = self._echoing, []
        self._clock.at(self._iteration_ends, lambda: self._finish(finished, echoed))

    def _fill(self) -> tuple[list[tuple[float, float]], list[_Job]]:
        """The next chunk: parts of prompts, and those prompts that end with it."""
        room = self._rules.chunk_tokens - len(self._echoing)
        parts: list[tuple[float, float]] = []
        finished: list[_Job] = []
        while room > 0 and self._waiting:
            job = self._waiting[0]
            request = job.flight.request
            if job.flight not in self._admitted:
                if self._admitted and self._kv_tokens + job.left > self._profile.kv_tokens:
                    break  # no room before a prompt's KV has left
                self._admitted.add(job.flight)
                self._kv_tokens += job.left
                self._work -= self.alone_seconds(job.left)
                cached = self._cache.cached_tokens(request.blocks, request.prompt_tokens)
                job.done, job.left = cached, job.left - cached
                job.flight.cached_tokens = cached
                self._work += self.alone_seconds(job.left)
            new = min(job.left, room)
            parts.append((new, job.done))
            self._work -= self.alone_seconds(job.left)
            job.done, job.left, room = job.done + new, job.left - new, room - new
            if job.left:
                self._work += self.alone_seconds(job.left)
            else:
                self._waiting.popleft()
                finished.append(job)
            if not self._rules.fills_chunks:
                break
        if not self._waiting:
            self._work = 0.0  # what rounding left
        return parts, finished

    def _finish(self, finished: list[_Job], echoed: list[_Job]) -> None:
        if self.is_lost:
            return
        for job in finished:
            self._cache.add(job.flight.request.blocks)
        done = finished
        if self._rules.echoes_answers:
            done = []
            for job in (*echoed, *finished):
                job.echoes += 1
                (done if job.echoes >= job.flight.request.answer_tokens else self._echoing).append(job)
        for job in done:
            self._on_computed(job.flight)
        self._iterate()
