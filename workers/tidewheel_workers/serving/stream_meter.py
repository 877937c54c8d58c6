"""How many tokens a stream brought and how fast, from its bytes alone: one event is one token."""

from __future__ import annotations

_END = b"\n\n"


class StreamMeter:
    """Watches the server-sent events of one answer go by.

    A decode of ours sends an event for every token; of an engine that puts several into one, events are counted. The last event
    says `[DONE]`, and one with the usage may come before it: so many are held back until others follow.
    """

    __slots__ = (
        "_choices",
        "_closing",
        "_events",
        "_first",
        "_first_at",
        "_is_between",
        "_last_at",
        "tokens",
    )

    def __init__(self, *, choices: int, tells_usage: bool) -> None:
        self._choices = choices
        self._closing = 2 if tells_usage else 1  # events that hold no token
        self._events = 0
        self._first = 0  # events of the first piece
        self.tokens = 0  # that are known to have come: all of them, once a stream is whole
        self._is_between = False  # the last byte may be the first half of an event's end
        self._first_at = self._last_at = 0.0

    def saw(self, data: bytes, at: float) -> int:
        """These bytes went by; gives how many tokens are now known to have come that were not before."""
        events = data.count(_END)
        if self._is_between or not data.endswith(_END):
            events += self._completes(data)
        if not events:
            return 0
        if not self._events:
            self._first, self._first_at = events, at
        self._events += events
        self._last_at = at
        new = self._events - self._closing - self.tokens
        if new <= 0:
            return 0
        self.tokens += new
        return new

    def _completes(self, data: bytes) -> bool:
        """Whether a piece completes with its first byte an event that the piece before left half ended."""
        completes = self._is_between and data.startswith(b"\n")
        self._is_between = (
            data.endswith(b"\n") and not data.endswith(_END) and not (completes and len(data) == 1)
        )
        return completes

    @property
    def held_back(self) -> int:
        """Events that would be tokens if the stream had broken off here."""
        return min(self._events, self._closing)

    def seconds_per_token(self) -> float | None:
        """Between two tokens of one choice on average; None where all came at once."""
        later = self._events - self._first - self._closing
        return (self._last_at - self._first_at) * self._choices / later if later > 0 else None
