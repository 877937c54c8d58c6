"""What the servers need of an engine, and the values they exchange with it; apart so that they run without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tidewheel_workers.llm.errors import RequestError
    from tidewheel_workers.serving.settings import WorkerSettings

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
    logit_bias: tuple[tuple[int, float], ...] = ()  # token and what is added to its logit
    min_tokens: int = 0  # before these neither the end token nor a stop string ends the answer
    logprobs: int | None = None
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Logprob:
    """Natural log-probabilities of a token and of the likeliest ones at its place."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One request as an engine takes it."""

    request_id: str
    token_ids: Sequence[int]
    sampling: Sampling
    choices: int = 1  # answers wanted; they share the prompt's KV
    resumed: tuple[
        int, ...
    ] = ()  # of the answer, written elsewhere before: computed with the prompt, never given again

    @property
    def kv_tokens(self) -> int:
        """Tokens whose keys and values are computed before the next one is written."""
        return len(self.token_ids) + len(self.resumed)


@dataclass(frozen=True, slots=True, kw_only=True)
class First:
    """The first new token of one choice."""

    token: int
    logprob: Logprob | None = None


class KVSink(Protocol):
    """Where an engine writes a prompt's keys and values."""

    @property
    def buffer(self) -> memoryview:
        """Writable bytes of [layers, 2, Prompt.kv_tokens, kv_heads, head_dim]."""

    def wrote(self, layer: int, start: int, tokens: int) -> None:
        """The part of these tokens and this layer is final; called from the engine's thread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Computed:
    """A prompt is computed, and its keys and values stand in its sink."""

    request_id: str
    first: tuple[First, ...]  # one per choice
    cached_tokens: int = 0  # that did not have to be computed


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefilled:
    """A computed prompt: what goes to the engine that decodes."""

    first: tuple[First, ...]  # one per choice
    tokens: int  # whose keys and values are there: Prompt.kv_tokens
    kv: memoryview = field(repr=False)  # contiguous, as KVShape says
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """One token of one choice came out, or the choice ended."""

    request_id: str
    token: int | None  # None when an abort ends the request
    text: str
    output_tokens: int  # of this choice so far, this one and the resumed ones included
    choice: int = 0
    finish_reason: FinishReason | None = None
    logprob: Logprob | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """A request ended because the engine could not go on with it; the others are unaffected."""

    request_id: str
    error: RequestError


Happening = Generated | Computed | Failed


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLoad:
    """How busy an engine is, and what it has done since it started."""

    running: int = 0  # requests that are being computed or answered
    waiting: int = 0  # requests whose turn has not come
    kv_usage: float = 0.0  # part of the KV cache that requests hold, 0 to 1
    prefix_queries: int = 0  # prompt tokens looked up in the prefix cache
    prefix_hits: int = 0  # those of them that were there
    preemptions: int = 0  # times that a request gave its KV back, to be computed again later

    @property
    def has_work(self) -> bool:
        """Whether `step` would do something."""
        return self.running > 0 or self.waiting > 0


class ServingEngine(Protocol):
    """An engine; all but the encoding is called from one thread only."""

    identity: EngineIdentity
    max_context: int

    def fit(self, settings: WorkerSettings) -> None:
        """Take the size that these settings ask for, with the weights as they are; what was cached is gone.

        Nothing may run in the engine. `identity` stays, and `max_context` may change.

        Raises:
            ModelError: there is no room for it.
        """

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """The prompt of a conversation; from any thread. Raises InvalidRequest."""

    def encode_text(self, text: str) -> list[int]:
        """The tokens of a text; from any thread."""

    def token_bytes(self, token: int) -> bytes:
        """One token as bytes of UTF-8, perhaps part of a character, for log-probabilities; from any thread."""

    def cached_tokens(self, token_ids: Sequence[int]) -> int:
        """How many of a prompt's first tokens need not be computed here; from any thread, and true for a moment."""

    def submit(self, prompt: Prompt, sink: KVSink | None) -> None:
        """Take a prompt. Raises RequestError.

        With a sink it is only computed: `step` gives `Computed`, and nothing stays in the engine. Without one the
        answer is written here, too.
        """

    def admit(self, prompt: Prompt, computed: Prefilled) -> list[Generated]:
        """Start writing behind a prompt that was computed elsewhere; gives the first tokens. Raises RequestError.

        The memory of `computed.kv` may be used for something else when this returns.
        """

    def step(self) -> list[Happening]:
        """One round: parts of the prompts that wait, and a token for every choice that is being written."""

    def abort(self, request_id: str) -> None:
        """End a request, wherever it is; nothing happens when there is none."""

    def load(self) -> EngineLoad:
        """How busy the engine is now."""
