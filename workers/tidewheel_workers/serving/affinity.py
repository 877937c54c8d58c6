"""Which backends a prompt prefers, so that prompts that begin alike meet where their KV may be cached."""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Sequence

#: So many of the best places for one prefix are remembered and offered.
PLACES = 3
#: Preferences remembered.
MEMORY = 4096
#: A preferred backend may hold so many times the mean before the prompt goes elsewhere, and one more: consistent hashing
#: with bounded loads (arXiv 1608.01350), with one to spare, as a cached prompt is worth a short wait.
LOAD_FACTOR = 1.25
_MASK = (1 << 64) - 1


class Affinity:
    """Rendezvous hashing over a fixed set of backends: each gateway comes to the same preferences on its own.

    When a backend leaves, only the prefixes that preferred it move.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._seeds = [
            (int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little"), name)
            for name in names
        ]
        self._remembered: OrderedDict[int, tuple[str, ...]] = OrderedDict()

    def preferred(self, prefix: int) -> tuple[str, ...]:
        """The best places for this prefix, best first."""
        known = self._remembered.get(prefix)
        if known is None:
            best = sorted(self._seeds, key=lambda seed: _mixed(prefix ^ seed[0]), reverse=True)
            known = tuple(name for _, name in best[:PLACES])
            self._remembered[prefix] = known
            if len(self._remembered) > MEMORY:
                self._remembered.popitem(last=False)
        else:
            self._remembered.move_to_end(prefix)
        return known

    def knows(self, prefix: int) -> bool:
        """Whether a prompt that began so came by lately, so that its KV may be cached."""
        return prefix in self._remembered


def load_bound(holds: int, backends: int) -> int:
    """How many requests a preferred backend may hold, the next one included, when all together hold so many."""
    return math.ceil(LOAD_FACTOR * (holds + 1) / backends) + 1


def _mixed(value: int) -> int:
    """MurmurHash3's finaliser: each bit of the value moves half of the result's."""
    value ^= value >> 33
    value = value * 0xFF51AFD7ED558CCD & _MASK
    value ^= value >> 33
    value = value * 0xC4CEB9FE1A85EC53 & _MASK
    return value ^ value >> 33
