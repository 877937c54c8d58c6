"""A client on real sockets, against servers that follow a script."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from tidewheel_workers.serving.http1.client import (
    HIGH_WATER,
    ConnectionLost,
    HttpClient,
    Unreachable,
    encode_request,
)

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
CHUNKS = 400  # of 64 KiB: more than the kernel's buffers hold
STREAM = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


class Script:
    """A server whose connections are handled by a function."""

    def __init__(self, server: asyncio.Server) -> None:
        self.address: tuple[str, int] = server.sockets[0].getsockname()[:2]
        self.connections = 0

    def request(self, body: bytes = b"") -> bytes:
        return encode_request("POST", self.address, "/path", {"X-Name": "value"}, body)


@contextlib.asynccontextmanager
async def scripted(handle):
    """`handle(reader, writer)` is called for each connection."""
    script: Script

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        script.connections += 1
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await handle(reader, writer)
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    script = Script(server)
    try:
        yield script
    finally:
        server.close()


@contextlib.asynccontextmanager
async def client(**options):
    made = HttpClient(**{"connect_seconds": 5.0} | options)
    try:
        yield made
    finally:
        await made.close()


async def received(reader: asyncio.StreamReader) -> bytes:
    """One request with a length, without a body."""
    return await reader.readuntil(b"\r\n\r\n")


def answering(*answers: bytes):
    """Answers each request with the next of these, and then says nothing more."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            await received(reader)
            writer.write(answer)
        await reader.read()

    return handle


async def eventually(holds) -> None:
    """Let everything else go on until it holds."""
    while not holds():  # noqa: ASYNC110 - what is waited for has no event
        await asyncio.sleep(0)


def later(seconds: float) -> float:
    return asyncio.get_running_loop().time() + seconds


async def test_a_request_says_what_it_is_for():
    seen = []

    async def handle(reader, writer) -> None:
        seen.append(await received(reader) + await reader.readexactly(4))
        writer.write(OK)

    async with scripted(handle) as server, client() as http:
        answer = await http.send(server.address, server.request(b"body"))
        assert (answer.status, await answer.read(100)) == (200, b"hi")
        answer.close()
    host, port = server.address
    assert seen == [
        f"POST /path HTTP/1.1\r\nHost: {host}:{port}\r\nX-Name: value\r\nContent-Length: 4\r\n\r\nbody".encode()
    ]


def test_an_address_of_version_6_stands_in_brackets():
    assert b"Host: [::1]:8000\r\n" in encode_request("GET", ("::1", 8000), "/", {})


def test_a_header_cannot_begin_another_one():
    with pytest.raises(ValueError, match="line break"):
        encode_request("GET", ("h", 1), "/", {"x": "a\r\nhost: b"})


async def test_a_connection_is_used_again_after_a_whole_answer():
    async with scripted(answering(OK, OK, OK)) as server, client() as http:
        for _ in range(3):
            answer = await http.send(server.address, server.request())
            assert await answer.read(100) == b"hi"
            answer.close()
    assert server.connections == 1


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(
            b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", id="the server says so"
        ),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhi", id="the answer is not complete"),
    ],
)
async def test_a_connection_is_not_used_again_when(answer):
    async with scripted(answering(answer)) as server, client() as http:
        for _ in range(2):
            got = await http.send(server.address, server.request())
            got.close()
    assert server.connections == 2


async def test_an_idle_connection_that_the_server_ends_is_forgotten():
    async def handle(reader, writer) -> None:
        await received(reader)
        writer.write(OK)

    async with scripted(handle) as server, client() as http:
        for _ in range(2):
            answer = await http.send(server.address, server.request())
            await answer.read(100)
            answer.close()
            await eventually(lambda: not http.connections)
            assert not http.idle
    assert server.connections == 2


async def test_an_idle_connection_is_closed_before_the_server_tires_of_it():
    async with scripted(answering(OK)) as server, client(idle_seconds=0.01) as http:
        answer = await http.send(server.address, server.request())
        await answer.read(100)
        answer.close()
        await eventually(lambda: not http.connections)
    assert not http.idle


