"""What a gateway makes of its servers' answers, and for how long it waits for a stream's next token."""

from __future__ import annotations

import asyncio
import json
import socket
import time

import pytest

from tidewheel.api.ranktable import Backend
from tidewheel_workers.serving.backends import Backends, Upstream
from tidewheel_workers.serving.forwarding_steps import (
    AskDecode,
    AskPrefill,
    OutOfTime,
    Prefilled,
    Refused,
)
from tidewheel_workers.serving.http1.client import ConnectionLost, Whole
from tidewheel_workers.serving.http1.messages import Limits, Response
from tidewheel_workers.serving.http1.server import HttpServer
from tidewheel_workers.serving.kv_transport import RELEASE_PATH
from tidewheel_workers.serving.spans import Spans

FOREVER = time.monotonic() + 3600
BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_completion_tokens": 9}


class Server:
    """A server that keeps what it was asked and gives the answer it was told to."""

    def __init__(self) -> None:
        self.asked: list = []
        self.answer = Response()
        self.was_asked = asyncio.Event()
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.server = HttpServer(
            self._handle,
            limits=Limits(body_bytes=10_000),
            refuse=lambda _: Response(),
            fail=lambda _: Response(),
        )

    async def _handle(self, incoming) -> Response:
        self.asked.append(incoming.request)
        self.was_asked.set()
        if incoming.request.path != RELEASE_PATH:
            await self.may_answer.wait()
        return self.answer

    @property
    def backend(self) -> Backend:
        return Backend(name="b", address="127.0.0.1", port=self.port)

    @property
    def body(self) -> dict:
        return json.loads(self.asked[-1].body)


@pytest.fixture
async def server():
    one = Server()
    listening = socket.create_server(("127.0.0.1", 0))
    one.port = listening.getsockname()[1]
    await one.server.start_on(listening)
    yield one
    await one.server.close()


@pytest.fixture
async def backends():
    one = Backends(Spans())
    yield one
    await one.close()


async def prefill(
    backends: Backends, server: Server, *, resumed: tuple[int, ...] = (), until: float = FOREVER
):
    ask = AskPrefill(backend=server.backend, until=until, resumed=resumed)
    return await backends.prefill(ask, "/v1/chat/completions", BODY, {}, FOREVER)


