"""The Llama decoder, written for inference: fused projections, ragged batches, keys and values in the pool."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it

from tidewheel_workers.llm.attention import RaggedAttention, Segment
from tidewheel_workers.llm.quantised import Matrix, look_up, project
from tidewheel_workers.llm.rotary import rotary_frequencies

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tidewheel_workers.llm.config import ModelConfig
    from tidewheel_workers.llm.kv import KVCache

__all__ = ["LayerWeights", "Llama", "LlamaWeights", "Segment"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWeights:
    """One decoder layer; matrices are [out, in], projections that read the same input are one matrix."""

    attention_norm: torch.Tensor
    qkv: Matrix  # queries, keys, values
    attention_out: Matrix
    feed_forward_norm: torch.Tensor
    gate_up: Matrix  # gate, up
    down: Matrix


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaWeights:
    """All tensors of a model on one device, in one dtype or, the matrices, in 8 bits."""

    embedding: Matrix
    layers: tuple[LayerWeights, ...]
    norm: torch.Tensor
    head: Matrix  # the embedding itself where they are tied
    rope_divisors: torch.Tensor | None = None  # per frequency, where a GGUF file brings Llama 3's stretching


class Llama:
    """A decoder of the Llama family: RMSNorm, rotary positions, grouped-query attention, SwiGLU."""

    def __init__(self, config: ModelConfig, weights: LlamaWeights) -> None:
        self.config = config
        self.weights = weights
        self.dtype = weights.norm.dtype
        self.device = weights.norm.device
        self._frequencies = rotary_frequencies(config, weights.rope_divisors).to(self.device)
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
        x = look_up(tokens.to(self.device), w.embedding)
        for index, layer in enumerate(w.layers):
            normed = F.rms_norm(x, (c.hidden,), layer.attention_norm, c.norm_eps)
            q, k, v = torch.split(project(normed, layer.qkv), self._split, dim=-1)
            mixed = attend(
                index,
                _rotate(q.view(-1, c.heads, c.head_dim), cos, sin),
                _rotate(k.view(-1, c.kv_heads, c.head_dim), cos, sin),
                v.view(-1, c.kv_heads, c.head_dim),
            )
            if on_layer is not None:
                on_layer(index)
            x = x + project(mixed.flatten(1), layer.attention_out)
            normed = F.rms_norm(x, (c.hidden,), layer.feed_forward_norm, c.norm_eps)
            gate, up = project(normed, layer.gate_up).chunk(2, dim=-1)
            x = x + project(F.silu(gate) * up, layer.down)
        last = torch.tensor([segment.tokens for segment in batch]).cumsum(0) - 1
        x = x.index_select(0, last.to(self.device))
        return project(F.rms_norm(x, (c.hidden,), w.norm, c.norm_eps), w.head)

    def _rotation(self, batch: Sequence[Segment]) -> tuple[torch.Tensor, torch.Tensor]:
        positions = torch.cat([torch.arange(s.start, s.start + s.tokens) for s in batch]).to(self.device)
        angles = torch.outer(positions.float(), self._frequencies)
        angles = torch.cat((angles, angles), dim=-1).unsqueeze(1)
        return angles.cos().to(self.dtype), angles.sin().to(self.dtype)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary positions in Hugging Face's order: dimension i turns with dimension i + head_dim / 2."""
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos + turned * sin
