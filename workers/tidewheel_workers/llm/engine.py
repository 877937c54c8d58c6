"""The engine: prefill, admission and one continuous-batching decode iteration at a time, without threads, clocks or sockets.

A prefill server calls `prefill`, then `export` when the peer pulls, then `release`. A decode server calls `admit` with the
pulled blob and then `step` as long as `stats().running` is positive. A server that does both admits what it prefilled itself.
All calls come from one thread.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

import torch

from tidewheel_workers.llm.errors import InvalidRequest, KVMismatch, NoFreeSequence, PromptTooLong
from tidewheel_workers.llm.kv import no_free_blocks
from tidewheel_workers.llm.model import Segment
from tidewheel_workers.llm.sampling import Sampled, SamplingParams, TokenLogprob, sample
from tidewheel_workers.llm.text import OutputText

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tidewheel_workers.llm.config import ModelConfig
    from tidewheel_workers.llm.kv import KVBlob, KVCache, KVSlot
    from tidewheel_workers.llm.text import Decodes

FinishReason = Literal["stop", "length", "abort"]


class Model(Protocol):
    """What the engine needs of a model; `model.Llama` is one."""

    config: ModelConfig
    dtype: torch.dtype

    def forward(
        self,
        tokens: torch.Tensor,
        batch: Sequence[Segment],
        kv: KVCache,
        on_layer: Callable[[int], None] | None = None,
    ) -> torch.Tensor:
        """Logits after the last token of each segment; see `model.Llama.forward`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """What one engine takes on."""

    max_running: int = 64  # sequences that decode together
    max_context: int | None = None  # prompt and output in tokens; None: what model and KV cache hold
    default_max_tokens: int = 1024  # for requests that name none


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillRequest:
    """One prompt to compute."""

    request_id: str
    token_ids: Sequence[int]
    params: SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillResult:
    """A prompt is computed, its KV is held under the request's id until `release`, `admit` or `abort`."""

    request_id: str
    first_token: int
    kv_tokens: int  # tokens in the KV: the prompt's
    logprob: TokenLogprob | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenEvent:
    """One token of one request came out, or the request ended."""

    request_id: str
    token: int | None  # None when an abort ends the request
    text: str  # what became readable by it; may be empty
    output_tokens: int  # so far, this one included
    finish_reason: FinishReason | None = None
    logprob: TokenLogprob | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """A snapshot for metrics and for placement."""

    running: int
    held: int  # prefilled sequences whose KV waits to be pulled
    kv_blocks: int
    kv_blocks_free: int
    prompt_tokens: int  # computed here since the start
    output_tokens: int  # sampled here since the start

    @property
    def kv_usage(self) -> float:
        """Part of the KV blocks in use, 0 to 1."""
        return 1 - self.kv_blocks_free / self.kv_blocks


@dataclass(slots=True, kw_only=True)
class _Held:
    slot: KVSlot
    tokens: int


@dataclass(slots=True, kw_only=True)
class _Running:
    request_id: str
    prompt: tuple[int, ...]
    params: SamplingParams
    seed: int
    max_tokens: int
    slot: KVSlot
    text: OutputText
    output: list[int] = field(default_factory=list)


