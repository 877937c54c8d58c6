"""The engine: prompts, answers and what they share, computed one pass at a time, without threads, clocks or sockets.

A prefill server submits prompts with a sink, a decode server admits what came out of one, a server that does both submits
without a sink; each then calls `step` as long as there is work. All calls but `cached_tokens` come from one thread.
"""

from __future__ import annotations

import logging
from array import array
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Protocol

import torch

from tidewheel_workers.llm.answers import Answer, Work
from tidewheel_workers.llm.blocks import prefix_digests
from tidewheel_workers.llm.errors import InvalidRequest, KVMismatch, PromptTooLong, RequestFailed
from tidewheel_workers.llm.handing_over import HandingOver
from tidewheel_workers.llm.kv import as_tensor
from tidewheel_workers.llm.model import Segment
from tidewheel_workers.llm.requests import (
    ComputedPrompt,
    EngineStats,
    Event,
    FailureEvent,
    PromptEvent,
    Request,
    Sink,
    TokenEvent,
)
from tidewheel_workers.llm.sampling import Sampled, sample
from tidewheel_workers.llm.scheduler import CopyBlock, Scheduler

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Sequence as Several

    from tidewheel_workers.llm.config import ModelConfig
    from tidewheel_workers.llm.kv import KVCache
    from tidewheel_workers.llm.scheduler import Chunk, PlaceReceived, Plan
    from tidewheel_workers.llm.sequence import Sequence
    from tidewheel_workers.llm.text import Decodes


log = logging.getLogger(__name__)


