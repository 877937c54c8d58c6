"""The shape of a model, read from Hugging Face's config.json or from GGUF metadata; apart because loaders, KV and planners share it."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

from tidewheel_workers.llm.errors import ModelUnreadable, ModelUnsupported

if TYPE_CHECKING:
    from collections.abc import Mapping

HF_ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM")
GGUF_ARCHITECTURES = ("llama",)
# control tokens that end an answer in the templates of the Llama family
ENDS = frozenset({"<|endoftext|>", "<|im_end|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>", "</s>"})


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """Llama 3's stretching of the rotary frequencies ("llama3" in config.json)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int

    def stretch(self, frequency: float) -> float:
        """The frequency to use in place of `frequency` (radians per position)."""
        wavelength = 2 * math.pi / frequency
        if wavelength < self.original_max_positions / self.high_freq_factor:
            return frequency
        if wavelength > self.original_max_positions / self.low_freq_factor:
            return frequency / self.factor
        smooth = (self.original_max_positions / wavelength - self.low_freq_factor) / (
            self.high_freq_factor - self.low_freq_factor
        )
        return (1 - smooth) * frequency / self.factor + smooth * frequency


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A decoder of the Llama family."""

    layers: int
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    rope_theta: float
    norm_eps: float
    max_positions: int
    tied_embeddings: bool
    eos_ids: tuple[int, ...]
    bos_id: int | None = None
    rope_scaling: RopeScaling | None = None

    def __post_init__(self) -> None:
        for name in (
            "layers",
            "hidden",
            "feed_forward",
            "heads",
            "kv_heads",
            "head_dim",
            "vocab",
            "max_positions",
        ):
            if not 0 < getattr(self, name) < 1 << 31:
                raise ModelUnreadable(
                    f"the model's {name} is {getattr(self, name)}; it must be a positive integer"
                )
        if self.heads % self.kv_heads:
            raise ModelUnreadable(
                f"{self.heads} attention heads cannot share {self.kv_heads} key-value heads evenly"
            )
        if self.head_dim % 2:
            raise ModelUnsupported(f"rotary positions need an even head dimension, not {self.head_dim}")

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Self:
        """From the content of config.json.

        Raises:
            ModelUnsupported: an architecture or a feature that this engine does not compute.
            ModelUnreadable: a field is missing or senseless.
        """
        architectures = config.get("architectures") or ["(none)"]
        if architectures[0] not in HF_ARCHITECTURES:
            raise ModelUnsupported(
                f"config.json names the architecture {architectures[0]}; the built-in engine runs "
                f"{', '.join(HF_ARCHITECTURES)}. Serve it with vLLM or SGLang in the role's template instead"
            )
        for feature in ("attention_bias", "mlp_bias", "quantization_config"):
            if config.get(feature):
                raise ModelUnsupported(
                    f"config.json sets {feature}, which the built-in engine does not compute"
                )
        if config.get("hidden_act", "silu") != "silu":
            raise ModelUnsupported(
                f"config.json sets hidden_act {config['hidden_act']!r}; only silu is computed"
            )
        window = config.get("sliding_window")
        limit = _need(config, "max_position_embeddings", "config.json")
        try:
            heads = int(_need(config, "num_attention_heads", "config.json"))
            hidden = int(_need(config, "hidden_size", "config.json"))
            rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
            return cls(
                layers=int(_need(config, "num_hidden_layers", "config.json")),
                hidden=hidden,
                feed_forward=int(_need(config, "intermediate_size", "config.json")),
                heads=heads,
                kv_heads=int(config.get("num_key_value_heads") or heads),
                head_dim=int(config.get("head_dim") or hidden // max(heads, 1)),
                vocab=int(_need(config, "vocab_size", "config.json")),
                rope_theta=float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0),
                norm_eps=float(_need(config, "rms_norm_eps", "config.json")),
                # within its window a sliding-window model is a plain one
                max_positions=min(int(limit), int(window)) if window else int(limit),
                tied_embeddings=bool(config.get("tie_word_embeddings", False)),
                eos_ids=_ids(config.get("eos_token_id")),
                bos_id=config.get("bos_token_id"),
                rope_scaling=_scaling(rope),
            )
        except (TypeError, ValueError) as error:
            raise ModelUnreadable(f"config.json holds a value of the wrong type: {error}") from error

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], *, tied_embeddings: bool) -> Self:
        """From GGUF key-value metadata; whether embeddings are tied shows in the tensors, not in the metadata.

        Raises:
            ModelUnsupported: an architecture or a feature that this engine does not compute.
            ModelUnreadable: a key is missing or senseless.
        """
        architecture = metadata.get("general.architecture")
        if architecture not in GGUF_ARCHITECTURES:
            raise ModelUnsupported(
                f"the GGUF file holds the architecture {architecture!r}; the built-in engine reads "
                f"{', '.join(GGUF_ARCHITECTURES)}. Use safetensors of a Llama model, or vLLM in the role's template"
            )
        if metadata.get("llama.expert_count"):
            raise ModelUnsupported(
                "the GGUF file holds a mixture of experts, which the built-in engine does not compute"
            )
        scaling = metadata.get("llama.rope.scaling.type", "none")
        if scaling != "none":
            raise ModelUnsupported(
                f"the GGUF file asks for rope scaling {scaling!r}, which the engine does not compute"
            )
        heads = _need(metadata, "llama.attention.head_count", "the GGUF file")
        hidden = _need(metadata, "llama.embedding_length", "the GGUF file")
        head_dim = metadata.get("llama.attention.key_length") or hidden // heads
        if metadata.get("llama.rope.dimension_count", head_dim) != head_dim:
            raise ModelUnsupported(
                "the GGUF file rotates only a part of each head, which the engine does not compute"
            )
        tokens = metadata.get("tokenizer.ggml.tokens") or ()
        types = metadata.get("tokenizer.ggml.token_type") or ()
        ends = [metadata.get("tokenizer.ggml.eos_token_id"), metadata.get("tokenizer.ggml.eot_token_id")]
        # the metadata names one end; a model may also write the others that its vocabulary has
        ends += [
            at
            for at, (text, kind) in enumerate(zip(tokens, types, strict=False))
            if kind == 3 and text in ENDS
        ]
        return cls(
            layers=_need(metadata, "llama.block_count", "the GGUF file"),
            hidden=hidden,
            feed_forward=_need(metadata, "llama.feed_forward_length", "the GGUF file"),
            heads=heads,
            kv_heads=metadata.get("llama.attention.head_count_kv") or heads,
            head_dim=head_dim,
            vocab=metadata.get("llama.vocab_size") or len(tokens),
            rope_theta=float(metadata.get("llama.rope.freq_base", 10_000.0)),
            norm_eps=float(_need(metadata, "llama.attention.layer_norm_rms_epsilon", "the GGUF file")),
            max_positions=_need(metadata, "llama.context_length", "the GGUF file"),
            tied_embeddings=tied_embeddings,
            eos_ids=tuple(dict.fromkeys(end for end in ends if end is not None)),
            bos_id=metadata.get("tokenizer.ggml.bos_token_id"),
        )

    def digest(self) -> str:
        """A short name for exactly this shape; part of a model's digest."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


def model_digest(config: ModelConfig, weights_identity: str) -> str:
    """Equal for two peers exactly when they run the same model; a KV cache makes sense only between such peers."""
    return hashlib.sha256(f"{config.digest()}:{weights_identity}".encode()).hexdigest()[:32]


def _need(fields: Mapping[str, Any], name: str, where: str) -> Any:
    value = fields.get(name)
    if value is None:
        raise ModelUnreadable(f"{where} has no {name}; the file is incomplete or of another kind")
    return value


def _ids(value: int | list[int] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (value,)


def _scaling(rope: Mapping[str, Any]) -> RopeScaling | None:
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return None
    if kind != "llama3":
        raise ModelUnsupported(
            f"config.json asks for rope scaling {kind!r}; the built-in engine computes llama3 or none"
        )
    return RopeScaling(
        factor=float(_need(rope, "factor", "rope scaling in config.json")),
        low_freq_factor=float(_need(rope, "low_freq_factor", "rope scaling in config.json")),
        high_freq_factor=float(_need(rope, "high_freq_factor", "rope scaling in config.json")),
        original_max_positions=int(
            _need(rope, "original_max_position_embeddings", "rope scaling in config.json")
        ),
    )
