"""A draw falls on the token that a plain sort of the whole vocabulary gives, however little of it is looked at."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tidewheel_workers.llm import drawing
from tidewheel_workers.llm.drawing import draw
from tidewheel_workers.llm.sampling_params import SamplingParams


def distribution(size: int, *, spread: float, seed: int, steps: int = 0) -> NDArray[np.float32]:
    """Log-probabilities; in few steps many are equal."""
    logits = np.random.default_rng(seed).normal(size=size) * spread
    if steps:
        logits = np.round(logits * steps) / steps
    return (logits - np.logaddexp.reduce(logits)).astype(np.float32)


def borders(
    scores: NDArray[np.float32], params: SamplingParams
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """By the book: the tokens that may be drawn, in order, and the part of the draws that ends with each."""
    order = np.lexsort((np.arange(len(scores)), -scores))
    chances = np.exp(scores[order].astype(np.float64))
    if params.top_k:
        chances = chances[: params.top_k] / chances[: params.top_k].sum()
    keep = len(chances)
    if params.top_p < 1:
        keep = min(keep, int((chances.cumsum() < params.top_p).sum()) + 1)
    if params.min_p:
        keep = min(keep, int((chances >= params.min_p * chances[0]).sum()))
    chances = chances[:keep]
    return order[:keep], chances.cumsum() / chances.sum()


params = st.builds(
    SamplingParams,
    top_p=st.sampled_from([1.0, 1.0, 0.99871, 0.95131, 0.50131, 1e-6]),
    top_k=st.sampled_from([0, 0, 1, 7, 50, 700, 100_000]),
    min_p=st.sampled_from([0.0, 0.0, 1e-9, 0.001, 0.3, 1.0]),
)


@settings(max_examples=100, deadline=None)
@given(
    params=params,
    at=st.floats(0, 1, exclude_max=True),
    spread=st.sampled_from([0.0, 0.3, 3.0, 12.0, 60.0]),
    steps=st.sampled_from([0, 1, 4]),
    size=st.sampled_from([1, 40, 3000]),
    heads=st.sampled_from([(-7.0, -12.0), (), (-3.0,)]),
    seed=st.integers(0, 20),
)
def test_the_token_is_the_one_of_a_plain_sort(
    params: SamplingParams,
    at: float,
    spread: float,
    steps: int,
    size: int,
    heads: tuple[float, ...],
    seed: int,
) -> None:
    scores = distribution(size, spread=spread, seed=seed, steps=steps)
    tokens, ends = borders(scores, params)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "HEADS", heads)
        place = list(tokens).index(draw(scores, params, at))
    # where a border is, rounding may decide
    assert (ends[place - 1] if place else 0.0) - 1e-5 <= at <= ends[place] + 1e-5


@pytest.mark.parametrize("at", [0.0, 0.3, 0.999_999_999_999])
def test_a_token_that_is_forbidden_is_never_drawn(at: float) -> None:
    scores = distribution(500, spread=1.0, seed=0)
    scores[::2] = -math.inf
    assert draw(scores, SamplingParams(), at) % 2 == 1
    assert draw(scores, SamplingParams(top_p=0.9999), at) % 2 == 1


def test_the_last_draw_of_all_falls_on_a_token() -> None:
    scores = distribution(49_152, spread=0.1, seed=1)
    last = math.nextafter(1.0, 0.0)
    assert 0 <= draw(scores, SamplingParams(), last) < 49_152
    assert draw(scores, SamplingParams(top_k=3), last) in set(np.argsort(-scores)[:3])