class Model(Protocol):
    """What the engine needs of a model; `model.Llama` is one."""

    config: ModelConfig
    dtype: torch.dtype

    def forward(
        self,
        tokens: torch.Tensor,
        batch: Several[Segment],
        kv: KVCache,
        on_layer: Callable[[int], None] | None = None,
    ) -> torch.Tensor:
        """Logits after the last token of each segment; see `model.Llama.forward`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """What one engine takes on."""

    max_running: int = 64  # sequences that are computed together
    max_context: int | None = None  # prompt and answer in tokens; None: what model and KV cache hold
    batch_tokens: int = 2048  # computed in one pass; beyond the answers' tokens at least a block of a prompt


class Engine:
    """One model, one KV cache, many requests."""

    def __init__(
        self, model: Model, tokenizer: Decodes, kv: KVCache, limits: EngineLimits | None = None
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.kv = kv
        self.limits = limits or EngineLimits()
        self._scheduler = Scheduler(
            kv.blocks,
            block_size=kv.layout.block_size,
            max_running=self.limits.max_running,
            batch_tokens=self.limits.batch_tokens,
        )
        self._works: dict[str, Work] = {}
        self._answers: dict[Sequence, Answer] = {}
        self._prompt_tokens = 0
        self._output_tokens = 0

    @property
    def max_context(self) -> int:
        """Tokens of prompt and answer together that a sequence may have."""
        return min(
            self.limits.max_context or self.model.config.max_positions,
            self.model.config.max_positions,
            self.kv.capacity_tokens,
        )

    def cached_tokens(self, token_ids: Several[int]) -> int:
        """How many of a prompt's first tokens need not be computed now; from any thread."""
        if not token_ids or min(token_ids) < 0 or max(token_ids) >= self.model.config.vocab:
            return 0
        size = self.kv.layout.block_size
        return self._scheduler.cached_tokens(prefix_digests(token_ids[:-1], size))

    def submit(self, request: Request, sink: Sink | None = None) -> None:
        """Take a prompt. With a sink it is only computed, without one its answers are written here, too.

        Raises:
            InvalidRequest: the request could never be answered, or its id is in use.
            PromptTooLong: no room for one new token within the context.
            KVMismatch: the sink has not the size of the prompt's keys and values.
        """
        work = self._new_work(request, is_written=sink is None)
        if sink is not None:
            work.handing_over = HandingOver(self.kv, sink, request.kv_tokens)
        leader, *others = (answer.sequence for answer in work.answers)
        leader.siblings = others
        leader.will_write = sink is None
        self._register(work)
        self._scheduler.add(leader)

    def admit(self, request: Request, computed: ComputedPrompt) -> list[TokenEvent]:
        """Go on behind a prompt that was computed elsewhere; gives the first tokens, which may already be the last.

        The memory of `computed.kv` is not used any more when this returns.

        Raises:
            InvalidRequest, PromptTooLong: as in `submit`.
            KVMismatch: what came is not the keys and values of this prompt.
            RequestFailed: the first tokens cannot be turned into text.
        """
        if computed.tokens != request.kv_tokens:
            raise KVMismatch(
                f"the keys and values of {computed.tokens} tokens came; the prompt of {request.request_id} has "
                f"{request.kv_tokens}"
            )
        if len(computed.first) != request.choices:
            raise KVMismatch(f"{len(computed.first)} first tokens came for {request.choices} choices")
        self._check_tokens("first tokens", [first.token for first in computed.first])
        work = self._new_work(request, is_written=True)
        work.received = as_tensor(self.kv.layout, computed.tokens, computed.kv)
        self._register(work)
        events = self._accept(list(work.answers), computed.first)
        if isinstance(events[-1], FailureEvent):
            raise events[-1].error
        if work.answers:
            leader, *others = (answer.sequence for answer in work.answers)
            leader.received, leader.siblings = request.kv_tokens, others
            order = self._scheduler.add_received(leader)
            if order is not None:
                self._place(work, order)
            else:
                work.received = work.received.clone()
        return [event for event in events if isinstance(event, TokenEvent)]

    def step(self) -> list[Event]:
        """One pass: a token for every answer that is written, and parts of the prompts that wait; nothing without work."""
        plan = self._scheduler.plan()
        if not plan.chunks:
            return []
        with torch.inference_mode():
            self._prepare(plan)
            logits = self._compute(plan.chunks)
            for chunk in plan.chunks:
                self._scheduler.advance(chunk)
            return self._give_up_broken_sinks(plan.chunks) + self._choose(logits, plan.chunks)

    def abort(self, request_id: str) -> bool:
        """End a request wherever it is, and free what it holds; False when there is none of this id."""
        work = self._works.get(request_id)
        if work is None:
            return False
        self._end_all(work)
        return True

    def stats(self) -> EngineStats:
        """What is going on now."""
        scheduler = self._scheduler
        running = {id(self._answers[sequence].work) for sequence in scheduler.running}
        return EngineStats(
            running=len(running),
            waiting=len(self._works) - len(running),
            kv_blocks=self.kv.blocks.total,
            kv_blocks_free=self.kv.blocks.free,
            prompt_tokens=self._prompt_tokens,
            output_tokens=self._output_tokens,
            prefix_queries=scheduler.prefix_queries,
            prefix_hits=scheduler.prefix_hits,
            preemptions=scheduler.preemptions,
        )

    def _new_work(self, request: Request, *, is_written: bool) -> Work:
        """Refuse what could never be answered."""
        self._check(request)
        room = self.max_context - len(request.token_ids)
        work = Work(
            request=request,
            max_tokens=min(request.params.max_tokens or room, room),
            ends=self.model.config.eos_ids,
        )
        for choice in range(request.choices):
            answer = Answer.begin(work, choice, self.tokenizer, self.kv.new_slot())
            if is_written:
                answer.replay()
            work.answers.append(answer)
        return work

    def _register(self, work: Work) -> None:
        self._works[work.request.request_id] = work
        for answer in work.answers:
            self._answers[answer.sequence] = answer

    def _prepare(self, plan: Plan) -> None:
        """Bring the blocks into the state in which the pass expects them."""
        for order in plan.before:
            if isinstance(order, CopyBlock):
                self.kv.copy_block(order.source, order.target)
                continue
            self._place(self._answers[order.sequence].work, order)
        for chunk in plan.chunks:
            answer = self._answers[chunk.sequence]
            answer.slot.follow(chunk.sequence.blocks)
            if answer.work.handing_over is not None:
                answer.work.handing_over.catch_up(answer.slot, chunk.start)

    def _place(self, work: Work, order: PlaceReceived) -> None:
        """Put what came from elsewhere into blocks, unless these hold it already."""
        if work.received is not None and order.tokens:
            slot = self.kv.new_slot()
            slot.follow(order.blocks)
            self.kv.place(slot, work.received, start=order.start, tokens=order.tokens)
        work.received = None

    def _compute(self, chunks: Several[Chunk]) -> torch.Tensor:
        """The pass. Returns logits after the last token of each chunk."""
        tokens: array[int] = array("q")
        segments = []
        leaving = []
        for chunk in chunks:
            answer = self._answers[chunk.sequence]
            end = chunk.start + chunk.tokens
            tokens.extend(chunk.sequence.tokens[chunk.start : end])
            segments.append(Segment(slot=answer.slot, start=chunk.start, tokens=chunk.tokens))
            if answer.work.handing_over is not None:
                leaving.append((answer.work.handing_over, answer.slot, chunk.start, end))
            self._prompt_tokens += max(0, min(end, answer.work.request.kv_tokens) - chunk.start)

        def hand_over(layer: int) -> None:
            for handing_over, slot, start, end in leaving:
                handing_over.write(slot, layer, start=start, end=end)

        logits = self.model.forward(
            torch.frombuffer(tokens, dtype=torch.int64), segments, self.kv, hand_over if leaving else None
        )
        for handing_over, _, _, end in leaving:
            handing_over.finish(end)
        return logits

    def _choose(self, logits: torch.Tensor, chunks: Several[Chunk]) -> list[Event]:
        """The next token of every sequence that has all its logits; the first tokens of every choice of a prompt."""
        rows, takers = [], []
        for row, chunk in enumerate(chunks):
            sequence = chunk.sequence
            if sequence.missing == 0 and sequence in self._answers:
                takers.append([self._answers[one] for one in (sequence, *sequence.siblings)])
                rows += [row] * len(takers[-1])
        if not rows:
            return []
        if rows != list(range(len(chunks))):
            logits = logits.index_select(0, torch.tensor(rows, device=logits.device))
        places = [answer.place for answers in takers for answer in answers]
        sampled = iter(sample(logits, places, eos_ids=self.model.config.eos_ids))
        self._output_tokens += len(places)
        events: list[Event] = []
        for answers in takers:
            events += self._go_on(answers, list(islice(sampled, len(answers))))
        return events

    def _go_on(self, answers: Several[Answer], found: Several[Sampled | None]) -> list[Event]:
        """One answer goes on, or all choices of a prompt begin."""
        leader = answers[0]
        work, sequence = leader.work, leader.sequence
        chosen = [one for one in found if one is not None]
        if len(chosen) < len(found):
            self._scheduler.distrust(sequence)
            return [self._fail(work, "the model's output for it is not a number")]
        if work.handing_over is not None:
            self._end_all(work)
            return [
                PromptEvent(
                    request_id=work.request.request_id,
                    first=tuple(chosen),
                    cached_tokens=sequence.cached or 0,
                )
            ]
        if sequence.siblings:
            self._scheduler.fork(sequence)
        return self._accept(answers, chosen)

    def _accept(self, answers: Several[Answer], chosen: Several[Sampled]) -> list[Event]:
        """The events of these tokens; the last one tells when the request had to be given up."""
        events: list[Event] = []
        for answer, one in zip(answers, chosen, strict=True):
            try:
                event = answer.accept(one)
            except Exception as error:
                log.warning("a request is given up", exc_info=error)
                return [*events, self._fail(answer.work, f"its tokens cannot be turned into text: {error}")]
            events.append(event)
            if event.finish_reason is not None:
                self._end(answer)
        return events

    def _give_up_broken_sinks(self, chunks: Several[Chunk]) -> list[Event]:
        works = [self._answers[chunk.sequence].work for chunk in chunks]
        return [
            self._fail(work, f"its keys and values cannot be handed over: {work.handing_over.error}")
            for work in works
            if work.handing_over is not None and work.handing_over.error is not None
        ]

    def _fail(self, work: Work, why: str) -> FailureEvent:
        self._end_all(work)
        return FailureEvent(
            request_id=work.request.request_id,
            error=RequestFailed(f"the engine cannot go on with this request: {why}"),
        )

    def _end_all(self, work: Work) -> None:
        for answer in list(work.answers):
            self._end(answer)

    def _end(self, answer: Answer) -> None:
        self._scheduler.remove(answer.sequence)
        del self._answers[answer.sequence]
        work = answer.work
        work.answers.remove(answer)
        if not work.answers:
            del self._works[work.request.request_id]

    def _check(self, request: Request) -> None:
        if request.request_id in self._works:
            raise InvalidRequest(f"the request id {request.request_id!r} is already in use")
        if not request.token_ids:
            raise InvalidRequest("the prompt has no tokens")
        if not 1 <= request.choices <= self.limits.max_running:
            raise InvalidRequest(
                f"n: {request.choices} choices are not possible; this engine writes 1 to {self.limits.max_running}"
            )
        if request.kv_tokens >= self.max_context:
            raise PromptTooLong(
                f"the prompt has {request.kv_tokens} tokens; at most {self.max_context - 1} leave room for an answer"
            )
        self._check_tokens("token ids", [*request.token_ids, *request.resumed])
        self._check_tokens("logit_bias", [token for token, _ in request.params.logit_bias])

    def _check_tokens(self, name: str, token_ids: Several[int]) -> None:
        vocab = self.model.config.vocab
        if token_ids and (min(token_ids) < 0 or max(token_ids) >= vocab):
            raise InvalidRequest(f"{name} must be between 0 and {vocab - 1}")
