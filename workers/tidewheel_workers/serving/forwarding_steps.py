"""What `forwarding` is told and what it says to do: its events and instructions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tidewheel_workers.serving.errors import ApiError
from tidewheel_workers.serving.ledger import Cause

if TYPE_CHECKING:
    from tidewheel.api.ranktable import Backend


# ---- events: how the last instruction ended, or what came in between


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The backend did not take the request: 429, 503, or no connection."""

    cause: Cause
    retry_after: float | None = None  # seconds, if the backend said so


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefilled:
    """The prompt is computed, or will be by a prefill that has taken it; its KV waits."""

    hand_over: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """The backend took the request and failed, fell silent, or vanished.

    Of a stream:
        sent: the ids of the tokens that this backend sent and the client got, none where it did not begin to answer;
            None when they are not known.
        is_complete: the whole answer went to the client, and only the stream's proper end is missing.
    """

    what: str
    sent: tuple[int, ...] | None = ()
    is_complete: bool = False


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
    """The wait is over: its time has come, or the request may go on."""


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
    """Let this backend compute the prompt and what is resumed of the answer, and stop waiting at `until`."""

    backend: Backend
    until: float
    resumed: tuple[int, ...] = ()  # tokens of the answer that the client has


@dataclass(frozen=True, slots=True, kw_only=True)
class AskDecode:
    """Let this backend answer; a stream's first token is due at `until`."""

    backend: Backend
    hand_over: Mapping[str, Any] | None  # where the KV waits; None: compute the prompt, too
    until: float
    resumed: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Nothing is free; go on at that time, or when the dispatch wakes the request's ticket."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class EndStream:
    """The answer has begun: add this text, if there is any, and end the stream as if it were well."""

    text: str = ""


Ask = AskPrefill | AskDecode
Ending = Finish | Fail | BreakStream | EndStream
Instruction = Ask | Wait | ReleaseKV | Ending
