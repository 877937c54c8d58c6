"""An event loop whose time passes only while nothing can run: delays cost nothing and always come in order."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _NoWaiting(selectors.DefaultSelector):  # type: ignore[misc,valid-type]
    """Adds the time it is asked to wait to the loop's clock instead of waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        events = super().select(0)
        if timeout is None and not events:
            raise AssertionError("everything waits for something that never comes")
        if timeout is not None and not events:
            self.now += timeout
        return events


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._selector_with_time = _NoWaiting()
        super().__init__(self._selector_with_time)

    def time(self) -> float:
        return self._selector_with_time.now


def run(main: Coroutine[Any, Any, T]) -> T:
    """Runs `main` in virtual time; fails if it can never end."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)