@pytest.mark.parametrize(
    ("status", "headers", "want"),
    [
        pytest.param(429, {"Retry-After": "1"}, Refused(cause="busy", retry_after=1.0), id="in seconds"),
        pytest.param(
            429, {"Retry-After": "1", "retry-after-ms": "37"}, Refused(cause="busy", retry_after=0.037),
            id="in milliseconds",
        ),
        pytest.param(503, {"Retry-After": "9999"}, Refused(cause="unavailable", retry_after=30.0), id="for too long"),
        pytest.param(429, {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, Refused(cause="busy"), id="as a date"),
        pytest.param(429, {"Retry-After": "-5"}, Refused(cause="busy"), id="nonsense"),
        pytest.param(429, {}, Refused(cause="busy"), id="not at all"),
    ],
)  # fmt: skip
async def test_a_server_may_say_when_to_ask_again(server, backends, status, headers, want):
    server.answer = Response(status=status, headers=headers)
    assert await prefill(backends, server) == want


async def test_a_prefill_is_told_what_the_client_has_and_writes_one_token_more(server, backends):
    server.answer = Response.of_json({"kv_transfer_params": {"do_remote_prefill": True}})
    assert await prefill(backends, server) == Prefilled(hand_over={"do_remote_prefill": True})
    assert (server.body["max_completion_tokens"], server.body["max_tokens"]) == (1, 1)
    assert "resumed_token_ids" not in server.body["kv_transfer_params"]
    await prefill(backends, server, resumed=(7, 8))
    assert (server.body["max_completion_tokens"], server.body["max_tokens"]) == (3, 3)
    assert server.body["kv_transfer_params"]["resumed_token_ids"] == [7, 8]


async def withdrawn(server: Server) -> None:
    """The KV is given up that the prompt asked for was to have."""
    prompt = json.loads(server.asked[0].body)
    while len(server.asked) < 2:
        server.was_asked.clear()
        await server.was_asked.wait()
    assert server.asked[1].path == RELEASE_PATH
    assert server.body["remote_bearer"] == prompt["kv_transfer_params"]["remote_bearer"]


async def test_kv_that_a_prefill_offers_to_someone_who_has_left_is_given_up(server, backends):
    server.may_answer.clear()
    leaving = asyncio.create_task(prefill(backends, server))
    await server.was_asked.wait()
    leaving.cancel()
    await withdrawn(server)


async def test_kv_that_a_prefill_offers_too_late_is_given_up(server, backends):
    server.may_answer.clear()
    assert await prefill(backends, server, until=time.monotonic() + 0.05) == OutOfTime()
    await withdrawn(server)


async def test_each_prompt_has_a_bearer_of_its_own(server, backends):
    server.answer = Response.of_json({"kv_transfer_params": {"do_remote_prefill": True}})
    await prefill(backends, server)
    await prefill(backends, server)
    first, second = (json.loads(one.body)["kv_transfer_params"]["remote_bearer"] for one in server.asked)
    assert len(first) == 32
    assert first != second


async def test_a_decode_that_is_to_compute_the_prompt_is_told_of_no_transfer(server, backends):
    server.answer = Response.of_json({"choices": []})
    ask = AskDecode(backend=server.backend, hand_over=None, until=FOREVER)
    answer = await backends.decode(ask, "/v1/chat/completions", BODY, {}, FOREVER)
    assert isinstance(answer, Whole)
    assert answer.body == server.answer.body
    assert server.body == BODY
    assert "x-tidewheel-token-ids" not in server.asked[-1].headers


class Answering:
    """A decode's answer whose silence is told by hand; it remembers until when it is waited for."""

    def __init__(self) -> None:
        self.until = 0.0
        self.taken = None
        self.is_paused = False
        self.ends: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def wait_until(self, until: float) -> None:
        self.until = until

    def pause(self, is_paused: bool) -> None:
        self.is_paused = is_paused

    async def relay(self, take) -> None:
        self.taken = take
        await self.ends

    def close(self) -> None:
        pass


class Ending:
    """A call that nobody traces."""

    def end(self) -> None:
        pass


async def relaying(answering: Answering, *, ends_at: float):
    upstream = Upstream(Ending(), answering, b"first", ends_at)
    passed: list[bytes] = []
    task = asyncio.create_task(upstream.relay(passed.append, idle_seconds=5.0))
    await asyncio.sleep(0)
    return upstream, task, passed


async def test_each_token_gives_a_stream_as_long_again_but_no_longer_than_the_request_has():
    answering = Answering()
    began = time.monotonic()
    _, task, passed = await relaying(answering, ends_at=began + 3600)
    first = answering.until
    assert began + 5 <= first <= time.monotonic() + 5
    answering.taken(b"token")
    assert answering.until >= first
    answering.ends.set_exception(TimeoutError())
    assert await task == "no token came for 5 s"
    assert passed == [b"token"]


async def test_a_client_that_reads_slowly_is_no_silent_server():
    answering = Answering()
    ends_at = time.monotonic() + 3600
    upstream, task, _ = await relaying(answering, ends_at=ends_at)
    upstream.pause(True)
    assert (answering.is_paused, answering.until) == (True, ends_at)
    upstream.pause(False)
    assert answering.until <= time.monotonic() + 5
    answering.ends.set_exception(ConnectionLost("the connection broke"))
    assert await task == "the connection broke"


async def test_when_the_requests_time_is_over_it_is_not_the_servers_fault():
    answering = Answering()
    _, task, _ = await relaying(answering, ends_at=time.monotonic() - 1)
    answering.ends.set_exception(TimeoutError())
    with pytest.raises(TimeoutError):
        await task
