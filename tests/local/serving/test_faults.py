"""What breaks, breaks small: killed servers, clients that leave, noise on the KV port, servers that drain."""

from __future__ import annotations

import asyncio
import os
import signal
import socket

import aiohttp
import openai
import pytest
from tests.local.serving.processes import Service, ask, eventually

#: Long enough to do something meanwhile: about 2,000 tokens at 5 ms each, unless max_tokens says less.
SLOW = "stand-in:tokens=1900,step_ms=5"
TEXT = "the quick brown fox"


def repeated(tokens: int) -> str:
    return (TEXT * tokens)[:tokens]


@pytest.fixture
def service(tmp_path):
    with Service(directory=tmp_path, prefills=2, decodes=2, source=SLOW) as running:
        yield running


async def answers(service: Service, count: int) -> list[str]:
    async with service.client() as client:
        whole = await asyncio.gather(
            *(client.chat.completions.create(**ask(TEXT, max_tokens=8)) for _ in range(count))
        )
    return [answer.choices[0].message.content for answer in whole]


async def begin(client, **fields):
    """A stream that has begun, and its first chunk."""
    stream = await client.chat.completions.create(**ask(TEXT, stream=True, **fields))
    return stream, await anext(stream)


async def rest(stream) -> str:
    return "".join([chunk.choices[0].delta.content async for chunk in stream if chunk.choices])


def slots_used(worker) -> float:
    return worker.metric("tidewheel_slots", state="used")


def serving(service: Service):
    """The decode that is answering now."""
    return eventually(
        lambda: next((d for d in service.decode if d.metric("vllm:num_requests_running") == 1), None)
    )


async def test_killed_servers_are_replaced_by_others_and_come_back(service):
    async with service.client() as client:
        stream, first = await begin(client, max_tokens=400)
        killed = serving(service)
        killed.kill()
        assert first.choices[0].delta.content + await rest(stream) == repeated(400)
    service.prefill[0].kill()
    assert await answers(service, 6) == [repeated(8)] * 6

    for worker in (killed, service.prefill[0]):
        worker.start()
    for worker in (killed, service.prefill[0]):
        worker.wait_ready()
    before = killed.metric("tidewheel_kv_transfer_bytes_total")
    assert await answers(service, 8) == [repeated(8)] * 8
    assert killed.metric("tidewheel_kv_transfer_bytes_total") > before
    assert eventually(lambda: service.slots_used() == 0)


async def test_a_decode_killed_before_the_first_token_is_not_noticed_by_the_client(service):
    stopped, other = service.decode
    service.decode = [stopped]
    table, routes = service.publish()
    await asyncio.to_thread(eventually, lambda: stopped.has_read("rank table", table))
    await asyncio.to_thread(eventually, lambda: service.gateway.has_read("routes", routes))
    stopped.send(signal.SIGSTOP)
    request = asyncio.create_task(answers(service, 1))
    await asyncio.to_thread(
        eventually,
        lambda: service.gateway.metric(
            "tidewheel_gateway_inquiries_total", role="prefill", outcome="accepted"
        ),
    )
    service.decode = [stopped, other]
    table, routes = service.publish()
    for member in (*service.prefill, other):
        await asyncio.to_thread(eventually, lambda one=member: one.has_read("rank table", table))
    await asyncio.to_thread(other.wait_ready)
    await asyncio.to_thread(eventually, lambda: service.gateway.has_read("routes", routes))
    stopped.kill()
    assert await request == [repeated(8)]
    assert service.gateway.metric("tidewheel_gateway_reforwards_total", reason="decode_lost") == 1
    await asyncio.to_thread(eventually, lambda: sum(slots_used(w) for w in [*service.prefill, other]) == 0)


async def test_a_client_that_leaves_frees_its_slots_at_once(service):
    async with aiohttp.ClientSession() as session:
        async with session.post(
            f"{service.gateway.url}/v1/chat/completions", json=ask(TEXT, stream=True)
        ) as answer:
            await answer.content.readany()
            decode = serving(service)
            assert service.slots_used() == 1
        await asyncio.to_thread(eventually, lambda: service.slots_used() == 0)
    assert decode.metric("vllm:num_requests_running") == 0
    assert decode.metric("vllm:request_success_total", finished_reason="abort") == 1


async def test_noise_on_the_kv_port_is_counted_and_survived(service):
    target = service.prefill[0]
    for noise in (
        b"GET / HTTP/1.0\r\n\r\n",
        os.urandom(4096),
        b"TWKV\x02\x03\x00\x00" + b"\xff" * 12,
        b"TWKV",
    ):
        with socket.create_connection((target.host, 7001)) as connection:
            connection.sendall(noise)
    await asyncio.to_thread(eventually, lambda: target.metric("tidewheel_kv_transfer_errors_total") >= 4)
    assert target.metric("tidewheel_kv_transfer_errors_total", reason="truncated") >= 1
    assert target.health()["ready"]
    assert await answers(service, 4) == [repeated(8)] * 4


async def test_a_decode_that_is_told_to_end_finishes_its_stream_and_takes_no_other(service):
    async with service.client() as client:
        stream, first = await begin(client, max_tokens=300)
        leaving = serving(service)
        leaving.send(signal.SIGTERM)
        await asyncio.to_thread(eventually, lambda: leaving.health().get("reason") == "Draining")
        assert await answers(service, 4) == [repeated(8)] * 4
        assert first.choices[0].delta.content + await rest(stream) == repeated(300)
    assert leaving.exit_code() == 0


async def test_a_gateway_that_is_told_to_end_finishes_its_streams(service):
    async with service.client() as client:
        stream, first = await begin(client, max_tokens=400)
        service.gateway.send(signal.SIGTERM)
        await asyncio.to_thread(eventually, lambda: service.gateway.health().get("reason") == "Draining")
        assert first.choices[0].delta.content + await rest(stream) == repeated(400)
    assert service.gateway.exit_code() == 0


async def test_a_member_that_joins_serves_and_disturbs_nobody(service):
    async with service.client() as client:
        stream, first = await begin(client, max_tokens=500)
        joined = await asyncio.to_thread(service.add_decode)
        assert "all 3 peers are verified" in service.prefill[0].health()["message"]
        await answers(service, 12)
        assert joined.metric("tidewheel_kv_transfer_bytes_total") > 0
        assert first.choices[0].delta.content + await rest(stream) == repeated(500)


async def test_when_all_slots_stay_taken_the_request_ends_at_its_deadline(tmp_path):
    with Service(
        directory=tmp_path,
        source=SLOW,
        environment={"TIDEWHEEL_SLOTS": "1"},
        gateway_environment={"TIDEWHEEL_TTFT_DEADLINE_SECONDS": "2"},
    ) as service:
        async with service.client() as client:
            stream, _ = await begin(client)
            with pytest.raises(openai.InternalServerError) as refused:
                await client.chat.completions.create(**ask("another"))
            assert refused.value.code == "all_slots_busy"
            assert refused.value.response.headers["retry-after"] == "1"
            await stream.close()
        assert service.gateway.metric("tidewheel_gateway_early_terminations_total") == 1
        assert await answers(service, 1) == [repeated(8)]
