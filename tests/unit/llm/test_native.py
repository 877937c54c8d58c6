"""The compiled kernels compute what torch computes, and the same bits however a batch is mixed and a prompt is cut."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tidewheel_workers.llm.config import ModelConfig
from tidewheel_workers.llm.errors import ModelUnsupported
from tidewheel_workers.llm.kv import KVCache, KVLayout
from tidewheel_workers.llm.model import Llama, Segment
from tidewheel_workers.llm.native import (
    VARIABLE,
    Kind,
    NativeLlama,
    PackedMatrix,
    can_compute,
    chosen_kernels,
    instruction_sets,
)
from tidewheel_workers.llm.quantised import Int8Matrix, Quantization

NativeOf = Callable[..., NativeLlama]
LlamaOf = Callable[..., Llama]
Tensors = dict[str, torch.Tensor]

SETS = instruction_sets()
pytestmark = pytest.mark.skipif(not SETS, reason="no kernels are built, or none for this processor")

# nothing divides evenly: blocks of 32 columns, pairs of 16 rows, tiles of 6 tokens all have rests
ODD = ModelConfig(
    layers=2,
    hidden=80,
    feed_forward=72,
    heads=6,
    kv_heads=2,
    head_dim=32,
    vocab=101,
    rope_theta=10_000.0,
    norm_eps=1e-5,
    max_positions=4096,
    tied_embeddings=False,
    eos_ids=(0,),
)
TOKENS = torch.randint(0, ODD.vocab, (150,), generator=torch.Generator().manual_seed(4)).tolist()

KINDS: tuple[tuple[torch.dtype, Quantization], ...] = (
    (torch.float32, "None"),
    (torch.bfloat16, "None"),
    (torch.float32, "Int8"),
    (torch.bfloat16, "Int8"),
)


@pytest.fixture(scope="module")
def tensors(random_weights: Callable[[ModelConfig], Tensors]) -> Tensors:
    return random_weights(ODD)


@pytest.fixture(scope="module")
def best(native_of: NativeOf, tensors: Tensors) -> dict[tuple[torch.dtype, Quantization], NativeLlama]:
    """A model of each kind on the best kernels."""
    return {kind: native_of(ODD, tensors, SETS[0], *kind) for kind in KINDS}


def compute(
    model: Llama | NativeLlama, lengths: Sequence[int], *, tokens: Sequence[int] = TOKENS
) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits after the last of these parts of one prompt, and the prompt's keys and values."""
    kv = KVCache(KVLayout.of(model.config, model.dtype), blocks=16)
    slot, at = kv.allocate(sum(lengths)), 0
    with torch.inference_mode():
        for length in lengths:
            part = torch.tensor(tokens[at : at + length])
            logits = model.forward(part, [Segment(slot=slot, start=at, tokens=length)], kv)
            at += length
    return logits[0], kv.pool[:, :, slot.rows[:at]]


