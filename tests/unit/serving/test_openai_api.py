"""Requests as clients write them, and answers as clients read them."""

from __future__ import annotations

import json

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tidewheel_workers.serving.engine import EngineIdentity, Generated, KVShape, Logprob
from tidewheel_workers.serving.errors import ApiError
from tidewheel_workers.serving.openai_answers import DONE, Answer, fingerprint
from tidewheel_workers.serving.openai_api import (
    CHAT,
    COMPLETIONS,
    bounded,
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
        min_tokens=3,
        logit_bias={"7": -100, "9": 1.5},
        ignore_eos=True,
    ).to_sampling()
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.seed) == (7, 0, 0.5, 3)
    assert (sampling.stop, sampling.logprobs, sampling.top_k) == (("\n",), 2, 0)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (1, -1)
    assert (sampling.min_p, sampling.repetition_penalty, sampling.ignore_eos) == (0.1, 1.1, True)
    assert (sampling.min_tokens, sampling.logit_bias) == (3, ((7, -100.0), (9, 1.5)))


def test_text_parts_are_joined_and_developer_means_system():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    request = chat(messages=[{"role": "developer", "content": parts}])
    assert [message.to_template() for message in request.messages] == [{"role": "system", "content": "ab"}]


def completion(prompt, **fields):
    return read_request(COMPLETIONS, {"model": "m", "prompt": prompt, **fields}, served_model="m")


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        pytest.param("one", ("one",), id="a text"),
        pytest.param(["one", "2"], ("one", "2"), id="texts"),
        pytest.param([1, 2], ((1, 2),), id="tokens"),
        pytest.param([[1, 2], [3]], ((1, 2), (3,)), id="lists of tokens"),
    ],
)
def test_a_completions_prompts_are_texts_or_tokens(prompt, prompts):
    assert completion(prompt).prompts == prompts


@pytest.mark.parametrize(
    "prompt", [None, 1, {}, [1, "a"], [[1], "a"], [1.5], [True], [-1], [2**31], ["a"] * 17], ids=str
)
def test_another_prompt_is_refused_by_name(prompt):
    with pytest.raises(ApiError, match="prompt") as refused:
        completion(prompt)
    assert (refused.value.code, refused.value.param) == ("invalid_value", "prompt")


def test_a_server_behind_the_gateway_takes_one_prompt():
    assert completion(["one"]).the_prompt == "one"
    with pytest.raises(ApiError, match="ask the gateway"):
        _ = completion(["one", "two"]).the_prompt


def test_a_completion_is_short_unless_more_is_asked_for():
    assert completion("a").to_sampling().max_tokens == 16
    assert completion("a", max_tokens=100).to_sampling().max_tokens == 100


@pytest.mark.parametrize(
    ("request_", "estimate"),
    [
        pytest.param(lambda: chat(), 2, id="a chat without a limit"),
        pytest.param(lambda: chat(max_completion_tokens=10, max_tokens=99, n=3), 32, id="choices"),
        pytest.param(lambda: completion("12345"), 18, id="a text"),
        pytest.param(lambda: completion([[1, 2, 3], [4]], max_tokens=5, n=2), 24, id="lists of tokens"),
    ],
)
def test_the_tokens_of_a_request_are_guessed_from_its_length_and_its_limits(request_, estimate):
    assert request_().tokens_estimate(None) == estimate


def test_an_answer_without_a_limit_of_its_own_may_be_as_long_as_the_keys_longest():
    assert chat(n=2).tokens_estimate(50) == 102
    assert chat(n=2, max_tokens=10).tokens_estimate(50) == 22


def test_the_longest_answer_of_a_key_is_kept():
    body = {"model": "m", "messages": HELLO}
    assert bounded(body, chat(), 50) == body | {"max_completion_tokens": 50}
    assert bounded(body | {"max_tokens": 9}, chat(max_tokens=9), 50) == body | {"max_tokens": 9}
    with pytest.raises(ApiError, match="51 is too many; an answer with this key has at most 50") as refused:
        bounded(body, chat(max_tokens=51), 50)
    assert (refused.value.status, refused.value.param) == (400, "max_tokens")
    with pytest.raises(ApiError) as refused:
        bounded(body, chat(max_completion_tokens=51), 50)
    assert refused.value.param == "max_completion_tokens"


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
        pytest.param({"top_logprobs": 2}, "invalid_value", "top_logprobs", id="logprobs not asked for"),
        pytest.param({"n": 0}, "invalid_value", "n", id="no choice"),
        pytest.param({"n": 17}, "invalid_value", "n", id="too many choices"),
        pytest.param({"n": 2, "best_of": 3}, "invalid_value", "best_of", id="choices to throw away"),
        pytest.param({"stop": ["a"] * 17}, "invalid_value", "stop", id="too many stops"),
        pytest.param({"stop": [1]}, "invalid_value", "stop.0", id="a stop that is no text"),
        pytest.param({"logit_bias": {"1": 101}}, "invalid_value", "logit_bias", id="too much bias"),
        pytest.param({"logit_bias": {"a": 1}}, "invalid_value", "logit_bias", id="bias of a word"),
        pytest.param(
            {"logit_bias": dict.fromkeys(map(str, range(301)), 1)}, "invalid_value", "logit_bias", id="biases"
        ),
        pytest.param({"stream_options": {}}, "invalid_value", "stream_options", id="options of no stream"),
        pytest.param({"min_tokens": 3, "max_tokens": 2}, "invalid_value", "min_tokens", id="min above max"),
        pytest.param({"seed": 2**63}, "invalid_value", "seed", id="a seed of more than 64 bits"),
    ],
)
def test_a_wrong_field_is_named(fields, code, param):
    with pytest.raises(ApiError) as refused:
        chat(**fields)
    assert (refused.value.status, refused.value.code) == (400, code)
    assert refused.value.param.startswith(param)
    assert refused.value.param in refused.value.message
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
    "raw",
    [
        b"",
        b"{",
        b"[1]",
        b"\xff",
        b"[" * 100_000,
        rb'{"a": "\ud83d"}',
        rb'{"\uDe00": 1}',
        b'{"a": NaN}',
        b'{"a": -Infinity}',
    ],
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
        {"stop_token_ids": [1]},
        {"guided_json": {}},
    ],
)
def test_what_would_change_the_meaning_is_refused(fields):
    with pytest.raises(ApiError, match=next(iter(fields))) as refused:
        refuse_unsupported(fields)
    assert refused.value.code == "unsupported_parameter"


