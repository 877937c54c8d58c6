"""The fused, batched, cached forward pass against the formulas written out plainly."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch

from tidewheel_workers.llm.config import ModelConfig, RopeScaling
from tidewheel_workers.llm.kv import KVCache, KVLayout
from tidewheel_workers.llm.model import Llama, Segment

LlamaOf = Callable[..., Llama]

PROMPT = [5, 17, 3, 88, 41, 2, 60, 23, 9]


def by_the_book(config: ModelConfig, tensors: dict[str, torch.Tensor], tokens: list[int]) -> torch.Tensor:
    """Logits at every position, in float64, one head and one position at a time, rotations as complex numbers."""
    w = {name: tensor.double() for name, tensor in tensors.items()}
    half, group = config.head_dim // 2, config.heads // config.kv_heads

    def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x / torch.sqrt((x**2).mean() + config.norm_eps) * weight

    def turned(x: torch.Tensor, position: int) -> torch.Tensor:
        angles = torch.tensor(
            [position * config.rope_theta ** (-i / half) for i in range(half)], dtype=torch.float64
        )
        z = torch.complex(x[:half], x[half:]) * torch.polar(torch.ones_like(angles), angles)
        return torch.cat((z.real, z.imag))

    xs = [w["model.embed_tokens.weight"][token] for token in tokens]
    for layer in range(config.layers):
        at = f"model.layers.{layer}"
        normed = [norm(x, w[f"{at}.input_layernorm.weight"]) for x in xs]
        q, k, v = (
            [(w[f"{at}.self_attn.{name}_proj.weight"] @ x).view(-1, config.head_dim) for x in normed]
            for name in "qkv"
        )
        for position in range(len(tokens)):
            heads = []
            for head in range(config.heads):
                query = turned(q[position][head], position)
                scores = torch.stack(
                    [query @ turned(k[past][head // group], past) for past in range(position + 1)]
                ) / math.sqrt(config.head_dim)
                values = torch.stack([v[past][head // group] for past in range(position + 1)])
                heads.append(torch.softmax(scores, 0) @ values)
            xs[position] = xs[position] + w[f"{at}.self_attn.o_proj.weight"] @ torch.cat(heads)
            y = norm(xs[position], w[f"{at}.post_attention_layernorm.weight"])
            gate = w[f"{at}.mlp.gate_proj.weight"] @ y
            inner = gate * torch.sigmoid(gate) * (w[f"{at}.mlp.up_proj.weight"] @ y)
            xs[position] = xs[position] + w[f"{at}.mlp.down_proj.weight"] @ inner
    return torch.stack([w["lm_head.weight"] @ norm(x, w["model.norm.weight"]) for x in xs])


def new_kv(model: Llama) -> KVCache:
    return KVCache(KVLayout.of(model.config, model.dtype, 4), blocks=32, device=model.device)


def run(model: Llama, kv: KVCache, tokens: list[int], *batch: Segment) -> torch.Tensor:
    with torch.inference_mode():
        return model.forward(torch.tensor(tokens), batch, kv).cpu()


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted.to(found.dtype), rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def wanted(tiny_config: ModelConfig, tiny_tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    return by_the_book(tiny_config, tiny_tensors, PROMPT)


def test_prefill_computes_the_formulas(tiny: Llama, wanted: torch.Tensor) -> None:
    kv = new_kv(tiny)
    logits = run(tiny, kv, PROMPT, Segment(slot=kv.allocate(20), start=0, tokens=len(PROMPT)))
    close(logits[0], wanted[-1])


def test_decode_token_by_token_equals_recomputing_everything(tiny: Llama, wanted: torch.Tensor) -> None:
    kv = new_kv(tiny)
    slot = kv.allocate(len(PROMPT))
    run(tiny, kv, PROMPT[:3], Segment(slot=slot, start=0, tokens=3))
    for position in range(3, len(PROMPT)):
        logits = run(tiny, kv, [PROMPT[position]], Segment(slot=slot, start=position, tokens=1))
        close(logits[0], wanted[position])


def test_a_prompt_may_be_computed_in_parts(tiny: Llama, wanted: torch.Tensor) -> None:
    kv = new_kv(tiny)
    slot = kv.allocate(len(PROMPT))
    run(tiny, kv, PROMPT[:4], Segment(slot=slot, start=0, tokens=4))
    close(run(tiny, kv, PROMPT[4:], Segment(slot=slot, start=4, tokens=len(PROMPT) - 4))[0], wanted[-1])


def test_each_layer_is_told_when_its_keys_and_values_are_there(tiny: Llama) -> None:
    whole, parts = new_kv(tiny), new_kv(tiny)
    segment = Segment(slot=whole.allocate(20), start=0, tokens=len(PROMPT))
    run(tiny, whole, PROMPT, segment)
    told = []

    def look(layer: int) -> None:
        told.append((layer, parts.pool[layer].clone()))

    with torch.inference_mode():
        tiny.forward(
            torch.tensor(PROMPT), [dataclasses.replace(segment, slot=parts.allocate(20))], parts, look
        )
    assert [layer for layer, _ in told] == list(range(tiny.config.layers))
    assert all(torch.equal(pool, whole.pool[layer]) for layer, pool in told)


def test_prompts_and_decode_tokens_share_one_pass(tiny: Llama, wanted: torch.Tensor) -> None:
    kv = new_kv(tiny)
    decoding, prompt, short = kv.allocate(20), kv.allocate(20), kv.allocate(20)
    run(tiny, kv, PROMPT[:6], Segment(slot=decoding, start=0, tokens=6))
    logits = run(
        tiny,
        kv,
        [*PROMPT, PROMPT[6], *PROMPT[:2]],
        Segment(slot=prompt, start=0, tokens=len(PROMPT)),
        Segment(slot=decoding, start=6, tokens=1),
        Segment(slot=short, start=0, tokens=2),
    )
    close(logits, wanted[[8, 6, 1]])


def test_scattered_blocks_hold_a_sequence_as_well_as_a_run(tiny: Llama, wanted: torch.Tensor) -> None:
    kv = new_kv(tiny)
    neighbours = [kv.allocate(4) for _ in range(32)]
    for index in (1, 8, 20):
        kv.free(neighbours[index])
    slot = kv.allocate(len(PROMPT))
    assert slot.blocks == [1, 8, 20]
    run(tiny, kv, PROMPT[:5], Segment(slot=slot, start=0, tokens=5))
    for position in range(5, len(PROMPT)):
        close(
            run(tiny, kv, [PROMPT[position]], Segment(slot=slot, start=position, tokens=1))[0],
            wanted[position],
        )


def test_tied_embeddings_are_the_head(
    tiny_config: ModelConfig, tiny_tensors: dict[str, torch.Tensor], llama_of: LlamaOf
) -> None:
    tied = dataclasses.replace(tiny_config, tied_embeddings=True)
    tensors = {**tiny_tensors, "lm_head.weight": tiny_tensors["model.embed_tokens.weight"]}
    model = llama_of(tied, {name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"})
    kv = new_kv(model)
    logits = run(model, kv, PROMPT, Segment(slot=kv.allocate(20), start=0, tokens=len(PROMPT)))
    close(logits[0], by_the_book(tied, tensors, PROMPT)[-1])
    assert model.weights.head is model.weights.embedding


def test_bfloat16_stays_near_the_formulas(
    tiny_config: ModelConfig, tiny_tensors: dict[str, torch.Tensor], llama_of: LlamaOf, wanted: torch.Tensor
) -> None:
    model = llama_of(tiny_config, tiny_tensors, torch.bfloat16)
    kv = new_kv(model)
    logits = run(model, kv, PROMPT, Segment(slot=kv.allocate(20), start=0, tokens=len(PROMPT)))
    assert torch.cosine_similarity(logits[0].double(), wanted[-1], dim=0) > 0.999


def test_llama3_scaling_slows_only_long_waves() -> None:
    scaling = RopeScaling(factor=8, low_freq_factor=1, high_freq_factor=4, original_max_positions=8192)
    fast, slow = 1.0, 2 * math.pi / 100_000
    between = 2 * math.pi / 4096
    assert scaling.stretch(fast) == fast
    assert scaling.stretch(slow) == slow / 8
    assert between / 8 < scaling.stretch(between) < between


def test_single_tokens_of_many_sequences_are_computed_together_as_alone(
    tiny: Llama, wanted: torch.Tensor
) -> None:
    kv = new_kv(tiny)
    starts = [0, 1, 2, 3, 3, 5, 6, 7, 8]
    slots = [kv.allocate(start + 1) for start in starts]
    for slot, start in zip(slots, starts, strict=True):
        if start:
            run(tiny, kv, PROMPT[:start], Segment(slot=slot, start=0, tokens=start))
    logits = run(
        tiny,
        kv,
        [PROMPT[start] for start in starts],
        *(Segment(slot=slot, start=start, tokens=1) for slot, start in zip(slots, starts, strict=True)),
    )
    close(logits, wanted[starts])
