"""The answers of the OpenAI API: whole ones and the chunks of a stream, from an engine's tokens."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tidewheel_workers.serving.openai_api import CHAT

if TYPE_CHECKING:
    from collections.abc import Callable

    from tidewheel_workers.serving.engine import Generated, Logprob

DONE = b"data: [DONE]\n\n"


@dataclass(slots=True, kw_only=True)
class Answer:
    """One answer in the making; chunks may be taken while it grows, the whole when it is complete."""

    endpoint: str
    request_id: str
    model: str
    prompt_tokens: int
    token_text: Callable[[int], str]
    created: int = field(default_factory=lambda: int(time.time()))
    output_tokens: int = 0
    finish_reason: str | None = None
    _texts: list[str] = field(default_factory=list)
    _logprobs: list[Logprob] = field(default_factory=list)
    _has_begun: bool = False

    @property
    def is_chat(self) -> bool:
        """Which of the two forms it has."""
        return self.endpoint == CHAT

    @property
    def usage(self) -> dict[str, int]:
        """Tokens so far."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.output_tokens,
            "total_tokens": self.prompt_tokens + self.output_tokens,
        }

    def add(self, event: Generated) -> None:
        """Take one token."""
        self.output_tokens = event.output_tokens
        self.finish_reason = event.finish_reason
        self._texts.append(event.text)
        if event.logprob is not None:
            self._logprobs.append(event.logprob)

    def chunk(self, event: Generated) -> bytes:
        """One token as an event of a stream; the first one of a chat names the role."""
        self.add(event)
        choice: dict[str, Any] = {"index": 0, "finish_reason": event.finish_reason}
        if self.is_chat:
            delta: dict[str, Any] = {"content": event.text}
            choice["delta"] = delta if self._has_begun else {"role": "assistant", **delta}
        else:
            choice["text"] = event.text
        choice["logprobs"] = self._to_logprobs([event.logprob]) if event.logprob is not None else None
        self._has_begun = True
        return sse(self._frame([choice], is_chunk=True))

    def usage_chunk(self) -> bytes:
        """The last event of a stream that asked for the usage."""
        return sse(self._frame([], is_chunk=True) | {"usage": self.usage})

    def whole(self) -> dict[str, Any]:
        """The answer as one object."""
        text = "".join(self._texts)
        choice: dict[str, Any] = {
            "index": 0,
            "finish_reason": self.finish_reason,
            "logprobs": self._to_logprobs(self._logprobs) if self._logprobs else None,
        }
        if self.is_chat:
            choice["message"] = {"role": "assistant", "content": text, "refusal": None}
        else:
            choice["text"] = text
        return self._frame([choice], is_chunk=False) | {"usage": self.usage}

    def _frame(self, choices: list[dict[str, Any]], *, is_chunk: bool) -> dict[str, Any]:
        if self.is_chat:
            prefix, kind = "chatcmpl", "chat.completion.chunk" if is_chunk else "chat.completion"
        else:
            prefix, kind = "cmpl", "text_completion"
        return {
            "id": f"{prefix}-{self.request_id}",
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }

    def _to_logprobs(self, logprobs: list[Logprob]) -> dict[str, Any]:
        if not self.is_chat:
            return {
                "tokens": [self.token_text(one.token) for one in logprobs],
                "token_logprobs": [one.logprob for one in logprobs],
                "top_logprobs": [
                    {self.token_text(token): value for token, value in one.top} for one in logprobs
                ],
            }
        return {
            "content": [
                self._entry(one.token, one.logprob)
                | {"top_logprobs": [self._entry(token, value) for token, value in one.top]}
                for one in logprobs
            ]
        }

    def _entry(self, token: int, value: float) -> dict[str, Any]:
        text = self.token_text(token)
        return {"token": text, "logprob": value, "bytes": list(text.encode())}


def sse(event: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def models(name: str, *, created: int, max_context: int | None = None) -> dict[str, Any]:
    """The answer of /v1/models."""
    model: dict[str, Any] = {"id": name, "object": "model", "created": created, "owned_by": "tidewheel"}
    if max_context is not None:
        model["max_model_len"] = max_context
    return {"object": "list", "data": [model]}
