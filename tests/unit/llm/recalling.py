"""A model for tests whose every logit follows from the whole context as it stands in the KV pool, and nothing else.

Keys hold the token, values its position. The logits are drawn from a hash of both for all tokens so far, so a block that is
mixed up, overwritten or not written shows in the next token, without rounding.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence

import torch

from tidewheel_workers.llm.config import ModelConfig
from tidewheel_workers.llm.engine import Engine, EngineLimits
from tidewheel_workers.llm.kv import KVCache, KVLayout
from tidewheel_workers.llm.model import Segment

CONFIG = ModelConfig(
    layers=2,
    hidden=4,
    feed_forward=4,
    heads=1,
    kv_heads=1,
    head_dim=2,
    vocab=29,
    rope_theta=10_000.0,
    norm_eps=1e-5,
    max_positions=64,
    tied_embeddings=True,
    eos_ids=(0,),
)
POISON = 28  # a context with it gives logits that are no numbers


class Letters:
    """A tokenizer whose every token is one letter."""

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(ord("A") + token) for token in ids)


class Recalling:
    """See the module."""

    dtype = torch.float32

    def __init__(self, config: ModelConfig = CONFIG) -> None:
        self.config = config
        self.passes: list[list[tuple[int, int]]] = []  # start and tokens of each segment

    def forward(
        self,
        tokens: torch.Tensor,
        batch: Sequence[Segment],
        kv: KVCache,
        on_layer: Callable[[int], None] | None = None,
    ) -> torch.Tensor:
        self.passes.append([(segment.start, segment.tokens) for segment in batch])
        rows = torch.cat([s.slot.rows[s.start : s.start + s.tokens] for s in batch])
        positions = torch.cat([torch.arange(s.start, s.start + s.tokens) for s in batch])
        for layer in range(self.config.layers):
            kv.pool[layer, 0, rows, 0] = (tokens + layer).float()[:, None].expand(-1, 2)
            kv.pool[layer, 1, rows, 0] = positions.float()[:, None].expand(-1, 2)
            if on_layer is not None:
                on_layer(layer)
        return torch.stack([self._logits(s, kv) for s in batch])

    def _logits(self, segment: Segment, kv: KVCache) -> torch.Tensor:
        seen = segment.slot.rows[: segment.start + segment.tokens]
        story = kv.pool.index_select(2, seen)
        if bool((story[0, 0] == POISON).any()):
            return torch.full((self.config.vocab,), float("nan"))
        digest = hashlib.blake2b(story.numpy().tobytes(), digest_size=2 * self.config.vocab).digest()
        values = [int.from_bytes(digest[i : i + 2]) for i in range(0, len(digest), 2)]
        logits = torch.tensor(values).float() / 16_384
        logits[POISON] = -100.0  # never written
        return logits


def recalling_engine(*, blocks: int = 64, block_size: int = 4, **limits: int) -> Engine:
    """An engine over this model."""
    kv = KVCache(
        KVLayout(layers=2, kv_heads=1, head_dim=2, dtype=torch.float32, block_size=block_size), blocks=blocks
    )
    return Engine(Recalling(), Letters(), kv, EngineLimits(**limits))


def with_context(positions: int) -> ModelConfig:
    """The same model with another longest context."""
    return dataclasses.replace(CONFIG, max_positions=positions)
