"""A gateway, a prefill and a decode as processes, asked as clients ask: with OpenAI's client, and with bad requests."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request

import aiohttp
import openai
import pytest
from tests.local.serving.processes import MODEL, Service, ask, eventually


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with Service(
        directory=tmp_path_factory.mktemp("service"),
        environment={"TIDEWHEEL_MAX_CONTEXT_TOKENS": "100", "TIDEWHEEL_SLOTS": "2"},
        gateway_environment={"TIDEWHEEL_MAX_BODY_BYTES": "20000"},
    ) as running:
        yield running


@pytest.fixture
async def client(service):
    async with service.client() as one:
        yield one


def post(url: str, body: bytes, **headers: str) -> tuple[int, dict[str, str], dict]:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, dict(answer.headers), json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), json.load(error)


async def test_a_chat_is_answered_from_the_kv_that_moved(service, client):
    before = service.decode[0].metric("tidewheel_kv_transfer_bytes_total")
    answer = await client.chat.completions.create(**ask("hello there"))
    assert answer.choices[0].message.content == "hello there"
    assert answer.choices[0].finish_reason == "stop"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (11, 11)
    assert service.decode[0].metric("tidewheel_kv_transfer_bytes_total") - before == 11 * 128


async def test_a_stream_brings_the_same_text_and_the_usage(client):
    stream = await client.chat.completions.create(
        **ask("hello there", stream=True, stream_options={"include_usage": True})
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(c.choices[0].delta.content for c in chunks if c.choices) == "hello there"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage.total_tokens == 22


async def test_max_tokens_is_kept_by_prefill_and_decode_together(client):
    answer = await client.chat.completions.create(**ask("hello", max_completion_tokens=2))
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("he", "length")


async def test_log_probabilities_come_with_the_first_token_too(client):
    answer = await client.chat.completions.create(**ask("abc", logprobs=True))
    assert [entry.token for entry in answer.choices[0].logprobs.content] == ["a", "b", "c"]


async def test_a_completion_takes_text_or_tokens(client):
    by_text = await client.completions.create(model=MODEL, prompt="abc")
    by_tokens = await client.completions.create(model=MODEL, prompt=list(b"abc"))
    assert by_text.choices[0].text == by_tokens.choices[0].text == "abc"


async def test_more_clients_than_slots_are_all_answered(client):
    texts = [f"prompt {i}" for i in range(12)]
    answers = await asyncio.gather(*(client.chat.completions.create(**ask(text)) for text in texts))
    assert [answer.choices[0].message.content for answer in answers] == texts


async def test_models_are_listed_and_found_by_name(client):
    assert [model.id for model in (await client.models.list()).data] == [MODEL]
    assert (await client.models.retrieve(MODEL)).id == MODEL
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("other")


async def test_openais_client_sees_its_own_exceptions(client):
    with pytest.raises(openai.NotFoundError, match="'other' is not served"):
        await client.chat.completions.create(**ask("x") | {"model": "other"})
    with pytest.raises(openai.BadRequestError, match=r"maximum context length is 100 tokens.*has 100 tokens"):
        await client.chat.completions.create(**ask("x" * 100))
    with pytest.raises(openai.BadRequestError, match="tools: the built-in engine"):
        await client.chat.completions.create(
            **ask("x", tools=[{"type": "function", "function": {"name": "f"}}])
        )


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        pytest.param("/v1/chat/completions", b"{", 400, "invalid_json", id="no JSON"),
        pytest.param("/v1/chat/completions", b"[]", 400, "invalid_json", id="no object"),
        pytest.param(
            "/v1/chat/completions", b'{"model": "m"}', 400, "missing_required_parameter", id="no messages"
        ),
        pytest.param("/v1/completions", b" " * 20001, 413, "body_too_large", id="too large"),
        pytest.param("/v1/embeddings", b"{}", 404, "unknown_url", id="an endpoint that is not there"),
        pytest.param("/v1/models", b"{}", 405, "method_not_allowed", id="a method that is not there"),
    ],
)
def test_bad_requests_get_openais_error_object(service, path, body, status, code):
    got, headers, answer = post(f"{service.gateway.url}{path}", body)
    assert (got, answer["error"]["code"]) == (status, code)
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert headers["x-request-id"]


async def test_a_body_without_a_length_is_bounded_too(service):
    async def chunks():
        for _ in range(30):
            yield b" " * 1000

    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{service.gateway.url}/v1/completions", data=chunks()) as answer,
    ):
        assert answer.status == 413
        assert (await answer.json())["error"]["code"] == "body_too_large"


def test_a_body_that_is_not_what_its_encoding_says_is_the_clients_fault(service):
    url = f"{service.gateway.url}/v1/completions"
    status, _, answer = post(url, b"no gzip", **{"Content-Encoding": "gzip"})
    assert (status, answer["error"]["code"]) == (400, "unreadable_body")


async def test_the_clients_request_id_is_kept_where_it_is_a_proper_one(service, client):
    raw = await client.chat.completions.with_raw_response.create(
        **ask("hi"), extra_headers={"x-request-id": "mine-1"}
    )
    assert raw.headers["x-request-id"] == "mine-1"
    assert raw.parse().id == "chatcmpl-mine-1"
    assert '"request_id": "mine-1"' in service.prefill[0].log
    raw = await client.chat.completions.with_raw_response.create(
        **ask("hi"), extra_headers={"x-request-id": "x" * 500}
    )
    assert len(raw.headers["x-request-id"]) == 24


async def test_what_a_client_says_of_kv_transfers_is_not_passed_on(client):
    stolen = {"kv_transfer_params": {"do_remote_prefill": True, "remote_host": "10.0.0.1"}}
    answer = await client.chat.completions.create(**ask("hello"), extra_body=stolen)
    assert answer.choices[0].message.content == "hello"


def test_a_prefill_refuses_requests_that_are_no_hand_over(service):
    status, _, answer = post(f"{service.prefill[0].url}/v1/chat/completions", json.dumps(ask("hi")).encode())
    assert (status, answer["error"]["code"]) == (400, "not_a_hand_over")


async def test_a_decode_that_is_asked_directly_computes_the_prompt_itself(service):
    async with service.client(base_url=f"{service.decode[0].url}/v1") as direct:
        answer = await direct.chat.completions.create(**ask("directly"))
    assert answer.choices[0].message.content == "directly"


def test_a_full_prefill_refuses_at_once_and_released_kv_makes_room(service):
    prefill = service.prefill[0].url
    body = json.dumps(ask("hi", kv_transfer_params={"do_remote_decode": True})).encode()
    held = [post(f"{prefill}/v1/chat/completions", body) for _ in range(2)]
    status, headers, answer = post(f"{prefill}/v1/chat/completions", body)
    assert (status, headers["Retry-After"], answer["error"]["code"]) == (429, "1", "no_free_slot")
    for _, _, whole in held:
        params = json.dumps(whole["kv_transfer_params"]).encode()
        assert post(f"{prefill}/kv/release", params)[2] == {"released": True}
    eventually(lambda: service.slots_used() == 0)


def test_who_chose_a_bearer_gives_kv_up_without_having_seen_the_answer(service):
    prefill, bearer = service.prefill[0].url, "0123456789abcdef" * 2
    params = {"do_remote_decode": True, "remote_bearer": bearer}
    post(f"{prefill}/v1/chat/completions", json.dumps(ask("hi", kv_transfer_params=params)).encode())
    assert service.slots_used() == 1
    release = json.dumps({"remote_bearer": bearer}).encode()
    assert post(f"{prefill}/kv/release", release)[2] == {"released": True}
    eventually(lambda: service.slots_used() == 0)
    assert post(f"{prefill}/kv/release", release)[2] == {"released": False}


def test_workers_show_the_metrics_that_dashboards_know(service):
    for worker in service.members:
        assert worker.metric("vllm:num_requests_running", model_name=MODEL, engine="0") == 0
        assert worker.metric("vllm:num_requests_waiting") == 0
        assert worker.metric("vllm:request_success_total") > 0
        assert worker.metric("vllm:time_to_first_token_seconds_count") > 0
    assert service.prefill[0].metric("vllm:prompt_tokens_total") > 0
    assert service.decode[0].metric("vllm:generation_tokens_total") > 0
    assert service.gateway.metric("tidewheel_gateway_inquiries_total", role="decode", outcome="accepted") > 0
    assert service.gateway.metric("tidewheel_gateway_requests_total", code="404") > 0


def test_probes_and_version_answer(service):
    for worker in service.all:
        assert worker.health()["reason"] == "Serving"
        assert worker.health("live") == {"alive": True}
        with urllib.request.urlopen(f"{worker.url}/version", timeout=5) as answer:
            assert json.load(answer)["version"]
