"""A prompt's keys and values on their way out: written by the engine's thread, sent by another, owned by the event loop."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tidewheel_workers.serving.kv_parts import Extent, Part, Written

if TYPE_CHECKING:
    from collections.abc import Callable

    from tidewheel_workers.serving.engine import Computed, KVShape


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenUp:
    """The prompt will not be computed, or nobody wants it any more; `reason` is one word for counters."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What may be sent now."""

    parts: list[Part]
    end: Computed | GivenUp | None  # no more parts will come


class KVBuffer:
    """A `KVSink` that can be sent while it is being filled.

    It begins with one holder, whoever computes the prompt. When the last holder lets go it is free: its memory may be
    used for another prompt.
    """

    def __init__(
        self, shape: KVShape, tokens: int, memory: memoryview, *, on_free: Callable[[], None]
    ) -> None:
        self.tokens = tokens
        self.extent = Extent.of(shape, tokens)
        self._memory = memory
        self._on_free = on_free
        self._holders = 1
        self._changed = threading.Condition()
        self._written = Written(self.extent)
        self._end: Computed | GivenUp | None = None
        self.ended_at = 0.0  # on the monotonic clock

    @property
    def buffer(self) -> memoryview:
        """As in `KVSink`."""
        return self._memory

    @property
    def end(self) -> Computed | GivenUp | None:
        """How the computation ended, if it did."""
        return self._end

    def wrote(self, layer: int, start: int, tokens: int) -> None:
        """As in `KVSink`."""
        with self._changed:
            self._written.add(layer, start, tokens)
            self._changed.notify()

    def finish(self, end: Computed | GivenUp) -> None:
        """Say how the computation ended; the first word counts.

        Raises:
            ValueError: it is said to be computed, and parts were never written.
        """
        with self._changed:
            if self._end is not None:
                return
            if not isinstance(end, GivenUp) and not self._written.is_whole:
                raise ValueError("a prompt was computed without all of its keys and values being written")
            self._end, self.ended_at = end, time.monotonic()
            self._changed.notify()

    def progress(self, wait_seconds: float) -> Progress:
        """What was written since the last call, as soon as there is something new, but no later than that."""
        with self._changed:
            parts = self._written.take()
            if not parts and self._end is None:
                self._changed.wait(wait_seconds)
                parts = self._written.take()
            return Progress(parts=parts, end=self._end)

    def hold(self) -> None:
        """One more holder."""
        self._holders += 1

    def drop(self) -> None:
        """One holder lets go."""
        self._holders -= 1
        if self._holders == 0:
            self._on_free()
