"""The same weights come out of every format, and files that are not what they seem are named with what to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from tidewheel_workers.llm.config import ModelConfig, model_digest
from tidewheel_workers.llm.errors import (
    ModelDownloadFailed,
    ModelError,
    ModelNotFound,
    ModelUnreadable,
    ModelUnsupported,
)
from tidewheel_workers.llm.gguf_file import GGUFFile
from tidewheel_workers.llm.loading import LoadedModel, load_model, read_llama
from tidewheel_workers.llm.model import Llama
from tidewheel_workers.llm.source import ModelSource, locate_model

CPU = torch.device("cpu")
Tensors = dict[str, torch.Tensor]


def write_gguf(path: Path, config: ModelConfig, tensors: Tensors, *, quantised: bool = False) -> Path:
    """As llama.cpp's converter writes a Llama model: query and key rows of each head interleaved."""
    names = {
        "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    }  # fmt: skip
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.layers)
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.hidden)
    writer.add_feed_forward_length(config.feed_forward)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_vocab_size(config.vocab)
    writer.add_key_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    letters = [chr(ord("!") + index) for index in range(94)]
    writer.add_token_list(letters)
    writer.add_token_merges([])
    writer.add_eos_token_id(0)
    for name, tensor in tensors.items():
        array = tensor.numpy()
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config.heads if "q_proj" in name else config.kv_heads
            array = array.reshape(heads, 2, config.head_dim // 2, -1).swapaxes(1, 2).reshape(array.shape)
        stem = name.removesuffix(".weight")
        if stem.startswith("model.layers."):
            _, _, layer, part = stem.split(".", 3)
            stem = f"blk.{layer}.{names[part]}"
        else:
            stem = names[stem]
        kind = gguf.GGMLQuantizationType.Q8_0
        if quantised and array.ndim == 2:
            writer.add_tensor(f"{stem}.weight", gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(f"{stem}.weight", np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_safetensors(directory: Path, config: ModelConfig, tensors: Tensors, **changes: Any) -> Path:
    directory.mkdir()
    content = {
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": config.layers,
        "hidden_size": config.hidden,
        "intermediate_size": config.feed_forward,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.norm_eps,
        "max_position_embeddings": config.max_positions,
        "eos_token_id": 0,
    } | changes
    (directory / "config.json").write_text(json.dumps(content))
    tokenizer = Tokenizer(models.BPE(vocab={chr(ord("!") + index): index for index in range(94)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(
        json.dumps(
            {"chat_template": "{{ messages[0].content }}{{ eos_token }}", "eos_token": {"content": "!"}}
        )
    )
    names = sorted(tensors)
    for index, part in enumerate((names[::2], names[1::2])):
        save_file({name: tensors[name] for name in part}, directory / f"model-{index}.safetensors")
    return directory


def all_weights(model: Llama) -> list[torch.Tensor]:
    w = model.weights
    layers = [
        tensor
        for layer in w.layers
        for tensor in (
            layer.attention_norm,
            layer.qkv,
            layer.attention_out,
            layer.feed_forward_norm,
            layer.gate_up,
            layer.down,
        )
    ]
    return [w.embedding, w.norm, w.head, *layers]


def test_gguf_gives_the_weights_in_hugging_faces_order(
    tmp_path: Path, tiny: Llama, tiny_config: ModelConfig, tiny_tensors: Tensors
) -> None:
    file = GGUFFile(write_gguf(tmp_path / "tiny.gguf", tiny_config, tiny_tensors))
    assert replace(file.config, norm_eps=tiny_config.norm_eps) == tiny_config
    model = read_llama(file, device=CPU, dtype=torch.float32)
    assert all(map(torch.equal, all_weights(model), all_weights(tiny)))


def test_quantised_weights_come_out_in_order_and_near(
    tmp_path: Path,
    tiny_config: ModelConfig,
    llama_of: Callable[..., Llama],
    random_weights: Callable[[ModelConfig], Tensors],
) -> None:
    config = replace(tiny_config, hidden=64, heads=8)
    tensors = random_weights(config)
    file = GGUFFile(write_gguf(tmp_path / "quantised.gguf", config, tensors, quantised=True))
    found = all_weights(read_llama(file, device=CPU, dtype=torch.float32))
    for ours, wanted in zip(found, all_weights(llama_of(config, tensors)), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=0, atol=0.02 * float(wanted.abs().max()))


def test_safetensors_in_parts_give_the_same_weights(
    tmp_path: Path, tiny: Llama, tiny_config: ModelConfig, tiny_tensors: Tensors
) -> None:
    loaded = load_model(f"path:{write_safetensors(tmp_path / 'tiny', tiny_config, tiny_tensors)}")
    assert loaded.model.config == tiny_config
    assert all(map(torch.equal, all_weights(loaded.model), all_weights(tiny)))
    assert loaded.tokenizer.apply_chat_template([{"role": "user", "content": "AB"}]) == [32, 33, 0]


def test_the_end_tokens_of_the_generation_config_count(
    tmp_path: Path, tiny_config: ModelConfig, tiny_tensors: Tensors
) -> None:
    directory = write_safetensors(tmp_path / "tiny", tiny_config, tiny_tensors)
    (directory / "generation_config.json").write_text('{"eos_token_id": [0, 5]}')
    assert load_model(f"path:{directory}").model.config.eos_ids == (0, 5)


def test_a_digest_tells_models_and_quantisations_apart(
    tmp_path: Path, tiny_config: ModelConfig, tiny_tensors: Tensors
) -> None:
    def digest(name: str, tensors: Tensors) -> str:
        path = write_gguf(tmp_path / name, tiny_config, tensors)
        return model_digest(GGUFFile(path).config, locate_model(ModelSource.parse(f"path:{path}")).identity())

    other = {**tiny_tensors, "model.norm.weight": tiny_tensors["model.norm.weight"] + 1}
    assert digest("a.gguf", tiny_tensors) == digest("b.gguf", tiny_tensors) != digest("c.gguf", other)


@pytest.fixture
def good_gguf(tmp_path: Path, tiny_config: ModelConfig, tiny_tensors: Tensors) -> Path:
    return write_gguf(tmp_path / "good.gguf", tiny_config, tiny_tensors)


@pytest.mark.parametrize("part", [0.0, 0.00001, 0.01, 0.05, 0.5, 0.999])
def test_a_truncated_gguf_is_named(good_gguf: Path, part: float) -> None:
    whole = good_gguf.read_bytes()
    good_gguf.write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(ModelUnreadable, match=r"empty|truncated|does not begin"):
        GGUFFile(good_gguf)


def test_a_gguf_header_that_lies_costs_nothing(good_gguf: Path) -> None:
    whole = bytearray(good_gguf.read_bytes())
    for at in range(4, 400):
        damaged = whole.copy()
        damaged[at] ^= 0xFF
        good_gguf.write_bytes(damaged[:4096])
        with pytest.raises(ModelError):
            GGUFFile(good_gguf)


def test_an_error_page_is_no_gguf(tmp_path: Path) -> None:
    page = tmp_path / "model.gguf"
    page.write_text("<html>404</html>")
    with pytest.raises(ModelUnreadable, match="LFS pointer"):
        load_model(f"path:{page}")


def test_truncated_safetensors_are_named(
    tmp_path: Path, tiny_config: ModelConfig, tiny_tensors: Tensors
) -> None:
    directory = write_safetensors(tmp_path / "tiny", tiny_config, tiny_tensors)
    part = directory / "model-0.safetensors"
    part.write_bytes(part.read_bytes()[:-100])
    with pytest.raises(ModelUnreadable, match=r"model-0\.safetensors.*download it again"):
        load_model(f"path:{directory}")


def test_a_missing_part_is_named(tmp_path: Path, tiny_config: ModelConfig, tiny_tensors: Tensors) -> None:
    directory = write_safetensors(tmp_path / "tiny", tiny_config, tiny_tensors)
    (directory / "model-1.safetensors").unlink()
    with pytest.raises(ModelUnreadable, match="has no tensor"):
        load_model(f"path:{directory}")
    (directory / "model.safetensors.index.json").write_text('{"weight_map": {"x": "model-1.safetensors"}}')
    with pytest.raises(ModelUnreadable, match=r"lacks model-1\.safetensors"):
        load_model(f"path:{directory}")


def test_weights_that_contradict_the_configuration_are_named(
    tmp_path: Path, tiny_config: ModelConfig, tiny_tensors: Tensors
) -> None:
    directory = write_safetensors(tmp_path / "tiny", tiny_config, tiny_tensors, intermediate_size=63)
    with pytest.raises(ModelUnreadable, match=r"gate_proj.weight has the shape \(64, 48\)"):
        load_model(f"path:{directory}")


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"architectures": ["GemmaForCausalLM"]}, ModelUnsupported, "GemmaForCausalLM.*vLLM"),
        ({"quantization_config": {"bits": 4}}, ModelUnsupported, "quantization_config"),
        ({"rope_scaling": {"rope_type": "yarn"}}, ModelUnsupported, "yarn"),
        ({"rope_scaling": {"rope_type": "llama3"}}, ModelUnreadable, "no factor"),
        ({"hidden_size": None}, ModelUnreadable, "no hidden_size"),
        ({"num_attention_heads": "many"}, ModelUnreadable, "wrong type"),
        ({"num_key_value_heads": 4}, ModelUnreadable, "cannot share"),
    ],
    ids=["architecture", "quantisation", "scaling", "half a scaling", "missing", "type", "heads"],
)
def test_configurations_that_cannot_run_are_refused(
    tmp_path: Path, tiny_config: ModelConfig, changes: dict[str, Any], error: type[Exception], says: str
) -> None:
    directory = write_safetensors(tmp_path / "tiny", tiny_config, {}, **changes)
    with pytest.raises(error, match=says):
        load_model(f"path:{directory}")


def test_places_without_a_model_are_named(tmp_path: Path) -> None:
    (tmp_path / "several").mkdir()
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / "several" / name).touch()
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "pytorch_model.bin").touch()
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "model.safetensors").touch()
    for text, error, says in [
        ("package:no-such-distribution-anywhere", ModelNotFound, "pip install"),
        ("package:pytest", ModelNotFound, "it has none"),
        (f"path:{tmp_path / 'absent'}", ModelNotFound, "does not exist"),
        (f"path:{tmp_path}", ModelNotFound, "neither"),
        (f"path:{tmp_path / 'several'}", ModelNotFound, "a.gguf, b.gguf"),
        (f"path:{tmp_path / 'pickled'}", ModelUnsupported, "pickled"),
        (f"path:{tmp_path / 'bare'}", ModelUnreadable, "no config.json and no tokenizer.json"),
        ("s3://bucket", ModelNotFound, "write package:"),
    ]:
        with pytest.raises(error, match=says):
            locate_model(ModelSource.parse(text))


def test_an_installed_package_holds_the_model(smollm: LoadedModel) -> None:
    assert smollm.model.config.layers == 30
    assert smollm.model.config.eos_ids == (2, 0)


def test_a_download_without_a_network_says_so(tmp_path: Path) -> None:
    log = tmp_path / "termination-log"
    done = subprocess.run(
        [sys.executable, "-m", "tidewheel_workers.llm.fetch", "someone/some-model", str(tmp_path / "model")],
        env={**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "TIDEWHEEL_TERMINATION_LOG": str(log)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    told = json.loads(log.read_text())
    assert told["reason"] == ModelDownloadFailed.reason == "ModelDownloadFailed"
    assert "someone/some-model: the Hugging Face hub cannot be reached" in told["message"]
    assert told["message"] in done.stderr
