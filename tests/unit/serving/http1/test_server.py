"""A server on real sockets: what clients send and do, and what they are sent for it."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest

from tidewheel_workers.serving.http1 import server as server_module
from tidewheel_workers.serving.http1.messages import Limits, Refusal, Response
from tidewheel_workers.serving.http1.server import HttpServer, Incoming

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
LIMITS = Limits(body_bytes=100_000)


@contextlib.asynccontextmanager
async def serving(handle, limits: Limits = LIMITS):
    """A server whose refusals and failures say their code."""

    def refuse(refusal: Refusal) -> Response:
        return Response(status=refusal.status, body=refusal.code.encode())

    server = HttpServer(
        handle, limits=limits, refuse=refuse, fail=lambda _: Response(status=500, body=b"failed")
    )
    await server.start("127.0.0.1", 0)
    try:
        yield server
    finally:
        await server.close(grace_seconds=0.0)


async def echo(incoming: Incoming) -> Response:
    return Response(body=incoming.request.body or incoming.request.path.encode(), content_type="text/plain")


@contextlib.asynccontextmanager
async def connected(server: HttpServer):
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    """One answer with a length."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in head[1:-2])
    return int(head[0].split()[1]), headers, await reader.readexactly(int(headers.get("content-length", 0)))


async def ask(server: HttpServer, sent: bytes) -> bytes:
    """Everything that comes until the server closes."""
    async with connected(server) as (reader, writer):
        writer.write(sent)
        return await reader.read()


async def test_a_connection_carries_one_request_after_the_other():
    async with serving(echo) as server, connected(server) as (reader, writer):
        for path in (b"/first", b"/second"):
            writer.write(b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % path)
            status, headers, body = await answer(reader)
            assert (status, headers["content-type"], body) == (200, "text/plain", path)
            assert "connection" not in headers
            assert headers["date"].endswith("gmt")
        assert len(server.connections) == 1


async def test_requests_sent_ahead_are_answered_in_order():
    async with serving(echo) as server, connected(server) as (reader, writer):
        writer.write(b"".join(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % i for i in range(20)))
        assert [(await answer(reader))[2] for _ in range(20)] == [b"/%d" % i for i in range(20)]


async def test_what_is_sent_ahead_without_end_is_not_read():
    began, may_answer = asyncio.Event(), asyncio.Event()

    async def handle(incoming: Incoming) -> Response:
        began.set()
        await may_answer.wait()
        return await echo(incoming)

    limits = Limits(body_bytes=1000, waiting_bytes=1000)
    async with serving(handle, limits) as server, connected(server) as (reader, writer):
        writer.write(GET)
        await began.wait()
        (connection,) = server.connections
        while connection.is_read:
            writer.write(GET * 100)
            await asyncio.sleep(0)
        may_answer.set()
        assert (await answer(reader))[0] == 200
        assert (await answer(reader))[0] == 200


@pytest.mark.parametrize(
    ("request_line", "ends"),
    [
        pytest.param(
            b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", b"Connection: close", id="asked to"
        ),
        pytest.param(b"GET / HTTP/1.0\r\n\r\n", b"Connection: close", id="an old client"),
    ],
)
async def test_a_connection_is_closed_where_the_client_wants_it(request_line, ends):
    async with serving(echo) as server:
        assert ends in await ask(server, request_line)


async def test_a_draining_server_closes_after_each_answer():
    async with serving(echo) as server:
        server.is_draining = True
        assert b"200 OK" in await ask(server, GET)


async def test_a_head_request_gets_the_head_alone():
    async with serving(echo) as server:
        sent = b"HEAD /four HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        got = await ask(server, sent)
        assert b"Content-Length: 5\r\n" in got
        assert got.endswith(b"\r\n\r\n")


async def test_a_client_that_asks_may_send_its_body():
    async with serving(echo) as server, connected(server) as (reader, writer):
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"abc")
        assert (await answer(reader))[2] == b"abc"


async def test_a_body_that_is_too_large_is_refused_without_being_asked_for():
    async with serving(echo) as server:
        sent = b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 100001\r\n\r\n"
        got = await ask(server, sent)
        assert got.startswith(b"HTTP/1.1 413 ")
        assert b"100 Continue" not in got


async def test_a_refusal_reaches_a_client_that_is_still_sending():
    async with serving(echo) as server, connected(server) as (reader, writer):
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(100):
            writer.write(b"2000\r\n" + bytes(0x2000) + b"\r\n")
        assert (await answer(reader))[2] == b"body_too_large"
        assert await reader.read() == b""


async def test_after_a_refusal_the_requests_before_it_have_their_answers():
    async with serving(echo) as server:
        got = await ask(server, GET + b"nonsense\r\n\r\n")
        assert got.index(b"200 OK") < got.index(b"400 Bad Request") < got.index(b"malformed_request")


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        pytest.param(b"POST / HTTP/1.1\r\nHost: x\r\n", b"head_timeout", id="a head that does not end"),
        pytest.param(
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\na",
            b"body_timeout",
            id="a body that does not end",
        ),
        pytest.param(b"", b"", id="nothing"),
    ],
)
async def test_a_client_that_keeps_the_server_waiting_is_cut_off(sent, said, monkeypatch):
    monkeypatch.setattr(server_module, "SWEEP_SECONDS", 0.01)
    limits = Limits(body_bytes=10, head_seconds=0.05, body_seconds=0.05, idle_seconds=0.05)
    async with serving(echo, limits) as server:
        with contextlib.suppress(ConnectionResetError):
            assert (await ask(server, sent)).endswith(said)


