"""What the engine is asked and what it tells; plain values, so that they can be read without torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tidewheel_workers.llm.errors import RequestError
    from tidewheel_workers.llm.sampling import Sampled, TokenLogprob
    from tidewheel_workers.llm.sampling_params import SamplingParams

FinishReason = Literal["stop", "length", "abort"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A prompt, and how it is to be answered."""

    request_id: str
    token_ids: Sequence[int]
    params: SamplingParams
    choices: int = 1  # answers wanted; the prompt is computed once
    resumed: Sequence[int] = ()  # what was written elsewhere before; the answers go on behind it

    @property
    def kv_tokens(self) -> int:
        """Tokens whose keys and values are needed before the next token is chosen."""
        return len(self.token_ids) + len(self.resumed)


class Sink(Protocol):
    """Where a prompt's keys and values go."""

    @property
    def buffer(self) -> memoryview:
        """Writable bytes of [layers, 2, kv_tokens, kv_heads, head_dim]."""

    def wrote(self, layer: int, start: int, tokens: int) -> None:
        """These tokens of this layer are final."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputedPrompt:
    """A prompt that another engine has computed."""

    first: Sequence[Sampled]  # one per choice
    tokens: int  # whose keys and values are there: Request.kv_tokens
    kv: bytearray | memoryview = field(repr=False)  # as a sink's buffer


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenEvent:
    """One token of one choice came out."""

    request_id: str
    choice: int
    token: int
    text: str  # what became readable by it; may be empty
    output_tokens: int  # of this choice so far, this one and the resumed ones included
    finish_reason: FinishReason | None = None
    logprob: TokenLogprob | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptEvent:
    """A prompt is computed, its keys and values stand in its sink, and the engine is done with it."""

    request_id: str
    first: tuple[Sampled, ...]  # one per choice
    cached_tokens: int  # that did not have to be computed


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureEvent:
    """A request ended because the engine could not go on with it; the others are unaffected."""

    request_id: str
    error: RequestError


Event = TokenEvent | PromptEvent | FailureEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """A snapshot for metrics and for placement; the counts are since the start."""

    running: int  # requests that are being computed or answered
    waiting: int  # requests whose turn has not come
    kv_blocks: int
    kv_blocks_free: int  # that no request holds; they may still hold what a later prompt can use
    prompt_tokens: int  # computed
    output_tokens: int  # chosen
    prefix_queries: int  # prompt tokens looked up in the prefix cache
    prefix_hits: int  # those of them that were there
    preemptions: int  # times that a sequence gave its blocks back, to be computed again later

    @property
    def kv_usage(self) -> float:
        """Part of the KV blocks that requests hold, 0 to 1."""
        return 1 - self.kv_blocks_free / self.kv_blocks
