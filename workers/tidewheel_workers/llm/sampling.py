"""From logits to a token: parameters of a request, and sampling that gives the same token whatever else is in the batch."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from tidewheel_workers.llm.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

MOST_TOP_LOGPROBS = 20
MOST_BIASES = 1024
# below it division by the temperature overflows; other engines draw the line here, too
LEAST_TEMPERATURE = 1e-5
HEAD = 512  # tokens looked at before all are


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How a request wants its tokens chosen and when it wants them to end; names and ranges follow OpenAI and vLLM."""

    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0
    top_k: int = 0  # 0 keeps all
    min_p: float = 0.0  # relative to the likeliest token
    seed: int | None = None  # None: the engine draws one
    max_tokens: int | None = None  # None: the engine's limit
    stop: tuple[str, ...] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0  # over prompt and output
    logit_bias: tuple[tuple[int, float], ...] = ()  # token and what is added to its logit
    min_tokens: int = 0  # before these neither the end token nor a stop string ends the answer
    logprobs: int | None = None  # None: no log-probabilities; n: of the token and of the n likeliest
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        rules = (
            ("temperature", self.temperature, 0 <= self.temperature <= 100, "between 0 and 100"),
            ("top_p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top_k", self.top_k, self.top_k >= 0, "0 (off) or positive"),
            ("min_p", self.min_p, 0 <= self.min_p <= 1, "between 0 and 1"),
            ("max_tokens", self.max_tokens, self.max_tokens is None or self.max_tokens >= 1, "at least 1"),
            ("stop", self.stop, all(self.stop), "without empty strings"),
            ("presence_penalty", self.presence_penalty, -2 <= self.presence_penalty <= 2, "between -2 and 2"),
            (
                "frequency_penalty",
                self.frequency_penalty,
                -2 <= self.frequency_penalty <= 2,
                "between -2 and 2",
            ),
            (
                "repetition_penalty",
                self.repetition_penalty,
                0 < self.repetition_penalty <= 10,
                "above 0, at most 10",
            ),
            (
                "logit_bias",
                self.logit_bias,
                len(self.logit_bias) <= MOST_BIASES
                and all(token >= 0 and -100 <= bias <= 100 for token, bias in self.logit_bias),
                f"at most {MOST_BIASES} token ids with a bias between -100 and 100 each",
            ),
            ("min_tokens", self.min_tokens, self.min_tokens >= 0, "0 or positive"),
            (
                "logprobs",
                self.logprobs,
                self.logprobs is None or 0 <= self.logprobs <= MOST_TOP_LOGPROBS,
                f"between 0 and {MOST_TOP_LOGPROBS}",
            ),
        )
        for name, value, holds, want in rules:
            if not holds:
                raise InvalidRequest(f"{name}: {value!r} is not allowed; it must be {want}")

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature < LEAST_TEMPERATURE

    @property
    def changes_logits(self) -> bool:
        """Whether tokens are chosen by anything but the model's logits."""
        return bool(
            self.presence_penalty
            or self.frequency_penalty
            or self.repetition_penalty != 1.0
            or self.logit_bias
            or self.min_tokens
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    """Natural log-probabilities under the model itself, before temperature, penalties and cuts."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()  # the likeliest tokens, best first


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """One chosen token."""

    token: int
    logprob: TokenLogprob | None = None


def uniform(seed: int, index: int) -> float:
    """The draw in [0, 1) for output token `index` of a request.

    It depends on nothing else: no generator state has to move when a sequence moves from prefill to decode, and a
    sequence draws the same numbers whatever runs beside it.
    """
    story = hashlib.blake2b(f"{seed}:{index}".encode(), digest_size=8).digest()
    return (int.from_bytes(story, "big") >> 11) / (1 << 53)


def sample(
    logits: torch.Tensor,
    params: Sequence[SamplingParams],
    *,
    seeds: Sequence[int],
    prompts: Sequence[Sequence[int]],
    outputs: Sequence[Sequence[int]],
    eos_ids: Sequence[int] = (),
) -> list[Sampled]:
    """Choose the next token of each sequence.

    Args:
        logits: [sequences, vocabulary], any float dtype, any device; what is not plainly greedy is chosen on the host.
        params: of each sequence.
        seeds: of each sequence; the draw is `uniform(seed, len(output))`.
        prompts: prompt tokens, for the repetition penalty.
        outputs: tokens generated so far, for penalties and the draw.
        eos_ids: tokens that cannot come before `min_tokens` others have.
    """
    if all(p.is_greedy and not p.changes_logits and p.logprobs is None for p in params):
        return [Sampled(token=int(token)) for token in logits.argmax(dim=-1).tolist()]
    return [
        _sample_one(row, p, seed, prompt, output, eos_ids)
        for row, p, seed, prompt, output in zip(
            logits.float().cpu(), params, seeds, prompts, outputs, strict=True
        )
    ]


def _sample_one(
    logits: torch.Tensor,
    params: SamplingParams,
    seed: int,
    prompt: Sequence[int],
    output: Sequence[int],
    eos_ids: Sequence[int],
) -> Sampled:
    wanted = _changed(logits, params, prompt, output, eos_ids) if params.changes_logits else logits
    token = int(wanted.argmax()) if params.is_greedy else _draw(wanted, params, uniform(seed, len(output)))
    return Sampled(
        token=token, logprob=None if params.logprobs is None else _logprob(logits, token, params.logprobs)
    )


def _changed(
    logits: torch.Tensor,
    params: SamplingParams,
    prompt: Sequence[int],
    output: Sequence[int],
    eos_ids: Sequence[int],
) -> torch.Tensor:
    changed = logits.clone()
    if params.repetition_penalty != 1.0:
        seen = torch.unique(torch.tensor([*prompt, *output]))
        at = changed[seen]
        changed[seen] = torch.where(at > 0, at / params.repetition_penalty, at * params.repetition_penalty)
    if output and (params.presence_penalty or params.frequency_penalty):
        seen, counts = torch.unique(torch.tensor(list(output)), return_counts=True)
        changed[seen] -= params.presence_penalty + params.frequency_penalty * counts
    for token, bias in params.logit_bias:
        if token < len(changed):  # what is not in the vocabulary cannot come anyway
            changed[token] += bias
    if len(output) < params.min_tokens and not params.ignore_eos:
        changed[list(eos_ids)] = -math.inf
    return changed


def _draw(logits: torch.Tensor, params: SamplingParams, at: float) -> int:
    """Inverse of the distribution function over tokens in falling order, so that rounding elsewhere rarely matters.

    Sorting a whole vocabulary costs more than a small model's step, so the likeliest tokens are tried first.
    """
    scaled = logits / params.temperature
    vocab = scaled.shape[-1]
    tokens, chosen = _draw_among(scaled, min(params.top_k or HEAD, vocab), params, at)
    if chosen == len(tokens):
        tokens, chosen = _draw_among(scaled, vocab, params, at)
    return int(tokens[chosen])


def _draw_among(
    scaled: torch.Tensor, width: int, params: SamplingParams, at: float
) -> tuple[torch.Tensor, int]:
    """The `width` likeliest tokens, and which of them is drawn; `width` itself when that lies beyond them."""
    scores, tokens = scaled.topk(width)
    total = (scores if params.top_k else scaled).double().logsumexp(-1)
    chances = torch.exp(scores.double() - total)
    ladder = chances.cumsum(-1)
    kept = width
    if params.min_p > 0:
        kept = int((chances >= params.min_p * chances[0]).sum())
    if params.top_p < 1:
        # the smallest head that reaches top_p; the likeliest token always stays
        kept = min(kept, int((ladder < params.top_p).sum()) + 1)
    if kept < width or params.top_k or width == scaled.shape[-1]:
        step = int(torch.searchsorted(ladder, at * float(ladder[kept - 1]), right=True))
        return tokens, min(step, kept - 1)
    if params.min_p > 0 or params.top_p < 1:
        return tokens, width
    return tokens, int(torch.searchsorted(ladder, at, right=True))


def _logprob(logits: torch.Tensor, token: int, count: int) -> TokenLogprob:
    scores = torch.log_softmax(logits, dim=-1)
    top: tuple[tuple[int, float], ...] = ()
    if count:
        best, tokens = scores.topk(count)
        top = tuple(zip(tokens.tolist(), best.tolist(), strict=True))
    return TokenLogprob(token=token, logprob=max(float(scores[token]), -math.inf), top=top)
