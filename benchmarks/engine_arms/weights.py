"""One model's weights for every engine: the GGUF at hand, its Q8_0 and F16 kin, and a Hugging Face directory."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf.constants import GGMLQuantizationType
from safetensors.torch import save_file

from tidewheel_workers.llm.config import ModelConfig
from tidewheel_workers.llm.gguf_file import GGUFFile


def write_kin(source: Path, target: Path, kind: GGMLQuantizationType) -> Path:
    """The same model with its matrices in another format; vectors stay float32, as llama.cpp keeps them."""
    if target.exists():
        return target
    reader = gguf.GGUFReader(source)
    partial = target.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, "llama")
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        of = field.types[-1] if field.types[0] is gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=of)
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if values.ndim == 1:
            writer.add_tensor(tensor.name, values.astype(np.float32))
        else:
            writer.add_tensor(tensor.name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return partial.rename(target)


def write_hugging_face(source: Path, directory: Path) -> Path:
    """config.json and model.safetensors in float32, as both transformers and this engine read them."""
    if (directory / "config.json").exists():
        return directory
    directory.mkdir(parents=True, exist_ok=True)
    file = GGUFFile(source)
    tensors = {}
    for name in hugging_face_names(file.config):
        tensors[name] = torch.empty(file.shape(name))
        file.read_into(name, tensors[name])
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(hugging_face_config(file.config)))
    return directory


def hugging_face_names(config: ModelConfig) -> list[str]:
    """The names of all tensors."""
    parts = [f"self_attn.{name}_proj" for name in "qkvo"]
    parts += [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
    parts += ["input_layernorm", "post_attention_layernorm"]
    names = [f"model.layers.{layer}.{part}.weight" for layer in range(config.layers) for part in parts]
    names += ["model.embed_tokens.weight", "model.norm.weight"]
    return names if config.tied_embeddings else [*names, "lm_head.weight"]


def hugging_face_config(config: ModelConfig) -> dict[str, object]:
    """The content of config.json."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": config.layers,
        "hidden_size": config.hidden,
        "intermediate_size": config.feed_forward,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab,
        "hidden_act": "silu",
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.norm_eps,
        "max_position_embeddings": config.max_positions,
        "tie_word_embeddings": config.tied_embeddings,
        "bos_token_id": config.bos_id,
        "eos_token_id": list(config.eos_ids),
        "torch_dtype": "float32",
    }
