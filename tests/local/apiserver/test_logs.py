"""Pod logs by way of the node's agent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web
from tests.local.apiserver.conftest import PODS, Client


class Agent:
    """A node agent whose log is what the test writes into it."""

    def __init__(self) -> None:
        self.lines: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.asked = ""
        self.left = asyncio.Event()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked = request.path_qs
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        try:
            while (line := await self.lines.get()) is not None:
                if line == b"crash":
                    assert request.transport is not None
                    request.transport.abort()
                await response.write(line)
            await response.write_eof()
        except asyncio.CancelledError:
            self.left.set()
            raise
        return response


@asynccontextmanager
async def listening(agent: Agent) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_get("/containerLogs/{tail:.*}", agent.answer)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    try:
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()


@pytest.fixture
async def agent(client: Client) -> AsyncIterator[Agent]:
    """An agent for the node `n`, with the pod `p` on it."""
    made = Agent()
    async with listening(made) as url:
        annotations = {"tidewheel.dev/log-endpoint": url}
        await client.create("/api/v1/nodes", "n", metadata={"annotations": annotations})
        await client.create_pod("p", node="n")
        yield made


async def test_a_log_is_asked_for_as_the_client_wants_it(client: Client, agent: Agent):
    agent.lines.put_nowait(b"hello\n")
    agent.lines.put_nowait(None)
    assert await client.get(f"{PODS}/p/log?tailLines=3&container=main&pretty=true") == "hello\n"
    assert agent.asked == "/containerLogs/default/p/main?tailLines=3"


async def test_a_followed_log_comes_line_by_line_until_the_client_leaves(client: Client, agent: Agent):
    async with client.session.get(f"{PODS}/p/log?follow=true") as response:
        for line in (b"one\n", b"two\n"):
            agent.lines.put_nowait(line)
            assert await response.content.readline() == line
        response.close()
    await agent.left.wait()


async def test_a_log_that_breaks_off_does_not_look_complete(client: Client, agent: Agent):
    agent.lines.put_nowait(b"one\n")
    async with client.session.get(f"{PODS}/p/log?follow=true") as response:
        assert await response.content.readline() == b"one\n"
        agent.lines.put_nowait(b"crash")
        with pytest.raises(aiohttp.ClientError):
            await response.read()


async def test_without_an_agent_the_reason_is_told(client: Client):
    await client.create_pod("waiting")
    assert (await client.ask("GET", f"{PODS}/waiting/log"))[0] == 400
    await client.create_pod("p", node="n")
    await client.create("/api/v1/nodes", "n")
    status, answer = await client.ask("GET", f"{PODS}/p/log")
    assert (status, "tidewheel.dev/log-endpoint" in answer["message"]) == (502, True)
    assert (await client.ask("GET", f"{PODS}/p/log?container=other"))[0] == 400
    gone = {"metadata": {"annotations": {"tidewheel.dev/log-endpoint": "http://127.0.0.1:1"}}}
    await client.ok("PATCH", "/api/v1/nodes/n", gone, content_type="application/merge-patch+json")
    status, answer = await client.ask("GET", f"{PODS}/p/log")
    assert (status, "does not answer" in answer["message"]) == (502, True)
