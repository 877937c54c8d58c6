"""Attention over sequences of unequal length whose keys and values lie in the KV pool; apart because faster kernels replace just this."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tidewheel_workers.llm.kv import KVCache, KVSlot


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """The tokens of one sequence that a forward pass computes: a whole prompt, a part of one, or one decode token."""

    slot: KVSlot
    start: int  # position of the first, which is also the number of tokens already in the KV
    tokens: int


class RaggedAttention:
    """Causal attention for one forward pass over several segments, laid one after the other without padding."""

    def __init__(self, batch: Sequence[Segment], kv: KVCache) -> None:
        self._batch = batch
        self._pool = kv.pool
        pieces = [s.slot.rows[s.start : s.start + s.tokens] for s in batch]
        self._rows = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        self._masks = [_mask(segment, kv.device) for segment in batch]

    def __call__(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Store the new keys and values, then attend.

        Args:
            layer: whose part of the pool to use.
            q: [tokens, heads, head_dim], rotated.
            k: [tokens, kv_heads, head_dim], rotated.
            v: [tokens, kv_heads, head_dim].

        Returns:
            [tokens, heads, head_dim].
        """
        keys, values = self._pool[layer]
        keys.index_copy_(0, self._rows, k)
        values.index_copy_(0, self._rows, v)
        out = torch.empty_like(q)
        at = 0
        for segment, mask in zip(self._batch, self._masks, strict=True):
            end = at + segment.tokens
            seen = segment.start + segment.tokens
            out[at:end] = _attend(
                q[at:end], _read(keys, segment.slot, seen), _read(values, segment.slot, seen), mask
            )
            at = end
        return out


def _read(pool: torch.Tensor, slot: KVSlot, tokens: int) -> torch.Tensor:
    if slot.first_row is not None:
        return pool[slot.first_row : slot.first_row + tokens]
    return pool.index_select(0, slot.rows[:tokens])


def _mask(segment: Segment, device: torch.device) -> torch.Tensor | None:
    """Which keys each query sees, where neither "all" (one query) nor "causal" (no history) says it."""
    if segment.tokens == 1 or segment.start == 0:
        return None
    seen = segment.start + segment.tokens
    return torch.ones(segment.tokens, seen, dtype=torch.bool, device=device).tril(segment.start)


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    tokens, heads, head_dim = q.shape
    kv_heads = k.shape[1]
    keys, values = k.transpose(0, 1).unsqueeze(0), v.transpose(0, 1).unsqueeze(0)
    if tokens == 1:
        # the query heads that share a key head become its queries: no key is read or repeated per query head
        grouped = q.view(1, kv_heads, heads // kv_heads, head_dim)
        return F.scaled_dot_product_attention(grouped, keys, values).reshape(1, heads, head_dim)
    queries = q.transpose(0, 1).unsqueeze(0)
    mixed = F.scaled_dot_product_attention(
        queries, keys, values, attn_mask=mask, is_causal=mask is None, enable_gqa=heads != kv_heads
    )
    return mixed.squeeze(0).transpose(0, 1)
