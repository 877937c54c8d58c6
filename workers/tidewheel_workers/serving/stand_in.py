"""An engine without a model, for fault tests and dry runs of a deployment: it answers with the prompt, read from the KV.

The source is `stand-in`, or `stand-in:tokens=500,step_ms=5,prefill_ms=100` with any of these settings: the prompt is
repeated until `tokens` characters are out, one every `step_ms` milliseconds. A token is a byte. As the answer is read from the
transferred KV and from nothing else, a KV cache that did not arrive shows in the text.
"""

from __future__ import annotations

import hashlib
import struct
import time
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
    EngineIdentity,
    EngineLoad,
    FinishReason,
    Generated,
    KVShape,
    Logprob,
    Prefilled,
    Sampling,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

NAME = "stand-in"
SHAPE = KVShape(layers=2, kv_heads=1, head_dim=8, dtype="float32")
VECTOR = SHAPE.head_dim * SHAPE.kv_heads  # floats of one token in one plane


@dataclass(slots=True, kw_only=True)
class _Running:
    text: bytes
    sampling: Sampling
    max_tokens: int
    tokens: int = 0


def is_stand_in(source: str) -> bool:
    """Whether a model source asks for this engine."""
    return source.partition(":")[0] == NAME


class StandInEngine:
    """A `ServingEngine` that computes nothing."""

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
        self._running: dict[str, _Running] = {}

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

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """The last message's bytes."""
        return self.encode_text(str(messages[-1]["content"]))

    def encode_text(self, text: str) -> list[int]:
        """The text's bytes."""
        return list(text.encode())

    def token_text(self, token: int) -> str:
        """The byte as a character."""
        return chr(token)

    def prefill(self, request_id: str, token_ids: Sequence[int], sampling: Sampling) -> Prefilled:
        """Keys and values that are the tokens' numbers."""
        del request_id
        if not token_ids:
            raise InvalidRequest("the prompt has no tokens")
        if len(token_ids) >= self.max_context:
            raise PromptTooLong(
                f"the prompt has {len(token_ids)} tokens; at most {self.max_context - 1} leave room for an answer"
            )
        time.sleep(self._prefill_seconds)
        plane = b"".join(struct.pack("=f", token) * VECTOR for token in token_ids)
        first = token_ids[0]
        logprob = None if sampling.logprobs is None else Logprob(token=first, logprob=0.0)
        return Prefilled(
            first_token=first,
            tokens=len(token_ids),
            kv=memoryview(plane * (SHAPE.layers * 2)),
            logprob=logprob,
        )

    def admit(
        self, request_id: str, token_ids: Sequence[int], computed: Prefilled, sampling: Sampling
    ) -> Generated:
        """Read the tokens back out of the KV."""
        if len(self._running) >= self._slots:
            raise NoFreeSequence(f"{len(self._running)} requests are running, the limit of this engine")
        values = computed.kv.cast("B").cast("f")
        if computed.tokens != len(token_ids) or len(values) != len(token_ids) * VECTOR * SHAPE.layers * 2:
            raise KVMismatch(f"{len(values)} values came for {len(token_ids)} tokens")
        text = bytes(int(value) for value in values[: len(token_ids) * VECTOR].tolist()[::VECTOR])
        room = self.max_context - len(token_ids)
        self._running[request_id] = _Running(
            text=text, sampling=sampling, max_tokens=min(sampling.max_tokens or room, room)
        )
        return self._next(request_id)

    def step(self) -> list[Generated]:
        """One byte of every answer."""
        time.sleep(self._step_seconds)
        return [self._next(request_id) for request_id in list(self._running)]

    def abort(self, request_id: str) -> None:
        """Forget the request."""
        self._running.pop(request_id, None)

    def load(self) -> EngineLoad:
        """How many requests run."""
        return EngineLoad(running=len(self._running), kv_usage=len(self._running) / self._slots)

    def _next(self, request_id: str) -> Generated:
        state = self._running[request_id]
        token = state.text[state.tokens % len(state.text)]
        state.tokens += 1
        reason: FinishReason | None = None
        if state.tokens >= max(self._tokens, len(state.text)):
            reason = "stop"
        elif state.tokens >= state.max_tokens:
            reason = "length"
        if reason is not None:
            del self._running[request_id]
        wants = state.sampling.logprobs is not None
        return Generated(
            request_id=request_id,
            token=token,
            text=chr(token),
            output_tokens=state.tokens,
            finish_reason=reason,
            logprob=Logprob(token=token, logprob=0.0) if wants else None,
        )
