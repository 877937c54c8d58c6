"""The KV cache: one preallocated pool of blocks, who holds which, and contiguous copies for the way between pods."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import torch

from tidewheel_workers.llm.errors import KVMismatch, NoFreeBlocks

if TYPE_CHECKING:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class KVBlob:
    """Keys and values of the first tokens of one sequence, contiguous: [layers, 2, tokens, kv_heads, head_dim]."""

    layout: KVLayout
    tensor: torch.Tensor

    def __post_init__(self) -> None:
        tokens = self.tensor.shape[2] if self.tensor.dim() == 5 else 0
        if tuple(self.tensor.shape) != self.layout.shape(tokens) or self.tensor.dtype != self.layout.dtype:
            raise KVMismatch(
                f"a KV blob of shape {tuple(self.tensor.shape)} and {self.tensor.dtype} does not fit the layout "
                f"{self.layout.shape(tokens)} and {self.layout.dtype}"
            )

    @property
    def tokens(self) -> int:
        """Tokens whose keys and values are inside."""
        return int(self.tensor.shape[2])

    def as_bytes(self) -> memoryview:
        """The raw bytes in host memory and native order; without a copy where the tensor is in host memory already."""
        flat = self.tensor.cpu().contiguous().view(torch.uint8).reshape(-1)
        return flat.numpy().data

    @classmethod
    def from_bytes(cls, layout: KVLayout, tokens: int, buffer: bytearray | memoryview) -> Self:
        """A blob over a received, writable buffer, without a copy.

        Raises:
            KVMismatch: the buffer has not exactly the bytes that the layout asks for.
        """
        want = layout.bytes_for(tokens)
        if tokens < 1 or len(buffer) != want:
            raise KVMismatch(
                f"{len(buffer)} bytes came for {tokens} tokens of KV; the layout asks for {want}"
            )
        return cls(
            layout=layout, tensor=torch.frombuffer(buffer, dtype=layout.dtype).view(layout.shape(tokens))
        )


@dataclass(slots=True, eq=False)
class KVSlot:
    """The blocks of one sequence; opaque to everyone but the cache and the attention."""

    blocks: list[int]
    rows: torch.Tensor  # pool row of each token position, on the pool's device
    first_row: int | None  # set when the rows are one run, so that the pool can be viewed, not gathered
    freed: bool = field(default=False)

    @property
    def capacity(self) -> int:
        """Tokens that fit."""
        return self.rows.shape[0]


class KVCache:
    """A pool of blocks, allocated once.

    Blocks of a sequence are taken as one run where one is free: a run is read in place, scattered blocks are
    gathered first. Not thread-safe; it belongs to the thread that runs the engine.
    """

    def __init__(self, layout: KVLayout, *, blocks: int, device: torch.device | str = "cpu") -> None:
        if blocks < 1:
            raise ValueError(f"a KV cache needs at least one block, not {blocks}")
        self.layout = layout
        self.device = torch.device(device)
        self.blocks = blocks
        self.pool = torch.zeros(
            layout.shape(blocks * layout.block_size), dtype=layout.dtype, device=self.device
        )
        self._is_free = bytearray(b"\x01" * blocks)
        self._free = blocks

    @classmethod
    def of_bytes(cls, layout: KVLayout, size: int, device: torch.device | str = "cpu") -> Self:
        """As many blocks as fit into `size` bytes.

        Raises:
            ValueError: not even one block fits.
        """
        return cls(layout, blocks=size // layout.bytes_for(layout.block_size), device=device)

    @property
    def free_blocks(self) -> int:
        """Blocks that nobody holds."""
        return self._free

    @property
    def used_blocks(self) -> int:
        """Blocks that some sequence holds."""
        return self.blocks - self._free

    @property
    def capacity_tokens(self) -> int:
        """Tokens that the whole pool holds."""
        return self.blocks * self.layout.block_size

    def allocate(self, tokens: int) -> KVSlot | None:
        """Room for that many tokens, or None when too few blocks are free."""
        blocks = self._take(self.layout.blocks_for(max(tokens, 1)), after=None)
        return None if blocks is None else self._slot(blocks)

    def extend(self, slot: KVSlot, tokens: int) -> bool:
        """Make the slot hold at least that many tokens; False, and nothing changed, when too few blocks are free."""
        missing = self.layout.blocks_for(tokens) - len(slot.blocks)
        if missing <= 0:
            return True
        more = self._take(missing, after=slot.blocks[-1])
        if more is None:
            return False
        grown = self._slot([*slot.blocks, *more])
        slot.blocks, slot.rows, slot.first_row = grown.blocks, grown.rows, grown.first_row
        return True

    def free(self, slot: KVSlot) -> None:
        """Give the slot's blocks back; a second call changes nothing."""
        if slot.freed:
            return
        slot.freed = True
        for block in slot.blocks:
            self._is_free[block] = 1
        self._free += len(slot.blocks)

    def export(self, slot: KVSlot, length: int) -> KVBlob:
        """A contiguous copy of the first `length` tokens."""
        if slot.freed or not 0 < length <= slot.capacity:
            raise ValueError(
                f"a slot of {slot.capacity} tokens (freed: {slot.freed}) has no {length} to export"
            )
        return KVBlob(layout=self.layout, tensor=self.pool.index_select(2, slot.rows[:length]))

    def adopt(self, blob: KVBlob, *, reserve: int = 0) -> KVSlot:
        """Copy a blob into blocks of this pool, with room for `reserve` tokens in all.

        Raises:
            KVMismatch: the blob has another layout.
            NoFreeBlocks: it does not fit now.
        """
        if blob.layout.digest() != self.layout.digest():
            raise KVMismatch(f"a blob of layout {blob.layout} cannot enter a pool of layout {self.layout}")
        tokens = max(blob.tokens, reserve)
        slot = self.allocate(tokens)
        if slot is None:
            raise no_free_blocks(self, tokens)
        self.pool.index_copy_(2, slot.rows[: blob.tokens], blob.tensor.to(self.device))
        return slot

    def _slot(self, blocks: list[int]) -> KVSlot:
        size = self.layout.block_size
        starts = torch.tensor(blocks, dtype=torch.int64) * size
        rows = (starts[:, None] + torch.arange(size)).reshape(-1).to(self.device)
        is_run = blocks[-1] - blocks[0] == len(blocks) - 1 and blocks == sorted(blocks)
        return KVSlot(blocks=blocks, rows=rows, first_row=blocks[0] * size if is_run else None)

    def _take(self, count: int, *, after: int | None) -> list[int] | None:
        if count > self._free:
            return None
        run = b"\x01" * count
        if after is not None and self._is_free[after + 1 : after + 1 + count] == run:
            start = after + 1
        else:
            start = self._is_free.find(run)
        blocks = list(range(start, start + count)) if start >= 0 else self._scattered(count)
        for block in blocks:
            self._is_free[block] = 0
        self._free -= count
        return blocks

    def _scattered(self, count: int) -> list[int]:
        return [block for block, is_free in enumerate(self._is_free) if is_free][:count]


def no_free_blocks(kv: KVCache, tokens: int) -> NoFreeBlocks:
    """The error for a request of that many tokens that does not fit now."""
    return NoFreeBlocks(
        f"{tokens} tokens need {kv.layout.blocks_for(tokens)} KV blocks, {kv.free_blocks} of {kv.blocks} are free"
    )
