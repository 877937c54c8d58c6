"""A request in the engine: its choices, their text, and when each ends; apart from who computes what when."""

from __future__ import annotations

import secrets
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tidewheel_workers.llm.errors import InvalidRequest
from tidewheel_workers.llm.requests import FinishReason, Request, TokenEvent
from tidewheel_workers.llm.sampling import Place, Sampled
from tidewheel_workers.llm.sequence import Sequence
from tidewheel_workers.llm.text import OutputText

if TYPE_CHECKING:
    from collections.abc import Container

    import torch

    from tidewheel_workers.llm.handing_over import HandingOver
    from tidewheel_workers.llm.kv import KVSlot
    from tidewheel_workers.llm.text import Decodes


@dataclass(slots=True, eq=False, kw_only=True)
class Work:
    """A request that is not done."""

    request: Request
    max_tokens: int  # of each answer, the resumed ones included
    ends: Container[int]  # the tokens that end an answer
    seed: int = 0
    answers: list[Answer] = field(default_factory=list)  # those that have not ended
    handing_over: HandingOver | None = None  # where only the prompt is wanted
    received: torch.Tensor | None = None  # keys and values that came from elsewhere and are not in blocks yet

    def __post_init__(self) -> None:
        seed = self.request.params.seed
        self.seed = secrets.randbits(63) if seed is None else seed

    def is_end(self, token: int) -> bool:
        """Whether the token ends an answer and is no text."""
        return token in self.ends and not self.request.params.ignore_eos


@dataclass(slots=True, eq=False, kw_only=True)
class Answer:
    """One choice of a request."""

    work: Work
    choice: int
    sequence: Sequence
    slot: KVSlot
    text: OutputText

    @classmethod
    def begin(cls, work: Work, choice: int, tokenizer: Decodes, slot: KVSlot) -> Answer:
        """Nothing is written but what is resumed."""
        request = work.request
        tokens = array("q", request.token_ids)
        tokens.extend(request.resumed)
        return cls(
            work=work,
            choice=choice,
            sequence=Sequence(tokens=tokens),
            slot=slot,
            text=OutputText(tokenizer, request.params.stop),
        )

    @property
    def written(self) -> int:
        """Tokens of the answer so far."""
        return len(self.sequence.tokens) - len(self.work.request.token_ids)

    @property
    def place(self) -> Place:
        """Where the next token goes."""
        work = self.work
        return Place(
            params=work.request.params,
            seed=work.seed,
            choice=self.choice,
            tokens=self.sequence.tokens,
            prompt_tokens=len(work.request.token_ids),
        )

    def replay(self) -> None:
        """Bring the text to where the one who wrote the resumed tokens left it; what came out then is not said again.

        Raises:
            InvalidRequest: the answer had ended.
        """
        request, limit = self.work.request, self.work.max_tokens
        if len(request.resumed) >= limit:
            raise InvalidRequest(
                f"{len(request.resumed)} tokens of the answer are there already; it has at most {limit}"
            )
        for written, token in enumerate(request.resumed, start=1):
            if not self.work.is_end(token):
                self._push(token, written)
            if self.work.is_end(token) or self.text.stopped:
                raise InvalidRequest("the answer that is to be resumed has ended already")

    def accept(self, sampled: Sampled) -> TokenEvent:
        """Write a token; the event tells whether the answer ends with it."""
        token = sampled.token
        self.sequence.tokens.append(token)
        is_end = self.work.is_end(token)
        text = "" if is_end else self._push(token, self.written)
        reason: FinishReason | None = None
        if is_end or self.text.stopped:
            reason = "stop"
        elif self.written >= self.work.max_tokens:
            reason = "length"
        if reason is not None:
            text += self.text.finish()
            # the characters that were held back may complete a stop string
            reason = "stop" if self.text.stopped else reason
        return TokenEvent(
            request_id=self.work.request.request_id,
            choice=self.choice,
            token=token,
            text=text,
            output_tokens=self.written,
            finish_reason=reason,
            logprob=sampled.logprob,
        )

    def _push(self, token: int, written: int) -> str:
        return self.text.push(token, may_stop=written >= self.work.request.params.min_tokens)
