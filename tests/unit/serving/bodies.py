"""Bodies of requests from right to senseless, for fuzz tests of the functions that read them and of the servers."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from tidewheel_workers.serving.openai_api import CHAT, COMPLETIONS, UNSUPPORTED

ENDPOINTS = (CHAT, COMPLETIONS)
MODEL = "stand-in-model"
EDGES = (-(1 << 63) - 1, -1, 0, 1, 2, 20, 21, 128, 129, 1 << 31, 1 << 32, 1 << 53, 1 << 63, 1 << 64, 10**40)

VALID: dict[str, dict[str, Any]] = {
    CHAT: {"model": MODEL, "messages": [{"role": "user", "content": "abc"}]},
    COMPLETIONS: {"model": MODEL, "prompt": "abc"},
}
FIELDS = (
    "model", "messages", "prompt", "stream", "stream_options", "n", "max_tokens", "max_completion_tokens",
    "temperature", "top_p", "top_k", "min_p", "seed", "stop", "presence_penalty", "frequency_penalty",
    "repetition_penalty", "min_tokens", "logprobs", "top_logprobs", "ignore_eos", "user", *UNSUPPORTED,
)  # fmt: skip

plain_values = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from(EDGES)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["", "a", "user", "system", "text", "\x00", "\ud800", "é" * 20, "abc" * 300])
)
json_values = st.recursive(
    plain_values,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
parts = st.fixed_dictionaries({}, optional={"type": st.just("text") | plain_values, "text": plain_values})
messages = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["system", "developer", "user", "assistant", "tool"]) | plain_values,
        "content": plain_values | st.lists(parts, max_size=3),
        "name": plain_values,
    },
)
#: Values that are nearly right for their field, so that more of them get past the first check.
NEARLY = {
    "messages": st.lists(messages, max_size=3),
    "prompt": plain_values | st.lists(plain_values, max_size=3) | st.lists(st.integers(-1, 300), max_size=4),
    "stream": st.booleans(),
    "stream_options": st.fixed_dictionaries({}, optional={"include_usage": plain_values}),
    "stop": st.text(max_size=3) | st.lists(st.text(max_size=3), max_size=20),
}


def changed(endpoint: str) -> st.SearchStrategy[dict[str, Any]]:
    """A right request with some of its fields replaced or added."""
    one = st.sampled_from(FIELDS).flatmap(
        lambda name: st.tuples(st.just(name), json_values | NEARLY[name] if name in NEARLY else json_values)
    )
    return st.lists(one, max_size=4).map(lambda changes: {**VALID[endpoint], **dict(changes)})


def encoded(body: Any) -> bytes:
    """As a careless client writes JSON: halves of characters, NaN and all."""
    return json.dumps(body, ensure_ascii=False).encode(errors="surrogatepass")


def damaged(endpoint: str) -> st.SearchStrategy[bytes]:
    """The bytes of a nearly right request, with some of them replaced, or cut short."""
    edit = st.tuples(st.integers(0, 400), st.binary(max_size=4) | st.sampled_from([b'"', b"{", b"[", b"\\u"]))

    def apply(raw: bytes, edits: list[tuple[int, bytes]], kept: float) -> bytes:
        text = bytearray(raw)
        for at, new in edits:
            at %= len(text) + 1
            text[at : at + len(new)] = new
        return bytes(text[: int(kept * len(text))])

    return st.builds(
        apply,
        changed(endpoint).map(encoded),
        st.lists(edit, max_size=4),
        st.just(1.0) | st.floats(0, 1),
    )


def _numbers(low: float, high: float, **bounds: bool) -> st.SearchStrategy[float]:
    return st.floats(low, high, allow_subnormal=True, **bounds)


_whole = st.integers(0, 3) | st.sampled_from([20, 1000, 1 << 31, 1 << 63, 10**40])
_some_text = st.text("abcdef", max_size=20) | st.text(max_size=20)
_optional = {
    "max_tokens": _whole.map(lambda value: value + 1),
    "temperature": _numbers(0, 2),
    "top_p": _numbers(0, 1, exclude_min=True),
    "top_k": _whole.map(lambda value: value - 1),
    "min_p": _numbers(0, 1),
    "seed": st.sampled_from([-(1 << 63), -1, 0, (1 << 63) - 1]),
    "stop": st.text("abcdef", max_size=2) | st.lists(st.text("abcdef", max_size=2), max_size=16),
    "presence_penalty": _numbers(-2, 2),
    "frequency_penalty": _numbers(-2, 2),
    "repetition_penalty": _numbers(0, 10, exclude_min=True),
    "ignore_eos": st.booleans(),
    "n": st.integers(1, 4),
    "min_tokens": st.integers(0, 100),
    "logit_bias": st.dictionaries(st.sampled_from("0123456789"), _numbers(-100, 100), max_size=6),
}


def acceptable(endpoint: str) -> st.SearchStrategy[dict[str, Any]]:
    """A request whose every field is within its bounds, most often at their edges."""
    if endpoint == CHAT:
        roles = st.sampled_from(["system", "developer", "user", "assistant"])
        own = {
            "messages": st.lists(
                st.fixed_dictionaries({"role": roles, "content": _some_text}), min_size=1, max_size=3
            )
        }
        logprobs = {"logprobs": st.booleans(), "top_logprobs": st.integers(0, 20)}
    else:
        own = {"prompt": _some_text | st.lists(st.integers(0, 5) | st.sampled_from(EDGES), max_size=12)}
        logprobs = {"logprobs": st.integers(0, 20)}
    return st.fixed_dictionaries({"model": st.just(MODEL), **own}, optional={**_optional, **logprobs})


#: What a person who means harm thinks of first.
HOSTILE: dict[str, bytes] = {
    "nothing": b"",
    "a number": b"7",
    "a number without end": b'{"seed": ' + b"9" * 100_000 + b"}",
    "beyond floats": b'{"temperature": 1e999}',
    "not a number": b'{"model": "' + MODEL.encode() + b'", "prompt": "a", "temperature": NaN}',
    "nested lists": b"[" * 200_000,
    "nested objects": b'{"a":' * 100_000,
    "nested deep in a right one": b'{"prompt": "a", "model": "m", "user": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "many keys": encoded({**VALID[COMPLETIONS], **{f"k{i}": i for i in range(20_000)}}),
    "one key many times": b"{" + b",".join([b'"prompt": "a"'] * 20_000) + b"}",
    "many messages": encoded({"model": MODEL, "messages": [{"role": "user", "content": ""}] * 10_000}),
    "many stops": encoded({**VALID[COMPLETIONS], "stop": ["a"] * 50_000}),
    "a long stop": encoded({**VALID[COMPLETIONS], "stop": "a" * 500_000}),
    "many tokens": encoded({"model": MODEL, "prompt": [7] * 100_000}),
    "tokens beyond all vocabularies": encoded({"model": MODEL, "prompt": [1 << 70]}),
    "tokens below zero": encoded({"model": MODEL, "prompt": [-1]}),
    "a long model": encoded({**VALID[COMPLETIONS], "model": "m" * 500_000}),
    "half a character": rb'{"model": "' + MODEL.encode() + rb'", "prompt": "\ud83d"}',
    "another encoding": json.dumps(VALID[COMPLETIONS]).encode("utf-16"),
    "a mark of byte order": b"\xef\xbb\xbf" + encoded(VALID[COMPLETIONS]),
    "zero bytes": b"\0" * 1000,
}  # fmt: skip
