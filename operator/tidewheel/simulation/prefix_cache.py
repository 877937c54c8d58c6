"""Which prompt prefixes an instance still has: the least recently used blocks go first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence


class PrefixCache:
    """Blocks of KV by name. A block is of use only when all before it are there, as in vLLM and SGLang.

    Args:
        blocks: how many there is room for; 0 caches nothing.
        block_tokens: tokens of each.
    """

    def __init__(self, blocks: int, block_tokens: int) -> None:
        self._most = blocks
        self._block_tokens = block_tokens
        self._known: OrderedDict[int, None] = OrderedDict()

    def cached_tokens(self, names: Sequence[int], prompt_tokens: int) -> int:
        """How much of a prompt need not be computed; its last token always is, since it gives the answer's first."""
        count = 0
        for name in names:
            if name not in self._known:
                break
            self._known.move_to_end(name)
            count += 1
        return min(count * self._block_tokens, prompt_tokens - 1)

    def add(self, names: Sequence[int]) -> None:
        """These were computed."""
        for name in names:
            self._known[name] = None
            self._known.move_to_end(name)
        while len(self._known) > self._most:
            self._known.popitem(last=False)
