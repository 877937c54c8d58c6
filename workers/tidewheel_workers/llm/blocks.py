"""Who holds which block of a KV cache, and which unheld ones still hold what a later prompt may begin with; apart from the tensor."""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

DIGEST_BYTES = 16  # 128 bits: no two different prefixes will ever meet


def block_digest(before: bytes, tokens: Sequence[int]) -> bytes:
    """Names a block by its tokens and by all that come before it.

    Keys and values depend on both, so blocks of one name hold the same. Nothing of the model goes in: the name is equal
    in every process that cuts prompts into blocks of the same size.
    """
    return hashlib.blake2b(before + array("q", tokens).tobytes(), digest_size=DIGEST_BYTES).digest()


def prefix_digests(tokens: Sequence[int], block_size: int) -> Iterator[bytes]:
    """The names of the whole blocks of these tokens, in order."""
    digest = b""
    for end in range(block_size, len(tokens) + 1, block_size):
        digest = block_digest(digest, tokens[end - block_size : end])
        yield digest


class BlockPool:
    """Blocks with reference counts, and a cache of those that nobody holds but whose content has a name.

    Such a block is free and is given away when no blank one is left, the one that was used longest ago first. All but
    `has` belongs to one thread.
    """

    def __init__(self, blocks: int) -> None:
        if blocks < 1:
            raise ValueError(f"a pool needs at least one block, not {blocks}")
        self.total = blocks
        self._holders = [0] * blocks
        self._names: list[bytes | None] = [None] * blocks
        self._named: dict[bytes, int] = {}
        self._blank = bytearray(b"\x01" * blocks)  # neither held nor named
        self._blanks = blocks
        self._idle: OrderedDict[int, None] = OrderedDict()  # named and not held, least recently used first

    @property
    def free(self) -> int:
        """Blocks that nobody holds."""
        return self._blanks + len(self._idle)

    def holders(self, block: int) -> int:
        """How many hold this block."""
        return self._holders[block]

    def take(self, count: int, *, after: int | None = None) -> list[int] | None:
        """New blocks for one holder, or None, and nothing changed, when too few are free.

        Args:
            count: how many.
            after: the block that they follow; the ones right behind it are preferred, or else any run.
        """
        if count > self.free:
            return None
        blocks = self._blank_run(count, after)
        if blocks is None:
            blocks = [block for block, is_blank in enumerate(self._blank) if is_blank][:count]
            while len(blocks) < count:
                blocks.append(self._evict())
            blocks.sort()
        for block in blocks:
            self._blanks -= self._blank[block]
            self._blank[block] = 0
            self._holders[block] = 1
        return blocks

    def share(self, blocks: Iterable[int]) -> None:
        """One more holder for each of these."""
        for block in blocks:
            if self._holders[block] == 0:
                del self._idle[block]  # only what `find` gave can be without a holder
            self._holders[block] += 1

    def give_back(self, blocks: Sequence[int]) -> None:
        """One holder less for each of these; the end of a prefix will be given away before its beginning."""
        for block in reversed(blocks):
            if self._holders[block] < 1:
                raise RuntimeError(f"block {block} is given back and nobody holds it")
            self._holders[block] -= 1
            if self._holders[block] == 0:
                if self._names[block] is None:
                    self._blank[block] = 1
                    self._blanks += 1
                else:
                    self._idle[block] = None

    def name(self, block: int, digest: bytes) -> None:
        """The content of a held block is final and may be shared from now on.

        The first block of a name keeps it, and a block keeps its first name.
        """
        if digest not in self._named and self._names[block] is None:
            self._named[digest] = block
            self._names[block] = digest

    def forget(self, blocks: Iterable[int]) -> None:
        """The content of these held blocks must not be shared any more."""
        for block in blocks:
            digest = self._names[block]
            if digest is not None:
                del self._named[digest]
                self._names[block] = None

    def find(self, digests: Iterable[bytes]) -> list[int]:
        """The blocks of the longest beginning of these names that is there; `share` them before anything is taken."""
        found = []
        for digest in digests:
            block = self._named.get(digest)
            if block is None:
                break
            found.append(block)
        return found

    def has(self, digest: bytes) -> bool:
        """Whether a block of that name is there; from any thread."""
        return digest in self._named

    def _blank_run(self, count: int, after: int | None) -> list[int] | None:
        run = b"\x01" * count
        if after is not None and self._blank[after + 1 : after + 1 + count] == run:
            return list(range(after + 1, after + 1 + count))
        start = self._blank.find(run)
        return list(range(start, start + count)) if start >= 0 else None

    def _evict(self) -> int:
        block, _ = self._idle.popitem(last=False)
        self.forget([block])
        return block
