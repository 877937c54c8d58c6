"""An engine without a model, for fault tests and dry runs of a deployment: it answers with the prompt, read from the KV.

The source is `stand-in`, or `stand-in:tokens=500,step_ms=5,prefill_ms=100` with any of these settings: the prompt is
repeated until `tokens` characters are out, one every `step_ms` milliseconds. A token is a byte. As the answer is read from the
transferred KV and from nothing else, a KV cache that did not arrive shows in the text.
"""

from __future__ import annotations

import hashlib
import struct
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tidewheel_workers.llm.errors import (
    InvalidRequest,
    KVMismatch,
    ModelNotFound,
    NoFreeSequence,
    PromptTooLong,
)
from tidewheel_workers.serving.engine import (
    Computed,
    EngineIdentity,
    EngineLoad,
    FinishReason,
    First,
    Generated,
    Happening,
    KVShape,
    Logprob,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tidewheel_workers.serving.engine import KVSink, Prefilled, Prompt, Sampling
    from tidewheel_workers.serving.settings import WorkerSettings

NAME = "stand-in"
SHAPE = KVShape(layers=2, kv_heads=1, head_dim=8, dtype="float32")
BLOCK = 16  # tokens
PROMPTS_REMEMBERED = 64
VECTOR = SHAPE.head_dim * SHAPE.kv_heads  # floats of one token in one plane


@dataclass(slots=True, kw_only=True)
class _Writing:
    text: bytes
    sampling: Sampling
    max_tokens: int
    tokens: int = 0


def is_stand_in(source: str) -> bool:
    """Whether a model source asks for this engine."""
    return source.partition(":")[0] == NAME


class StandInEngine:
    """A `ServingEngine` that computes nothing; it remembers its last prompts as if their KV were cached in blocks."""

    identity = EngineIdentity(
        model_digest=hashlib.sha256(b"stand-in").hexdigest()[:32],
        layout_digest=hashlib.sha256(repr(SHAPE).encode()).hexdigest()[:16],
        kv=SHAPE,
    )

    def __init__(
        self,
        *,
        max_context: int = 2048,
        slots: int = 4,
        tokens: int = 0,
        step_seconds: float = 0.0,
        prefill_seconds: float = 0.0,
    ) -> None:
        self.max_context = max_context
        self._slots = slots
        self._tokens = tokens
        self._step_seconds = step_seconds
        self._prefill_seconds = prefill_seconds
        self._waiting: dict[str, tuple[Prompt, KVSink | None]] = {}
        self._running: dict[str, dict[int, _Writing]] = {}  # by request and choice
        self._remembered: deque[tuple[int, ...]] = deque(maxlen=PROMPTS_REMEMBERED)
        self._prefix_queries = 0
        self._prefix_hits = 0

    @classmethod
    def from_source(cls, source: str, *, max_context: int, slots: int) -> StandInEngine:
        """From a text as the module's docstring gives it.

        Raises:
            ModelNotFound: a setting that does not exist.
        """
        given: dict[str, int] = {}
        for part in filter(None, source.partition(":")[2].split(",")):
            name, _, value = part.partition("=")
            if name not in {"tokens", "step_ms", "prefill_ms"} or not value.isdigit():
                raise ModelNotFound(
                    f"{source!r}: {part!r} is no setting of the stand-in; known are tokens=N, step_ms=N, prefill_ms=N"
                )
            given[name] = int(value)
        return cls(
            max_context=max_context,
            slots=slots,
            tokens=given.get("tokens", 0),
            step_seconds=given.get("step_ms", 0) / 1000,
            prefill_seconds=given.get("prefill_ms", 0) / 1000,
        )

    def fit(self, settings: WorkerSettings) -> None:
        """As in `ServingEngine`."""
        self._slots = settings.slots
        self._remembered.clear()
        self._prefix_queries = self._prefix_hits = 0

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """The last message's bytes."""
        return self.encode_text(str(messages[-1]["content"]))

    def encode_text(self, text: str) -> list[int]:
        """The text's bytes."""
        return list(text.encode())

    def token_bytes(self, token: int) -> bytes:
        """The byte."""
        return bytes([token])

    def cached_tokens(self, token_ids: Sequence[int]) -> int:
        """The whole blocks that the prompt has in common with one that is remembered."""
        shared = max((_shared(token_ids, known) for known in tuple(self._remembered)), default=0)
        return min(shared, len(token_ids) - 1) // BLOCK * BLOCK

    def submit(self, prompt: Prompt, sink: KVSink | None) -> None:
        """Take a prompt; it is computed at its turn."""
        if not prompt.token_ids:
            raise InvalidRequest("the prompt has no tokens")
        if not all(0 <= token < 256 for token in prompt.token_ids):
            raise InvalidRequest("the prompt holds token ids outside 0 to 255, the vocabulary")
        if prompt.kv_tokens >= self.max_context:
            raise PromptTooLong(
                f"the prompt has {prompt.kv_tokens} tokens; at most {self.max_context - 1} leave room for an answer"
            )
        self._waiting[prompt.request_id] = (prompt, sink)

    def admit(self, prompt: Prompt, computed: Prefilled) -> list[Generated]:
        """Read the tokens back out of the KV."""
        if len(self._running) >= self._slots:
            raise NoFreeSequence(f"{len(self._running)} requests are running, the limit of this engine")
        values = computed.kv.cast("B").cast("f")
        if computed.tokens != prompt.kv_tokens or len(values) != prompt.kv_tokens * VECTOR * SHAPE.layers * 2:
            raise KVMismatch(f"{len(values)} values came for {prompt.kv_tokens} tokens")
        return self._start(prompt, values)

    def step(self) -> list[Happening]:
        """The prompt that waits longest, and one byte of every answer."""
        happened: list[Happening] = []
        if self._waiting:
            request_id = next(iter(self._waiting))
            happened += self._compute(*self._waiting.pop(request_id))
        if self._running:
            time.sleep(self._step_seconds)
            happened += [
                self._next(request_id, choice)
                for request_id, choices in list(self._running.items())
                for choice in list(choices)
            ]
        return happened

    def abort(self, request_id: str) -> None:
        """Forget the request."""
        self._waiting.pop(request_id, None)
        self._running.pop(request_id, None)

    def load(self) -> EngineLoad:
        """How many requests run and wait."""
        running = len(self._running)
        return EngineLoad(
            running=running,
            waiting=len(self._waiting),
            kv_usage=running / self._slots,
            prefix_queries=self._prefix_queries,
            prefix_hits=self._prefix_hits,
        )

    def _compute(self, prompt: Prompt, sink: KVSink | None) -> list[Happening]:
        """Keys and values that are the tokens' numbers."""
        tokens = (*prompt.token_ids, *prompt.resumed)
        cached = self.cached_tokens(tokens)
        self._prefix_queries += len(tokens)
        self._prefix_hits += cached
        plane = b"".join(struct.pack("=f", token) * VECTOR for token in tokens)
        if sink is None:
            time.sleep(self._prefill_seconds)
            return [*self._start(prompt, memoryview(plane).cast("f"))]
        for layer in range(SHAPE.layers):
            time.sleep(self._prefill_seconds / SHAPE.layers)
            at = layer * 2 * len(plane)
            sink.buffer[at : at + 2 * len(plane)] = plane * 2
            sink.wrote(layer, 0, len(tokens))
        token = prompt.token_ids[len(prompt.resumed) % len(prompt.token_ids)]
        first = First(token=token, logprob=self._logprob(token, prompt.sampling))
        self._remembered.append(tokens)
        return [Computed(request_id=prompt.request_id, first=(first,) * prompt.choices, cached_tokens=cached)]

    def _start(self, prompt: Prompt, values: memoryview[float]) -> list[Generated]:
        prompt_values = values[: len(prompt.token_ids) * VECTOR].tolist()[::VECTOR]
        text = bytes(int(value) for value in prompt_values)
        self._remembered.append((*text, *prompt.resumed))
        room = self.max_context - len(text)
        self._running[prompt.request_id] = {
            choice: _Writing(
                text=text,
                sampling=prompt.sampling,
                max_tokens=min(prompt.sampling.max_tokens or room, room),
                tokens=len(prompt.resumed),
            )
            for choice in range(prompt.choices)
        }
        return [self._next(prompt.request_id, choice) for choice in range(prompt.choices)]

    def _next(self, request_id: str, choice: int) -> Generated:
        state = self._running[request_id][choice]
        token = state.text[state.tokens % len(state.text)]
        state.tokens += 1
        reason: FinishReason | None = None
        if state.tokens >= max(self._tokens, len(state.text)):
            reason = "stop"
        elif state.tokens >= state.max_tokens:
            reason = "length"
        if reason is not None:
            del self._running[request_id][choice]
            if not self._running[request_id]:
                del self._running[request_id]
        return Generated(
            request_id=request_id,
            token=token,
            text=chr(token),
            output_tokens=state.tokens,
            choice=choice,
            finish_reason=reason,
            logprob=self._logprob(token, state.sampling),
        )

    @staticmethod
    def _logprob(token: int, sampling: Sampling) -> Logprob | None:
        return None if sampling.logprobs is None else Logprob(token=token, logprob=0.0)


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    return next(
        (at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )
