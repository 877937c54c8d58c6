"""How many requests a worker works on at a time: taken at once or not at all, there is no queue."""

from __future__ import annotations

from tidewheel_workers.serving.errors import busy


class Slots:
    """A worker's slots."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.used = 0

    def take(self) -> Slot:
        """A slot.

        Raises:
            ApiError: 429, none is free.
        """
        if self.used >= self.total:
            raise busy(f"all {self.total} slots are in use; try again, or ask another server")
        self.used += 1
        return Slot(self)


class Slot:
    """One request's place; give it back once, or as often as is convenient."""

    def __init__(self, slots: Slots) -> None:
        self._slots: Slots | None = slots

    def free(self) -> None:
        """Give it back."""
        if self._slots is not None:
            self._slots.used -= 1
            self._slots = None
