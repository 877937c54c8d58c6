"""GGUF and safetensors files of a tiny Llama as bytes, with any claim that a test wants them to make; nothing is checked here."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LAYERS, HIDDEN, FEED_FORWARD, HEADS, KV_HEADS, VOCAB = 1, 8, 8, 2, 1, 6
TOKENS = tuple(b"abcdef"[at : at + 1] for at in range(VOCAB))

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
U32, F32, STRING, ARRAY, U64 = 4, 6, 8, 9, 10
ALIGNMENT = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """A typed value of GGUF metadata: a number, bytes, or the values of an array and their type."""

    kind: int
    value: Any
    item_kind: int = 0  # of an array
    claimed: int | None = None  # bytes of a string or items of an array, where not those that are there

    def to_bytes(self) -> bytes:
        """Without the type in front."""
        if self.kind == STRING:
            return struct.pack("<Q", len(self.value) if self.claimed is None else self.claimed) + self.value
        if self.kind == ARRAY:
            count = len(self.value) if self.claimed is None else self.claimed
            items = (Value(kind=self.item_kind, value=item) for item in self.value)
            return struct.pack("<IQ", self.item_kind, count) + b"".join(item.to_bytes() for item in items)
        return struct.pack("<" + SCALARS[self.kind], self.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What a GGUF header says of one tensor; dimensions as the file has them, the innermost first."""

    dimensions: tuple[int, ...]
    kind: int
    offset: int

    def to_bytes(self) -> bytes:
        """Behind the tensor's name."""
        form = f"<I{len(self.dimensions)}QIQ"
        return struct.pack(form, len(self.dimensions), *self.dimensions, self.kind, self.offset)


def text(value: bytes) -> Value:
    """A string."""
    return Value(kind=STRING, value=value)


def number(value: int) -> Value:
    """An unsigned number of 32 bits."""
    return Value(kind=U32, value=value)