async def test_a_server_that_is_not_there_is_unreachable():
    async with scripted(answering()) as server:
        pass
    async with client() as http:
        with pytest.raises(Unreachable, match="no connection to 127"):
            await http.send(server.address, server.request())


async def test_a_server_that_ends_before_it_answers_is_lost():
    async def handle(reader, _) -> None:
        await received(reader)

    async with scripted(handle) as server, client() as http:
        with pytest.raises(ConnectionLost, match="ended too early"):
            await http.send(server.address, server.request())
        assert not http.connections


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(STREAM + b"1\r\na\r\n", id="in a stream"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\na", id="in a whole answer"),
        pytest.param(STREAM + b"1\r\na\r\nnonsense\r\n", id="by nonsense"),
    ],
)
async def test_a_server_that_ends_in_mid_answer_is_lost_after_what_it_sent(sent):
    async def handle(reader, writer) -> None:
        await received(reader)
        writer.write(sent)

    got: list[bytes] = []
    async with scripted(handle) as server, client() as http:
        answer = await http.send(server.address, server.request())
        with pytest.raises(ConnectionLost):
            await answer.relay(got.append)
        answer.close()
    assert got == [b"a"]


async def test_an_answer_without_a_length_is_whole_when_the_server_ends():
    async def handle(reader, writer) -> None:
        await received(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nuntil the end")

    async with scripted(handle) as server, client() as http:
        answer = await http.send(server.address, server.request())
        assert await answer.read(100) == b"until the end"
        answer.close()
        assert not http.idle


async def test_an_answer_beyond_the_limit_is_not_read():
    async with (
        scripted(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 101\r\n\r\n" + bytes(101))) as server,
        client() as http,
    ):
        answer = await http.send(server.address, server.request())
        with pytest.raises(ConnectionLost, match="larger than 100"):
            await answer.read(100)
        answer.close()


async def test_a_whole_answer_is_fetched_at_once_and_the_connection_used_again():
    async with scripted(answering(OK, OK)) as server, client() as http:
        for _ in range(2):
            whole = await http.fetch(server.address, server.request(), most=2)
            assert (whole.status, whole.headers, whole.body) == (200, {"content-length": "2"}, b"hi")
    assert server.connections == 1


@pytest.mark.parametrize(
    ("sent", "fault", "until"),
    [
        pytest.param(
            b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nfar", ConnectionLost, None, id="too large"
        ),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nh", TimeoutError, 0.02, id="too slow"),
        pytest.param(STREAM + b"1\r\na\r\nnonsense\r\n", ConnectionLost, None, id="nonsense"),
        pytest.param(b"", TimeoutError, 0.02, id="nothing"),
    ],
)
async def test_an_answer_that_does_not_come_whole_is_not_fetched(sent, fault, until):
    async with scripted(answering(sent)) as server, client() as http:
        with pytest.raises(fault):
            await http.fetch(
                server.address, server.request(), most=2, until=None if until is None else later(until)
            )
        await eventually(lambda: not http.connections)


async def test_the_parts_of_a_stream_are_handed_over_as_they_come():
    handed: list[bytes] = []
    taken = asyncio.Event()

    async def handle(reader, writer) -> None:
        await received(reader)
        writer.write(STREAM + b"1\r\na\r\n")
        for _ in range(3):
            await taken.wait()
            taken.clear()
            writer.write(b"1\r\nb\r\n")
        await taken.wait()
        writer.write(b"0\r\n\r\n")

    def take(data: bytes) -> None:
        handed.append(data)
        taken.set()

    async with scripted(handle) as server, client() as http:
        answer = await http.send(server.address, server.request())
        first = await answer.next()
        take(first)
        await answer.relay(take)
        assert handed == [b"a", b"b", b"b", b"b"]
        answer.close()
        assert http.idle


async def test_the_head_is_there_before_the_body_is_made():
    go_on = asyncio.Event()

    async def handle(reader, writer) -> None:
        await received(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nX-Early: yes\r\nContent-Length: 2\r\n\r\n")
        await go_on.wait()
        writer.write(b"hi")

    async with scripted(handle) as server, client() as http:
        answer = await http.send(server.address, server.request())
        assert answer.headers["x-early"] == "yes"
        go_on.set()
        assert await answer.read(100) == b"hi"
        answer.close()


async def test_a_server_notices_when_nobody_listens_any_more():
    gone = asyncio.Event()

    async def handle(reader, writer) -> None:
        await received(reader)
        writer.write(STREAM + b"1\r\na\r\n")
        with contextlib.suppress(ConnectionError):
            await reader.read()
        gone.set()

    async with scripted(handle) as server, client() as http:
        answer = await http.send(server.address, server.request())
        assert await answer.next() == b"a"
        answer.close()
        await gone.wait()


@pytest.mark.parametrize("phase", ["head", "body", "stream"])
async def test_waiting_has_an_end(phase):
    sent = {
        "head": b"",
        "body": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nh",
        "stream": STREAM + b"1\r\na\r\n",
    }
    async with scripted(answering(sent[phase])) as server, client() as http:
        with pytest.raises(TimeoutError):  # noqa: PT012
            answer = await http.send(server.address, server.request(), until=later(0.02))
            await (answer.relay(lambda _: None) if phase == "stream" else answer.read(100))
        await eventually(lambda: not http.connections)


async def test_the_end_of_waiting_can_be_moved():
    go_on = asyncio.Event()

    async def handle(reader, writer) -> None:
        await received(reader)
        writer.write(STREAM + b"1\r\na\r\n")
        await go_on.wait()
        writer.write(b"0\r\n\r\n")

    async with scripted(handle) as server, client() as http:
        answer = await http.send(server.address, server.request(), until=later(60))
        assert await answer.next() == b"a"
        answer.wait_until(later(0.02))
        with pytest.raises(TimeoutError):
            await answer.next()
        answer.close()
        answer = await http.send(server.address, server.request(), until=later(0.02))
        answer.wait_until(None)
        go_on.set()
        assert await answer.read(100) == b"a"
        answer.close()


async def test_a_request_that_is_given_up_ends_its_connection():
    asked, gone = asyncio.Event(), asyncio.Event()

    async def handle(reader, _) -> None:
        await received(reader)
        asked.set()
        with contextlib.suppress(ConnectionError):
            await reader.read()
        gone.set()

    async with scripted(handle) as server, client() as http:
        task = asyncio.create_task(http.send(server.address, server.request()))
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await gone.wait()


def flooding(pause: list[int]):
    """Sends chunks as fast as they are taken, and notes how many before it had to wait for the first time."""

    async def handle(reader, writer) -> None:
        await received(reader)
        writer.write(STREAM)
        sent = 0
        while sent < CHUNKS:
            writer.write(b"10000\r\n" + bytes(0x10000) + b"\r\n")
            sent += 1
            try:
                async with asyncio.timeout(None if pause else 0.2):
                    await writer.drain()
            except TimeoutError:
                pause.append(sent)
        writer.write(b"0\r\n\r\n")

    return handle


@pytest.mark.parametrize("who", ["nobody reads", "the reader pauses"])
async def test_a_server_is_held_back(who):
    paused: list[int] = []
    total = 0

    def take(data: bytes) -> None:
        nonlocal total
        total += len(data)
        if who == "the reader pauses" and not paused:
            answer.pause(True)

    async with scripted(flooding(paused)) as server, client() as http:
        answer = await http.send(server.address, server.request())
        relaying = asyncio.create_task(answer.relay(take)) if who == "the reader pauses" else None
        await eventually(lambda: paused)
        (connection,) = http.connections
        assert connection.reader.size <= 4 * HIGH_WATER
        answer.pause(False)
        await (relaying or answer.relay(take))
        assert total == CHUNKS * 0x10000
        answer.close()


async def test_bytes_that_nobody_asked_for_end_the_connection():
    async def handle(reader, writer) -> None:
        await received(reader)
        writer.write(OK)
        await asked_again.wait()
        writer.write(OK)
        await reader.read()

    asked_again = asyncio.Event()
    async with scripted(handle) as server, client() as http:
        answer = await http.send(server.address, server.request())
        await answer.read(100)
        answer.close()
        asked_again.set()
        await eventually(lambda: not http.connections)
        assert not http.idle
