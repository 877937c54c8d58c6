"""GGUF files: a bounded reader of the header, and tensors dequantised in pieces into memory that the caller gives.

The header is parsed here because the `gguf` package takes seconds for it and trusts its counts; the numbers come from `gguf`.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from tidewheel_workers.llm.config import ModelConfig
from tidewheel_workers.llm.errors import ModelUnreadable, ModelUnsupported

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

VERSIONS = (2, 3)
MOST_KEYS = 1 << 16
MOST_TENSORS = 1 << 18
MOST_DIMENSIONS = 4
# a few times what the largest vocabularies take
MOST_HEADER_BYTES = 64 << 20
MOST_VALUES = 1 << 22  # in all arrays together
# large enough to amortise numpy's calls, small enough for the temporaries to stay near the caches
ELEMENTS_PER_PIECE = 1 << 19

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9

_GLOBAL_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "rope_divisors": "rope_freqs.weight",
}
_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GGUFTensor:
    """Where a tensor lies in the file."""

    shape: tuple[int, ...]  # as torch has it, the reverse of the file's
    kind: GGMLQuantizationType
    offset: int  # from the file's start
    row_bytes: int

    @property
    def rows(self) -> int:
        """Rows of the matrix; 1 for a vector."""
        return math.prod(self.shape[:-1])


class GGUFFile:
    """An open GGUF file of a Llama model; tensors go by their Hugging Face names."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            if not file.read(1):
                raise ModelUnreadable(f"{path} is empty")
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        header = _Header(path, self._bytes)
        self.metadata = header.metadata
        self._tensors = header.tensors
        self.config = ModelConfig.from_gguf(
            self.metadata, tied_embeddings="output.weight" not in self._tensors
        )

    def __contains__(self, name: str) -> bool:
        return _gguf_name(name) in self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor.

        Raises:
            ModelUnreadable: the file has no such tensor.
            ModelUnsupported: its quantisation cannot be undone here.
        """
        return self._find(name).shape

    def read_into(self, name: str, out: torch.Tensor) -> None:
        """Dequantise a tensor into `out`, which has its shape; dtype and device are out's.

        Raises:
            ModelUnreadable: the file has no such tensor.
        """
        flat = out.view(self._find(name).rows, -1)
        for at, piece in self.pieces(name):
            flat[at : at + piece.shape[0]] = piece

    def pieces(self, name: str) -> Iterator[tuple[int, torch.Tensor]]:
        """The rows of a tensor, dequantised: float32 pieces [some rows, columns], each with the number of its first row.

        Raises:
            ModelUnreadable: the file has no such tensor.
        """
        tensor = self._find(name)
        raw = np.frombuffer(self._bytes, np.uint8, tensor.rows * tensor.row_bytes, tensor.offset)
        rows = raw.reshape(tensor.rows, tensor.row_bytes)
        heads = self._interleaved_heads(name)
        if heads:
            rows = rows[_hugging_face_order(tensor.rows, heads)]
        step = max(1, ELEMENTS_PER_PIECE // tensor.shape[-1])
        for at in range(0, tensor.rows, step):
            piece = dequantize(rows[at : at + step], tensor.kind)
            yield at, torch.from_numpy(np.require(piece, np.float32, requirements=["W"]))

    def close(self) -> None:
        """Let the file go."""
        self._bytes.close()

    def _find(self, name: str) -> GGUFTensor:
        tensor = self._tensors.get(_gguf_name(name))
        if tensor is None:
            raise ModelUnreadable(f"{self.path} has no tensor {_gguf_name(name)}; the file is incomplete")
        if not _can_dequantise(tensor.kind):
            raise ModelUnsupported(
                f"{self.path}: tensor {_gguf_name(name)} has the quantisation {tensor.kind.name}, which is not read here"
            )
        return tensor

    def _interleaved_heads(self, name: str) -> int:
        """Heads whose rows llama.cpp's conversion interleaved for its own rotary order; 0 for other tensors."""
        if name.endswith("q_proj.weight"):
            return self.config.heads
        return self.config.kv_heads if name.endswith("k_proj.weight") else 0


@cache
def _can_dequantise(kind: GGMLQuantizationType) -> bool:
    """Whether `gguf` can; it tells only when it is asked to."""
    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


