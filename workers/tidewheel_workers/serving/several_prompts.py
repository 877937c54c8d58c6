"""A completions request with several prompts: one request for each, and their answers made one, without I/O.

Choice c of prompt p has the index p × n + c, as OpenAI numbers them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tidewheel_workers.serving.errors import ApiError
from tidewheel_workers.serving.openai_answers import DONE, sse

if TYPE_CHECKING:
    from tidewheel_workers.serving.openai_api import CompletionRequest

_DATA = b"data: "


def split(body: dict[str, Any], request: CompletionRequest) -> list[dict[str, Any]]:
    """The bodies of the requests that one becomes; each stream tells its usage, since the sum is needed."""
    options = {"stream_options": {"include_usage": True}} if request.stream else {}
    return [{**body, "prompt": prompt, **options} for prompt in request.prompts]


@dataclass(slots=True, kw_only=True)
class Merging:
    """One answer from the answers to each of `prompts` prompts with `choices` choices."""

    prompts: int
    choices: int
    tells_usage: bool = False  # whether a stream ends with the usage
    has_broken: bool = False  # a part ended with an error, so the answer does
    _rest: list[bytes] = field(init=False)  # by prompt: the beginning of its next event
    _ended: set[int] = field(default_factory=set)
    _usages: dict[int, dict[str, Any]] = field(default_factory=dict)
    _last: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._rest = [b""] * self.prompts

    @property
    def has_ended(self) -> bool:
        """Whether every part came to its end."""
        return len(self._ended) == self.prompts

    def take(self, prompt: int, data: bytes) -> bytes:
        """What bytes of one part's stream add to the whole stream."""
        *events, self._rest[prompt] = (self._rest[prompt] + data).split(b"\n\n")
        return b"".join(self._take_event(prompt, event) for event in events)

    def whole(self, answers: list[dict[str, Any]]) -> dict[str, Any]:
        """One answer from whole ones, in the order of their prompts."""
        told = [
            {**choice, "index": self._index(prompt, choice)}
            for prompt, answer in enumerate(answers)
            for choice in answer["choices"]
        ]
        return {**answers[0], "choices": told, "usage": _sum([answer["usage"] for answer in answers])}

    def _take_event(self, prompt: int, event: bytes) -> bytes:
        line = next((one for one in event.split(b"\n") if one.startswith(_DATA)), b"")
        content = line.removeprefix(_DATA)
        if not content or self.has_broken:
            return b""
        if content == b"[DONE]":
            self._ended.add(prompt)
            return self._end() if self.has_ended else b""
        try:
            return self._take_chunk(prompt, json.loads(content))
        except (ValueError, KeyError, TypeError, AttributeError):
            self.has_broken = True
            return sse(ApiError(502, "bad_answer", "a decode sent what is no chunk of an answer").to_body())

    def _take_chunk(self, prompt: int, chunk: dict[str, Any]) -> bytes:
        if "error" in chunk:
            self.has_broken = True
            return sse(chunk)
        if chunk.get("usage"):
            self._usages[prompt] = chunk["usage"]
        if not chunk["choices"]:
            self._last = chunk
            return b""
        chunk["choices"] = [{**choice, "index": self._index(prompt, choice)} for choice in chunk["choices"]]
        if not self.tells_usage:
            chunk.pop("usage", None)
        return sse(chunk)

    def _end(self) -> bytes:
        if not self.tells_usage:
            return DONE
        return sse({**self._last, "usage": _sum(list(self._usages.values()))}) + DONE

    def _index(self, prompt: int, choice: dict[str, Any]) -> int:
        return prompt * self.choices + int(choice["index"])


def _sum(usages: list[dict[str, Any]]) -> dict[str, Any]:
    """Tokens over all prompts; details only where every part tells them."""
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    summed: dict[str, Any] = {name: sum(usage[name] for usage in usages) for name in names}
    details = [usage.get("prompt_tokens_details") for usage in usages]
    cached = [one.get("cached_tokens") for one in details if one]
    if len(cached) == len(usages) and None not in cached:
        summed["prompt_tokens_details"] = {"cached_tokens": sum(cached)}
    return summed