class Engine:
    """One model, one KV cache, many sequences.

    Room for the whole answer (prompt and `max_tokens`) is reserved when a sequence is admitted, so a running sequence
    never has to give way; `NoFreeBlocks` at admission is the only place where the cache can be full.
    """

    def __init__(
        self, model: Model, tokenizer: Decodes, kv: KVCache, limits: EngineLimits | None = None
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.kv = kv
        self.limits = limits or EngineLimits()
        self._held: dict[str, _Held] = {}
        self._running: dict[str, _Running] = {}
        self._prompt_tokens = 0
        self._output_tokens = 0

    @property
    def max_context(self) -> int:
        """Tokens of prompt and output together that a sequence may have."""
        return min(
            self.limits.max_context or self.model.config.max_positions,
            self.model.config.max_positions,
            self.kv.capacity_tokens,
        )

    def prefill(self, request_id: str, token_ids: Sequence[int], params: SamplingParams) -> PrefillResult:
        """Compute a prompt and its first token; the KV is held until `release`, `admit` or `abort`.

        Raises:
            InvalidRequest: the id is in use, the prompt is empty or holds ids outside the vocabulary.
            PromptTooLong: no room for one new token within the context.
            NoFreeBlocks: too few KV blocks are free now.
        """
        return self.prefill_batch(
            [PrefillRequest(request_id=request_id, token_ids=token_ids, params=params)]
        )[0]

    def prefill_batch(self, requests: Sequence[PrefillRequest]) -> list[PrefillResult]:
        """Compute several prompts in one forward pass; all are held or, on an error as in `prefill`, none."""
        slots: list[KVSlot] = []
        try:
            for request in requests:
                self.check(request.request_id, request.token_ids)
                slot = self.kv.allocate(len(request.token_ids))
                if slot is None:
                    raise no_free_blocks(self.kv, len(request.token_ids))
                slots.append(slot)
            if len({request.request_id for request in requests}) < len(requests):
                raise InvalidRequest("two requests of one batch have the same id")
            first = self._compute_prompts(requests, slots)
        except BaseException:
            for slot in slots:
                self.kv.free(slot)
            raise
        results = []
        for request, slot, sampled in zip(requests, slots, first, strict=True):
            tokens = len(request.token_ids)
            self._held[request.request_id] = _Held(slot=slot, tokens=tokens)
            results.append(
                PrefillResult(
                    request_id=request.request_id,
                    first_token=sampled.token,
                    kv_tokens=tokens,
                    logprob=sampled.logprob,
                )
            )
        return results

    def export(self, request_id: str) -> KVBlob:
        """A contiguous copy of a held prompt's KV; the original stays held.

        Raises:
            KeyError: no KV is held under this id (never was, or it was released).
        """
        held = self._held[request_id]
        return self.kv.export(held.slot, held.tokens)

    def release(self, request_id: str) -> bool:
        """Give a held prompt's KV back; False when none is held under this id."""
        held = self._held.pop(request_id, None)
        if held is None:
            return False
        self.kv.free(held.slot)
        return True

    def admit(
        self,
        request_id: str,
        token_ids: Sequence[int],
        first_token: int,
        params: SamplingParams,
        *,
        blob: KVBlob | None = None,
        logprob: TokenLogprob | None = None,
    ) -> TokenEvent:
        """Start decoding behind a computed prompt; the event is the first token's, and may already be the last.

        Args:
            request_id: a new id with a blob; without one the id under which this engine holds the prompt's KV.
            token_ids: the prompt.
            first_token: what prefill sampled.
            params: of the request.
            blob: the KV pulled from a prefill peer.
            logprob: of the first token, when it is wanted.

        Raises:
            InvalidRequest: the id is in use or, without a blob, unknown; token ids outside the vocabulary.
            KVMismatch: the blob has another layout or another number of tokens than the prompt.
            PromptTooLong: no room for one new token within the context.
            NoFreeSequence, NoFreeBlocks: no room now; a held prompt stays held.
        """
        self.check(request_id, token_ids, is_held=blob is None)
        self._check_tokens([first_token])
        if len(self._running) >= self.limits.max_running:
            raise NoFreeSequence(f"{len(self._running)} sequences are decoding, the limit of this engine")
        tokens = len(token_ids)
        room = self.max_context - tokens
        max_tokens = min(params.max_tokens or self.limits.default_max_tokens, room)
        # the last token is never fed back, so its keys and values need no room
        slot = self._slot_for(request_id, tokens, blob, reserve=tokens + max_tokens - 1)
        sequence = _Running(
            request_id=request_id,
            prompt=tuple(token_ids),
            params=params,
            seed=params.seed if params.seed is not None else secrets.randbits(63),
            max_tokens=max_tokens,
            slot=slot,
            text=OutputText(self.tokenizer, params.stop),
        )
        self._running[request_id] = sequence
        return self._accept(sequence, Sampled(token=first_token, logprob=logprob))

    def step(self) -> list[TokenEvent]:
        """One token for every running sequence; nothing when none runs."""
        batch = list(self._running.values())
        if not batch:
            return []
        with torch.inference_mode():
            logits = self.model.forward(
                torch.tensor([sequence.output[-1] for sequence in batch]),
                [Segment(slot=s.slot, start=len(s.prompt) + len(s.output) - 1, tokens=1) for s in batch],
                self.kv,
            )
            sampled = sample(
                logits,
                [sequence.params for sequence in batch],
                seeds=[sequence.seed for sequence in batch],
                prompts=[sequence.prompt for sequence in batch],
                outputs=[sequence.output for sequence in batch],
                eos_ids=self.model.config.eos_ids,
            )
        self._output_tokens += len(batch)
        return [self._accept(sequence, one) for sequence, one in zip(batch, sampled, strict=True)]

    def abort(self, request_id: str) -> TokenEvent | None:
        """End a request, held or running, and free its KV; the event of a running one, else None."""
        self.release(request_id)
        sequence = self._running.pop(request_id, None)
        if sequence is None:
            return None
        self.kv.free(sequence.slot)
        return TokenEvent(
            request_id=request_id,
            token=None,
            text=sequence.text.finish(),
            output_tokens=len(sequence.output),
            finish_reason="abort",
        )

    def stats(self) -> EngineStats:
        """What is going on now."""
        return EngineStats(
            running=len(self._running),
            held=len(self._held),
            kv_blocks=self.kv.blocks,
            kv_blocks_free=self.kv.free_blocks,
            prompt_tokens=self._prompt_tokens,
            output_tokens=self._output_tokens,
        )

    def _compute_prompts(self, requests: Sequence[PrefillRequest], slots: Sequence[KVSlot]) -> list[Sampled]:
        with torch.inference_mode():
            logits = self.model.forward(
                torch.tensor([token for request in requests for token in request.token_ids]),
                [
                    Segment(slot=slot, start=0, tokens=len(request.token_ids))
                    for slot, request in zip(slots, requests, strict=True)
                ],
                self.kv,
            )
            first = sample(
                logits,
                [request.params for request in requests],
                seeds=[
                    request.params.seed if request.params.seed is not None else secrets.randbits(63)
                    for request in requests
                ],
                prompts=[request.token_ids for request in requests],
                outputs=[()] * len(requests),
                eos_ids=self.model.config.eos_ids,
            )
        self._prompt_tokens += sum(len(request.token_ids) for request in requests)
        self._output_tokens += len(requests)
        return first

    def _slot_for(self, request_id: str, tokens: int, blob: KVBlob | None, *, reserve: int) -> KVSlot:
        if blob is not None:
            if blob.tokens != tokens:
                raise KVMismatch(
                    f"the KV blob holds {blob.tokens} tokens, the prompt of {request_id} has {tokens}"
                )
            return self.kv.adopt(blob, reserve=reserve)
        held = self._held[request_id]
        if held.tokens != tokens:
            raise KVMismatch(f"{held.tokens} tokens are held for {request_id}, the prompt has {tokens}")
        if not self.kv.extend(held.slot, reserve):
            raise no_free_blocks(self.kv, reserve)
        del self._held[request_id]
        return held.slot

    def _accept(self, sequence: _Running, sampled: Sampled) -> TokenEvent:
        sequence.output.append(sampled.token)
        is_eos = sampled.token in self.model.config.eos_ids and not sequence.params.ignore_eos
        may_stop = len(sequence.output) >= sequence.params.min_tokens
        text = "" if is_eos else sequence.text.push(sampled.token, may_stop=may_stop)
        reason: FinishReason | None = None
        if is_eos or sequence.text.stopped:
            reason = "stop"
        elif len(sequence.output) >= sequence.max_tokens:
            reason = "length"
        if reason is not None:
            text += sequence.text.finish()
            # the characters that were held back may complete a stop string
            reason = "stop" if sequence.text.stopped else reason
            del self._running[sequence.request_id]
            self.kv.free(sequence.slot)
        return TokenEvent(
            request_id=sequence.request_id,
            token=sampled.token,
            text=text,
            output_tokens=len(sequence.output),
            finish_reason=reason,
            logprob=sampled.logprob,
        )

    def check(self, request_id: str, token_ids: Sequence[int], *, is_held: bool = False) -> None:
        """Refuse a prompt that could never be computed, or an id that is in use.

        Raises:
            InvalidRequest, PromptTooLong: what is wrong with it.
        """
        if request_id in self._running or (request_id in self._held) != is_held:
            state = "not held here" if is_held else "already in use"
            raise InvalidRequest(f"the request id {request_id!r} is {state}")
        if not token_ids:
            raise InvalidRequest("the prompt has no tokens")
        if len(token_ids) >= self.max_context:
            raise PromptTooLong(
                f"the prompt has {len(token_ids)} tokens; at most {self.max_context - 1} leave room for an answer"
            )
        self._check_tokens(token_ids)

    def _check_tokens(self, token_ids: Sequence[int]) -> None:
        vocab = self.model.config.vocab
        if min(token_ids) < 0 or max(token_ids) >= vocab:
            raise InvalidRequest(f"token ids must be between 0 and {vocab - 1}")