async def test_drops_do_not_keep_a_slow_sender_alive(monkeypatch):
    monkeypatch.setattr(server_module, "SWEEP_SECONDS", 0.01)
    limits = Limits(body_bytes=10, head_seconds=0.1)
    async with serving(echo, limits) as server, connected(server) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n")

        async def drip() -> None:
            while True:
                writer.write(b"a: b\r\n")
                await asyncio.sleep(0.02)

        dripping = asyncio.create_task(drip())
        assert (await reader.read()).startswith(b"HTTP/1.1 408 ")
        dripping.cancel()


@pytest.mark.parametrize("how", ["closes", "resets"])
async def test_a_handler_is_cancelled_when_its_client_leaves(how):
    began, cancelled = asyncio.Event(), asyncio.Event()

    async def handle(_: Incoming) -> Response:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        raise AssertionError

    async with serving(handle) as server, connected(server) as (_, writer):
        writer.write(GET)
        await began.wait()
        if how == "resets":
            writer.transport.abort()
        else:
            writer.close()
        await cancelled.wait()
        assert not server.is_draining


async def test_what_a_handler_raises_becomes_an_answer():
    async def handle(_: Incoming) -> Response:
        raise RuntimeError("broken")

    async with serving(handle) as server, connected(server) as (reader, writer):
        for _ in range(2):
            writer.write(GET)
            assert (await answer(reader))[::2] == (500, b"failed")


def streaming(*pieces: bytes, end: bool = True):
    async def handle(incoming: Incoming):
        stream = incoming.stream((("Content-Type", "text/event-stream"),))
        for piece in pieces:
            stream.write(piece)
            await asyncio.sleep(0)
        if end:
            stream.end()
        return stream

    return handle


async def test_a_stream_comes_in_chunks_and_the_connection_goes_on():
    async with serving(streaming(b"ab", b"", b"c" * 20)) as server, connected(server) as (reader, writer):
        for _ in range(2):
            writer.write(GET)
            head = await reader.readuntil(b"\r\n\r\n")
            assert b"Transfer-Encoding: chunked\r\n" in head
            want = b"2\r\nab\r\n14\r\ncccccccccccccccccccc\r\n0\r\n\r\n"
            assert await reader.readexactly(len(want)) == want


async def test_an_old_client_gets_a_stream_until_the_connection_ends():
    async with serving(streaming(b"ab", b"c")) as server:
        got = await ask(server, b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert got.endswith(b"\r\n\r\nabc")
        assert b"chunked" not in got


async def test_a_stream_without_pieces_is_an_empty_answer():
    async with serving(streaming()) as server:
        got = await ask(server, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert got.endswith(b"\r\n\r\n0\r\n\r\n")


async def fails_in_mid_stream(incoming: Incoming):
    incoming.stream(()).write(b"half")
    raise RuntimeError("broken")


@pytest.mark.parametrize(
    "handle",
    [
        pytest.param(streaming(b"half", end=False), id="not ended"),
        pytest.param(fails_in_mid_stream, id="failed"),
    ],
)
async def test_half_a_stream_does_not_look_like_a_whole_one(handle):
    async with serving(handle) as server:
        got = b""
        with contextlib.suppress(ConnectionResetError):
            got = await ask(server, GET)
        assert not got.endswith(b"0\r\n\r\n")


def slow_reader(server: HttpServer) -> socket.socket:
    """A client that asks and then takes nothing."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", server.port))
    client.sendall(GET)
    client.setblocking(False)
    return client


async def test_a_slow_reader_presses_on_the_writer_until_it_has_caught_up():
    told: list[bool] = []
    piece = bytes(100_000)
    pressed = asyncio.Event()

    async def handle(incoming: Incoming):
        stream = incoming.stream(())
        relieved = asyncio.Event()

        def on_pressure(is_high: bool) -> None:
            told.append(is_high)
            (pressed if is_high else relieved).set()

        stream.on_pressure = on_pressure
        while not stream.is_under_pressure:
            stream.write(piece)
            await asyncio.sleep(0)
        await relieved.wait()
        stream.end()
        return stream

    async with serving(handle) as server:
        with slow_reader(server) as client:
            await pressed.wait()
            loop, end = asyncio.get_running_loop(), b""
            while not end.endswith(b"0\r\n\r\n"):
                end = end[-5:] + await loop.sock_recv(client, 1 << 20)
    assert told[:2] == [True, False]


async def test_a_reader_that_takes_nothing_is_cut_off(monkeypatch):
    monkeypatch.setattr(server_module, "SWEEP_SECONDS", 0.01)
    cancelled = asyncio.Event()

    async def handle(incoming: Incoming):
        stream = incoming.stream(())
        while not stream.is_under_pressure:
            stream.write(bytes(100_000))
            await asyncio.sleep(0)
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with serving(handle, Limits(body_bytes=10, stall_seconds=0.05)) as server:
        with slow_reader(server):
            await cancelled.wait()


async def test_closing_ends_what_does_not_end_by_itself():
    began = asyncio.Event()

    async def handle(_: Incoming) -> Response:
        began.set()
        await asyncio.Event().wait()
        raise AssertionError

    async with serving(handle) as server, connected(server) as (reader, writer):
        writer.write(GET)
        await began.wait()
        await server.close(grace_seconds=0.0)
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        assert not server.tasks


def test_a_header_cannot_begin_another_one():
    with pytest.raises(ValueError, match="line break"):
        Response(headers={"x": "a\r\nset-cookie: b"}).to_bytes(keeps_alive=True)
