"""Reading along with a stream of server-sent events: what the client is not to see, and what it takes to end or resume it.

A decode that is asked to puts a line `id: 12,345` before the data of each chunk: the ids of that chunk's tokens. They are
taken out here and remembered, so that another decode can go on behind the last one that went to the client.
"""

from __future__ import annotations

import json
from typing import Any

_SEPARATOR = b"\n\n"
_SEPARATORS = (_SEPARATOR, b"\r\n\r\n")
_ID, _DATA, _DONE, _ERROR = b"id: ", b"data: ", b"data: [DONE]", b'data: {"error"'
#: More than any event; a stream that has no separators is none of ours.
_MOST_BUFFERED = 1 << 20


class StreamTap:
    """One answer, of one server or of several that wrote it one after the other.

    Args:
        tells_tokens: whether its servers were asked for the ids of its tokens. Of a stream that does not tell them
            every event passes as it comes.
    """

    def __init__(self, *, tells_tokens: bool) -> None:
        self.is_whole = False  # the stream came to its proper end
        self.has_failed = False  # the server said that it cannot go on
        self.tells_tokens = tells_tokens  # so far every chunk did
        self._sent: list[int] = []  # by the server that writes now
        self._tokens = 0  # all that were sent
        self._buffer = b""  # an event that is not complete
        self._last = b""  # chunk that went to the client, or the first one where there are no ids
        self._has_usage = False
        self._has_no_events = False

    @property
    def sent(self) -> tuple[int, ...] | None:
        """The tokens that the present server wrote and the client got; None when they are not known."""
        return tuple(self._sent) if self.tells_tokens else None

    @property
    def is_complete(self) -> bool:
        """Whether the client has the whole answer, be the stream ended or not."""
        if self.is_whole:
            return True
        choices = self._frame().get("choices")
        return isinstance(choices, list) and any(
            isinstance(choice, dict) and choice.get("finish_reason") is not None for choice in choices
        )

    def resume(self) -> None:
        """Another server goes on; what the last one began to say and did not finish is dropped."""
        self._sent, self._buffer, self.has_failed = [], b"", False

    def take(self, data: bytes) -> bytes:
        """Bytes from the server; gives those for the client."""
        if not self.tells_tokens:
            return self._take_as_it_is(data)
        *events, rest = (self._buffer + data).split(_SEPARATOR)
        self._buffer = b""
        passed = b""
        for number, event in enumerate(events, start=1):
            passed += self._pass(event)
            if not self.tells_tokens:
                rest = _SEPARATOR.join([*events[number:], rest])
                break
        if self.tells_tokens and len(rest) <= _MOST_BUFFERED and _SEPARATORS[1] not in rest:
            self._buffer = rest
            return passed
        self.tells_tokens = False
        return passed + self._take_as_it_is(rest)

    def _take_as_it_is(self, data: bytes) -> bytes:
        """Whole events only: what ends the stream in place of its server must not stand in the middle of one."""
        seen = self._buffer + data
        if not self._last and _SEPARATOR in seen:
            self._last = seen.partition(_SEPARATOR)[0]
        self.is_whole = self.is_whole or _DONE in seen
        end = max(seen.rfind(one) + len(one) if one in seen else 0 for one in _SEPARATORS)
        self._has_no_events = self._has_no_events or len(seen) - end > _MOST_BUFFERED
        if self.is_whole or self._has_no_events:
            end = len(seen)
        self._buffer = seen[end:]
        return seen[:end]

    def end(self, *, text: str = "", prompt_tokens: int | None = None) -> bytes:
        """What ends a stream in place of its server.

        Args:
            text: to be added to the answer; the client is told that it ends there.
            prompt_tokens: for the usage, if the client asked for it and it was not sent.
        """
        frame = self._frame()
        parts: list[bytes] = []
        if text and frame:
            choice: dict[str, Any] = {"index": 0, "finish_reason": "stop", "logprobs": None}
            is_chat = frame.get("object") == "chat.completion.chunk"
            choice |= {"delta": {"content": text}} if is_chat else {"text": text}
            parts.append(_event(frame | {"choices": [choice]}))
        if prompt_tokens is not None and frame and self.tells_tokens and not self._has_usage:
            usage = {
                "prompt_tokens": prompt_tokens,
                "completion_tokens": self._tokens,
                "total_tokens": prompt_tokens + self._tokens,
            }
            parts.append(_event(frame | {"choices": [], "usage": usage}))
        return b"".join([*parts, _DONE, _SEPARATOR])

    def _pass(self, event: bytes) -> bytes:
        """One event as the client sees it."""
        if self.has_failed or self.is_whole:
            return b""
        if event.startswith(_ID):
            ids, _, event = event[len(_ID) :].partition(b"\n")
            try:
                tokens = [int(part) for part in ids.split(b",")]
            except ValueError:
                self.tells_tokens = False
            else:
                self._sent += tokens
                self._tokens += len(tokens)
            self._last = event
        elif event.startswith(_DONE):
            self.is_whole = True
        elif event.startswith(_ERROR):
            self.has_failed = True
            return b""
        elif event.startswith(_DATA):
            self._other_chunk(event)
        return event + _SEPARATOR

    def _other_chunk(self, event: bytes) -> None:
        """A chunk without ids: the usage, or that of an engine that does not tell them."""
        if b'"choices":[]' in event or b'"choices": []' in event:
            self._has_usage = True
        else:
            self._last = event
            self.tells_tokens = False

    def _frame(self) -> dict[str, Any]:
        """The last chunk; empty when there was none that can be read."""
        try:
            frame = json.loads(self._last.removeprefix(_DATA))
        except ValueError:
            return {}
        return frame if isinstance(frame, dict) else {}


def _event(chunk: dict[str, Any]) -> bytes:
    return _DATA + json.dumps(chunk, ensure_ascii=False, separators=(",", ":")).encode() + _SEPARATOR
