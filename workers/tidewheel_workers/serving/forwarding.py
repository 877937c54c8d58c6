"""How one request finds a prefill and a decode: a state machine without sockets, clocks or randomness of its own.

P/D-Serve §3.5: there are no queues in the servers. The gateway asks prefills one after the other, the one with the fewest
open streams first; a prefill takes the prompt at once or refuses at once; refused by all, the request waits here a
moment and asks again, until its TTFT budget is spent. Then a decode of the same group is found the same way.

`Forwarding.start` and `Forwarding.handle` give the instructions to perform, in order; the last one says what to do next,
and its outcome is the next event; only `Began` comes while a decode is still being asked, and asks for nothing. Every
request ends by exactly one `Finish`, `Fail` or `BreakStream`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from tidewheel_workers.serving.errors import ApiError, unavailable

if TYPE_CHECKING:
    from tidewheel.api.ranktable import Backend, RouteGroup

FIRST_WAIT_SECONDS = 0.02
LONGEST_WAIT_SECONDS = 0.5
#: A request that has outlived so many servers may be what ends them.
MOST_LOSSES = 3
#: The codes of requests whose time for the first token was over.
LATE_CODES = frozenset({"all_slots_busy", "backends_unavailable", "first_token_late", "no_backend_ready"})

Cause = Literal["busy", "unavailable", "unreachable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What the gateway knows when an event comes."""

    groups: tuple[RouteGroup, ...]
    open_streams: Mapping[str, int]  # by backend name


# ---- events: how the last instruction ended, or what came in between


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The backend did not take the request: 429, 503, or no connection."""

    cause: Cause


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefilled:
    """The prompt is computed; its KV waits."""

    hand_over: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """The backend took the request and failed, or vanished."""

    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferFailed:
    """The decode could not get the KV; it is well itself."""

    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """The request is at fault; the backend's answer is the client's."""

    status: int
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Began:
    """The first bytes of a stream are there and go to the client."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """The answer went to the client as a whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Woke:
    """The wait is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutOfTime:
    """The backend did not answer within the time that the instruction gave."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestTimedOut:
    """The request as a whole took too long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientGone:
    """Nobody waits for the answer any more."""


Event = (
    Refused
    | Prefilled
    | Lost
    | TransferFailed
    | Rejected
    | Began
    | Answered
    | Woke
    | OutOfTime
    | RequestTimedOut
    | ClientGone
)


# ---- instructions


@dataclass(frozen=True, slots=True, kw_only=True)
class AskPrefill:
    """Let this backend compute the prompt, and stop waiting at `until`."""

    backend: Backend
    until: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AskDecode:
    """Let this backend answer from the KV; its first token is due at `until`."""

    backend: Backend
    hand_over: Mapping[str, Any]
    until: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Nothing is free; look again at that time."""

    until: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseKV:
    """Tell the prefill that nobody will fetch this KV, and go on without waiting."""

    backend: Backend
    hand_over: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """Done; a rejection's status and body are the client's answer."""

    rejection: Rejected | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fail:
    """Answer with this error."""

    error: ApiError


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakStream:
    """The answer has begun: end it with this error as its last event."""

    error: ApiError


Instruction = AskPrefill | AskDecode | Wait | ReleaseKV | Finish | Fail | BreakStream