def likeness(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float(torch.cosine_similarity(found.double().flatten(), wanted.double().flatten(), dim=0))


@pytest.mark.parametrize("length", [1, 2, 16, 33, 64, 65, 150])
def test_float32_computes_what_torch_computes(
    length: int, best: dict[object, NativeLlama], llama_of: LlamaOf, tensors: Tensors
) -> None:
    logits, kv = compute(best[torch.float32, "None"], [length])
    want_logits, want_kv = compute(llama_of(ODD, tensors), [length])
    torch.testing.assert_close(logits, want_logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(kv, want_kv, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS[1:], ids=str)
def test_coarser_weights_stay_near_the_exact_ones(
    kind: tuple[torch.dtype, Quantization],
    best: dict[object, NativeLlama],
    llama_of: LlamaOf,
    tensors: Tensors,
) -> None:
    exact, exact_kv = compute(llama_of(ODD, tensors), [150])
    for model in (best[kind], llama_of(ODD, tensors, *kind)):
        logits, kv = compute(model, [150])
        assert likeness(logits, exact) > 0.995
        assert likeness(kv, exact_kv) > 0.999


def test_tied_embeddings_are_one_matrix(native_of: NativeOf, llama_of: LlamaOf, tensors: Tensors) -> None:
    tied = dataclasses.replace(ODD, tied_embeddings=True)
    model = native_of(tied, tensors, SETS[0])
    assert model.weights.head is model.weights.embedding
    torch.testing.assert_close(
        compute(model, [9])[0], compute(llama_of(tied, tensors), [9])[0], rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("kind", KINDS, ids=str)
@settings(max_examples=15, deadline=None)
@given(cuts=st.sets(st.integers(1, 149), max_size=6))
def test_how_a_prompt_is_cut_changes_no_bit(
    kind: tuple[torch.dtype, Quantization], cuts: set[int], best: dict[object, NativeLlama]
) -> None:
    lengths = [end - start for start, end in pairwise([0, *sorted(cuts), 150])]
    found, whole = compute(best[kind], lengths), compute(best[kind], [150])
    assert torch.equal(found[0], whole[0])
    assert torch.equal(found[1], whole[1])


@pytest.mark.parametrize("kind", KINDS, ids=str)
@settings(max_examples=15, deadline=None)
@given(
    sequences=st.lists(st.tuples(st.integers(0, 60), st.integers(1, 40)), min_size=1, max_size=20),
    threads=st.integers(1, 3),
)
def test_what_else_is_in_the_batch_changes_no_bit(
    kind: tuple[torch.dtype, Quantization],
    sequences: list[tuple[int, int]],
    threads: int,
    best: dict[object, NativeLlama],
) -> None:
    model = best[kind]
    kv = KVCache(KVLayout.of(ODD, model.dtype, 4), blocks=25 * len(sequences))
    # the blocks of each lie scattered between those of the others
    slots = [kv.new_slot() for _ in sequences]
    for number, slot in enumerate(slots):
        slot.follow([number + round_ * len(sequences) for round_ in range(25)])
    before, model.threads = model.threads, threads
    try:
        with torch.inference_mode():
            for number, ((start, _), slot) in enumerate(zip(sequences, slots, strict=True)):
                if start:
                    prompt = torch.tensor(TOKENS[number : number + start])
                    model.forward(prompt, [Segment(slot=slot, start=0, tokens=start)], kv)
            together = model.forward(
                torch.tensor(
                    [
                        token
                        for number, (start, count) in enumerate(sequences)
                        for token in TOKENS[number + start : number + start + count]
                    ]
                ),
                [
                    Segment(slot=slot, start=start, tokens=count)
                    for (start, count), slot in zip(sequences, slots, strict=True)
                ],
                kv,
            )
    finally:
        model.threads = before
    for number, ((start, count), logits) in enumerate(zip(sequences, together, strict=True)):
        alone, _ = compute(model, [start + count], tokens=TOKENS[number:])
        assert torch.equal(logits, alone)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_older_instructions_give_the_same(
    kind: tuple[torch.dtype, Quantization],
    best: dict[object, NativeLlama],
    native_of: NativeOf,
    tensors: Tensors,
) -> None:
    wanted = compute(best[kind], [150])
    for isa in SETS[1:]:
        found = compute(native_of(ODD, tensors, isa, *kind), [150])
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-2)


def test_each_layer_is_told_when_its_keys_and_values_are_there(best: dict[object, NativeLlama]) -> None:
    model = best[torch.float32, "None"]
    kv = KVCache(KVLayout.of(ODD, model.dtype), blocks=2)
    slot, told = kv.allocate(20), []
    with torch.inference_mode():
        model.forward(
            torch.tensor(TOKENS[:20]),
            [Segment(slot=slot, start=0, tokens=20)],
            kv,
            lambda layer: told.append((layer, kv.pool[layer].clone())),
        )
    _, wanted = compute(model, [20])
    assert [layer for layer, _ in told] == [0, 1]
    assert all(torch.equal(pool[:, slot.rows[:20]], wanted[layer]) for layer, pool in told)


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8"])
@settings(max_examples=20, deadline=None)
@given(
    rows=st.integers(1, 70), columns=st.integers(1, 100), tokens=st.integers(1, 15), seed=st.integers(0, 99)
)
def test_a_product_is_that_of_the_rounded_numbers(
    isa: str, kind: Kind, rows: int, columns: int, tokens: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(rows, columns, generator=generator)
    x = torch.randn(tokens, columns, generator=generator)
    matrix = PackedMatrix(isa, kind, rows, columns)
    for at in range(0, rows, 9):
        matrix.put(weights[at : at + 9], at)
    if kind == "bfloat16":
        x = x.bfloat16().float()
        assert torch.equal(matrix.dense(), weights.bfloat16().float())
    elif kind == "int8":
        assert torch.equal(matrix.dense(), as_int8(weights))
    wanted = (rounded(x) if kind == "int8" else x.double()) @ matrix.dense().double().T
    torch.testing.assert_close(matrix.multiply(x).double(), wanted, rtol=1e-4, atol=1e-4)


def rounded(x: torch.Tensor) -> torch.Tensor:
    """Activations as the kernels round them for 8-bit weights: 127 steps up to the largest of each 32."""
    tokens, columns = x.shape
    blocks = torch.nn.functional.pad(x, (0, -columns % 32)).view(tokens, -1, 32)
    scales = blocks.abs().amax(-1, keepdim=True) / 127
    whole = (blocks * torch.where(scales > 0, 1 / scales, 0.0)).round()
    return (whole.double() * scales.double()).flatten(1)[:, :columns]


def as_int8(weights: torch.Tensor) -> torch.Tensor:
    rows, columns = weights.shape
    matrix = Int8Matrix.empty(rows, columns, device=torch.device("cpu"), dtype=torch.float32)
    matrix.put([(0, weights)], 0)
    return matrix.dense()


@pytest.mark.parametrize("isa", SETS)
def test_weights_of_8_bits_stay_what_they_are(isa: str) -> None:
    once = as_int8(torch.randn(40, 96, generator=torch.Generator().manual_seed(1)))
    matrix = PackedMatrix(isa, "int8", 40, 96)
    matrix.put(once, 0)
    assert torch.equal(matrix.dense(), once)
    assert torch.equal(as_int8(once), once)


def test_a_block_of_zeros_is_no_fault() -> None:
    weights = torch.zeros(3, 64)
    weights[1, 40] = 5
    matrix = PackedMatrix(SETS[0], "int8", 3, 64)
    matrix.put(weights, 0)
    torch.testing.assert_close(
        matrix.multiply(torch.ones(1, 64)), torch.tensor([[0.0, 5.0, 0.0]]), rtol=1e-3, atol=0
    )
    assert torch.equal(matrix.multiply(torch.zeros(2, 64)), torch.zeros(2, 3))


def test_what_does_not_fit_is_refused_before_memory_is_touched(best: dict[object, NativeLlama]) -> None:
    model = best[torch.float32, "None"]
    kv = KVCache(KVLayout.of(ODD, torch.float32), blocks=2)
    slot = kv.allocate(20)
    part = Segment(slot=slot, start=0, tokens=2)
    with pytest.raises(ValueError, match="between 0 and 100"):
        model.forward(torch.tensor([1, 101]), [part], kv)
    with pytest.raises(ValueError, match="no room"):
        model.forward(torch.tensor([1, 2]), [dataclasses.replace(part, start=31)], kv)
    with pytest.raises(ValueError, match="not those of 1 segments"):
        model.forward(torch.tensor([1, 2, 3]), [part], kv)
    other = KVCache(KVLayout.of(ODD, torch.bfloat16), blocks=2)
    with pytest.raises(ValueError, match="not this model's"):
        model.forward(torch.tensor([1, 2]), [dataclasses.replace(part, slot=other.allocate(2))], other)
    with pytest.raises(ValueError, match="does not fit"):
        PackedMatrix(SETS[0], "int8", 4, 32).put(torch.zeros(3, 32), 2)


def test_shapes_and_places_that_the_kernels_lack_are_left_to_torch() -> None:
    cpu = torch.device("cpu")
    assert can_compute(ODD, cpu, torch.bfloat16)
    assert not can_compute(ODD, cpu, torch.float16)
    assert not can_compute(ODD, torch.device("meta"), torch.bfloat16)
    assert not can_compute(dataclasses.replace(ODD, head_dim=40), cpu, torch.float32)


def test_the_environment_chooses_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert chosen_kernels() == SETS[0]
    monkeypatch.setenv(VARIABLE, "torch")
    assert chosen_kernels() is None
    monkeypatch.setenv(VARIABLE, SETS[-1])
    assert chosen_kernels() == SETS[-1]
    monkeypatch.setenv(VARIABLE, "abacus")
    with pytest.raises(ModelUnsupported, match="'abacus'; to be had here are auto, torch"):
        chosen_kernels()


def test_a_forked_child_has_threads_of_its_own() -> None:
    # everything of torch's that would use its own threads is done before: these do not survive a fork
    story = """
import os, sys, torch
sys.path.insert(0, ".")
from tests.unit.llm.conftest import TensorsInMemory, random_tensors
from tests.unit.llm.test_native import ODD, TOKENS
from tidewheel_workers.llm.kv import KVCache, KVLayout
from tidewheel_workers.llm.loading import read_native
from tidewheel_workers.llm.model import Segment
from tidewheel_workers.llm.native import instruction_sets
model = read_native(TensorsInMemory(ODD, random_tensors(ODD)), isa=instruction_sets()[0], dtype=torch.float32)
kv = KVCache(KVLayout.of(ODD, model.dtype), blocks=8)
part = Segment(slot=kv.allocate(100), start=0, tokens=100)
model.threads = 2
compute = lambda: model.forward(torch.tensor(TOKENS[:100]), [part], kv).tolist()
here = compute()
if os.fork() == 0:
    os._exit(0 if compute() == here else 3)
sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", story], env=environment, timeout=120, check=False)
    assert done.returncode == 0
