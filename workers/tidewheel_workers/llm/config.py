"""The shape of a model, read from Hugging Face's config.json or from GGUF metadata; apart because loaders, KV and planners share it."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

from tidewheel_workers.llm.errors import ModelUnreadable, ModelUnsupported
from tidewheel_workers.llm.fields import Fields

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

    def __post_init__(self) -> None:
        if not (
            self.factor > 0
            and 0 < self.low_freq_factor < self.high_freq_factor
            and self.original_max_positions > 0
        ):
            raise ModelUnreadable(
                f"rope scaling by {self.factor:g} between {self.low_freq_factor:g} and {self.high_freq_factor:g} of "
                f"{self.original_max_positions} positions makes no sense; factors must be positive and rise"
            )

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
        if self.rope_theta <= 0:
            raise ModelUnreadable(f"the model's rope_theta is {self.rope_theta:g}; it must be positive")
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
        fields = Fields(config, "config.json")
        architecture = next(iter(fields.many("architectures", str)), "(none)")
        if architecture not in HF_ARCHITECTURES:
            raise ModelUnsupported(
                f"config.json names the architecture {architecture}; the built-in engine runs "
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
        heads = fields.whole("num_attention_heads")
        hidden = fields.whole("hidden_size")
        limit = fields.whole("max_position_embeddings")
        rope = fields.inner("rope_parameters" if config.get("rope_parameters") else "rope_scaling")
        return cls(
            layers=fields.whole("num_hidden_layers"),
            hidden=hidden,
            feed_forward=fields.whole("intermediate_size"),
            heads=heads,
            kv_heads=fields.whole("num_key_value_heads", heads),
            head_dim=fields.whole("head_dim", hidden // max(heads, 1)),
            vocab=fields.whole("vocab_size"),
            rope_theta=rope.number("rope_theta", fields.number("rope_theta", 10_000.0)),
            norm_eps=fields.number("rms_norm_eps"),
            # within its window a sliding-window model is a plain one
            max_positions=min(limit, fields.whole("sliding_window", limit)),
            tied_embeddings=bool(config.get("tie_word_embeddings", False)),
            eos_ids=tuple(fields.one_or_many("eos_token_id", int)),
            bos_id=fields.maybe("bos_token_id", int),
            rope_scaling=_scaling(rope),
        )

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
        fields = Fields(metadata, "the GGUF file")
        heads = fields.whole("llama.attention.head_count")
        hidden = fields.whole("llama.embedding_length")
        head_dim = fields.whole("llama.attention.key_length", hidden // max(heads, 1))
        if fields.whole("llama.rope.dimension_count", head_dim) != head_dim:
            raise ModelUnsupported(
                "the GGUF file rotates only a part of each head, which the engine does not compute"
            )
        tokens = fields.many("tokenizer.ggml.tokens", str)
        types = fields.many("tokenizer.ggml.token_type", int)
        ends = [fields.maybe(f"tokenizer.ggml.{end}_token_id", int) for end in ("eos", "eot")]
        # the metadata names one end; a model may also write the others that its vocabulary has
        ends += [
            at
            for at, (text, kind) in enumerate(zip(tokens, types, strict=False))
            if kind == 3 and text in ENDS
        ]
        return cls(
            layers=fields.whole("llama.block_count"),
            hidden=hidden,
            feed_forward=fields.whole("llama.feed_forward_length"),
            heads=heads,
            kv_heads=fields.whole("llama.attention.head_count_kv", heads),
            head_dim=head_dim,
            vocab=fields.whole("llama.vocab_size", len(tokens)),
            rope_theta=fields.number("llama.rope.freq_base", 10_000.0),
            norm_eps=fields.number("llama.attention.layer_norm_rms_epsilon"),
            max_positions=fields.whole("llama.context_length"),
            tied_embeddings=tied_embeddings,
            eos_ids=tuple(dict.fromkeys(end for end in ends if end is not None)),
            bos_id=fields.maybe("tokenizer.ggml.bos_token_id", int),
        )

    def digest(self) -> str:
        """A short name for exactly this shape; part of a model's digest."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


def model_digest(config: ModelConfig, weights_identity: str) -> str:
    """Equal for two peers exactly when they run the same model; a KV cache makes sense only between such peers."""
    return hashlib.sha256(f"{config.digest()}:{weights_identity}".encode()).hexdigest()[:32]


def _scaling(rope: Fields) -> RopeScaling | None:
    kind = rope.maybe("rope_type", str) or rope.maybe("type", str) or "default"
    if kind == "default":
        return None
    if kind != "llama3":
        raise ModelUnsupported(
            f"config.json asks for rope scaling {kind!r}; the built-in engine computes llama3 or none"
        )
    return RopeScaling(
        factor=rope.number("factor"),
        low_freq_factor=rope.number("low_freq_factor"),
        high_freq_factor=rope.number("high_freq_factor"),
        original_max_positions=rope.whole("original_max_position_embeddings"),
    )
