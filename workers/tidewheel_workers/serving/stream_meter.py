"""How many tokens a stream brought and how fast, from its bytes alone: one event is one token."""

from __future__ import annotations

_END = b"\n\n"


class StreamMeter:
    """Watches the server-sent events of one answer go by.

    A decode of ours sends an event for every token; of an engine that puts several into one, events are counted. The last event
    says `[DONE]`, and one with the usage may come before it.
    """

    __slots__ = ("_choices", "_closing", "_events", "_first_at", "_is_between", "_last_at", "_more")

    def __init__(self, *, choices: int, tells_usage: bool) -> None:
        self._choices = choices
        self._closing = 2 if tells_usage else 1  # events that hold no token
        self._events = 0
        self._is_between = False  # the last byte may be the first half of an event's end
        self._first_at = self._last_at = 0.0
        self._more = 0  # tokens after the first piece

    def saw(self, data: bytes, at: float) -> None:
        """These bytes went by."""
        # an event may end with the first byte of a piece
        completes = self._is_between and data.startswith(b"\n")
        events = data.count(_END) + completes
        self._is_between = (
            data.endswith(b"\n") and not data.endswith(_END) and not (completes and len(data) == 1)
        )
        if not events:
            return
        if self._events:
            self._more += events
        else:
            self._first_at = at
        self._events += events
        self._last_at = at

    def tokens(self, *, is_whole: bool) -> int:
        """How many tokens there were so far; a whole stream has had its closing events."""
        return max(0, self._events - self._closing) if is_whole else self._events

    def seconds_per_token(self, *, is_whole: bool) -> float | None:
        """Between two tokens of one choice on average; None where all came at once."""
        more = self._more - (self._closing if is_whole else 0)
        return (self._last_at - self._first_at) * self._choices / more if more > 0 else None
