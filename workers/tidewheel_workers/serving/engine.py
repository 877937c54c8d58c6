"""What the servers need of an engine, and the values they exchange with it; apart so that they run without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

FinishReason = Literal["stop", "length", "abort"]
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class KVShape:
    """The keys and values of one token, as contiguous buffers hold them: [layers, 2, tokens, kv_heads, head_dim]."""

    layers: int
    kv_heads: int
    head_dim: int
    dtype: str

    def bytes_for(self, tokens: int) -> int:
        """Bytes of a buffer of that many tokens."""
        return math.prod((self.layers, 2, tokens, self.kv_heads, self.head_dim, ITEM_BYTES[self.dtype]))


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineIdentity:
    """What two peers must have in common to exchange KV."""

    model_digest: str
    layout_digest: str
    kv: KVShape


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How a request wants its tokens chosen and when it wants them to end."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logprobs: int | None = None
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Logprob:
    """Natural log-probabilities of a token and of the likeliest ones at its place."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefilled:
    """A computed prompt: what goes to the engine that decodes."""

    first_token: int
    tokens: int  # of the prompt
    kv: memoryview = field(repr=False)  # contiguous, as KVShape says
    logprob: Logprob | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """One token of one request came out, or the request ended."""

    request_id: str
    token: int | None  # None when an abort ends the request
    text: str
    output_tokens: int  # so far, this one included
    finish_reason: FinishReason | None = None
    logprob: Logprob | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLoad:
    """How busy an engine is."""

    running: int = 0
    kv_usage: float = 0.0


class ServingEngine(Protocol):
    """An engine; all but the encoding is called from one thread only."""

    identity: EngineIdentity
    max_context: int

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """The prompt of a conversation; from any thread. Raises InvalidRequest."""

    def encode_text(self, text: str) -> list[int]:
        """The tokens of a text; from any thread."""

    def token_text(self, token: int) -> str:
        """One token as text, for log-probabilities; from any thread."""

    def prefill(self, request_id: str, token_ids: Sequence[int], sampling: Sampling) -> Prefilled:
        """Compute a prompt; nothing stays in the engine. Raises RequestError."""

    def admit(
        self, request_id: str, token_ids: Sequence[int], computed: Prefilled, sampling: Sampling
    ) -> Generated:
        """Start decoding behind a computed prompt; gives the first token. Raises RequestError."""

    def step(self) -> list[Generated]:
        """One token for every running request."""

    def abort(self, request_id: str) -> None:
        """End a running request; nothing happens when there is none."""

    def load(self) -> EngineLoad:
        """How busy the engine is now."""
