"""How many requests a worker works on at a time: taken at once or not at all, there is no queue."""

from __future__ import annotations

from tidewheel_workers.serving.errors import busy, invalid


class Slots:
    """A worker's slots."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.used = 0

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
            raise busy(f"{self.used} of {self.total} slots are in use; try again, or ask another server")
        self.used += count
        return Slot(self, count)


class Slot:
    """One request's place; give it back once, or as often as is convenient."""

    def __init__(self, slots: Slots, count: int) -> None:
        self._slots: Slots | None = slots
        self._count = count

    def free(self) -> None:
        """Give it back."""
        if self._slots is not None:
            self._slots.used -= self._count
            self._slots = None
