"""From files to a model that can run: weights fused and placed, tokenizer built, digest taken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from tidewheel_workers.llm.config import model_digest
from tidewheel_workers.llm.errors import ModelUnreadable
from tidewheel_workers.llm.gguf_file import GGUFFile
from tidewheel_workers.llm.model import LayerWeights, Llama, LlamaWeights
from tidewheel_workers.llm.native import (
    NativeLayer,
    NativeLlama,
    NativeWeights,
    PackedMatrix,
    can_compute,
    chosen_kernels,
)
from tidewheel_workers.llm.quantised import Int8Matrix, Matrix, Quantization
from tidewheel_workers.llm.safetensors_file import SafetensorsDirectory
from tidewheel_workers.llm.source import ModelSource, locate_model
from tidewheel_workers.llm.tokenizer import BPETokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tidewheel_workers.llm.config import ModelConfig
    from tidewheel_workers.llm.native import Kind
    from tidewheel_workers.llm.tokenizer import Tokenizer


class TensorFile(Protocol):
    """Weights on disk under Hugging Face's names."""

    config: ModelConfig

    def __contains__(self, name: str) -> bool: ...

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""

    def read_into(self, name: str, out: torch.Tensor) -> None:
        """Fill `out` with a tensor."""

    def pieces(self, name: str) -> Iterator[tuple[int, torch.Tensor]]:
        """A matrix's rows, some at a time, each time with the number of the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """What an engine is made of."""

    model: Llama | NativeLlama
    tokenizer: Tokenizer
    digest: str  # equal for peers that may exchange KV; dtype and layout are KVLayout's part


def load_model(
    source: ModelSource | str,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    quantization: Quantization = "None",
) -> LoadedModel:
    """Load weights and tokenizer.

    Args:
        source: where the model is.
        device: where it computes.
        dtype: of keys and values and, unless they are quantised, of the weights.
        quantization: `Int8` holds the matrices as 8-bit numbers, whatever the files hold.

    Raises:
        ModelNotFound, ModelUnreadable, ModelUnsupported: with what to do about it.
    """
    files = locate_model(ModelSource.parse(source) if isinstance(source, str) else source)
    target = torch.device(device)
    identity = files.identity() + (":int8" if quantization == "Int8" else "")
    if files.format == "gguf":
        gguf = GGUFFile(files.weights[0])
        try:
            tokenizer = BPETokenizer.from_gguf(gguf.metadata)
            model = read_model(gguf, device=target, dtype=dtype, quantization=quantization)
        finally:
            gguf.close()
    else:
        tokenizer = BPETokenizer.from_directory(files.directory)
        directory = SafetensorsDirectory(files.directory, files.weights)
        try:
            model = read_model(directory, device=target, dtype=dtype, quantization=quantization)
        finally:
            directory.close()
    return LoadedModel(model=model, tokenizer=tokenizer, digest=model_digest(model.config, identity))


def read_model(
    file: TensorFile, *, device: torch.device, dtype: torch.dtype, quantization: Quantization = "None"
) -> Llama | NativeLlama:
    """Read all weights for the compiled kernels where these compute the model, else for torch's operations.

    Raises:
        ModelUnreadable: a tensor is missing or of another shape than the configuration says.
        ModelUnsupported: the environment asks for kernels that are not to be had.
    """
    isa = chosen_kernels()
    if isa is not None and can_compute(file.config, device, dtype):
        return read_native(file, isa=isa, dtype=dtype, quantization=quantization)
    return read_llama(file, device=device, dtype=dtype, quantization=quantization)


def read_llama(
    file: TensorFile, *, device: torch.device, dtype: torch.dtype, quantization: Quantization = "None"
) -> Llama:
    """Read all weights for torch's operations, each straight into its place; little is in memory twice at a time.

    Raises:
        ModelUnreadable: a tensor is missing or of another shape than the configuration says.
    """
    c = file.config
    reader = _Reader(file, device, dtype, quantization)
    embedding = reader.matrix({"model.embed_tokens": c.vocab}, c.hidden)
    weights = LlamaWeights(
        embedding=embedding,
        layers=tuple(
            LayerWeights(
                attention_norm=reader.vector(names.attention_norm, c.hidden),
                qkv=reader.matrix(names.qkv, c.hidden),
                attention_out=reader.matrix(names.attention_out, c.heads * c.head_dim),
                feed_forward_norm=reader.vector(names.feed_forward_norm, c.hidden),
                gate_up=reader.matrix({**names.gate, **names.up}, c.hidden),
                down=reader.matrix(names.down, c.feed_forward),
            )
            for names in _layers(c)
        ),
        norm=reader.vector("model.norm.weight", c.hidden),
        head=embedding if c.tied_embeddings else reader.matrix({"lm_head": c.vocab}, c.hidden),
        rope_divisors=reader.rope_divisors(c),
    )
    return Llama(c, weights)


def read_native(
    file: TensorFile, *, isa: str, dtype: torch.dtype, quantization: Quantization = "None"
) -> NativeLlama:
    """Read all weights for the compiled kernels of an instruction set, packing them some rows at a time.

    Raises:
        ModelUnreadable: a tensor is missing or of another shape than the configuration says.
    """
    c = file.config
    # norms are a thousandth of the weights, and float32 spares the kernels a conversion
    reader = _Reader(file, torch.device("cpu"), torch.float32, "None")
    kind: Kind = "int8" if quantization == "Int8" else "bfloat16" if dtype is torch.bfloat16 else "float32"

    def packed(rows: dict[str, int], columns: int) -> PackedMatrix:
        return reader.packed(isa, kind, rows, columns)

    embedding = packed({"model.embed_tokens": c.vocab}, c.hidden)
    weights = NativeWeights(
        embedding=embedding,
        layers=tuple(
            NativeLayer(
                attention_norm=reader.vector(names.attention_norm, c.hidden),
                qkv=packed(names.qkv, c.hidden),
                attention_out=packed(names.attention_out, c.heads * c.head_dim),
                feed_forward_norm=reader.vector(names.feed_forward_norm, c.hidden),
                gate_up=reader.packed_halves(isa, kind, names.gate, names.up, c.hidden),
                down=packed(names.down, c.feed_forward),
            )
            for names in _layers(c)
        ),
        norm=reader.vector("model.norm.weight", c.hidden),
        head=embedding if c.tied_embeddings else packed({"lm_head": c.vocab}, c.hidden),
        rope_divisors=reader.rope_divisors(c),
    )
    return NativeLlama(c, weights, dtype=dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class _LayerNames:
    """A layer's tensors: matrices without `.weight`, each with its rows."""

    attention_norm: str
    qkv: dict[str, int]
    attention_out: dict[str, int]
    feed_forward_norm: str
    gate: dict[str, int]
    up: dict[str, int]
    down: dict[str, int]


