"""Host memory that one prompt's keys and values are written to and sent from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from tidewheel_workers.serving.engine import Prefilled

if TYPE_CHECKING:
    from tidewheel_workers.serving.engine import Computed, KVShape


@dataclass(frozen=True, slots=True, kw_only=True)
class KVBuffer:
    """A `KVSink` that is sent when it is full."""

    tokens: int
    buffer: memoryview = field(repr=False)

    @classmethod
    def for_tokens(cls, shape: KVShape, tokens: int) -> Self:
        """A buffer of exactly that many tokens."""
        return cls(tokens=tokens, buffer=memoryview(bytearray(shape.bytes_for(tokens))))

    def wrote(self, layer: int, start: int, tokens: int) -> None:
        """As in `KVSink`; only the whole is of interest."""

    def filled(self, computed: Computed) -> Prefilled:
        """What a decode needs, now that the prompt is computed."""
        return Prefilled(
            first=computed.first, tokens=self.tokens, kv=self.buffer, cached_tokens=computed.cached_tokens
        )
