"""What clients ask in a soak, and how each request ended: plans from a seed, endings from what was seen, without I/O."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from tests.local.serving.processes import MODEL

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
KNOWN_TOKENS = 24  # of the answers of an engine that computes
TOO_LONG, TOO_LARGE = 2100, 70_000  # tokens beyond the context, bytes beyond the limit


class Ending(StrEnum):
    """How a request ended; every one ends in exactly one of these ways."""

    ANSWERED = "answered"  # well, with exactly the right text
    REFUSED = "refused"  # it was wrong, and was told so
    SHED = "shed"  # 503 or 429 with an error object: try again
    FAILED = "failed"  # another 5xx with an error object
    INTERRUPTED = "interrupted"  # a stream ended by an error event
    LEFT = "left"  # by the client
    VANISHED = "vanished"  # the connection ended, and nothing said why
    WRONG = "wrong"  # another text, another form, or two endings
    UNHEARD = "unheard"  # no end within the client's patience


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One request, and what is to come of it."""

    kind: str
    endpoint: str
    body: bytes
    text: str = ""  # the right answer
    choices: int = 1
    is_stream: bool = False
    wants_status: int = 200
    leaves_after_chunks: int | None = None
    leaves_after_seconds: float | None = None
    reads_slowly: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a client saw of the answer."""

    status: int | None = None  # None: nothing came
    raw: bytes = b""
    end: str = "whole"  # or "broken", "left", "unheard"


Known = Sequence[tuple[str, str]]
WEIGHTS = {
    "stream": 30,
    "whole": 14,
    "completion": 8,
    "streamed completion": 8,
    "long": 6,
    "tiny": 8,
    "leaving": 12,
    "slow reader": 4,
    "several choices": 4,
    "too large": 2,
    "too long": 2,
    "garbage": 4,
}


def plan(draw: random.Random, number: int, *, has_choices: bool, known: Known = ()) -> Plan:
    """The next request of a client.

    Args:
        draw: decides.
        number: of the request, part of its prompt so that no two are the same.
        has_choices: whether the service takes requests for several choices.
        known: prompts with their answers for an engine that does not just repeat the prompt.
    """
    weights = {name: weight for name, weight in WEIGHTS.items() if has_choices or name != "several choices"}
    (kind,) = draw.choices(list(weights), list(weights.values()))
    if kind == "garbage":
        return _garbage(draw)
    if kind in ("too large", "too long"):
        size, status = (TOO_LARGE, 413) if kind == "too large" else (TOO_LONG, 400)
        body = chat("x" * size, stream=draw.random() < 0.5)
        return Plan(kind=kind, endpoint=CHAT, body=body, wants_status=status)
    length = {"long": draw.randrange(300, 600), "tiny": 1}.get(kind, draw.randrange(10, 120))
    if kind == "slow reader":
        length = 400
    prompt, answer = draw.choice(known) if known else _words(draw, number, length)
    is_completion = "completion" in kind and not known
    is_stream = kind in ("stream", "streamed completion", "slow reader") or (
        kind not in ("whole", "completion") and draw.random() < 0.6
    )
    body = {"model": MODEL, "prompt": prompt} if is_completion else _chat(prompt)
    if is_stream:
        body["stream"] = True
    if known:
        body |= {"temperature": 0, "max_tokens": KNOWN_TOKENS}
    elif is_completion or draw.random() < 0.3:  # completions have 16 tokens where nothing is said
        most = draw.randrange(1, len(prompt) + 1)
        body["max_tokens"], answer = most, answer[:most]
    if kind == "slow reader" and not known:
        body["logprobs"] = True
    choices = draw.randrange(2, 5) if kind == "several choices" else 1
    if choices > 1:
        body["n"] = choices
    leaves_at_once = kind == "leaving" and draw.random() < 0.5
    return Plan(
        kind=kind,
        endpoint=COMPLETIONS if is_completion else CHAT,
        body=_encoded(body),
        text=answer,
        choices=choices,
        is_stream=is_stream,
        leaves_after_chunks=draw.randrange(1, 20) if kind == "leaving" and not leaves_at_once else None,
        leaves_after_seconds=draw.uniform(0, 0.3) if leaves_at_once else None,
        reads_slowly=kind == "slow reader",
    )


def _words(draw: random.Random, number: int, length: int) -> tuple[str, str]:
    """A prompt of that many characters, and what the stand-in answers to it: the same."""
    text = f"{number:x} " + "".join(draw.choices("abcdefghijklmnopqrstuvwxyz ", k=length))
    return text[:length], text[:length]


def chat(text: str, **fields: Any) -> bytes:
    """The body of a chat."""
    return _encoded(_chat(text) | fields)


def _chat(text: str) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}]}


def _garbage(draw: random.Random) -> Plan:
    right = _encoded(_chat("hello"))
    body = draw.choice(
        [
            draw.randbytes(draw.randrange(1, 300)),
            right[: draw.randrange(len(right))],
            _encoded({"model": MODEL}),
            _encoded({"model": MODEL, "messages": draw.choice(["x", [], [7], {}])}),
            _encoded(_chat("hello") | {"temperature": "hot"}),
            b"[" * 20_000,
        ]
    )
    return Plan(kind="garbage", endpoint=draw.choice([CHAT, COMPLETIONS]), body=body, wants_status=400)


def _encoded(body: dict[str, Any]) -> bytes:
    return json.dumps(body).encode()


# ---- how it ended


def ending(asked: Plan, seen: Seen) -> tuple[Ending, str]:
    """How a request ended, and what was wrong where something was."""
    if seen.end == "left":
        return Ending.LEFT, ""
    if seen.end == "unheard":
        return Ending.UNHEARD, f"status {seen.status}, {len(seen.raw)} bytes"
    if seen.status is None:
        return Ending.VANISHED, "no answer at all"
    if seen.status == 200 and asked.wants_status == 200:
        return _stream_ending(asked, seen) if asked.is_stream else _whole_ending(asked, seen)
    if seen.end == "broken":
        return Ending.VANISHED, f"status {seen.status} and a part of its body"
    told = _error(seen.raw)
    if told is None:
        return Ending.WRONG, f"status {seen.status} without an error object: {seen.raw[:200]!r}"
    if seen.status == asked.wants_status:
        return Ending.REFUSED, told
    if seen.status in (429, 503):
        return Ending.SHED, told
    if seen.status in (502, 504):
        return Ending.FAILED, told
    return Ending.WRONG, f"status {seen.status} ({told}) where {asked.wants_status} belongs"


def _whole_ending(asked: Plan, seen: Seen) -> tuple[Ending, str]:
    if seen.end == "broken":
        return Ending.VANISHED, "a part of a whole answer"
    try:
        choices = json.loads(seen.raw)["choices"]
        texts = [one["message"]["content"] if asked.endpoint == CHAT else one["text"] for one in choices]
        reasons = [one["finish_reason"] for one in choices]
    except (ValueError, LookupError, TypeError) as error:
        return Ending.WRONG, f"{type(error).__name__} in {seen.raw[:200]!r}"
    return _judged(asked, dict(enumerate(texts)), dict(enumerate(reasons)))


def _stream_ending(asked: Plan, seen: Seen) -> tuple[Ending, str]:
    texts: dict[int, str] = {}
    reasons: dict[int, str] = {}
    events = [part.removeprefix(b"data: ") for part in seen.raw.split(b"\n\n")]
    rest = events.pop()
    for at, event in enumerate(events):
        is_last = at == len(events) - 1
        if event == b"[DONE]":
            if not is_last or rest or seen.end == "broken":
                return Ending.WRONG, "something came behind [DONE]"
            return _judged(asked, texts, reasons)
        try:
            content = json.loads(event)
            if "error" in content:
                if not is_last or rest:
                    return Ending.WRONG, "something came behind an error"
                if not _is_beginning(asked, texts):
                    return Ending.WRONG, f"{texts!r} is no part of the answer"
                return Ending.INTERRUPTED, _told(content["error"])
            for choice in content["choices"]:
                index = choice["index"]
                if index in reasons:
                    return Ending.WRONG, f"choice {index} went on behind its end"
                new = choice["delta"].get("content", "") if asked.endpoint == CHAT else choice["text"]
                texts[index] = texts.get(index, "") + new
                if choice["finish_reason"] is not None:
                    reasons[index] = choice["finish_reason"]
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            return Ending.WRONG, f"{type(error).__name__} in the event {event[:200]!r}"
    return Ending.VANISHED, f"{len(events)} events, and no end"


def _judged(asked: Plan, texts: dict[int, str], reasons: dict[int, str]) -> tuple[Ending, str]:
    if sorted(texts) != list(range(asked.choices)):
        return Ending.WRONG, f"choices {sorted(texts)} where {asked.choices} were asked for"
    for index, text in texts.items():
        if text != asked.text:
            return Ending.WRONG, f"{text!r} where {asked.text!r} belongs"
        if reasons.get(index) not in ("stop", "length"):
            return Ending.WRONG, f"choice {index} ended by {reasons.get(index)!r}"
    return Ending.ANSWERED, ""


def _is_beginning(asked: Plan, texts: dict[int, str]) -> bool:
    return all(asked.text.startswith(text) for text in texts.values())


def _error(raw: bytes) -> str | None:
    """What an error object tells; None where it is none."""
    try:
        error = json.loads(raw)["error"]
        return _told(error) if error["message"] and error["type"] else None
    except (ValueError, LookupError, TypeError):
        return None


def _told(error: dict[str, Any]) -> str:
    return f"{error['code']}: {error['message']}"
