"""The Llama decoder, written for inference: fused projections, ragged batches, keys and values in the pool."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it

from tidewheel_workers.llm.attention import RaggedAttention, Segment

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tidewheel_workers.llm.config import ModelConfig
    from tidewheel_workers.llm.kv import KVCache

__all__ = ["LayerWeights", "Llama", "LlamaWeights", "Segment"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWeights:
    """One decoder layer; matrices are [out, in], projections that read the same input are one matrix."""

    attention_norm: torch.Tensor
    qkv: torch.Tensor  # queries, keys, values
    attention_out: torch.Tensor
    feed_forward_norm: torch.Tensor
    gate_up: torch.Tensor  # gate, up
    down: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaWeights:
    """All tensors of a model on one device and in one dtype."""

    embedding: torch.Tensor
    layers: tuple[LayerWeights, ...]
    norm: torch.Tensor
    head: torch.Tensor  # the embedding itself where they are tied
    rope_divisors: torch.Tensor | None = None  # per frequency, where a GGUF file brings Llama 3's stretching


class Llama:
    """A decoder of the Llama family: RMSNorm, rotary positions, grouped-query attention, SwiGLU."""

    def __init__(self, config: ModelConfig, weights: LlamaWeights) -> None:
        self.config = config
        self.weights = weights
        self.dtype = weights.embedding.dtype
        self.device = weights.embedding.device
        self._frequencies = _frequencies(config, weights.rope_divisors).to(self.device)
        self._split = [config.heads * config.head_dim] + [config.kv_heads * config.head_dim] * 2

    def forward(
        self,
        tokens: torch.Tensor,
        batch: Sequence[Segment],
        kv: KVCache,
        on_layer: Callable[[int], None] | None = None,
    ) -> torch.Tensor:
        """Compute the segments, write their keys and values to the pool.

        Args:
            tokens: ids of all segments, one after the other: int64 [sum of segment.tokens].
            batch: to whom they belong and at which positions.
            kv: holds what came before and takes what is new.
            on_layer: called with a layer's index once its keys and values of this pass are in the pool, in the
                thread that called; the pool's rows of that layer do not change any more in this pass.

        Returns:
            Logits after the last token of each segment: [segments, vocabulary].
        """
        c, w = self.config, self.weights
        attend = RaggedAttention(batch, kv)
        cos, sin = self._rotation(batch)
        x = F.embedding(tokens.to(self.device), w.embedding)
        for index, layer in enumerate(w.layers):
            normed = F.rms_norm(x, (c.hidden,), layer.attention_norm, c.norm_eps)
            q, k, v = torch.split(F.linear(normed, layer.qkv), self._split, dim=-1)
            mixed = attend(
                index,
                _rotate(q.view(-1, c.heads, c.head_dim), cos, sin),
                _rotate(k.view(-1, c.kv_heads, c.head_dim), cos, sin),
                v.view(-1, c.kv_heads, c.head_dim),
            )
            if on_layer is not None:
                on_layer(index)
            x = x + F.linear(mixed.flatten(1), layer.attention_out)
            normed = F.rms_norm(x, (c.hidden,), layer.feed_forward_norm, c.norm_eps)
            gate, up = F.linear(normed, layer.gate_up).chunk(2, dim=-1)
            x = x + F.linear(F.silu(gate) * up, layer.down)
        last = torch.tensor([segment.tokens for segment in batch]).cumsum(0) - 1
        x = x.index_select(0, last.to(self.device))
        return F.linear(F.rms_norm(x, (c.hidden,), w.norm, c.norm_eps), w.head)

    def _rotation(self, batch: Sequence[Segment]) -> tuple[torch.Tensor, torch.Tensor]:
        positions = torch.cat([torch.arange(s.start, s.start + s.tokens) for s in batch]).to(self.device)
        angles = torch.outer(positions.float(), self._frequencies)
        angles = torch.cat((angles, angles), dim=-1).unsqueeze(1)
        return angles.cos().to(self.dtype), angles.sin().to(self.dtype)


def _frequencies(config: ModelConfig, divisors: torch.Tensor | None) -> torch.Tensor:
    """Radians per position of each pair of dimensions, float32."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
    frequencies = config.rope_theta**-exponents
    if config.rope_scaling is not None:
        frequencies = torch.tensor([config.rope_scaling.stretch(f) for f in frequencies.tolist()])
    if divisors is not None:
        frequencies = frequencies / divisors.to("cpu", torch.float64)
    return frequencies.float()


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary positions in Hugging Face's order: dimension i turns with dimension i + head_dim / 2."""
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos + turned * sin
