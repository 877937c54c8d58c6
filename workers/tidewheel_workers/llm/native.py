"""The Llama decoder on the compiled CPU kernels: the same mathematics as `model.Llama`, in one call per forward pass.

The kernels are optional: an installation without a C++ compiler, another architecture or an older processor has none,
and `model.Llama` computes the model with torch's operations instead.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from tidewheel_workers.llm.errors import ModelUnsupported
from tidewheel_workers.llm.rotary import rotary_frequencies

try:
    from tidewheel_workers.llm import _kernels
except ImportError:
    _kernels = None  # type: ignore[assignment] # not built

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tidewheel_workers.llm.attention import Segment
    from tidewheel_workers.llm.config import ModelConfig
    from tidewheel_workers.llm.kv import KVCache

LANES = 16

Kind = Literal["float32", "bfloat16", "int8"]

KINDS: dict[str, int] = {"float32": 0, "bfloat16": 1, "int8": 2}
#: `torch` turns the kernels off, a name of `instruction_sets` asks for these.
VARIABLE = "TIDEWHEEL_KERNELS"


def instruction_sets() -> tuple[str, ...]:
    """The kernels that are built and that this processor can run, best first."""
    return tuple(_kernels.instruction_sets()) if _kernels is not None else ()


def chosen_kernels() -> str | None:
    """The kernels to use, or None for torch's operations; the environment may choose.

    Raises:
        ModelUnsupported: the environment asks for kernels that are not to be had.
    """
    asked, here = os.environ.get(VARIABLE) or "auto", instruction_sets()
    if asked == "auto":
        return here[0] if here else None
    if asked != "torch" and asked not in here:
        known = ", ".join(("auto", "torch", *here))
        raise ModelUnsupported(f"{VARIABLE} asks for the kernels {asked!r}; to be had here are {known}")
    return None if asked == "torch" else asked


def can_compute(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernels compute this shape, there and with keys and values of this type."""
    return (
        device.type == "cpu" and dtype in (torch.float32, torch.bfloat16) and config.head_dim % 32 == 0
    ) and config.head_dim <= 512


