"""The client's side of a request as exchanges see it: the request, and where its answer goes.

A `Reply` watches a stream go by and adds the headers of the client's key. `Parts` let several exchanges answer one client, for a
request with several prompts.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Protocol

from pydantic_core import from_json

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from tidewheel_workers.serving.http1.messages import Request
    from tidewheel_workers.serving.http1.server import Incoming, Stream
    from tidewheel_workers.serving.several_prompts import Merging
    from tidewheel_workers.serving.stream_meter import StreamMeter

    Pressure = Callable[[bool], None]


class Outlet(Protocol):
    """A stream as whoever fills it needs it."""

    on_pressure: Pressure | None

    @property
    def status(self) -> int:
        """The status that it began with."""

    @property
    def is_under_pressure(self) -> bool:
        """Whether the client is too slow to take more for now."""

    def write(self, data: bytes) -> None:
        """Send this; it never waits."""

    def end(self) -> None:
        """The answer is complete."""


class Caller(Protocol):
    """A client that waits for one answer."""

    @property
    def request(self) -> Request:
        """What it asks."""

    @property
    def id(self) -> str:
        """The request's id."""

    def stream(self, headers: Collection[tuple[str, str]], *, status: int = 200) -> Outlet:
        """Begin an answer that is sent piece by piece."""


class Reply:
    """One client; `stream` is called at most once."""

    def __init__(
        self,
        incoming: Incoming,
        *,
        meter: StreamMeter,
        on_tokens: Callable[[int], None],
        headers: Callable[[float], Mapping[str, str]],
    ) -> None:
        self.request = incoming.request
        self.id = incoming.id
        self._stream: Stream | None = None
        self._incoming = incoming
        self._meter = meter
        self._on_tokens = on_tokens
        self._headers = headers

    def stream(self, headers: Collection[tuple[str, str]], *, status: int = 200) -> WatchedStream:
        """As in `Caller`."""
        own = self._headers(time.monotonic())
        self._stream = self._incoming.stream((*headers, *own.items()), status=status)
        return WatchedStream(self._stream, self._meter, self._on_tokens)

    @property
    def has_begun(self) -> bool:
        """Whether the answer is a stream that has begun."""
        return self._stream is not None

    @property
    def begun(self) -> Stream:
        """The stream itself."""
        if self._stream is None:
            raise RuntimeError("the answer is no stream that has begun")
        return self._stream


class WatchedStream:
    """A stream whose tokens are counted."""

    __slots__ = ("_meter", "_on_tokens", "_stream")

    def __init__(self, stream: Stream, meter: StreamMeter, on_tokens: Callable[[int], None]) -> None:
        self._stream = stream
        self._meter = meter
        self._on_tokens = on_tokens

    @property
    def status(self) -> int:
        """As in `Outlet`."""
        return self._stream.status

    @property
    def on_pressure(self) -> Pressure | None:
        """As in `Outlet`."""
        return self._stream.on_pressure

    @on_pressure.setter
    def on_pressure(self, told: Pressure | None) -> None:
        self._stream.on_pressure = told

    @property
    def is_under_pressure(self) -> bool:
        """As in `Outlet`."""
        return self._stream.is_under_pressure

    def write(self, data: bytes) -> None:
        """As in `Outlet`."""
        if tokens := self._meter.saw(data, time.monotonic()):
            self._on_tokens(tokens)
        self._stream.write(data)

    def end(self) -> None:
        """As in `Outlet`."""
        self._stream.end()


class Parts:
    """One client for several exchanges, one for each prompt; whatever of them begins first begins the stream."""

    def __init__(self, caller: Caller, merging: Merging) -> None:
        self.outlet: Outlet | None = None
        self.all = tuple(Part(self, caller, prompt) for prompt in range(merging.prompts))
        self._caller = caller
        self._merging = merging

    def begin(self, headers: Collection[tuple[str, str]], status: int) -> None:
        """A part has something to send."""
        if self.outlet is None:
            self.outlet = self._caller.stream(headers, status=status)
            self.outlet.on_pressure = self._tell

    def write(self, prompt: int, data: bytes) -> None:
        """A part's own stream goes on."""
        merged = self._merging.take(prompt, data)
        if merged and self.outlet is not None:
            self.outlet.write(merged)

    def _tell(self, is_paused: bool) -> None:
        for part in self.all:
            if part.on_pressure is not None:
                part.on_pressure(is_paused)


class Part:
    """One prompt's share of a client: both the client and the stream of an exchange."""

    def __init__(self, parts: Parts, caller: Caller, prompt: int) -> None:
        self.request = caller.request
        self.id = caller.id
        self.status = 200
        self.on_pressure: Pressure | None = None
        self._parts = parts
        self._prompt = prompt

    def stream(self, headers: Collection[tuple[str, str]], *, status: int = 200) -> Part:
        """As in `Caller`."""
        self.status = status
        self._parts.begin(headers, status)
        return self

    @property
    def is_under_pressure(self) -> bool:
        """As in `Outlet`."""
        return self._parts.outlet is not None and self._parts.outlet.is_under_pressure

    def write(self, data: bytes) -> None:
        """As in `Outlet`."""
        self._parts.write(self._prompt, data)

    def end(self) -> None:
        """As in `Outlet`; the whole stream ends when all its parts have."""


def usage_of(body: bytes) -> tuple[int, int]:
    """Prompt and output tokens of a whole answer; nothing where it does not tell them."""
    try:
        usage: dict[str, Any] = from_json(body)["usage"]
        return int(usage["prompt_tokens"]), int(usage["completion_tokens"])
    except (ValueError, KeyError, TypeError):
        return 0, 0