def _hugging_face_order(rows: int, heads: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The file's row for each row of the Hugging Face matrix: pairs (2i, 2i+1) of a head become (i, i + dim/2)."""
    return np.arange(rows).reshape(heads, rows // heads // 2, 2).swapaxes(1, 2).reshape(-1)


def _gguf_name(name: str) -> str:
    if name in _GLOBAL_NAMES:
        return _GLOBAL_NAMES[name]
    _, _, layer, part = name.removesuffix(".weight").split(".", 3)
    return f"blk.{layer}.{_LAYER_NAMES[part]}.weight"


class _Header:
    """Parses the header; every count and length is checked against what the file can hold."""

    def __init__(self, path: Path, raw: mmap.mmap) -> None:
        self._path, self._raw, self._at = path, raw, 0
        self._values_left = MOST_VALUES
        if raw[:4] != b"GGUF":
            raise ModelUnreadable(
                f"{path} does not begin as a GGUF file; it may be a download's error page or LFS pointer"
            )
        self._at = 4
        version = self._scalar("I")
        if version not in VERSIONS:
            raise ModelUnsupported(
                f"{path} is GGUF version {version} (or big-endian); versions {VERSIONS} are read"
            )
        tensors, keys = self._scalar("Q"), self._scalar("Q")
        if tensors > MOST_TENSORS or keys > MOST_KEYS:
            raise self._broken(f"it claims {tensors} tensors and {keys} keys")
        self.metadata: dict[str, Any] = {}
        for _ in range(keys):
            key = self._string()
            self.metadata[key] = self._value(self._scalar("I"))
        places = [self._place() for _ in range(tensors)]
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise self._broken(f"its alignment is {alignment!r}")
        start = -(-self._at // alignment) * alignment
        self.tensors = {name: self._tensor(name, shape, kind, start + at) for name, shape, kind, at in places}

    def _broken(self, what: str) -> ModelUnreadable:
        return ModelUnreadable(f"{self._path} is truncated or damaged: {what}; copy or download it again")

    def _take(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._raw):
            raise self._broken(f"the header wants {count} bytes at {self._at}, the file has {len(self._raw)}")
        if end > MOST_HEADER_BYTES:
            raise self._broken(f"its header is longer than {MOST_HEADER_BYTES} bytes")
        taken = self._raw[self._at : end]
        self._at = end
        return taken

    def _scalar(self, code: str) -> Any:
        return struct.unpack("<" + code, self._take(struct.calcsize("<" + code)))[0]

    def _string(self) -> str:
        return self._take(self._scalar("Q")).decode("utf-8", errors="replace")

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            return self._array()
        if kind not in _SCALARS:
            raise self._broken(f"a key has the unknown type {kind}")
        return self._scalar(_SCALARS[kind])

    def _array(self) -> list[Any]:
        kind, count = self._scalar("I"), self._scalar("Q")
        self._values_left -= count
        if self._values_left < 0:
            raise self._broken(f"its arrays claim more than {MOST_VALUES} values")
        if kind == _STRING:
            return [self._string() for _ in range(count)]
        if kind in _SCALARS:
            form = f"<{count}{_SCALARS[kind]}"
            return list(struct.unpack(form, self._take(struct.calcsize(form))))
        raise self._broken(f"an array claims {count} values of type {kind}")

    def _place(self) -> tuple[str, tuple[int, ...], int, int]:
        name, dimensions = self._string(), self._scalar("I")
        if not 1 <= dimensions <= MOST_DIMENSIONS:
            raise self._broken(f"tensor {name} claims {dimensions} dimensions")
        shape = tuple(self._scalar("Q") for _ in range(dimensions))
        return name, shape[::-1], self._scalar("I"), self._scalar("Q")

    def _tensor(self, name: str, shape: tuple[int, ...], kind: int, offset: int) -> GGUFTensor:
        try:
            quantisation = GGMLQuantizationType(kind)
            block, block_bytes = GGML_QUANT_SIZES[quantisation]
        except (ValueError, KeyError) as error:
            raise ModelUnsupported(
                f"{self._path}: tensor {name} has the quantisation {kind}, which is unknown here"
            ) from error
        if min(shape) < 1 or shape[-1] % block:
            raise self._broken(
                f"tensor {name} of shape {shape} does not divide into {quantisation.name} blocks"
            )
        tensor = GGUFTensor(
            shape=shape, kind=quantisation, offset=offset, row_bytes=shape[-1] // block * block_bytes
        )
        end = offset + tensor.rows * tensor.row_bytes
        if end > len(self._raw):
            raise self._broken(f"tensor {name} ends at byte {end}, the file at {len(self._raw)}")
        return tensor
