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
        self._pool = kv.pool
        pieces = [s.slot.rows[s.start : s.start + s.tokens] for s in batch]
        self._rows = (pieces[0] if len(pieces) == 1 else torch.cat(pieces)).to(kv.device)
        self._alone: list[_Alone] = []
        alike: dict[int, list[tuple[int, Segment]]] = {}
        at = 0
        for segment in batch:
            if segment.tokens == 1:
                # histories of one bucket differ in length by less than a factor of two, which bounds the padding
                alike.setdefault(segment.start.bit_length(), []).append((at, segment))
            else:
                self._alone.append(_Alone(at, segment, kv.device))
            at += segment.tokens
        self._together = [_Together(members, kv.device) for members in alike.values() if len(members) > 1]
        self._alone += [_Alone(*members[0], kv.device) for members in alike.values() if len(members) == 1]

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
        for alone in self._alone:
            alone.attend(q, keys, values, out)
        for together in self._together:
            together.attend(q, keys, values, out)
        return out


class _Alone:
    """One segment: its history is read in place where its rows are one run."""

    def __init__(self, at: int, segment: Segment, device: torch.device) -> None:
        self._at, self._end = at, at + segment.tokens
        first, seen = segment.slot.first_row, segment.start + segment.tokens
        self._history = (
            slice(first, first + seen) if first is not None else segment.slot.rows[:seen].to(device)
        )
        self._mask = _mask(segment, device)

    def attend(self, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, out: torch.Tensor) -> None:
        out[self._at : self._end] = _attend(
            q[self._at : self._end],
            self._read(keys),
            self._read(values),
            self._mask,
        )

    def _read(self, pool: torch.Tensor) -> torch.Tensor:
        if isinstance(self._history, slice):
            return pool[self._history]
        return pool.index_select(0, self._history)


class _Together:
    """Single tokens of several sequences: their histories are gathered and padded, and one operation attends to all."""

    def __init__(self, members: Sequence[tuple[int, Segment]], device: torch.device) -> None:
        lengths = torch.tensor([segment.start + 1 for _, segment in members])
        self._longest = int(lengths.max())
        self._places = torch.tensor([at for at, _ in members]).to(device)
        # what is padded is some row that is surely there; the mask leaves it out
        rows = torch.empty(len(members), self._longest, dtype=torch.int64)
        for row, (_, segment) in zip(rows, members, strict=True):
            row[: segment.start + 1] = segment.slot.rows[: segment.start + 1]
            row[segment.start + 1 :] = row[0]
        self._rows = rows.flatten().to(device)
        self._mask = (torch.arange(self._longest) < lengths[:, None]).to(device)[:, None, None]

    def attend(self, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, out: torch.Tensor) -> None:
        sequences, (_, kv_heads, head_dim) = len(self._places), keys.shape
        shape = (sequences, self._longest, kv_heads, head_dim)
        mixed = F.scaled_dot_product_attention(
            q.index_select(0, self._places).view(sequences, kv_heads, -1, head_dim),
            keys.index_select(0, self._rows).view(shape).transpose(1, 2),
            values.index_select(0, self._rows).view(shape).transpose(1, 2),
            attn_mask=self._mask,
        )
        out.index_copy_(0, self._places, mixed.reshape(sequences, -1, head_dim))


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
