"""Sampling follows its parameters, and a seed fixes the tokens whatever else is in the batch."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tidewheel_workers.llm.errors import InvalidRequest
from tidewheel_workers.llm.sampling import Place, Sampled, SamplingParams, sample, uniform

LOGITS = torch.log(torch.tensor([0.1, 0.4, 0.05, 0.25, 0.2]))


def tokens_of(params: SamplingParams, draws: int = 3000) -> dict[int, float]:
    """How often each token comes, over many seeds."""
    found = sample(LOGITS.expand(draws, -1), [Place(params=params, seed=seed) for seed in range(draws)])
    counts: dict[int, float] = {}
    for one in found:
        counts[one.token] = counts.get(one.token, 0) + 1 / draws
    return counts


def place(
    params: SamplingParams, *, prompt: tuple[int, ...] = (), output: tuple[int, ...] = (), **more: int
) -> Place:
    return Place(params=params, tokens=(*prompt, *output), prompt_tokens=len(prompt), **{"seed": 1} | more)


def one(params: SamplingParams, *, prompt: tuple[int, ...] = (), output: tuple[int, ...] = ()) -> Sampled:
    return sample(LOGITS[None], [place(params, prompt=prompt, output=output)])[0]


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
            [
                place(SamplingParams(temperature=0.3), seed=7),
                place(SamplingParams(), output=(3,) * index),
                place(SamplingParams(top_k=1), seed=8),
            ],
        )[1].token
        for index in range(20)
    ]
    assert alone == beside
    assert len(set(alone)) > 1


MANY = (
    {"temperature": 0.0},
    {"temperature": 0.0, "repetition_penalty": 1.5},
    {"temperature": 0.7},
    {"temperature": 5.0},
    {"top_p": 0.8, "logprobs": 3},
    {"top_k": 7, "top_p": 0.9},
    {"min_p": 0.05, "frequency_penalty": 1.5, "presence_penalty": -1.0},
    {"logit_bias": ((5, 4.0), (9, -3.0)), "min_tokens": 5, "logprobs": 0},
)


def test_every_row_of_a_batch_gets_exactly_what_it_gets_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(64, 5000, generator=generator)
    logits[::2] = logits[::2].bfloat16().float()  # with many equal ones
    places = [
        place(
            SamplingParams(**MANY[row % len(MANY)]),
            prompt=(1, 2, 3),
            output=tuple(range(row % 9)),
            seed=row,
            choice=row % 3,
        )
        for row in range(64)
    ]
    together = sample(logits, places, eos_ids=(4, 5))
    assert together == [sample(logits[row : row + 1], [places[row]], eos_ids=(4, 5))[0] for row in range(64)]
    assert sample(logits[10:20], places[10:20], eos_ids=(4, 5)) == together[10:20]


def test_draws_are_even_and_differ_by_seed_choice_and_place() -> None:
    draws = [uniform(seed, choice, index) for seed in range(30) for choice in range(4) for index in range(20)]
    assert len(set(draws)) == len(draws)
    assert all(0 <= draw < 1 for draw in draws)
    assert sum(draws) / len(draws) == pytest.approx(0.5, abs=0.02)


def test_choices_of_a_request_are_drawn_apart() -> None:
    found = sample(LOGITS.expand(40, -1), [place(SamplingParams(), choice=choice) for choice in range(40)])
    assert len({one.token for one in found}) > 2


def test_equal_tokens_are_drawn_in_the_order_of_their_numbers() -> None:
    logits = torch.zeros(200, 8)
    logits[:, 6] = 1.0
    places = [place(SamplingParams(), seed=seed) for seed in range(200)]
    chances = [math.e / (math.e + 7)] + [1 / (math.e + 7)] * 7
    order = [6, 0, 1, 2, 3, 4, 5, 7]
    for seed, one in enumerate(sample(logits, places)):
        at = uniform(seed, 0, 0)
        ahead = chances[0 : order.index(one.token)]
        assert sum(ahead) - 1e-6 <= at <= sum(chances[: order.index(one.token) + 1]) + 1e-6


@pytest.mark.parametrize("bad", [math.nan, math.inf], ids=str)
@pytest.mark.parametrize("params", [{"temperature": 0.0}, {"logprobs": 2}, {"top_p": 0.5}], ids=str)
def test_logits_that_are_no_numbers_spoil_only_their_row(bad: float, params: dict[str, Any]) -> None:
    logits = LOGITS.repeat(3, 1)
    logits[1, 4] = bad
    places = [place(SamplingParams(**params), seed=seed) for seed in range(3)]
    found = sample(logits, places)
    assert found[1] is None
    alone = sample(LOGITS.repeat(3, 1), places)
    assert [found[0], found[2]] == [alone[0], alone[2]]


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


def test_the_end_token_waits_for_the_least_number_of_tokens() -> None:
    params = SamplingParams(temperature=0.0, min_tokens=2)
    places = [place(params, prompt=(1,), output=(0,) * written) for written in range(4)]
    found = [one.token for one in sample(LOGITS.repeat(4, 1), places, eos_ids=[1])]
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
