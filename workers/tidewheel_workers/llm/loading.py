"""From files to a model that can run: weights fused and placed, tokenizer built, digest taken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from tidewheel_workers.llm.config import model_digest
from tidewheel_workers.llm.errors import ModelUnreadable
from tidewheel_workers.llm.gguf_file import GGUFFile
from tidewheel_workers.llm.model import LayerWeights, Llama, LlamaWeights
from tidewheel_workers.llm.safetensors_file import SafetensorsDirectory
from tidewheel_workers.llm.source import ModelSource, locate_model
from tidewheel_workers.llm.tokenizer import BPETokenizer

if TYPE_CHECKING:
    from tidewheel_workers.llm.config import ModelConfig
    from tidewheel_workers.llm.tokenizer import Tokenizer


class TensorFile(Protocol):
    """Weights on disk under Hugging Face's names."""

    config: ModelConfig

    def __contains__(self, name: str) -> bool: ...

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""

    def read_into(self, name: str, out: torch.Tensor) -> None:
        """Fill `out` with a tensor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """What an engine is made of."""

    model: Llama
    tokenizer: Tokenizer
    digest: str  # equal for peers that may exchange KV; dtype and layout are KVLayout's part


def load_model(
    source: ModelSource | str, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> LoadedModel:
    """Load weights and tokenizer.

    Raises:
        ModelNotFound, ModelUnreadable, ModelUnsupported: with what to do about it.
    """
    files = locate_model(ModelSource.parse(source) if isinstance(source, str) else source)
    target = torch.device(device)
    identity = files.identity()
    if files.format == "gguf":
        gguf = GGUFFile(files.weights[0])
        try:
            tokenizer = BPETokenizer.from_gguf(gguf.metadata)
            model = read_llama(gguf, device=target, dtype=dtype)
        finally:
            gguf.close()
    else:
        tokenizer = BPETokenizer.from_directory(files.directory)
        directory = SafetensorsDirectory(files.directory, files.weights)
        try:
            model = read_llama(directory, device=target, dtype=dtype)
        finally:
            directory.close()
    return LoadedModel(model=model, tokenizer=tokenizer, digest=model_digest(model.config, identity))


def read_llama(file: TensorFile, *, device: torch.device, dtype: torch.dtype) -> Llama:
    """Read all weights, each straight into its place; only one tensor is in memory twice at a time.

    Raises:
        ModelUnreadable: a tensor is missing or of another shape than the configuration says.
    """
    c = file.config
    reader = _Reader(file, device, dtype)
    queries, keys = c.heads * c.head_dim, c.kv_heads * c.head_dim
    embedding = reader.matrix({"model.embed_tokens": c.vocab}, c.hidden)
    layers = []
    for index in range(c.layers):
        at = f"model.layers.{index}"
        attention, feed_forward = f"{at}.self_attn", f"{at}.mlp"
        layers.append(
            LayerWeights(
                attention_norm=reader.vector(f"{at}.input_layernorm.weight", c.hidden),
                qkv=reader.matrix(
                    {
                        f"{attention}.q_proj": queries,
                        f"{attention}.k_proj": keys,
                        f"{attention}.v_proj": keys,
                    },
                    c.hidden,
                ),
                attention_out=reader.matrix({f"{attention}.o_proj": c.hidden}, queries),
                feed_forward_norm=reader.vector(f"{at}.post_attention_layernorm.weight", c.hidden),
                gate_up=reader.matrix(
                    {f"{feed_forward}.gate_proj": c.feed_forward, f"{feed_forward}.up_proj": c.feed_forward},
                    c.hidden,
                ),
                down=reader.matrix({f"{feed_forward}.down_proj": c.hidden}, c.feed_forward),
            )
        )
    weights = LlamaWeights(
        embedding=embedding,
        layers=tuple(layers),
        norm=reader.vector("model.norm.weight", c.hidden),
        head=embedding if c.tied_embeddings else reader.matrix({"lm_head": c.vocab}, c.hidden),
        rope_divisors=(
            reader.vector("rope_divisors", c.head_dim // 2, torch.float32)
            if "rope_divisors" in file
            else None
        ),
    )
    return Llama(c, weights)


class _Reader:
    """Allocates what is read, in the wanted dtype and place, and checks its shape first."""

    def __init__(self, file: TensorFile, device: torch.device, dtype: torch.dtype) -> None:
        self._file, self._device, self._dtype = file, device, dtype

    def vector(self, name: str, size: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        self._check(name, (size,))
        out = torch.empty(size, dtype=dtype or self._dtype, device=self._device)
        self._file.read_into(name, out)
        return out

    def matrix(self, rows: dict[str, int], columns: int) -> torch.Tensor:
        """One matrix of several stacked ones: names without `.weight`, each with its rows."""
        for name, count in rows.items():
            self._check(f"{name}.weight", (count, columns))
        out = torch.empty(sum(rows.values()), columns, dtype=self._dtype, device=self._device)
        for name, part in zip(rows, torch.split(out, list(rows.values())), strict=True):
            self._file.read_into(f"{name}.weight", part)
        return out

    def _check(self, name: str, shape: tuple[int, ...]) -> None:
        """Before memory is taken: a file cannot hold what it does not have, a configuration may say anything."""
        if (found := self._file.shape(name)) != shape:
            raise ModelUnreadable(f"tensor {name} has the shape {found}, its configuration says {shape}")
