"""Watching for peers that keep us waiting for too long; clients and servers do it alike."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection


class Waiting(Protocol):
    """A connection that waits for its peer."""

    @property
    def due(self) -> float:
        """By when the peer must have done what we wait for, on the event loop's clock."""

    def is_late(self) -> None:
        """The time is over."""


async def sweep(connections: Collection[Waiting], *, every_seconds: float) -> None:
    """Tell those whose time is over, for ever. One look at all is cheaper than a timer for each."""
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(every_seconds)
        now = loop.time()
        for connection in [one for one in connections if one.due <= now]:
            connection.is_late()
