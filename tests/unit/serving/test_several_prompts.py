"""Several prompts in one completions request: one request each, and one answer as OpenAI numbers its choices."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import Completion

from tidewheel_workers.serving.engine import Generated
from tidewheel_workers.serving.openai_answers import DONE, Answer, sse
from tidewheel_workers.serving.openai_api import COMPLETIONS, read_request
from tidewheel_workers.serving.several_prompts import Merging, split

TEXTS = ("ab", "xyz")


def generated(text: str, choices: int) -> list[Generated]:
    """One token a character, the choices in turn."""
    return [
        Generated(
            request_id="r",
            token=ord(character),
            text=character,
            output_tokens=place + 1,
            choice=choice,
            finish_reason="stop" if place == len(text) - 1 else None,
        )
        for place, character in enumerate(text)
        for choice in range(choices)
    ]


def part(prompt: int, choices: int = 1, *, includes_usage: bool = True) -> Answer:
    return Answer(
        endpoint=COMPLETIONS,
        request_id="r",
        model="m",
        prompt_tokens=10 + prompt,
        cached_tokens=prompt,
        token_bytes=lambda token: bytes([token]),
        choices=choices,
        includes_usage=includes_usage,
    )


def stream(prompt: int, choices: int = 1) -> bytes:
    answer = part(prompt, choices)
    return b"".join([*map(answer.chunk, generated(TEXTS[prompt], choices)), answer.usage_chunk(), DONE])


def chunks(raw: bytes) -> list[dict]:
    *lines, end = raw.decode().removesuffix("\n\n").split("\n\n")
    assert end == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def texts_by_index(told: list[dict]) -> dict[int, str]:
    texts: dict[int, str] = {}
    for choice in (choice for chunk in told for choice in chunk["choices"]):
        texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
    return texts


@pytest.mark.parametrize("prompt", [["one", "two"], [[1, 2], [3]]])
def test_each_prompt_is_a_request_of_its_own(prompt):
    body = {"model": "m", "prompt": prompt, "stream": True, "seed": 1}
    bodies = split(body, read_request(COMPLETIONS, body, served_model="m"))
    assert [one["prompt"] for one in bodies] == [tuple(p) if isinstance(p, list) else p for p in prompt]
    assert all(one["stream_options"] == {"include_usage": True} and one["seed"] == 1 for one in bodies)


@given(st.integers(0, 2**32), st.booleans(), st.sampled_from([1, 2]))
def test_parts_that_come_in_any_pieces_and_order_are_one_stream(seed, tells_usage, choices):
    cut = random.Random(seed)
    merging = Merging(prompts=2, choices=choices, tells_usage=tells_usage)
    rest = [stream(0, choices), stream(1, choices)]
    whole = b""
    while any(rest):
        prompt = cut.choice([p for p in (0, 1) if rest[p]])
        size = cut.randint(1, 300)
        whole += merging.take(prompt, rest[prompt][:size])
        rest[prompt] = rest[prompt][size:]
    told = chunks(whole)
    assert texts_by_index(told) == {i: TEXTS[i // choices] for i in range(2 * choices)}
    assert merging.has_ended
    if not tells_usage:
        assert all("usage" not in chunk for chunk in told)
        return
    *others, last = told
    assert all(chunk["usage"] is None for chunk in others)
    assert last["choices"] == []
    assert last["usage"] == {
        "prompt_tokens": 21,
        "completion_tokens": 5 * choices,
        "total_tokens": 21 + 5 * choices,
        "prompt_tokens_details": {"cached_tokens": 1},
    }


def test_whole_answers_are_one_in_the_order_of_their_prompts():
    answers = []
    for prompt in (0, 1):
        answer = part(prompt, 2)
        for event in generated(TEXTS[prompt], 2):
            answer.add(event)
        answers.append(answer.whole())
    whole = Completion.model_validate(Merging(prompts=2, choices=2).whole(answers), strict=True)
    assert [(choice.index, choice.text) for choice in whole.choices] == [
        (0, "ab"),
        (1, "ab"),
        (2, "xyz"),
        (3, "xyz"),
    ]
    assert whole.usage.total_tokens == 21 + 10


def test_cached_tokens_are_told_only_when_every_part_tells_them():
    answers = [part(0).whole(), part(1).whole()]
    del answers[1]["usage"]["prompt_tokens_details"]
    assert "prompt_tokens_details" not in Merging(prompts=2, choices=1).whole(answers)["usage"]


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(sse({"error": {"message": "lost", "code": "stream_interrupted"}}), id="an error"),
        pytest.param(b"data: {\n\n", id="no JSON"),
        pytest.param(b"data: 5\n\n", id="no object"),
        pytest.param(b'data: {"a": 1}\n\n', id="no chunk"),
    ],
)
def test_the_stream_ends_with_the_first_error_of_a_part(fault):
    merging = Merging(prompts=2, choices=1)
    merging.take(0, stream(0)[:100])
    told = merging.take(1, fault)
    assert merging.has_broken
    assert "error" in json.loads(told.removeprefix(b"data: "))
    assert merging.take(0, stream(0)[100:]) + merging.take(1, stream(1)) == b""