@dataclass(slots=True, kw_only=True)
class Forwarding:
    """One request.

    Args:
        deadline: by when the first token is due; the clock is the caller's.
        jitter: gives numbers between 0 and 1; they spread waits and break ties between equally busy backends.
    """

    deadline: float
    jitter: Callable[[], float]

    asking: Literal["prefill", "decode"] = "prefill"
    inquiries: int = 0
    losses: int = 0
    has_begun: bool = False
    has_ended: bool = False
    _prefill: Backend | None = None
    _decode: Backend | None = None
    _group: str = ""
    _hand_over: Mapping[str, Any] | None = None
    _asked: set[str] = field(default_factory=set)  # in this round
    _suspects: set[str] = field(default_factory=set)  # failed this request; asked last
    _causes: set[Cause] = field(default_factory=set)  # of the refusals so far
    _wait_seconds: float = FIRST_WAIT_SECONDS

    def start(self, seen: Seen, at: float) -> list[Instruction]:
        """The first instruction."""
        return self._next(seen, at)

    def handle(self, event: Event, seen: Seen, at: float) -> list[Instruction]:
        """What to do now."""
        if self.has_ended:
            return []
        match event:
            case ClientGone():
                return [*self._release(), self._end(Finish())]
            case RequestTimedOut():
                return self._fail(
                    ApiError(504, "request_timeout", "the request took longer than this server allows")
                )
            case Answered():
                return [self._end(Finish())]
            case Rejected():
                return [*self._release(), self._end(Finish(rejection=event))]
            case Began():
                self.has_begun = True
                self._hand_over = None  # the decode has it
                return []
            case _ if self.has_begun:
                return self._fail(
                    ApiError(502, "stream_interrupted", "the server that wrote this answer was lost")
                )
            case Prefilled():
                self._hand_over = event.hand_over
                self._begin_round()
                return self._next(seen, at)
            case Refused():
                self._causes.add(event.cause)
                if event.cause == "unreachable":
                    self._suspect(self._asked_last)
                return self._next(seen, at)
            case Woke():
                self._asked.clear()
                return self._next(seen, at)
            case OutOfTime():
                return self._out_of_time()
            case Lost() | TransferFailed():
                return self._after_loss(event, seen, at)
        raise TypeError(f"{event!r} is no event")

    @property
    def _asked_last(self) -> Backend | None:
        return self._prefill if self.asking == "prefill" else self._decode

    def _after_loss(self, event: Lost | TransferFailed, seen: Seen, at: float) -> list[Instruction]:
        self.losses += 1
        # when the KV did not come, the decode is there to say so
        self._suspect(self._prefill if isinstance(event, TransferFailed) else self._asked_last)
        released = self._release()
        if self.losses >= MOST_LOSSES:
            error = ApiError(502, "servers_lost", f"{self.losses} attempts failed; the last: {event.what}")
            return [*released, self._end(Fail(error=error))]
        self._begin_round()
        return [*released, *self._next(seen, at)]

    def _next(self, seen: Seen, at: float) -> list[Instruction]:
        """Ask the next candidate; without one, wait; without time, give up."""
        if at >= self.deadline:
            return self._out_of_time()
        if self._hand_over is not None and not any(group.name == self._group for group in seen.groups):
            # the group left while the prompt was computed; its KV is of no use to another
            released = self._release()
            self._begin_round()
            return [*released, *self._next(seen, at)]
        backend = self._choose(seen)
        if backend is None:
            spread = 0.5 + self.jitter()
            until = min(at + self._wait_seconds * spread, self.deadline)
            self._wait_seconds = min(2 * self._wait_seconds, LONGEST_WAIT_SECONDS)
            return [Wait(until=until)]
        self._asked.add(backend.name)
        self.inquiries += 1
        self.asking = "prefill" if self._hand_over is None else "decode"
        if self._hand_over is None:
            self._prefill = backend
            return [AskPrefill(backend=backend, until=self.deadline)]
        self._decode = backend
        return [AskDecode(backend=backend, hand_over=self._hand_over, until=self.deadline)]

    def _choose(self, seen: Seen) -> Backend | None:
        candidates: list[tuple[RouteGroup, Backend]]
        if self._hand_over is None:
            candidates = [(g, b) for g in seen.groups if g.decode for b in g.prefill]
        else:
            candidates = [(g, b) for g in seen.groups if g.name == self._group for b in g.decode]
        open_ones = [(g, b) for g, b in candidates if b.name not in self._asked]
        if not open_ones:
            return None

        def rank(candidate: tuple[RouteGroup, Backend]) -> tuple[bool, int, float]:
            name = candidate[1].name
            return (name in self._suspects, seen.open_streams.get(name, 0), self.jitter())

        group, backend = min(open_ones, key=rank)
        self._group = group.name
        return backend

    def _begin_round(self) -> None:
        self._asked.clear()
        self._wait_seconds = FIRST_WAIT_SECONDS

    def _suspect(self, backend: Backend | None) -> None:
        if backend is not None:
            self._suspects.add(backend.name)

    def _release(self) -> list[Instruction]:
        """Give up the KV that waits; the prefill ignores it when a decode has it already."""
        if self._hand_over is None or self._prefill is None:
            return []
        hand_over, self._hand_over = self._hand_over, None
        return [ReleaseKV(backend=self._prefill, hand_over=hand_over)]

    def _out_of_time(self) -> list[Instruction]:
        if "busy" in self._causes:
            code, why = "all_slots_busy", "every server was busy"
        elif self._causes:
            code, why = "backends_unavailable", "no server could be reached"
        elif self.inquiries:
            code, why = "first_token_late", "the servers are too slow"
        else:
            code, why = "no_backend_ready", "no server is ready"
        return self._fail(unavailable(code, f"{why} until the time for the first token was over; try again"))

    def _fail(self, error: ApiError) -> list[Instruction]:
        ended = BreakStream(error=error) if self.has_begun else Fail(error=error)
        return [*self._release(), self._end(ended)]

    def _end(self, instruction: Instruction) -> Instruction:
        self.has_ended = True
        return instruction