class PackedMatrix:
    """A matrix [rows, columns] in the order in which the kernels read it, filled piece by piece from float32 rows.

    int8 means blocks of 32 neighbours with a float16 scale, GGUF's Q8_0: such weights stay what they were, others are
    rounded to them.
    """

    def __init__(self, isa: str, kind: Kind, rows: int, columns: int) -> None:
        self.isa, self.kind, self.rows, self.columns = isa, kind, rows, columns
        self.memory = torch.zeros(_kernels.packed_bytes(KINDS[kind], rows, columns), dtype=torch.uint8)

    @classmethod
    def of_halves(cls, isa: str, kind: Kind, rows: int, columns: int) -> PackedMatrix:
        """Room for the two matrices [rows, columns] of a gated layer, of which sixteen rows alternate."""
        return cls(isa, kind, 2 * (-(-rows // LANES) * LANES), columns)

    def put(self, piece: torch.Tensor, first: int) -> None:
        """Let rows from `first` on be `piece`."""
        self._pack(piece, first, -1)

    def put_half(self, piece: torch.Tensor, first: int, half: int) -> None:
        """Let rows from `first` on of the gate (0) or of the up projection (1) be `piece`."""
        self._pack(piece, first, half)

    def dense(self) -> torch.Tensor:
        """The whole matrix as float32, for looking at it."""
        out = torch.empty(self.rows, self.columns)
        _kernels.unpack(
            self.isa, KINDS[self.kind], self.memory.data_ptr(), self.rows, self.columns, out.data_ptr()
        )
        return out

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        """[tokens, columns] float32 to [tokens, rows], on one thread."""
        x = x.contiguous().float()
        out = torch.empty(x.shape[0], self.rows)
        _kernels.multiply(
            self.isa,
            KINDS[self.kind],
            x.data_ptr(),
            x.shape[0],
            self.columns,
            self.memory.data_ptr(),
            self.rows,
            out.data_ptr(),
        )
        return out

    def _pack(self, piece: torch.Tensor, first: int, half: int) -> None:
        piece = piece.contiguous().float()
        rows, columns = piece.shape
        room = self.rows if half < 0 else self.rows // 2
        if columns != self.columns or first < 0 or first + rows > room:
            raise ValueError(f"{rows}x{columns} at row {first} does not fit {room}x{self.columns}")
        _kernels.pack(
            self.isa, KINDS[self.kind], piece.data_ptr(), rows, columns, self.memory.data_ptr(), first, half
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeLayer:
    """One decoder layer."""

    attention_norm: torch.Tensor  # float32
    qkv: PackedMatrix
    attention_out: PackedMatrix
    feed_forward_norm: torch.Tensor  # float32
    gate_up: PackedMatrix  # of halves
    down: PackedMatrix


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeWeights:
    """All weights of a model, packed for one instruction set."""

    embedding: PackedMatrix
    layers: tuple[NativeLayer, ...]
    norm: torch.Tensor  # float32
    head: PackedMatrix  # the embedding itself where they are tied
    rope_divisors: torch.Tensor | None = None


class NativeLlama:
    """A decoder of the Llama family on the compiled kernels.

    Between the matrices everything is float32; what a matrix multiplies is rounded to bfloat16 for bfloat16 weights, and
    to 8 bits in blocks of 32 for int8 weights. A token's result does not depend on what else is in the batch or on how a
    prompt is cut into parts, not in a single bit.
    """

    def __init__(self, config: ModelConfig, weights: NativeWeights, *, dtype: torch.dtype) -> None:
        self.config = config
        self.weights = weights
        self.dtype = dtype  # of keys and values
        self.device = torch.device("cpu")
        self.kernels = weights.embedding.isa
        #: Threads of a forward pass, by default as many as torch has when the model is made. Whoever has the process to
        #: itself sets torch's own to 1 afterwards: they spin for a while after each operation, where these should run.
        self.threads = torch.get_num_threads()
        self._frequencies = rotary_frequencies(config, weights.rope_divisors)
        self._turns = torch.empty(0, 2, config.head_dim // 2)
        self._decoder = _kernels.decoder(
            self.kernels,
            KINDS[weights.embedding.kind],
            KINDS[str(dtype).removeprefix("torch.")],
            config.layers,
            config.hidden,
            config.feed_forward,
            config.heads,
            config.kv_heads,
            config.head_dim,
            config.vocab,
            config.norm_eps,
        )
        for index, layer in enumerate(weights.layers):
            _kernels.set_layer(
                self._decoder,
                index,
                layer.attention_norm.data_ptr(),
                layer.qkv.memory.data_ptr(),
                layer.attention_out.memory.data_ptr(),
                layer.feed_forward_norm.data_ptr(),
                layer.gate_up.memory.data_ptr(),
                layer.down.memory.data_ptr(),
            )

    def forward(
        self,
        tokens: torch.Tensor,
        batch: Sequence[Segment],
        kv: KVCache,
        on_layer: Callable[[int], None] | None = None,
    ) -> torch.Tensor:
        """As `model.Llama.forward`; the logits are float32."""
        ids = tokens.to(torch.int64).contiguous()
        self._check(ids, batch, kv)
        self._turn_up_to(max(segment.start + segment.tokens for segment in batch))
        threads = self.threads
        _kernels.begin(
            self._decoder,
            ids.data_ptr(),
            [(segment.slot.rows.data_ptr(), segment.start, segment.tokens) for segment in batch],
            threads,
        )
        pool, rows, layers = kv.pool.data_ptr(), kv.pool.shape[2], self.config.layers
        if on_layer is None:
            _kernels.run_layers(self._decoder, 0, layers, pool, rows, threads)
        else:
            for layer in range(layers):
                _kernels.run_layers(self._decoder, layer, layer + 1, pool, rows, threads)
                on_layer(layer)
        logits = torch.empty(len(batch), self.config.vocab)
        _kernels.finish(self._decoder, logits.data_ptr(), threads)
        return logits

    def _check(self, ids: torch.Tensor, batch: Sequence[Segment], kv: KVCache) -> None:
        """Whatever would make the kernels read or write where they must not.

        Raises:
            ValueError: tokens, segments and cache do not fit each other or the model.
        """
        c = self.config
        want = (c.layers, 2, kv.pool.shape[2], c.kv_heads, c.head_dim)
        if kv.pool.dtype != self.dtype or tuple(kv.pool.shape) != want or not kv.pool.is_contiguous():
            raise ValueError(f"a KV pool {tuple(kv.pool.shape)} of {kv.pool.dtype} is not this model's")
        if not batch or ids.shape != (sum(segment.tokens for segment in batch),):
            raise ValueError(f"{tuple(ids.shape)} token ids are not those of {len(batch)} segments")
        least, most = torch.aminmax(ids)
        if int(least) < 0 or int(most) >= c.vocab:
            raise ValueError(f"token ids must be between 0 and {c.vocab - 1}")
        for segment in batch:
            rows = segment.slot.rows
            if rows.dtype != torch.int64 or not rows.is_contiguous():
                raise ValueError("a slot's rows must be contiguous int64")
            if segment.tokens < 1 or segment.start < 0 or segment.start + segment.tokens > rows.shape[0]:
                raise ValueError(f"a slot of {rows.shape[0]} tokens has no room for {segment}")

    def _turn_up_to(self, positions: int) -> None:
        if positions <= self._turns.shape[0]:
            return
        grown = max(1024, 1 << (positions - 1).bit_length())
        angles = torch.outer(torch.arange(grown, dtype=torch.float32), self._frequencies)
        self._turns = torch.stack((angles.cos(), angles.sin()), dim=1).contiguous()
        w = self.weights
        _kernels.set_ends(
            self._decoder,
            w.embedding.memory.data_ptr(),
            w.norm.data_ptr(),
            w.head.memory.data_ptr(),
            self._turns.data_ptr(),
        )