GGUF_KEYS: dict[bytes, Value] = {
    b"general.architecture": text(b"llama"),
    b"general.alignment": number(ALIGNMENT),
    b"llama.block_count": number(LAYERS),
    b"llama.context_length": number(64),
    b"llama.embedding_length": number(HIDDEN),
    b"llama.feed_forward_length": number(FEED_FORWARD),
    b"llama.attention.head_count": number(HEADS),
    b"llama.attention.head_count_kv": number(KV_HEADS),
    b"llama.attention.key_length": number(HIDDEN // HEADS),
    b"llama.attention.layer_norm_rms_epsilon": Value(kind=F32, value=1e-5),
    b"llama.rope.dimension_count": number(HIDDEN // HEADS),
    b"llama.rope.freq_base": Value(kind=F32, value=10_000.0),
    b"llama.vocab_size": number(VOCAB),
    b"tokenizer.ggml.model": text(b"gpt2"),
    b"tokenizer.ggml.pre": text(b"smollm"),
    b"tokenizer.ggml.tokens": Value(kind=ARRAY, item_kind=STRING, value=TOKENS),
    b"tokenizer.ggml.token_type": Value(kind=ARRAY, item_kind=5, value=(1, 1, 1, 1, 3, 4)),
    b"tokenizer.ggml.merges": Value(kind=ARRAY, item_kind=STRING, value=()),
    b"tokenizer.ggml.bos_token_id": number(4),
    b"tokenizer.ggml.eos_token_id": number(4),
    b"tokenizer.ggml.add_bos_token": Value(kind=7, value=True),
    b"tokenizer.chat_template": text(b"{{ messages[0].content }}"),
}
_KV_ROWS = HIDDEN // HEADS * KV_HEADS
#: Rows and columns under Hugging Face's names and under GGUF's.
SHAPES: dict[str, tuple[str, tuple[int, ...]]] = {
    "model.embed_tokens": ("token_embd", (VOCAB, HIDDEN)),
    "model.norm": ("output_norm", (HIDDEN,)),
    "model.layers.0.input_layernorm": ("blk.0.attn_norm", (HIDDEN,)),
    "model.layers.0.self_attn.q_proj": ("blk.0.attn_q", (HIDDEN, HIDDEN)),
    "model.layers.0.self_attn.k_proj": ("blk.0.attn_k", (_KV_ROWS, HIDDEN)),
    "model.layers.0.self_attn.v_proj": ("blk.0.attn_v", (_KV_ROWS, HIDDEN)),
    "model.layers.0.self_attn.o_proj": ("blk.0.attn_output", (HIDDEN, HIDDEN)),
    "model.layers.0.post_attention_layernorm": ("blk.0.ffn_norm", (HIDDEN,)),
    "model.layers.0.mlp.gate_proj": ("blk.0.ffn_gate", (FEED_FORWARD, HIDDEN)),
    "model.layers.0.mlp.up_proj": ("blk.0.ffn_up", (FEED_FORWARD, HIDDEN)),
    "model.layers.0.mlp.down_proj": ("blk.0.ffn_down", (HIDDEN, FEED_FORWARD)),
}


def _weights(size: int) -> bytes:
    """That many bytes of small numbers, always the same."""
    draw = random.Random(size)
    return struct.pack(f"<{size // 4}f", *(draw.uniform(-1, 1) for _ in range(size // 4)))


def _elements(shape: Sequence[int]) -> int:
    return shape[0] * shape[1] if len(shape) == 2 else shape[0]


def _gguf_places() -> tuple[dict[bytes, Place], int]:
    places, at = {}, 0
    for name, shape in SHAPES.values():
        places[f"{name}.weight".encode()] = Place(dimensions=shape[::-1], kind=0, offset=at)
        at += -(-4 * _elements(shape) // ALIGNMENT) * ALIGNMENT
    return places, at


GGUF_PLACES, _GGUF_TENSOR_BYTES = _gguf_places()
GGUF_TENSORS = _weights(_GGUF_TENSOR_BYTES)


def gguf_bytes(
    *,
    keys: Mapping[bytes, Value | None] = {},
    places: Mapping[bytes, Place | None] = {},
    version: int = 3,
    claimed_keys: int | None = None,
    claimed_tensors: int | None = None,
) -> bytes:
    """The tiny model with these keys and tensor claims added, replaced or, by None, left out."""
    all_keys = [(name, value) for name, value in {**GGUF_KEYS, **keys}.items() if value is not None]
    all_places = [(name, place) for name, place in {**GGUF_PLACES, **places}.items() if place is not None]
    tensors = len(all_places) if claimed_tensors is None else claimed_tensors
    counted = len(all_keys) if claimed_keys is None else claimed_keys
    header = b"GGUF" + struct.pack("<IQQ", version, tensors, counted)
    for name, value in all_keys:
        header += text(name).to_bytes() + struct.pack("<I", value.kind) + value.to_bytes()
    for name, place in all_places:
        header += text(name).to_bytes() + place.to_bytes()
    return header + b"\0" * (-len(header) % ALIGNMENT) + GGUF_TENSORS


CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": LAYERS,
    "hidden_size": HIDDEN,
    "intermediate_size": FEED_FORWARD,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HIDDEN // HEADS,
    "vocab_size": VOCAB,
    "rope_theta": 10_000.0,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "eos_token_id": 4,
    "bos_token_id": 4,
}
TOKENIZER: dict[str, Any] = {
    "version": "1.0",
    "added_tokens": [],
    "pre_tokenizer": {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    },
    "model": {
        "type": "BPE",
        "vocab": {token.decode(): index for index, token in enumerate(TOKENS)},
        "merges": [],
    },
}
TOKENIZER_CONFIG: dict[str, Any] = {
    "chat_template": "{{ messages[0].content }}",
    "bos_token": {"content": "a"},
    "eos_token": "b",
}


def _tensor_claims() -> tuple[dict[str, Any], int]:
    claims, at = {}, 0
    for name, (_, shape) in SHAPES.items():
        end = at + 4 * _elements(shape)
        claims[f"{name}.weight"] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, end]}
        at = end
    return claims, at


SAFETENSORS_CLAIMS, _SAFETENSORS_TENSOR_BYTES = _tensor_claims()
SAFETENSORS_TENSORS = _weights(_SAFETENSORS_TENSOR_BYTES)


def safetensors_bytes(header: Mapping[str, Any] | bytes, *, claimed: int | None = None) -> bytes:
    """A file with this header, or with these bytes in its place, before the tiny model's tensors."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = len(raw) if claimed is None else claimed
    return struct.pack("<Q", length) + raw + SAFETENSORS_TENSORS
