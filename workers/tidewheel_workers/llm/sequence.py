"""One answer in the making, as the scheduler sees it: tokens, and the blocks that hold their keys and values."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

from tidewheel_workers.llm.blocks import block_digest

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(slots=True, eq=False, kw_only=True)
class Sequence:
    """A prompt and what was written behind it.

    As long as the prompt is not computed, one sequence stands for all choices of its request; `siblings` are those that
    begin with its blocks once it is.
    """

    tokens: array[int]
    siblings: list[Sequence] = field(default_factory=list)
    will_write: bool = True  # False where only the prompt is wanted
    received: int = 0  # first tokens whose keys and values came from elsewhere and wait to be put into blocks
    computed: int = 0  # first tokens whose keys and values are in the blocks
    blocks: list[int] = field(default_factory=list)
    runs: bool = False  # otherwise it waits, or has ended
    cached: int | None = None  # tokens found in the prefix cache when it was first looked up
    _digests: list[bytes] = field(default_factory=list)

    @property
    def missing(self) -> int:
        """Tokens to compute before the next one can be chosen."""
        return len(self.tokens) - self.computed

    @property
    def width(self) -> int:
        """Sequences that it will become."""
        return 1 + len(self.siblings) if self.will_write else 1

    def digests(self, block_size: int) -> Iterator[bytes]:
        """The names of its whole blocks, in order; each is made once."""
        for index in range(len(self.tokens) // block_size):
            if index == len(self._digests):
                before = self._digests[-1] if self._digests else b""
                tokens = self.tokens[index * block_size : (index + 1) * block_size]
                self._digests.append(block_digest(before, tokens))
            yield self._digests[index]

    def reusable(self, block_size: int) -> Iterator[bytes]:
        """The names of the blocks that may come from the cache: one token is always computed, for its logits.

        Where keys and values came from elsewhere no logits are needed.
        """
        most = self.received or len(self.tokens) - 1
        return islice(self.digests(block_size), most // block_size)

    def begin_like(self, other: Sequence) -> None:
        """Run with the other's blocks and what is computed in them, before the other has gone on from there."""
        self.blocks, self.computed, self.runs = list(other.blocks), other.computed, True
        self._digests = list(other._digests)
