"""The KV cache: one preallocated pool of blocks, and copies between it and the contiguous caches that travel between pods."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Self

import torch

from tidewheel_workers.llm.blocks import BlockPool
from tidewheel_workers.llm.errors import KVMismatch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tidewheel_workers.llm.config import ModelConfig

DEFAULT_BLOCK_SIZE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class KVLayout:
    """What one token's keys and values look like, and how many tokens share a block."""

    layers: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    block_size: int = DEFAULT_BLOCK_SIZE

    @classmethod
    def of(cls, config: ModelConfig, dtype: torch.dtype, block_size: int = DEFAULT_BLOCK_SIZE) -> Self:
        """The layout that a model needs."""
        return cls(
            layers=config.layers,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            dtype=dtype,
            block_size=block_size,
        )

    @property
    def dtype_name(self) -> str:
        """The dtype without torch's prefix, for headers and logs: `float32`, `bfloat16`."""
        return str(self.dtype).removeprefix("torch.")

    def shape(self, tokens: int) -> tuple[int, int, int, int, int]:
        """The shape of a blob of that many tokens: [layers, 2 (keys, values), tokens, kv_heads, head_dim]."""
        return (self.layers, 2, tokens, self.kv_heads, self.head_dim)

    def bytes_for(self, tokens: int) -> int:
        """Bytes that the keys and values of that many tokens take, in the pool and on the wire."""
        return math.prod(self.shape(tokens)) * self.dtype.itemsize

    def blocks_for(self, tokens: int) -> int:
        """Blocks that hold that many tokens."""
        return -(-tokens // self.block_size)

    def digest(self) -> str:
        """Equal for two peers exactly when they can exchange blobs; block sizes may differ, blobs are contiguous."""
        story = f"kv1:{self.layers}:{self.kv_heads}:{self.head_dim}:{self.dtype_name}"
        return hashlib.sha256(story.encode()).hexdigest()[:16]


class KVSlot:
    """The pool rows of one sequence's tokens; opaque to everyone but the cache and the attention."""

    __slots__ = ("_block_size", "_rows", "blocks", "first_row", "rows")

    def __init__(self, block_size: int) -> None:
        self.blocks: list[int] = []
        self.first_row: int | None = (
            None  # set when the rows are one run, so that the pool can be viewed, not gathered
        )
        self._block_size = block_size
        self._rows = torch.empty(0, dtype=torch.int64)  # with room to grow
        self.rows = self._rows  # pool row of each token position: int64, contiguous, in host memory

    @property
    def capacity(self) -> int:
        """Tokens that fit."""
        return len(self.blocks) * self._block_size

    def follow(self, blocks: Sequence[int]) -> None:
        """Take over a sequence's blocks as they are now."""
        if self.blocks == blocks:
            return
        same = sum(
            1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(self.blocks, blocks, strict=False))
        )
        self.blocks = list(blocks)
        size, capacity = self._block_size, self.capacity
        if capacity > len(self._rows):
            grown = torch.empty(2 * capacity, dtype=torch.int64)
            grown[: same * size] = self._rows[: same * size]
            self._rows = grown
        starts = torch.tensor(self.blocks[same:], dtype=torch.int64) * size
        self._rows[same * size : capacity] = (starts[:, None] + torch.arange(size)).reshape(-1)
        self.rows = self._rows[:capacity]
        is_run = bool(blocks) and self.blocks == list(range(blocks[0], blocks[0] + len(blocks)))
        self.first_row = blocks[0] * size if is_run else None


class KVCache:
    """A pool of blocks, allocated once. Not thread-safe; it belongs to the thread that runs the engine."""

    def __init__(self, layout: KVLayout, *, blocks: int, device: torch.device | str = "cpu") -> None:
        self.layout = layout
        self.device = torch.device(device)
        self.blocks = BlockPool(blocks)
        self.pool = torch.zeros(
            layout.shape(blocks * layout.block_size), dtype=layout.dtype, device=self.device
        )

    @property
    def capacity_tokens(self) -> int:
        """Tokens that the whole pool holds."""
        return self.blocks.total * self.layout.block_size

    def new_slot(self) -> KVSlot:
        """A slot without blocks, to follow a sequence."""
        return KVSlot(self.layout.block_size)

    def allocate(self, tokens: int) -> KVSlot | None:
        """Room for that many tokens without a sequence, or None when too few blocks are free."""
        blocks = self.blocks.take(self.layout.blocks_for(max(tokens, 1)))
        if blocks is None:
            return None
        slot = self.new_slot()
        slot.follow(blocks)
        return slot

    def free(self, slot: KVSlot) -> None:
        """Give the blocks of an allocated slot back; a second call changes nothing."""
        self.blocks.give_back(slot.blocks)
        slot.follow([])

    def copy_block(self, source: int, target: int) -> None:
        """Make a block hold what another one does."""
        size = self.layout.block_size
        self.pool.narrow(2, target * size, size).copy_(self.pool.narrow(2, source * size, size))

    def place(self, slot: KVSlot, received: torch.Tensor, *, start: int, tokens: int) -> None:
        """Put these tokens of a contiguous cache, as `KVLayout.shape` says, into the slot."""
        part = received.narrow(2, start, tokens)
        if slot.first_row is not None:
            self.pool.narrow(2, slot.first_row + start, tokens).copy_(part)
            return
        rows = slot.rows[start : start + tokens].to(self.device)
        self.pool.index_copy_(2, rows, part.to(self.device))

    def read_layer(self, slot: KVSlot, layer: int, out: torch.Tensor, *, start: int, tokens: int) -> None:
        """Copy these tokens of one layer to the same place of a contiguous cache in host memory."""
        for pool, target in zip(self.pool[layer], out[layer].narrow(1, start, tokens), strict=True):
            if slot.first_row is not None:
                target.copy_(pool.narrow(0, slot.first_row + start, tokens))
            elif self.device.type == "cpu":
                torch.index_select(pool, 0, slot.rows[start : start + tokens], out=target)
            else:
                target.copy_(pool.index_select(0, slot.rows[start : start + tokens].to(self.device)))


def as_tensor(layout: KVLayout, tokens: int, buffer: bytearray | memoryview) -> torch.Tensor:
    """A contiguous cache over a writable buffer, without a copy; the buffer cannot be closed while the tensor lives.

    Raises:
        KVMismatch: the buffer has not exactly the bytes that the layout asks for.
    """
    want, found = layout.bytes_for(tokens), memoryview(buffer).nbytes
    if tokens < 1 or found != want:
        raise KVMismatch(f"{found} bytes came for {tokens} tokens of KV; the layout asks for {want}")
    return torch.frombuffer(buffer, dtype=layout.dtype).view(layout.shape(tokens))
