"""Sampling follows its parameters, and a seed fixes the tokens whatever else is in the batch."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tidewheel_workers.llm.errors import InvalidRequest
from tidewheel_workers.llm.sampling import Sampled, SamplingParams, sample, uniform

LOGITS = torch.log(torch.tensor([0.1, 0.4, 0.05, 0.25, 0.2]))


def tokens_of(params: SamplingParams, draws: int = 3000, output: tuple[int, ...] = ()) -> dict[int, float]:
    """How often each token comes, over many seeds."""
    found = sample(
        LOGITS.expand(draws, -1),
        [params] * draws,
        seeds=range(draws),
        prompts=[()] * draws,
        outputs=[output] * draws,
    )
    counts: dict[int, float] = {}
    for one in found:
        counts[one.token] = counts.get(one.token, 0) + 1 / draws
    return counts


def one(params: SamplingParams, *, prompt: tuple[int, ...] = (), output: tuple[int, ...] = ()) -> Sampled:
    return sample(LOGITS[None], [params], seeds=[1], prompts=[prompt], outputs=[output])[0]


def test_tokens_come_as_often_as_the_model_says() -> None:
    found = tokens_of(SamplingParams())
    assert found == pytest.approx({0: 0.1, 1: 0.4, 2: 0.05, 3: 0.25, 4: 0.2}, abs=0.03)


def test_a_temperature_sharpens() -> None:
    squares = LOGITS.exp() ** 2
    wanted = dict(enumerate((squares / squares.sum()).tolist()))
    assert tokens_of(SamplingParams(temperature=0.5)) == pytest.approx(wanted, abs=0.03)


@pytest.mark.parametrize(
    ("params", "kept"),
    [
        pytest.param({"top_k": 2}, {1, 3}, id="top_k keeps the likeliest"),
        pytest.param({"top_p": 0.6}, {1, 3}, id="top_p keeps the smallest head that reaches it"),
        pytest.param({"top_p": 0.66}, {1, 3, 4}, id="top_p takes the token that crosses it"),
        pytest.param({"top_p": 1e-9}, {1}, id="top_p always keeps one"),
        pytest.param({"min_p": 0.4}, {1, 3, 4}, id="min_p is relative to the likeliest"),
        pytest.param({"temperature": 0.0}, {1}, id="temperature 0 is greedy"),
        pytest.param({"temperature": 1e-30}, {1}, id="and so is next to 0"),
        pytest.param({"top_k": 3, "top_p": 0.7}, {1, 3}, id="top_p applies to what top_k left"),
    ],
)
def test_cuts_keep_only_these_tokens(params: dict[str, Any], kept: set[int]) -> None:
    assert set(tokens_of(SamplingParams(**params), draws=400)) == kept


def test_a_seed_fixes_the_token_whatever_is_in_the_batch() -> None:
    alone = [one(SamplingParams(), output=(3,) * index).token for index in range(20)]
    beside = [
        sample(
            torch.stack([torch.randn(5), LOGITS, torch.randn(5)]),
            [SamplingParams(temperature=0.3), SamplingParams(), SamplingParams(top_k=1)],
            seeds=[7, 1, 8],
            prompts=[(), (), ()],
            outputs=[(), (3,) * index, ()],
        )[1].token
        for index in range(20)
    ]
    assert alone == beside
    assert len(set(alone)) > 1


def test_draws_are_even_and_differ_by_seed_and_place() -> None:
    draws = [uniform(seed, index) for seed in range(50) for index in range(50)]
    assert len(set(draws)) == len(draws)
    assert all(0 <= draw < 1 for draw in draws)
    assert sum(draws) / len(draws) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    "params", [{}, {"top_p": 0.9}, {"min_p": 0.02}, {"temperature": 3.0}, {"top_p": 0.5}], ids=str
)
def test_looking_at_the_likeliest_first_changes_no_token(
    params: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = 2 * torch.randn(40, 3000, generator=torch.Generator().manual_seed(0))

    def drawn(head: int) -> list[int]:
        monkeypatch.setattr("tidewheel_workers.llm.sampling.HEAD", head)
        chosen = [SamplingParams(**params)] * 40
        found = sample(logits, chosen, seeds=range(40), prompts=[()] * 40, outputs=[()] * 40)
        return [one.token for one in found]

    everything = drawn(3000)
    assert drawn(4) == drawn(300) == everything
    assert len(set(everything)) > 30


def test_penalties_turn_to_other_tokens() -> None:
    greedy = {"temperature": 0.0}
    assert one(SamplingParams(**greedy, presence_penalty=1.0), output=(1,)).token == 3
    assert one(SamplingParams(**greedy, presence_penalty=1.0), prompt=(1,)).token == 1
    assert one(SamplingParams(**greedy, frequency_penalty=0.2), output=(1, 1)).token == 1
    assert one(SamplingParams(**greedy, frequency_penalty=0.2), output=(1, 1, 1)).token == 3
    assert one(SamplingParams(**greedy, repetition_penalty=2.0), prompt=(1,)).token == 3


def test_a_bias_turns_to_another_token() -> None:
    assert one(SamplingParams(temperature=0.0, logit_bias=((2, 3.0), (1, -1.0)))).token == 2
    assert one(SamplingParams(temperature=0.0, logit_bias=((1, -1.0),))).token == 3
    assert one(SamplingParams(temperature=0.0, logit_bias=((1_000_000, 100.0),))).token == 1


def test_the_end_token_waits_for_the_least_number_of_tokens() -> None:
    params = SamplingParams(temperature=0.0, min_tokens=2)
    found = [
        sample(LOGITS[None], [params], seeds=[1], prompts=[()], outputs=[(0,) * written], eos_ids=[1])[
            0
        ].token
        for written in range(4)
    ]
    assert found == [3, 3, 1, 1]


def test_logprobs_are_the_models_own() -> None:
    found = one(
        SamplingParams(temperature=0.1, top_k=1, presence_penalty=2.0, logit_bias=((1, 9.0),), logprobs=2)
    ).logprob
    assert found is not None
    assert found.token == 1
    assert found.logprob == pytest.approx(math.log(0.4), abs=1e-5)
    assert [token for token, _ in found.top] == [1, 3]
    assert one(SamplingParams()).logprob is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"top_p": 0.0},
        {"top_k": -1},
        {"min_p": 1.1},
        {"max_tokens": 0},
        {"stop": ("",)},
        {"presence_penalty": 3.0},
        {"frequency_penalty": -3.0},
        {"repetition_penalty": 0.0},
        {"logit_bias": ((-1, 1.0),)},
        {"logit_bias": ((1, 101.0),)},
        {"logit_bias": ((1, math.nan),)},
        {"logit_bias": ((1, 1.0),) * 1025},
        {"min_tokens": -1},
        {"logprobs": 21},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_senseless_parameters_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match=next(iter(wrong))):
        SamplingParams(**wrong)
