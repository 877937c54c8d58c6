"""A simulated decode instance: continuous batching, computed in closed form between two changes of the batch."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tidewheel.planning.scaling.profile import DeviceProfile
    from tidewheel.simulation.clock import Clock
    from tidewheel.simulation.flights import Flight


class Decode:
    """One instance.

    All sequences of the batch get a token in every iteration; who comes meanwhile joins at the next one. As long as the batch
    is the same, iterations get longer evenly, since each adds a token of context to every sequence: so the time of n of
    them is n·s + g·n(n−1)/2, with s the first one's and g the growth. With a profile that is a law this is exact; with a table
    it is the straight line between now and the next change.

    Room for prompt and answer is reserved when a sequence joins, so that none is ever put back.

    Args:
        name: unique in its service.
        clock: simulated time.
        profile: of its device.
        on_finished: told when an answer is complete.
    """

    def __init__(
        self,
        name: str,
        clock: Clock,
        profile: DeviceProfile,
        on_finished: Callable[[Flight], None],
    ) -> None:
        self.name = name
        self.is_leaving = False
        self.is_lost = False
        self.kv_tokens = profile.kv_tokens
        self.busy_seconds = 0.0
        self.reserved_tokens = 0  # by the batch
        self._clock = clock
        self._profile = profile
        self._on_finished = on_finished
        self._expected: set[Flight] = set()  # their KV is on its way
        self._waiting: deque[Flight] = deque()
        self._batch: list[tuple[int, int, Flight]] = []  # by the iteration that is their last
        self._kv_tokens = 0  # of the batch, at the last boundary
        self._iteration = 0  # iterations done until the last boundary
        self._boundary = 0.0
        self._first, self._growth = 0.0, 0.0
        self._events = 0  # numbers the wake-ups, the last one counts

    @property
    def sequences(self) -> int:
        """In the batch, waiting to join it or on their way."""
        return len(self._batch) + len(self._waiting) + len(self._expected)

    @property
    def iteration_seconds(self) -> float:
        """Of the current batch; of a single sequence without context if there is none."""
        return self._first if self._batch else self._profile.decode_seconds(1, 1)

    def has_room(self, flight: Flight) -> bool:
        """Whether it could join at once, those counted that wait or are on their way."""
        coming = (*self._waiting, *self._expected)
        tokens = self.reserved_tokens + sum(map(_whole, coming)) + _whole(flight)
        is_first = not self._batch and not coming
        return self.sequences < self._profile.decode_slots and (tokens <= self.kv_tokens or is_first)

    def expect(self, flight: Flight) -> None:
        """Its KV is on its way."""
        self._expected.add(flight)

    def forget(self, flight: Flight) -> None:
        """Its KV will not come."""
        self._expected.discard(flight)

    def take(self, flight: Flight) -> None:
        """A sequence whose KV is here joins as soon as there is room."""
        self._expected.discard(flight)
        self._waiting.append(flight)
        if not self._batch:
            if len(self._waiting) == 1:
                self._clock.at_last(self._begin)
        elif len(self._waiting) == 1:
            self._plan()

    def lose(self) -> list[Flight]:
        """The instance is gone at once; these were in it, with the tokens that they had got."""
        self.is_lost = True
        self._events += 1
        done = self._iteration + self._iterations_by(self._clock.now) if self._batch else 0
        for last, _, flight in self._batch:
            flight.generated = flight.request.answer_tokens - (last - done)
        lost = sorted([flight for *_, flight in self._batch] + [*self._waiting, *self._expected], key=_number)
        self._batch, self._waiting, self._expected, self.reserved_tokens = [], deque(), set(), 0
        return lost

    def _span(self, iterations: int) -> float:
        return iterations * self._first + self._growth * iterations * (iterations - 1) / 2

    def _iterations_by(self, when: float) -> int:
        """Iterations complete at a time, counted from the last boundary."""
        return max(0, self._iterations_until(when + 1e-12) - 1) if when > self._boundary else 0

    def _iterations_until(self, when: float) -> int:
        """The fewest iterations that last until then."""
        seconds = when - self._boundary
        if seconds <= 0:
            return 0
        half = self._growth / 2
        linear = self._first - half
        if half * seconds < 1e-12 * linear * linear:
            guess = seconds / linear
        else:
            guess = (math.sqrt(linear * linear + 4 * half * seconds) - linear) / (2 * half)
        count = max(0, math.ceil(guess - 1e-9))
        while self._span(count) < seconds - 1e-12:
            count += 1
        return count

    def _plan(self) -> None:
        """Wake at the next finish, or at the next boundary if somebody waits who may fit."""
        if not self._batch:
            return
        steps = self._batch[0][0] - self._iteration
        if self._waiting and self._fits(self._waiting[0]):
            steps = min(steps, max(1, self._iterations_until(self._clock.now)))
        self._events += 1
        event = self._events
        self._clock.at(self._boundary + self._span(steps), lambda: self._arrive(event, steps))

    def _begin(self) -> None:
        """An idle instance begins with all that come at this very time, not with the first of them alone."""
        if not self._batch:
            self._boundary = self._clock.now
            self._wake()

    def _arrive(self, event: int, steps: int) -> None:
        """A boundary at which the batch changes."""
        if event != self._events:
            return
        self._iteration += steps
        self._kv_tokens += steps * len(self._batch)
        self.busy_seconds += self._clock.now - self._boundary
        self._boundary = self._clock.now
        self._wake()

    def _wake(self) -> None:
        done: list[Flight] = []
        while self._batch and self._batch[0][0] <= self._iteration:
            flight = heapq.heappop(self._batch)[2]
            self._kv_tokens -= _whole(flight)
            self.reserved_tokens -= _whole(flight)
            done.append(flight)
        joined: list[Flight] = []
        while self._waiting and self._fits(self._waiting[0]):
            flight = self._waiting.popleft()
            request = flight.request
            last = self._iteration + request.answer_tokens - flight.generated
            heapq.heappush(self._batch, (last, flight.number, flight))
            self._kv_tokens += flight.context_tokens
            self.reserved_tokens += _whole(flight)
            joined.append(flight)
        if self._batch:
            size = len(self._batch)
            steps = self._batch[0][0] - self._iteration
            context = self._kv_tokens / size
            self._first = self._profile.decode_seconds(size, context)
            self._growth = (self._profile.decode_seconds(size, context + steps) - self._first) / steps
            for flight in joined:
                if math.isnan(flight.first_token_at):
                    flight.first_token_at = self._clock.now + self._first
        self._plan()
        for flight in done:
            self._on_finished(flight)

    def _fits(self, flight: Flight) -> bool:
        has_room = self.reserved_tokens + _whole(flight) <= self.kv_tokens or not self._batch
        return len(self._batch) < self._profile.decode_slots and has_room


def _whole(flight: Flight) -> int:
    """Tokens of KV at its end."""
    return flight.request.prompt_tokens + flight.request.answer_tokens


def _number(flight: Flight) -> int:
    return flight.number
