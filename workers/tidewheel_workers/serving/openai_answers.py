"""The answers of the OpenAI API: whole ones and the chunks of a stream, from an engine's tokens."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from tidewheel_workers.serving.openai_api import CHAT

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tidewheel_workers.serving.engine import EngineIdentity, Generated, Logprob

DONE = b"data: [DONE]\n\n"
UNLIKELY = -9999.0


@dataclass(slots=True)
class _Choice:
    """One of the answers in the making."""

    output_tokens: int = 0
    finish_reason: str | None = None
    characters: int = 0
    texts: list[str] = field(default_factory=list)
    logprobs: list[Logprob] = field(default_factory=list)
    offsets: list[int] = field(
        default_factory=list
    )  # where in the text the token of each log-probability begins
    has_begun: bool = False


@dataclass(slots=True, kw_only=True)
class Answer:
    """The answer to one prompt in the making; chunks may be taken while it grows, the whole when it is complete."""

    endpoint: str
    request_id: str
    model: str
    prompt_tokens: int
    token_bytes: Callable[[int], bytes]
    cached_tokens: int | None = None  # of the prompt; None when it is not known
    fingerprint: str | None = None
    choices: int = 1
    includes_usage: bool = False  # whether a stream ends with the usage
    resumed: Sequence[int] = ()  # tokens of the answer that the client has
    created: int = field(default_factory=lambda: int(time.time()))
    _choices: list[_Choice] = field(init=False)

    def __post_init__(self) -> None:
        written = len(b"".join(map(self.token_bytes, self.resumed)).decode(errors="ignore"))
        self._choices = [
            _Choice(output_tokens=len(self.resumed), characters=written, has_begun=bool(self.resumed))
            for _ in range(self.choices)
        ]

    @property
    def is_chat(self) -> bool:
        """Which of the two forms it has."""
        return self.endpoint == CHAT

    @property
    def output_tokens(self) -> int:
        """Over all choices."""
        return sum(choice.output_tokens for choice in self._choices)

    @property
    def usage(self) -> dict[str, Any]:
        """Tokens so far: a prompt counts once, however many choices it has."""
        used: dict[str, Any] = {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.output_tokens,
            "total_tokens": self.prompt_tokens + self.output_tokens,
        }
        if self.cached_tokens is not None:
            used["prompt_tokens_details"] = {"cached_tokens": self.cached_tokens}
        return used

    def add(self, event: Generated) -> None:
        """Take one token."""
        choice = self._choices[event.choice]
        choice.output_tokens = event.output_tokens
        choice.finish_reason = event.finish_reason
        choice.texts.append(event.text)
        if event.logprob is not None:
            choice.logprobs.append(event.logprob)
            choice.offsets.append(choice.characters)
        choice.characters += len(event.text)

    def chunk(self, event: Generated) -> bytes:
        """One token as an event of a stream; the first one of each choice of a chat names the role."""
        self.add(event)
        choice = self._choices[event.choice]
        told: dict[str, Any] = {"index": event.choice, "finish_reason": event.finish_reason}
        if self.is_chat:
            delta: dict[str, Any] = {"content": event.text}
            told["delta"] = delta if choice.has_begun else {"role": "assistant", **delta}
        else:
            told["text"] = event.text
        told["logprobs"] = (
            None if event.logprob is None else self._to_logprobs([event.logprob], choice.offsets[-1:])
        )
        choice.has_begun = True
        # with the usage asked for, every other chunk says that it is not there
        usage = {"usage": None} if self.includes_usage else {}
        return sse(self._frame([told], is_chunk=True) | usage)

    def usage_chunk(self) -> bytes:
        """The last event of a stream that asked for the usage."""
        return sse(self._frame([], is_chunk=True) | {"usage": self.usage})

    def whole(self) -> dict[str, Any]:
        """The answer as one object."""
        choices = [self._whole_choice(index, choice) for index, choice in enumerate(self._choices)]
        return self._frame(choices, is_chunk=False) | {"usage": self.usage}

    def _whole_choice(self, index: int, choice: _Choice) -> dict[str, Any]:
        text = "".join(choice.texts)
        told: dict[str, Any] = {
            "index": index,
            "finish_reason": choice.finish_reason,
            "logprobs": self._to_logprobs(choice.logprobs, choice.offsets) if choice.logprobs else None,
        }
        if self.is_chat:
            told["message"] = {"role": "assistant", "content": text, "refusal": None}
        else:
            told["text"] = text
        return told

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
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        }

    def _to_logprobs(self, logprobs: list[Logprob], offsets: list[int]) -> dict[str, Any]:
        if not self.is_chat:
            return {
                "tokens": [self._key(one.token) for one in logprobs],
                "token_logprobs": [_finite(one.logprob) for one in logprobs],
                "top_logprobs": [
                    {self._key(token): _finite(value) for token, value in one.top} for one in logprobs
                ],
                "text_offset": offsets,
            }
        return {
            "content": [
                self._entry(one.token, one.logprob)
                | {"top_logprobs": [self._entry(token, value) for token, value in one.top]}
                for one in logprobs
            ]
        }

    def _entry(self, token: int, value: float) -> dict[str, Any]:
        raw = self.token_bytes(token)
        return {"token": raw.decode(errors="replace"), "logprob": _finite(value), "bytes": list(raw)}

    def _key(self, token: int) -> str:
        """A token in the older form, which has no bytes beside: parts of characters are told apart as OpenAI does."""
        raw = self.token_bytes(token)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def _finite(logprob: float) -> float:
    """JSON has no infinity; OpenAI's stand-in for it is -9999."""
    return max(logprob, UNLIKELY)


def fingerprint(identity: EngineIdentity) -> str:
    """OpenAI's `system_fingerprint`: while it stays the same, the same seed and request give the same answer."""
    parts = (version("tidewheel"), identity.model_digest, identity.layout_digest)
    return f"fp_{hashlib.sha256('/'.join(parts).encode()).hexdigest()[:12]}"


def sse(event: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def models(*names: str, created: int, max_context: int | None = None) -> dict[str, Any]:
    """The answer of /v1/models."""
    about = {"object": "model", "created": created, "owned_by": "tidewheel"}
    if max_context is not None:
        about["max_model_len"] = max_context
    return {"object": "list", "data": [{"id": name, **about} for name in names]}