def test_harmless_values_of_such_fields_are_accepted():
    refuse_unsupported({"tools": [], "response_format": {"type": "text"}, "tool_choice": "none"})


def event(number: int, text: str, reason=None, choice: int = 0) -> Generated:
    return Generated(
        request_id="r",
        token=number,
        text=text,
        output_tokens=number,
        choice=choice,
        finish_reason=reason,
        logprob=Logprob(token=number, logprob=-0.5, top=((number, -0.5), (9, -2.0))),
    )


EVENTS = (event(1, "Par"), event(2, "is", "stop"))


def answer(endpoint: str, **more) -> Answer:
    given = {"request_id": "r1", "model": "m", "prompt_tokens": 3, "token_bytes": lambda t: f"<{t}>".encode()}
    return Answer(endpoint=endpoint, **given | more)


def chunks(raw: bytes) -> list[dict]:
    """The events of a stream, as they are."""
    return [json.loads(line.removeprefix("data: ")) for line in raw.decode().strip().split("\n\n")]


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
    assert parsed.choices[0].logprobs.text_offset == [0, 3]


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


INTERLEAVED = (
    event(1, "a", choice=1),
    event(1, "x", choice=0),
    event(2, "b", "length", choice=1),
    event(2, "y", choice=0),
    event(3, "z", "stop", choice=0),
)


@pytest.mark.parametrize("endpoint", [CHAT, COMPLETIONS])
def test_several_choices_come_interleaved_each_with_its_index(endpoint):
    stream = answer(endpoint, choices=2)
    told = [chunk["choices"][0] for chunk in chunks(b"".join(map(stream.chunk, INTERLEAVED)))]
    assert [one["index"] for one in told] == [1, 0, 1, 0, 0]
    assert [one["finish_reason"] for one in told] == [None, None, "length", None, "stop"]
    if endpoint == CHAT:
        assert ["role" in one["delta"] for one in told] == [True, True, False, False, False]
    else:
        assert [one["logprobs"]["text_offset"] for one in told] == [[0], [0], [1], [1], [2]]


def test_several_choices_are_one_answer_and_the_prompt_counts_once():
    whole = answer(CHAT, choices=2)
    for one in INTERLEAVED:
        whole.add(one)
    parsed = ChatCompletion.model_validate(whole.whole(), strict=True)
    assert [(c.index, c.message.content, c.finish_reason) for c in parsed.choices] == [
        (0, "xyz", "stop"),
        (1, "ab", "length"),
    ]
    assert (parsed.usage.prompt_tokens, parsed.usage.completion_tokens, parsed.usage.total_tokens) == (
        3,
        5,
        8,
    )


def test_usage_is_null_until_the_chunk_that_tells_it():
    stream = answer(CHAT, includes_usage=True, cached_tokens=2)
    *parts, last = chunks(b"".join([*map(stream.chunk, EVENTS), stream.usage_chunk()]))
    assert [part["usage"] for part in parts] == [None, None]
    assert last["choices"] == []
    assert last["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "total_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 2},
    }
    assert "usage" not in chunks(answer(CHAT).chunk(EVENTS[0]))[0]


def test_a_token_that_is_part_of_a_character_is_told_by_its_bytes():
    half = {"token_bytes": lambda token: "é".encode()[token - 1 : token] if token < 3 else b"<9>"}
    chat_logprobs = chunks(answer(CHAT, **half).chunk(EVENTS[0]))[0]["choices"][0]["logprobs"]["content"]
    assert (chat_logprobs[0]["token"], chat_logprobs[0]["bytes"]) == ("\ufffd", [0xC3])
    logprobs = chunks(answer(COMPLETIONS, **half).chunk(EVENTS[1]))[0]["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["bytes:\\xa9"]


def test_a_token_that_could_not_come_has_a_log_probability_that_json_can_say():
    never = Generated(
        request_id="r",
        token=1,
        text="a",
        output_tokens=1,
        logprob=Logprob(token=1, logprob=float("-inf"), top=((2, float("-inf")),)),
    )
    for endpoint in (CHAT, COMPLETIONS):
        assert b"Infinity" not in answer(endpoint).chunk(never)
        assert b"-9999.0" in answer(endpoint).chunk(never)


def test_the_fingerprint_changes_with_the_model_and_its_layout_only():
    def of(model: str, layout: str) -> str:
        shape = KVShape(layers=1, kv_heads=1, head_dim=1, dtype="float32")
        return fingerprint(EngineIdentity(model_digest=model, layout_digest=layout, kv=shape))

    assert of("a", "b") == of("a", "b")
    assert len({of("a", "b"), of("b", "a"), of("a", "c")}) == 3
    whole = answer(COMPLETIONS, fingerprint=of("a", "b"))
    whole.add(EVENTS[1])
    assert Completion.model_validate(whole.whole(), strict=True).system_fingerprint == of("a", "b")
