"""API keys with limits, at a real gateway, as OpenAI's client meets them."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request

import openai
import pytest
from tests.local.serving.processes import MODEL, Service, ask, eventually

PROCESSES = 2
KEYS = """\
sk-plain
sk-few name=few rpm=2
sk-small name=small tpm=100 max_tokens=40
sk-one name=one concurrent=1
"""


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    directory = tmp_path_factory.mktemp("service")
    (directory / "keys").write_text(KEYS)
    with Service(
        directory=directory,
        source="stand-in:tokens=100,step_ms=10",
        environment={"TIDEWHEEL_SLOTS": "8"},
        # a key has one allowance in all processes of a gateway
        gateway_environment={
            "TIDEWHEEL_API_KEYS_FILE": str(directory / "keys"),
            "TIDEWHEEL_GATEWAY_PROCESSES": str(PROCESSES),
        },
    ) as running:
        eventually(lambda: running.gateway.log.count("4 API keys") == PROCESSES)
        yield running


def used(service: Service, name: str, **labels: str) -> float:
    return service.gateway.metric(f"tidewheel_gateway_key_{name}_total", **labels)


def get(url: str, key: str | None = None) -> tuple[int, dict]:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"} if key else {})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


async def test_without_an_accepted_key_nothing_is_answered(service):
    async with service.client(api_key="sk-wrong") as client:
        with pytest.raises(openai.AuthenticationError) as refused:
            await client.chat.completions.create(**ask("hi"))
        assert refused.value.code == "invalid_api_key"
        with pytest.raises(openai.AuthenticationError):
            await client.models.list()
    assert get(f"{service.gateway.url}/v1/models")[1]["error"]["code"] == "missing_api_key"


async def test_a_key_without_limits_is_told_of_none(service):
    async with service.client(api_key="sk-plain") as client:
        raw = await client.chat.completions.with_raw_response.create(**ask("hi", max_tokens=2))
    assert not [name for name in raw.headers if name.startswith("x-ratelimit")]
    assert used(service, "requests", key="unnamed", code="200") == 1


async def test_requests_a_minute_are_counted_down_and_then_refused_with_the_time_to_wait(service):
    for left in ("1", "0"):
        # on a connection of its own, which may lead to another process
        async with service.client(api_key="sk-few") as client:
            raw = await client.chat.completions.with_raw_response.create(**ask("hi", max_tokens=1))
            assert raw.headers["x-ratelimit-limit-requests"] == "2"
            assert raw.headers["x-ratelimit-remaining-requests"] == left
    async with service.client(api_key="sk-few") as client:
        with pytest.raises(openai.RateLimitError, match="2 requests a minute; 0 are left") as refused:
            await client.chat.completions.create(**ask("hi", max_tokens=1))
    assert refused.value.code == "rate_limit_exceeded"
    assert 1 <= int(refused.value.response.headers["retry-after"]) <= 30
    assert used(service, "refusals", key="few", limit="requests") == 1
    assert used(service, "requests", key="few", code="429") == 1


async def test_tokens_are_counted_as_they_were_used_not_as_they_were_asked_for(service):
    async with service.client(api_key="sk-small") as client:
        raw = await client.chat.completions.with_raw_response.create(**ask("12345", max_tokens=10))
        assert int(raw.headers["x-ratelimit-remaining-tokens"]) in range(83, 92)
        assert raw.parse().usage.total_tokens == 15
        stream = await client.chat.completions.create(**ask("12345", max_tokens=10, stream=True))
        assert len([chunk async for chunk in stream]) == 10
        with pytest.raises(openai.RateLimitError, match="100 tokens a minute") as refused:
            await client.chat.completions.create(**ask("x" * 300, max_tokens=40))
        assert refused.value.response.headers["x-should-retry"] == "false"
    assert used(service, "tokens", key="small", kind="prompt") == 10
    assert used(service, "tokens", key="small", kind="output") == 20


async def test_the_longest_answer_of_a_key_is_kept_and_not_passed(service):
    async with service.client(api_key="sk-small") as client:
        with pytest.raises(openai.BadRequestError, match="an answer with this key has at most 40 tokens"):
            await client.chat.completions.create(**ask("hi", max_tokens=41))
        answer = await client.completions.create(model=MODEL, prompt="hi", max_tokens=40)
        assert answer.usage.completion_tokens == 40


async def test_requests_at_a_time_wait_for_each_other(service):
    async with service.client(api_key="sk-one") as client:
        stream = await client.chat.completions.create(**ask("hi", stream=True))
        await anext(aiter(stream))
        with pytest.raises(openai.RateLimitError, match="1 open requests at a time"):
            await client.chat.completions.create(**ask("hi", max_tokens=1))
        await stream.close()

        def is_let_in() -> bool:
            return used(service, "requests", key="one", code="499") == 1

        await asyncio.to_thread(eventually, is_let_in)
        await client.chat.completions.create(**ask("hi", max_tokens=1))


async def test_changed_keys_are_used_without_a_restart(service):
    path = service.directory / "keys"
    new = path.with_suffix(".new")
    new.write_text(KEYS + "sk-late name=late\n")
    new.replace(path)
    await asyncio.to_thread(eventually, lambda: service.gateway.log.count("5 API keys") == PROCESSES)
    async with service.client(api_key="sk-late") as client:
        await client.chat.completions.create(**ask("hi", max_tokens=1))
    new.write_text(KEYS + "sk-broken rpm=lots\n")
    new.replace(path)
    complaint = "line 5: rpm must be a whole number"
    await asyncio.to_thread(eventually, lambda: service.gateway.log.count(complaint) == PROCESSES)
    async with service.client(api_key="sk-late") as client:
        await client.chat.completions.create(**ask("hi", max_tokens=1))


def test_the_page_needs_no_key_and_its_figures_do(service):
    with urllib.request.urlopen(f"{service.gateway.url}/", timeout=10) as page:
        assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert get(f"{service.gateway.url}/figures")[0] == 401
    status, figures = get(f"{service.gateway.url}/figures", "sk-few")
    assert (status, figures["ratio"]) == (200, "1:1")


def test_no_key_and_no_prompt_is_written_to_a_log_or_shown_in_metrics(service):
    with urllib.request.urlopen(f"{service.gateway.url}/metrics", timeout=10) as answer:
        metrics = answer.read().decode()
    for text in (service.gateway.log, metrics):
        for secret in ("sk-plain", "sk-few", "sk-small", "sk-wrong", "sk-broken", "12345"):
            assert secret not in text
