"""How many requests a worker works on at a time: taken at once or not at all, there is no queue."""

from __future__ import annotations

import time
from collections.abc import Callable

from tidewheel_workers.serving.errors import busy, invalid

#: Weight of a new value in a moving mean.
GAIN = 0.125


class Slots:
    """A worker's slots."""

    def __init__(self, total: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.total = total
        self.used = 0
        self._clock = clock
        self._held_seconds: float | None = None  # mean, of one slot

    @property
    def seconds_to_free(self) -> float:
        """In what time a slot comes free on average while all are in use; a second while nothing is known."""
        return 1.0 if self._held_seconds is None else self._held_seconds / self.total

    def take(self, count: int = 1) -> Slot:
        """So many slots for one request, all of them or none.

        Raises:
            ApiError: 429, not enough are free; 400, there are not so many.
        """
        if count > self.total:
            raise invalid(
                "invalid_value",
                f"n: {count} choices are more than the {self.total} slots of a server here; ask for fewer",
                "n",
            )
        if self.used + count > self.total:
            raise busy(
                f"{self.used} of {self.total} slots are in use; try again, or ask another server",
                retry_after_seconds=self.seconds_to_free,
            )
        self.used += count
        return Slot(self, count, self._clock())

    def give_back(self, count: int, since: float) -> None:
        """For `Slot.free`."""
        self.used -= count
        held = self._clock() - since
        mean = self._held_seconds
        self._held_seconds = held if mean is None else mean + GAIN * (held - mean)


class Slot:
    """One request's place; give it back once, or as often as is convenient."""

    def __init__(self, slots: Slots, count: int, since: float) -> None:
        self._slots: Slots | None = slots
        self._count = count
        self._since = since

    def free(self) -> None:
        """Give it back."""
        if self._slots is not None:
            self._slots.give_back(self._count, self._since)
            self._slots = None
