"""Requests as clients write them, and answers as clients read them."""

from __future__ import annotations

import json

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tidewheel_workers.serving.engine import Generated, Logprob
from tidewheel_workers.serving.errors import ApiError
from tidewheel_workers.serving.openai_answers import DONE, Answer
from tidewheel_workers.serving.openai_api import (
    CHAT,
    COMPLETIONS,
    read_json_object,
    read_request,
    refuse_unsupported,
)

HELLO = [{"role": "user", "content": "hello"}]


def chat(**fields):
    return read_request(CHAT, {"model": "m", "messages": HELLO, **fields}, served_model="m")


def test_what_is_left_out_takes_openais_defaults():
    sampling = chat().to_sampling()
    assert (sampling.temperature, sampling.top_p, sampling.max_tokens, sampling.stop) == (1.0, 1.0, None, ())
    assert sampling.logprobs is None


def test_every_parameter_reaches_the_engine():
    sampling = chat(
        max_tokens=5,
        max_completion_tokens=7,
        temperature=0,
        top_p=0.5,
        seed=3,
        stop="\n",
        presence_penalty=1,
        frequency_penalty=-1,
        logprobs=True,
        top_logprobs=2,
        top_k=-1,
        min_p=0.1,
        repetition_penalty=1.1,
        ignore_eos=True,
    ).to_sampling()
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.seed) == (7, 0, 0.5, 3)
    assert (sampling.stop, sampling.logprobs, sampling.top_k) == (("\n",), 2, 0)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (1, -1)
    assert (sampling.min_p, sampling.repetition_penalty, sampling.ignore_eos) == (0.1, 1.1, True)


def test_text_parts_are_joined_and_developer_means_system():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    request = chat(messages=[{"role": "developer", "content": parts}])
    assert [message.to_template() for message in request.messages] == [{"role": "system", "content": "ab"}]


@pytest.mark.parametrize("prompt", ["one", ["one"]])
def test_a_completion_has_one_prompt(prompt):
    request = read_request(COMPLETIONS, {"model": "m", "prompt": prompt}, served_model="m")
    assert request.the_prompt == "one"


def test_a_completions_prompt_may_be_tokens():
    request = read_request(COMPLETIONS, {"model": "m", "prompt": [1, 2]}, served_model="m")
    assert request.the_prompt == (1, 2)


def test_unknown_fields_are_ignored():
    assert chat(user="me", store=False, metadata={"a": "b"}).model == "m"


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        pytest.param({"messages": None}, "invalid_value", "messages", id="no messages"),
        pytest.param({"messages": []}, "invalid_value", "messages", id="empty messages"),
        pytest.param(
            {"messages": [{"role": "bot", "content": ""}]}, "invalid_value", "messages.0.role", id="role"
        ),
        pytest.param(
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "invalid_value",
            "messages.0.content",
            id="an image",
        ),
        pytest.param({"temperature": 3}, "invalid_value", "temperature", id="too hot"),
        pytest.param({"max_tokens": 0}, "invalid_value", "max_tokens", id="no tokens"),
        pytest.param({"top_logprobs": 21}, "invalid_value", "top_logprobs", id="too many logprobs"),
        pytest.param({"n": 2}, "unsupported_value", "n", id="two choices"),
    ],
)
def test_a_wrong_field_is_named(fields, code, param):
    with pytest.raises(ApiError) as refused:
        chat(**fields)
    assert (refused.value.status, refused.value.code) == (400, code)
    assert refused.value.param.startswith(param)
    assert refused.value.to_body()["error"]["type"] == "invalid_request_error"


def test_a_missing_field_is_named():
    with pytest.raises(ApiError) as refused:
        read_request(CHAT, {"model": "m"}, served_model="m")
    assert (refused.value.code, refused.value.param) == ("missing_required_parameter", "messages")


def test_another_model_is_not_found():
    with pytest.raises(ApiError, match="'m' is") as refused:
        chat(model="gpt")
    assert (refused.value.status, refused.value.code) == (404, "model_not_found")


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[1]", b"\xff", b"[" * 100_000, rb'{"a": "\ud83d"}', rb'{"\uDe00": 1}']
)
def test_a_body_that_is_no_object_is_refused(raw):
    with pytest.raises(ApiError) as refused:
        read_json_object(raw)
    assert refused.value.code == "invalid_json"


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [{"type": "function"}]},
        {"response_format": {"type": "json_object"}},
        {"logit_bias": {"1": 5}},
    ],
)
def test_what_would_change_the_meaning_is_refused(fields):
    with pytest.raises(ApiError, match=next(iter(fields))) as refused:
        refuse_unsupported(fields)
    assert refused.value.code == "unsupported_parameter"


def test_harmless_values_of_such_fields_are_accepted():
    refuse_unsupported({"tools": [], "response_format": {"type": "text"}, "tool_choice": "none"})


def event(number: int, text: str, reason=None) -> Generated:
    return Generated(
        request_id="r",
        token=number,
        text=text,
        output_tokens=number,
        finish_reason=reason,
        logprob=Logprob(token=number, logprob=-0.5, top=((number, -0.5), (9, -2.0))),
    )


EVENTS = (event(1, "Par"), event(2, "is", "stop"))


def answer(endpoint: str) -> Answer:
    return Answer(
        endpoint=endpoint, request_id="r1", model="m", prompt_tokens=3, token_text=lambda t: f"<{t}>"
    )


def test_a_chat_answer_is_what_openais_client_expects():
    whole = answer(CHAT)
    for one in EVENTS:
        whole.add(one)
    parsed = ChatCompletion.model_validate(whole.whole(), strict=True)
    assert parsed.choices[0].message.content == "Paris"
    assert parsed.choices[0].finish_reason == "stop"
    assert parsed.usage.total_tokens == 5
    assert parsed.choices[0].logprobs.content[1].top_logprobs[1].token == "<9>"


def test_a_completion_is_what_openais_client_expects():
    whole = answer(COMPLETIONS)
    for one in EVENTS:
        whole.add(one)
    parsed = Completion.model_validate(whole.whole(), strict=True)
    assert parsed.choices[0].text == "Paris"
    assert parsed.choices[0].logprobs.top_logprobs[0] == {"<1>": -0.5, "<9>": -2.0}


def test_the_chunks_of_a_stream_are_what_openais_client_expects():
    stream = answer(CHAT)
    raw = b"".join([*(stream.chunk(one) for one in EVENTS), stream.usage_chunk(), DONE])
    lines = raw.decode().strip().split("\n\n")
    assert lines[-1] == "data: [DONE]"
    chunks = [
        ChatCompletionChunk.model_validate(json.loads(line.removeprefix("data: "))) for line in lines[:-1]
    ]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content for chunk in chunks[:2]) == "Paris"
    assert chunks[1].choices[0].finish_reason == "stop"
    assert chunks[2].usage.completion_tokens == 2
