"""KV that goes layer by layer, and what breaks meanwhile: with real processes, and the gateway that asks for it."""

from __future__ import annotations

import asyncio
import signal

import aiohttp
import pytest
from tests.local.serving.processes import Service, ask, eventually

PER_LAYER = {"TIDEWHEEL_KV_MODE": "PerLayer"}
TEXT = "the quick brown fox"
#: Long enough to do something while a prompt is computed.
COMPUTES_LONG = "stand-in:prefill_ms=1500"


async def answers(service: Service, *texts: str) -> list[str]:
    async with service.client() as client:
        whole = await asyncio.gather(*(client.chat.completions.create(**ask(text)) for text in texts))
    return [answer.choices[0].message.content for answer in whole]


def total(service: Service, name: str, **labels: str) -> float:
    return sum(worker.metric(name, **labels) for worker in service.members)


async def idle(service: Service) -> None:
    """Until no slot and no buffer is in use any more."""
    await asyncio.to_thread(
        eventually,
        lambda: service.slots_used() == 0 and total(service, "tidewheel_kv_buffers", state="used") == 0,
    )


async def fetching(service: Service) -> None:
    """Until a decode waits for a prompt's KV."""
    await asyncio.to_thread(
        eventually, lambda: total(service, "tidewheel_kv_transfers", state="running") == 1
    )


@pytest.mark.parametrize("mode", ["PerLayer", "Blocks"])
async def test_every_mode_answers_from_the_kv_that_moved(tmp_path, mode):
    environment = {"TIDEWHEEL_KV_MODE": mode}
    with Service(directory=tmp_path, prefills=2, decodes=2, environment=environment) as service:
        texts = [f"prompt number {number}" for number in range(12)]
        assert await answers(service, *texts) == texts
        await idle(service)
        assert total(service, "tidewheel_kv_transfer_bytes_total", role="decode") == 128 * len("".join(texts))
        assert total(service, "tidewheel_kv_transfer_errors_total") == 0


async def test_a_decode_fetches_while_the_prompt_is_computed(tmp_path):
    with Service(directory=tmp_path, source=COMPUTES_LONG, environment=PER_LAYER) as service:
        request = asyncio.create_task(answers(service, TEXT))
        await fetching(service)
        assert service.prefill[0].metric("vllm:prompt_tokens_total") == 0
        assert await request == [TEXT]
        assert service.prefill[0].metric("vllm:prompt_tokens_total") == len(TEXT)
        assert total(service, "tidewheel_kv_transfer_exposed_seconds_count", role="prefill") == 1


@pytest.mark.parametrize("early", ["gateway", "workers"])
async def test_a_gateway_and_workers_of_different_modes_serve_together(tmp_path, early):
    """As while a change of the mode is rolled out."""
    kind = "gateway_environment" if early == "gateway" else "environment"
    other = {"gateway_environment": {"TIDEWHEEL_KV_MODE": "Whole"}} if early == "workers" else {}
    with Service(directory=tmp_path, **{kind: PER_LAYER, **other}) as service:
        assert await answers(service, TEXT, "another") == [TEXT, "another"]


async def test_a_client_that_leaves_frees_prefill_and_decode_at_once(tmp_path):
    with Service(directory=tmp_path, source=COMPUTES_LONG, environment=PER_LAYER) as service:
        async with aiohttp.ClientSession() as session:
            request = asyncio.create_task(
                session.post(f"{service.gateway.url}/v1/chat/completions", json=ask(TEXT, stream=True))
            )
            await fetching(service)
            assert service.slots_used() == 2
            request.cancel()
            await idle(service)
        assert service.prefill[0].metric("vllm:prompt_tokens_total") == 0
        assert service.gateway.metric("tidewheel_gateway_open_streams") == 0
        assert await answers(service, TEXT) == [TEXT]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["dies", "freezes"])
async def test_a_prefill_that_is_lost_while_it_computes_is_replaced_by_another(tmp_path, how):
    with Service(
        directory=tmp_path,
        prefills=2,
        source=COMPUTES_LONG,
        environment=PER_LAYER | {"TIDEWHEEL_KV_TIMEOUT_SECONDS": "0.5"},
    ) as service:
        request = asyncio.create_task(answers(service, TEXT))
        await fetching(service)
        busy = next(p for p in service.prefill if p.metric("tidewheel_slots", state="used"))
        busy.send(how)
        assert await request == [TEXT]
        assert (
            service.gateway.metric("tidewheel_gateway_reforwards_total", reason="decode_transfer_failed") == 1
        )
        service.prefill.remove(busy)
        await idle(service)
        busy.kill()


async def test_a_decode_that_dies_while_it_fetches_frees_its_prefill_and_is_replaced(tmp_path):
    with Service(directory=tmp_path, decodes=2, source=COMPUTES_LONG, environment=PER_LAYER) as service:
        request = asyncio.create_task(answers(service, TEXT))
        await fetching(service)
        busy = next(d for d in service.decode if d.metric("tidewheel_slots", state="used"))
        busy.kill()
        assert await request == [TEXT]
        assert service.gateway.metric("tidewheel_gateway_reforwards_total", reason="decode_lost") == 1
        service.decode.remove(busy)
        await idle(service)


async def test_a_prompt_that_is_too_long_is_refused_before_a_decode_is_asked(tmp_path):
    environment = PER_LAYER | {"TIDEWHEEL_MAX_CONTEXT_TOKENS": "100"}
    with Service(directory=tmp_path, environment=environment) as service:
        url = f"{service.gateway.url}/v1/chat/completions"
        async with aiohttp.ClientSession() as session, session.post(url, json=ask("x" * 200)) as answer:
            assert answer.status == 400
            assert (await answer.json())["error"]["code"] == "context_length_exceeded"
        assert service.gateway.metric("tidewheel_gateway_inquiries_total", role="decode") == 0
        await idle(service)
