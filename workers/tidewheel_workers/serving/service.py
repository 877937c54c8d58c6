"""What every serving process is to the HTTP server and the process around it."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from prometheus_client import CollectorRegistry

    from tidewheel_workers.serving.settings import Settings


REQUEST_ID_HEADER = "x-request-id"
#: In the head of a stream whose prompt was computed where the answer is written: only there its length is known.
PROMPT_TOKENS_HEADER = "x-tidewheel-prompt-tokens"
_PROPER_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def proper_request_id(given: str | None) -> str:
    """The client's request id when it is a proper one, else a new one, which is no secret."""
    return given if given and _PROPER_ID.fullmatch(given) else f"{random.getrandbits(96):024x}"


class OpenRequests:
    """Requests to the API that have not ended, and whether a drain has begun."""

    def __init__(self) -> None:
        self.count = 0
        self.is_draining = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Readiness:
    """Whether requests may come, and why."""

    is_ready: bool
    reason: str
    message: str = ""

    def to_body(self) -> dict[str, bool | str]:
        """The probe's answer."""
        return {"ready": self.is_ready, "reason": self.reason, "message": self.message}


class Listener(Protocol):
    """The HTTP server of one service."""

    async def start(self, host: str, port: int) -> None:
        """Listen there.

        Raises:
            OSError: the address cannot be bound.
        """

    async def close(self) -> None:
        """Stop listening, and end what has not ended after a moment."""


class Service(Protocol):
    """One role's server."""

    @property
    def registry(self) -> CollectorRegistry:
        """The metrics."""

    @property
    def settings(self) -> Settings:
        """What the environment said."""

    def listener(self, open_requests: OpenRequests) -> Listener:
        """The server that answers its requests, probes and scrapes; it counts the open requests to the API."""

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