def _layers(c: ModelConfig) -> Iterator[_LayerNames]:
    queries, keys = c.heads * c.head_dim, c.kv_heads * c.head_dim
    for index in range(c.layers):
        at = f"model.layers.{index}"
        attention, feed_forward = f"{at}.self_attn", f"{at}.mlp"
        yield _LayerNames(
            attention_norm=f"{at}.input_layernorm.weight",
            qkv={f"{attention}.q_proj": queries, f"{attention}.k_proj": keys, f"{attention}.v_proj": keys},
            attention_out={f"{attention}.o_proj": c.hidden},
            feed_forward_norm=f"{at}.post_attention_layernorm.weight",
            gate={f"{feed_forward}.gate_proj": c.feed_forward},
            up={f"{feed_forward}.up_proj": c.feed_forward},
            down={f"{feed_forward}.down_proj": c.hidden},
        )


class _Reader:
    """Allocates what is read, in the wanted form and place, and checks its shape first."""

    def __init__(
        self, file: TensorFile, device: torch.device, dtype: torch.dtype, quantization: Quantization
    ) -> None:
        self._file, self._device, self._dtype, self._quantization = file, device, dtype, quantization

    def vector(self, name: str, size: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        self._check(name, (size,))
        out = torch.empty(size, dtype=dtype or self._dtype, device=self._device)
        self._file.read_into(name, out)
        return out

    def rope_divisors(self, c: ModelConfig) -> torch.Tensor | None:
        if "rope_divisors" not in self._file:
            return None
        return self.vector("rope_divisors", c.head_dim // 2, torch.float32)

    def matrix(self, rows: dict[str, int], columns: int) -> Matrix:
        """One matrix of several stacked ones: names without `.weight`, each with its rows."""
        self._check_all(rows, columns)
        total, first = sum(rows.values()), 0
        if self._quantization == "Int8":
            small = Int8Matrix.empty(total, columns, device=self._device, dtype=self._dtype)
            for name, count in rows.items():
                small.put(self._file.pieces(f"{name}.weight"), first)
                first += count
            return small
        out = torch.empty(total, columns, dtype=self._dtype, device=self._device)
        for name, part in zip(rows, torch.split(out, list(rows.values())), strict=True):
            self._file.read_into(f"{name}.weight", part)
        return out

    def packed(self, isa: str, kind: Kind, rows: dict[str, int], columns: int) -> PackedMatrix:
        """As `matrix`, for the compiled kernels."""
        self._check_all(rows, columns)
        out, first = PackedMatrix(isa, kind, sum(rows.values()), columns), 0
        for name, count in rows.items():
            for at, piece in self._file.pieces(f"{name}.weight"):
                out.put(piece, first + at)
            first += count
        return out

    def packed_halves(
        self, isa: str, kind: Kind, gate: dict[str, int], up: dict[str, int], columns: int
    ) -> PackedMatrix:
        """The two matrices of a gated layer, for the compiled kernels."""
        self._check_all({**gate, **up}, columns)
        out = PackedMatrix.of_halves(isa, kind, sum(gate.values()), columns)
        for half, rows in enumerate((gate, up)):
            for name in rows:
                for at, piece in self._file.pieces(f"{name}.weight"):
                    out.put_half(piece, at, half)
        return out

    def _check_all(self, rows: dict[str, int], columns: int) -> None:
        for name, count in rows.items():
            self._check(f"{name}.weight", (count, columns))

    def _check(self, name: str, shape: tuple[int, ...]) -> None:
        """Before memory is taken: a file cannot hold what it does not have, a configuration may say anything."""
        if (found := self._file.shape(name)) != shape:
            raise ModelUnreadable(f"tensor {name} has the shape {found}, its configuration says {shape}")
