"""From logits to a token, and the same one whatever else is in the batch."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from tidewheel_workers.llm.drawing import draw
from tidewheel_workers.llm.sampling_params import LEAST_PENALTY, SamplingParams

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Place", "Sampled", "SamplingParams", "TokenLogprob", "sample", "uniform"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    """Natural log-probabilities under the model itself, before temperature, biases, penalties and cuts."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()  # the likeliest tokens, best first


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """One chosen token."""

    token: int
    logprob: TokenLogprob | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where one answer wants its next token."""

    params: SamplingParams
    seed: int
    choice: int = 0
    tokens: Sequence[int] = ()  # the prompt, and what was written
    prompt_tokens: int = 0  # of these

    @property
    def written(self) -> int:
        """Tokens of the answer so far."""
        return len(self.tokens) - self.prompt_tokens


def uniform(seed: int, choice: int, index: int) -> float:
    """The draw in [0, 1) for token `index` of one choice of a request.

    It depends on nothing else: no generator state has to move when a sequence moves from prefill to decode, and a
    sequence draws the same numbers whatever runs beside it.
    """
    story = hashlib.blake2b(f"{seed}:{choice}:{index}".encode(), digest_size=8).digest()
    return (int.from_bytes(story, "big") >> 11) / (1 << 53)


def sample(
    logits: torch.Tensor, places: Sequence[Place], *, eos_ids: Sequence[int] = ()
) -> list[Sampled | None]:
    """Choose the next token of each answer; None where the logits are no numbers.

    Args:
        logits: [places, vocabulary], any float dtype, any device; what is not plainly greedy is chosen on the host.
        places: where the tokens go.
        eos_ids: tokens that cannot come before `min_tokens` others have.
    """
    sound = torch.isfinite(logits.amax(dim=-1)).tolist()
    chosen: list[Sampled | None] = [None] * len(places)
    plain, rest = [], []
    for index, place in enumerate(places):
        params = place.params
        if not sound[index]:
            continue
        if params.is_greedy and not params.changes_logits and params.logprobs is None:
            plain.append(index)
        else:
            rest.append(index)
    if plain:
        tokens = _rows(logits, plain).argmax(dim=-1).tolist()
        for index, token in zip(plain, tokens, strict=True):
            chosen[index] = Sampled(token=token)
    if rest:
        found = _sample(_rows(logits, rest).float().cpu(), [places[index] for index in rest], eos_ids)
        for index, one in zip(rest, found, strict=True):
            chosen[index] = one
    return chosen


def _rows(logits: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    if len(rows) == logits.shape[0]:
        return logits
    return logits.index_select(0, torch.tensor(rows, device=logits.device))


def _sample(logits: torch.Tensor, places: Sequence[Place], eos_ids: Sequence[int]) -> list[Sampled]:
    wanted = _changed(logits, places, eos_ids)
    tokens = [0] * len(places)
    greedy = [index for index, place in enumerate(places) if place.params.is_greedy]
    drawn = [index for index, place in enumerate(places) if not place.params.is_greedy]
    if greedy:
        for index, token in zip(greedy, _rows(wanted, greedy).argmax(dim=-1).tolist(), strict=True):
            tokens[index] = token
    if drawn:
        temperatures = torch.tensor([places[index].params.temperature for index in drawn])
        scores = torch.log_softmax(_rows(wanted, drawn) / temperatures[:, None], dim=-1).numpy()
        for row, index in zip(scores, drawn, strict=True):
            place = places[index]
            tokens[index] = draw(row, place.params, uniform(place.seed, place.choice, place.written))
    logprobs = _logprobs(logits, places, tokens)
    return [Sampled(token=token, logprob=logprobs.get(index)) for index, token in enumerate(tokens)]


def _changed(logits: torch.Tensor, places: Sequence[Place], eos_ids: Sequence[int]) -> torch.Tensor:
    """The logits with penalties, biases and forbidden ends; the given ones where nobody wants any."""
    if not any(place.params.changes_logits for place in places):
        return logits
    changed = logits.clone()
    for row, place in zip(changed, places, strict=True):
        params = place.params
        if params.repetition_penalty != 1.0:
            seen = _indices(place.tokens)
            at = row[seen]
            penalty = max(params.repetition_penalty, LEAST_PENALTY)
            row[seen] = torch.where(at > 0, at / penalty, at * penalty)
        if place.written and (params.presence_penalty or params.frequency_penalty):
            seen, counts = torch.unique(_indices(place.tokens[place.prompt_tokens :]), return_counts=True)
            row[seen] -= params.presence_penalty + params.frequency_penalty * counts
        if params.logit_bias:
            biased, values = zip(*params.logit_bias, strict=True)
            row.index_add_(0, torch.tensor(biased), torch.tensor(values, dtype=row.dtype))
        if place.written < params.min_tokens and not params.ignore_eos:
            row[list(eos_ids)] = -math.inf
    return changed


def _indices(tokens: Sequence[int]) -> torch.Tensor:
    return torch.from_numpy(np.array(tokens, dtype=np.int64))


def _logprobs(
    logits: torch.Tensor, places: Sequence[Place], tokens: Sequence[int]
) -> dict[int, TokenLogprob]:
    """What the requests want to know of their tokens, by row."""
    asked = [index for index, place in enumerate(places) if place.params.logprobs is not None]
    if not asked:
        return {}
    scores = torch.log_softmax(_rows(logits, asked), dim=-1)
    width = min(max(places[index].params.logprobs or 0 for index in asked), scores.shape[-1])
    best, likeliest = scores.topk(width) if width else (scores[:, :0], scores[:, :0].long())
    told = {}
    for row, index in enumerate(asked):
        count = places[index].params.logprobs or 0
        top = zip(likeliest[row, :count].tolist(), best[row, :count].tolist(), strict=True)
        token = tokens[index]
        told[index] = TokenLogprob(token=token, logprob=float(scores[row, token]), top=tuple(top))
    return told
