"""What a gateway does while its prefills are busy: by scenario, for short prompts, and with those who wait."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import aiohttp
import openai
import pytest
from tests.local.serving.processes import MODEL, Service, ask, eventually

SCENARIOS = (
    {"name": "hurried", "match": {"headers": [{"name": "X-Class", "value": "fast"}]}, "ttftDeadlineSeconds": 1},
    {"name": "code", "match": {"modelAliases": ["coder"]}},
    {"name": "elsewhere", "match": {"promptLength": {"max": 2}}, "groups": ["another"], "ttftDeadlineSeconds": 1},
)  # fmt: skip


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with Service(
        directory=tmp_path_factory.mktemp("service"),
        environment={"TIDEWHEEL_SLOTS": "1"},
        gateway_environment={
            "TIDEWHEEL_SHORT_PROMPT_CHARACTERS": "8",
            "TIDEWHEEL_MAX_WAITING": "3",
            "TIDEWHEEL_GATEWAY_PROCESSES": "1",  # who waits in another process is not in the same line
        },
        scenarios=SCENARIOS,
    ) as running:
        yield running


@pytest.fixture
async def client(service):
    async with service.client() as one:
        yield one


@asynccontextmanager
async def all_prefills_busy(service: Service):
    """The one slot is held by a KV that nobody fetches."""
    url = service.prefill[0].url
    body = ask("held", kv_transfer_params={"do_remote_decode": True})
    async with aiohttp.ClientSession() as session:
        async with session.post(f"{url}/v1/chat/completions", json=body) as answer:
            held = (await answer.json())["kv_transfer_params"]
        try:
            yield
        finally:
            async with session.post(f"{url}/kv/release", json=held) as answer:
                assert answer.status == 200


def waiting(service: Service) -> float:
    return service.gateway.metric("tidewheel_gateway_waiting_requests")


async def test_aliases_are_models(service, client):
    assert {model.id for model in (await client.models.list()).data} == {MODEL, "coder"}
    assert (await client.models.retrieve("coder")).id == "coder"
    answer = await client.chat.completions.create(**ask("a longer text") | {"model": "coder"})
    assert (answer.choices[0].message.content, answer.model) == ("a longer text", MODEL)
    assert service.gateway.metric("tidewheel_gateway_requests_total", scenario="code", code="200") == 1


async def test_what_a_scenarios_requests_are_like_is_counted_for_it(service, client):
    def counted(name: str) -> float:
        return service.gateway.metric(f"tidewheel_gateway_{name}", scenario="code")

    names = ("arrivals_total", "request_prompt_tokens_sum", "request_output_tokens_sum")
    streams = ("time_to_first_token_seconds_count", "time_per_output_token_seconds_count")
    before = {name: counted(name) for name in (*names, *streams)}
    whole = await client.chat.completions.create(**ask("ten letters") | {"model": "coder"})
    stream = await client.chat.completions.create(**ask("hello", stream=True) | {"model": "coder"})
    assert [chunk async for chunk in stream]
    eventually(lambda: counted("request_output_tokens_count") >= 2)
    told = {name: counted(name) - value for name, value in before.items()}
    assert told["arrivals_total"] == 2
    assert told["request_prompt_tokens_sum"] == whole.usage.prompt_tokens + 5
    assert told["request_output_tokens_sum"] == whole.usage.completion_tokens + 5
    assert [told[name] for name in streams] == [1, 1]


async def test_a_scenarios_requests_wait_as_long_as_it_says(service, client):
    async with all_prefills_busy(service):
        patient = asyncio.create_task(client.chat.completions.create(**ask("a patient one")))
        with pytest.raises(openai.InternalServerError) as refused:
            await client.chat.completions.create(**ask("a hurried one"), extra_headers={"x-class": "fast"})
        # what the first answers took says that the last moment is too late
        assert (refused.value.status_code, refused.value.code) == (503, "deadline_out_of_reach")
        assert not patient.done()
    assert (await patient).choices[0].message.content == "a patient one"
    ended = "tidewheel_gateway_early_terminations_total"
    assert service.gateway.metric(ended, scenario="hurried") == 1
    assert service.gateway.metric(ended, scenario="default") == 0


async def test_a_scenario_whose_groups_are_not_there_is_not_served_by_others(client):
    with pytest.raises(openai.InternalServerError) as refused:
        await client.chat.completions.create(**ask("hi"))
    assert refused.value.code == "no_backend_ready"


async def test_short_prompts_are_computed_by_the_decode_meanwhile(service, client):
    async with all_prefills_busy(service):
        answer = await client.chat.completions.create(**ask("hello"))
        assert answer.choices[0].message.content == "hello"
    assert service.gateway.metric("tidewheel_gateway_prompts_to_decodes_total") == 1


async def test_their_length_is_known_also_where_no_prefill_told_it(service, client):
    def counted() -> float:
        return service.gateway.metric("tidewheel_gateway_request_prompt_tokens_sum", scenario="default")

    before = counted()
    async with all_prefills_busy(service):
        stream = await client.chat.completions.create(**ask("hello", stream=True))
        assert [chunk async for chunk in stream]
    await asyncio.to_thread(eventually, lambda: counted() - before == 5)


async def test_no_more_wait_than_may_and_those_who_do_are_served_in_their_order(service, client):
    served: list[int] = []

    async def answered(number: int) -> None:
        await client.chat.completions.create(**ask(f"a waiting one, number {number}"))
        served.append(number)

    async with all_prefills_busy(service):
        those_who_wait = []
        for number in range(3):
            those_who_wait.append(asyncio.create_task(answered(number)))
            await asyncio.to_thread(eventually, lambda count=number: waiting(service) == count + 1)
        with pytest.raises(openai.RateLimitError) as refused:
            await client.chat.completions.create(**ask("one too many"))
        assert refused.value.code == "too_many_waiting"
        assert int(refused.value.response.headers["retry-after"]) >= 1
    await asyncio.gather(*those_who_wait)
    assert served == [0, 1, 2]


async def test_who_waits_and_leaves_is_forgotten(service, client):
    async with all_prefills_busy(service):
        task = asyncio.create_task(client.chat.completions.create(**ask("an impatient one")))
        await asyncio.to_thread(eventually, lambda: waiting(service) == 1)
        task.cancel()
        await asyncio.to_thread(eventually, lambda: waiting(service) == 0)
    assert (await client.chat.completions.create(**ask("the next one"))).choices
