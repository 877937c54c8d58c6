"""What every serving process is to the HTTP server and the process around it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aiohttp import web
    from prometheus_client import CollectorRegistry

    from tidewheel_workers.serving.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Readiness:
    """Whether requests may come, and why."""

    is_ready: bool
    reason: str
    message: str = ""


class Service(Protocol):
    """One role's server."""

    registry: CollectorRegistry

    @property
    def settings(self) -> Settings:
        """What the environment said."""

    def routes(self) -> Sequence[web.RouteDef]:
        """The paths beside health, metrics and version."""

    async def start(self, fail: Callable[[BaseException], None]) -> None:
        """Get ready; runs while the probes are answered already.

        Args:
            fail: to be called when the process has to end because of an error later on.
        """

    def readiness(self) -> Readiness:
        """For the readiness probe."""

    @property
    def is_alive(self) -> bool:
        """For the liveness probe: False only when a restart would help."""

    def begin_drain(self) -> None:
        """From now on nothing new should come; what runs may finish."""

    @property
    def unfinished(self) -> int:
        """What a drain still waits for, beside open HTTP requests."""

    async def close(self) -> None:
        """End everything."""
