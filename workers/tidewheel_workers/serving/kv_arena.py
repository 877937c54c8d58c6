"""Host memory reserved in advance for prompts' keys and values, used over and over again.

Fresh memory is the slow part of a large copy: the kernel clears each page when it is touched first. A buffer here is touched once and
kept. Each has room for the longest prompt, but only address space is reserved at the start: memory is taken when a prompt first
reaches that far, and never given back. So an arena holds at most `buffers` times the longest prompt, and in practice what the
busiest moment so far needed: a lease gets the smallest touched buffer that suffices.
"""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tidewheel_workers.serving.engine import KVShape


class NoBuffer(Exception):
    """All buffers are in use, or the prompt is longer than one."""


class _Buffer:
    def __init__(self, size: int) -> None:
        self.touched = 0
        self._map = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)

    def first(self, size: int) -> memoryview:
        """Its first bytes."""
        self.touched = max(self.touched, size)
        return memoryview(self._map)[:size]


class Lease:
    """One buffer, until it is freed; what is in it is whatever was there before."""

    def __init__(self, arena: KVArena, buffer: _Buffer, size: int) -> None:
        self._arena = arena
        self._buffer: _Buffer | None = buffer
        self.memory = buffer.first(size)

    def free(self) -> None:
        """Give it back; a second call changes nothing. Nobody may touch the memory any more."""
        if self._buffer is not None:
            self._arena._take_back(self._buffer)  # noqa: SLF001 - one class in two parts
            self._buffer = None


class KVArena:
    """A fixed number of buffers. Use it from one thread; the memory may go to others."""

    def __init__(self, shape: KVShape, *, buffers: int, tokens: int) -> None:
        """Reserve.

        Args:
            shape: what one token's keys and values are.
            buffers: how many prompts are held at a time.
            tokens: the longest prompt.

        Raises:
            OSError: so much address space is not to be had.
        """
        self.total = buffers
        self.buffer_bytes = shape.bytes_for(tokens)
        self._shape = shape
        self._tokens = tokens
        self._buffers = [_Buffer(self.buffer_bytes) for _ in range(buffers)]
        self._free = list(self._buffers)

    @property
    def used(self) -> int:
        """Buffers that are leased."""
        return self.total - len(self._free)

    @property
    def touched_bytes(self) -> int:
        """Memory that was ever used, which is what the arena holds now."""
        return sum(buffer.touched for buffer in self._buffers)

    def lease(self, tokens: int) -> Lease:
        """A buffer for a prompt of that many tokens.

        Raises:
            NoBuffer: none is free, or none is that long.
        """
        if tokens > self._tokens:
            raise NoBuffer(f"{tokens} tokens of KV do not fit a buffer, which holds {self._tokens}")
        if not self._free:
            raise NoBuffer(f"all {self.total} KV buffers are in use")
        size = self._shape.bytes_for(tokens)
        enough = [buffer for buffer in self._free if buffer.touched >= size]
        chosen = min(enough, key=_touched) if enough else max(self._free, key=_touched)
        self._free.remove(chosen)
        return Lease(self, chosen, size)

    def _take_back(self, buffer: _Buffer) -> None:
        self._free.append(buffer)


def _touched(buffer: _Buffer) -> int:
    return buffer.touched
