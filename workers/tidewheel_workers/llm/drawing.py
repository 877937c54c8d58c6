"""Which token a draw falls on: the inverse of a distribution function over a large vocabulary that is never sorted as a whole.

Tokens stand in falling order of their chance, equal ones by their number. Rounding elsewhere moves a token's border a
little; in this order there are few borders where much is drawn, so the token rarely changes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tidewheel_workers.llm.sampling_params import SamplingParams

# Sorting 50,000 tokens takes as long as a small model's step. Mostly it is enough to look at the few whose
# log-probability is above the first of these, or else the next, as long as they are few.
HEADS = (-7.0, -12.0)
MOST_IN_HEAD = 2048
BINS_PER_NAT = 4.0
BINS = 256


class Falling(Protocol):
    """Tokens in falling order; an answer is None where it is not known without looking at more of them."""

    def mass_of(self, count: int) -> float | None:
        """Chance of the first `count` tokens together."""

    def reach(self, mass: float) -> int | None:
        """How many tokens it takes to reach that chance together."""

    def above(self, score: float) -> int | None:
        """How many tokens have at least that log-probability."""

    def beyond(self, mass: float) -> int | None:
        """Place of the first token with which more than that chance is reached."""

    def token(self, place: int) -> int:
        """Who stands there."""


def draw(scores: NDArray[np.float32], params: SamplingParams, at: float) -> int:
    """A token.

    Args:
        scores: natural log-probabilities of the whole vocabulary.
        params: where to cut.
        at: the draw in [0, 1).
    """
    for floor in HEADS:
        tokens = np.flatnonzero(scores >= floor)
        if len(tokens) > MOST_IN_HEAD:
            break
        token = _fall(_Head(scores, tokens, floor), scores, params, at)
        if token is not None:
            return token
    token = _fall(_Binned(scores), scores, params, at)
    if token is None:
        raise RuntimeError("a draw from a whole vocabulary found no token")
    return token


def _fall(order: Falling, scores: NDArray[np.float32], params: SamplingParams, at: float) -> int | None:
    kept, mass = len(scores), 1.0
    if 0 < params.top_k < kept:
        left = order.mass_of(params.top_k)
        if left is None:
            return None
        kept, mass = params.top_k, left
    cuts = []
    if params.min_p > 0:
        cuts.append(order.above(float(scores.max()) + math.log(params.min_p)))
    if params.top_p < 1:
        # a part of what top_k leaves; the token that reaches it stays
        cuts.append(order.reach(params.top_p * mass))
    for cut in cuts:
        if cut is None:
            return None
        kept = min(kept, max(cut, 1))
    if cuts and kept < len(scores):
        left = order.mass_of(kept)
        if left is None:
            return None
        mass = left
    place = order.beyond(at * mass)
    return None if place is None else order.token(min(place, kept - 1))


def _sorted(
    scores: NDArray[np.float32], tokens: NDArray[np.intp]
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """These tokens, which come by their number, in falling order, and the chances of each and all before it together."""
    found = scores[tokens]
    order = np.argsort(-found, kind="stable")
    return tokens[order], np.exp(found[order].astype(np.float64)).cumsum()


class _Head:
    """The tokens above a floor, sorted."""

    def __init__(self, scores: NDArray[np.float32], tokens: NDArray[np.intp], floor: float) -> None:
        self._tokens, self._ladder = _sorted(scores, tokens)
        self._scores = scores[tokens]
        self._floor = floor

    def mass_of(self, count: int) -> float | None:
        """As in `Falling`."""
        return float(self._ladder[count - 1]) if count <= len(self._ladder) else None

    def reach(self, mass: float) -> int | None:
        """As in `Falling`."""
        place = int(np.searchsorted(self._ladder, mass, side="left"))
        return place + 1 if place < len(self._ladder) else None

    def above(self, score: float) -> int | None:
        """As in `Falling`."""
        return int((self._scores >= score).sum()) if score >= self._floor else None

    def beyond(self, mass: float) -> int | None:
        """As in `Falling`."""
        place = int(np.searchsorted(self._ladder, mass, side="right"))
        return place if place < len(self._ladder) else None

    def token(self, place: int) -> int:
        """As in `Falling`."""
        return int(self._tokens[place])


class _Binned:
    """All tokens in bins of falling chance; a bin is sorted when something depends on it. Everything is known."""

    def __init__(self, scores: NDArray[np.float32]) -> None:
        self._scores = scores
        self._bins = np.minimum((scores.max() - scores) * BINS_PER_NAT, BINS - 1).astype(np.int64)
        chances = np.exp(scores, dtype=np.float64)
        self._masses = np.bincount(self._bins, weights=chances, minlength=BINS).cumsum()
        self._counts = np.bincount(self._bins, minlength=BINS).cumsum()

    def mass_of(self, count: int) -> float:
        """As in `Falling`."""
        index = self._first(self._counts, count, "left")
        tokens, ladder = self._inside(index)
        return float(ladder[count - 1 - self._before(index, len(tokens))])

    def reach(self, mass: float) -> int:
        """As in `Falling`."""
        return self._place(mass, "left") + 1

    def above(self, score: float) -> int:
        """As in `Falling`."""
        return int((self._scores >= score).sum())

    def beyond(self, mass: float) -> int:
        """As in `Falling`."""
        return self._place(mass, "right")

    def token(self, place: int) -> int:
        """As in `Falling`."""
        index = self._first(self._counts, place, "right")
        tokens, _ = self._inside(index)
        return int(tokens[place - self._before(index, len(tokens))])

    def _place(self, mass: float, side: Literal["left", "right"]) -> int:
        index = self._first(self._masses, mass, side)
        tokens, ladder = self._inside(index)
        # the sums of a bin and of its tokens one by one may differ in the last digit
        inside = min(int(np.searchsorted(ladder, mass, side=side)), len(tokens) - 1)
        return self._before(index, len(tokens)) + inside

    def _first(self, sums: NDArray[Any], value: float, side: Literal["left", "right"]) -> int:
        """The first bin with which the value is reached or passed; it has tokens. The last one if none passes it."""
        index = int(np.searchsorted(sums, value, side=side))
        return index if index < BINS else int(np.searchsorted(sums, sums[-1], side="left"))

    def _before(self, index: int, inside: int) -> int:
        return int(self._counts[index]) - inside

    def _inside(self, index: int) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        tokens, ladder = _sorted(self._scores, np.flatnonzero(self._bins == index))
        return tokens, ladder + (self._masses[index - 1] if index else 0.0)
