"""Where simulated requests come from: a trace as it was, or as many as keep a number in flight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from tidewheel.simulation.clock import Clock
    from tidewheel.simulation.traces import Request


class Source(Protocol):
    """Sends requests and hears when one has ended."""

    @property
    def count(self) -> int:
        """How many it sends in all."""

    def begin(self, clock: Clock, send: Callable[[Request], None]) -> None:
        """Send the first ones, and see to it that the others follow."""

    def ended(self) -> None:
        """One of them has ended."""


class OpenLoop:
    """Every request at its time, whatever became of the others."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self._requests = requests

    @property
    def count(self) -> int:
        """As in `Source`."""
        return len(self._requests)

    def begin(self, clock: Clock, send: Callable[[Request], None]) -> None:
        """As in `Source`."""
        self._follow(0, clock, send)

    def ended(self) -> None:
        """As in `Source`; nothing depends on it here."""

    def _follow(self, number: int, clock: Clock, send: Callable[[Request], None]) -> None:
        if number < len(self._requests):
            request = self._requests[number]

            def arrive() -> None:
                self._follow(number + 1, clock, send)
                send(request)

            clock.at(request.at, arrive)


class ClosedLoop:
    """A constant number in flight: one ends, the next one starts, in the trace's order and whatever its times."""

    def __init__(self, requests: Sequence[Request], in_flight: int) -> None:
        self._requests = requests
        self._in_flight = in_flight
        self._sent = 0

    @property
    def count(self) -> int:
        """As in `Source`."""
        return len(self._requests)

    def begin(self, clock: Clock, send: Callable[[Request], None]) -> None:
        """As in `Source`."""
        self._clock, self._send = clock, send
        for _ in range(min(self._in_flight, len(self._requests))):
            self._next()

    def ended(self) -> None:
        """As in `Source`."""
        if self._sent < len(self._requests):
            # not at once: the one that ended is still being put away
            self._clock.at(self._clock.now, self._next)

    def _next(self) -> None:
        if self._sent < len(self._requests):
            request = replace(self._requests[self._sent], at=self._clock.now)
            self._sent += 1
            self._send(request)
