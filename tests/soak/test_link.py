"""A link passes what comes, and does to it what it is told."""

from __future__ import annotations

import asyncio
import random
from contextlib import asynccontextmanager

import pytest
from tests.soak.link import SPOILT_BYTES, Link, renamed

HOST = "127.67.0.1"
ANSWER = b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 2000


@asynccontextmanager
async def linked(**options):
    """A link before an echo that answers each line, and how to connect through it."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readline():
            writer.write(ANSWER)
        writer.close()

    behind = await asyncio.start_server(answer, HOST, 0)
    port = behind.sockets[0].getsockname()[1]
    with_free_port = await asyncio.start_server(answer, HOST, 0)
    known = with_free_port.sockets[0].getsockname()[1]
    with_free_port.close()
    link = Link(host=HOST, port=known, behind=port, **options)
    await link.up()
    try:
        yield link
    finally:
        link.down()
        behind.close()


@asynccontextmanager
async def connected(link: Link):
    reader, writer = await asyncio.open_connection(link.host, link.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    writer.write(b"?\n")
    return await reader.readexactly(len(ANSWER))


async def test_what_comes_passes_and_so_does_its_end():
    async with linked() as link, connected(link) as (reader, writer):
        assert await ask(reader, writer) == ANSWER
        writer.write_eof()
        assert await reader.read() == b""


async def test_a_cut_resets_connections_and_new_ones_pass():
    async with linked() as link:
        async with connected(link) as (reader, writer):
            await ask(reader, writer)
            link.cut()
            with pytest.raises(ConnectionResetError):
                await reader.read()
        async with connected(link) as (reader, writer):
            assert await ask(reader, writer) == ANSWER


async def test_a_link_that_is_down_takes_no_connections():
    async with linked() as link:
        link.down()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(link.host, link.port)
        await link.up()
        async with connected(link) as (reader, writer):
            assert await ask(reader, writer) == ANSWER


async def test_a_truncated_answer_is_a_beginning_of_it():
    async with linked() as link, connected(link) as (reader, writer):
        await ask(reader, writer)
        link.truncate(random.Random(1))
        writer.write(b"?\n")
        got = await reader.read()
        assert ANSWER.startswith(got)
        assert len(got) < len(ANSWER)


async def test_a_spoilt_answer_differs_in_one_of_its_first_bytes():
    async with linked() as link, connected(link) as (reader, writer):
        link.spoil(random.Random(1))
        got = await ask(reader, writer)
        assert [at for at in range(len(ANSWER)) if got[at] != ANSWER[at]] == [
            next(at for at in range(SPOILT_BYTES) if got[at] != ANSWER[at])
        ]
        link.release()
        assert await ask(reader, writer) == ANSWER


async def test_what_is_held_comes_when_it_is_released():
    async with linked() as link, connected(link) as (reader, writer):
        link.hold()
        writer.write(b"?\n")
        asking = asyncio.create_task(reader.readexactly(len(ANSWER)))
        done, _ = await asyncio.wait([asking], timeout=0.05)
        assert not done
        link.release()
        assert await asking == ANSWER


@pytest.mark.parametrize(
    ("chunk", "want"),
    [
        (b'{"remote_port": 7001, "a": 7001}', b'{"remote_port": 7101, "a": 7001}'),
        (b'{"remote_port":7001}', b'{"remote_port":7101}'),
        (b'{"remote_port": 70010}', b'{"remote_port": 70010}'),
    ],
)
def test_a_hand_over_names_the_known_port(chunk, want):
    assert renamed(chunk, 7001, 7101) == want
