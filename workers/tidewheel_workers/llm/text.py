"""From output tokens to text as it streams: no half characters, no text twice, nothing of a stop string."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

REPLACEMENT = "\ufffd"  # how a decoder shows bytes that are not, or not yet, a character


class Decodes(Protocol):
    """The part of a tokenizer that output needs."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of these tokens, without special ones."""


class StreamDecoder:
    """Text deltas of a growing token sequence; together they are exactly what `decode` gives for all tokens.

    Only the tokens since the last clean boundary are decoded again, with the ones before them as context because some
    tokenizers treat the start of a text differently. Trailing replacement characters are held back: they may be the
    first bytes of a character.
    """

    def __init__(self, tokenizer: Decodes) -> None:
        self._tokenizer = tokenizer
        self._context: list[int] = []
        self._context_text = ""
        self._open: list[int] = []  # tokens after the context
        self._sent = 0  # characters of their text that went out

    def push(self, token: int) -> str:
        """The text that this token completes; may be empty."""
        self._open.append(token)
        text = self._open_text()
        stable = text.rstrip(REPLACEMENT)
        delta = stable[self._sent :]
        self._sent = max(self._sent, len(stable))
        if stable and len(stable) == len(text):
            self._context, self._open, self._sent = self._open, [], 0
            self._context_text = self._tokenizer.decode(self._context)
        return delta

    def finish(self) -> str:
        """What was held back, now that nothing follows."""
        rest = self._open_text()[self._sent :]
        self._context, self._context_text, self._open, self._sent = [], "", [], 0
        return rest

    def _open_text(self) -> str:
        return self._tokenizer.decode([*self._context, *self._open])[len(self._context_text) :]


class OutputText:
    """A stream decoder that ends before the stop string that is complete first, and holds back what could become one."""

    def __init__(self, tokenizer: Decodes, stop: Sequence[str] = ()) -> None:
        self._decoder = StreamDecoder(tokenizer)
        self._stop = tuple(stop)
        self._held = ""
        self.stopped = False

    def push(self, token: int, *, may_stop: bool = True) -> str:
        """The text that may go out after this token; `stopped` tells whether a stop string came.

        A stop string that is complete with a token that may not stop is ordinary text.
        """
        return self._release(self._decoder.push(token), is_end=False, may_stop=may_stop)

    def finish(self) -> str:
        """What was held back, now that nothing follows."""
        return self._release(self._decoder.finish(), is_end=True, may_stop=True)

    def _release(self, new: str, *, is_end: bool, may_stop: bool) -> str:
        if self.stopped:
            return ""
        text = self._held + new
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found and may_stop:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = 0 if is_end else max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
