"""Container logs: read while written, of the run before, bounded, and through the API."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import aiohttp
import pytest

from tidewheel.api.manifest import PODS
from tidewheel.local.node.logs import ContainerLog, LogQuery, tail

from .world import PATIENCE_SECONDS, container, phase, pod, shell, until


async def lines(log: ContainerLog, **query) -> list[bytes]:
    return [line async for line in log.read(LogQuery(**query))]


async def text_of(url: str, **query: str) -> str:
    async with aiohttp.ClientSession() as session, session.get(url, params=query) as response:
        assert response.status == 200, await response.text()
        return await response.text()


def log_url(cluster, name: str) -> str:
    return f"{cluster.url}/api/v1/namespaces/default/pods/{name}/log"


async def test_logs_come_through_the_api_with_their_options(cluster, api):
    await api.create(PODS, pod("talks", shell("echo one; echo two >&2; sleep 0.1; printf three"), once=True))
    await until(api, PODS, "talks", lambda p: phase(p) == "Succeeded")

    url = log_url(cluster, "talks")
    assert sorted((await text_of(url)).splitlines()) == ["one", "three", "two"]
    assert await text_of(url, tailLines="1") == "three\n"
    assert len(await text_of(url, limitBytes="2")) == 2
    stamp, last = (await text_of(url, tailLines="1", timestamps="true")).split()
    assert last == "three"
    assert abs((datetime.now(UTC) - datetime.fromisoformat(stamp)).total_seconds()) < 60
    assert await text_of(url, sinceTime="2100-01-01T00:00:00Z") == ""


async def test_following_shows_lines_as_they_are_written_and_ends_with_the_container(cluster, api, tmp_path):
    script = f"echo first; until test -e {tmp_path}/go; do sleep 0.05; done; echo second"
    await api.create(PODS, pod("streams", shell(script), once=True))
    await until(api, PODS, "streams", lambda p: "running" in container(p)["state"])

    async with (
        aiohttp.ClientSession() as session,
        session.get(log_url(cluster, "streams"), params={"follow": "true"}) as response,
    ):
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert await response.content.readline() == b"first\n"
            (tmp_path / "go").touch()
            assert await response.content.readline() == b"second\n"
            assert await response.content.read() == b""


async def test_the_log_of_the_run_before_can_be_read(cluster, api, tmp_path):
    script = (
        f"if test -e {tmp_path}/x; then echo again; sleep 100; fi; touch {tmp_path}/x; echo before; exit 1"
    )
    await api.create(PODS, pod("twice", shell(script)))
    await until(api, PODS, "twice", lambda p: container(p).get("restartCount") == 1)

    assert await text_of(log_url(cluster, "twice"), previous="true") == "before\n"


async def test_a_container_that_never_ran_has_no_log_and_the_answer_says_so(cluster, api):
    await api.create(PODS, pod("mute", {"name": "main", "image": "no-command"}))
    await until(api, PODS, "mute", lambda p: container(p)["state"].get("waiting", {}).get("message"))

    async with aiohttp.ClientSession() as session, session.get(log_url(cluster, "mute")) as response:
        assert response.status == 400
        assert "waiting to start" in await response.text()


async def test_a_log_is_bounded_and_its_newest_part_stays(tmp_path):
    log = ContainerLog(tmp_path / "log", most_bytes=2000)
    for number in range(1000):
        log.write("stdout", b"line %d\n" % number)
    log.close()

    kept = await lines(log)
    assert kept[-1] == b"line 999\n"
    assert 0 < len(kept) < 150
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 5000


async def test_a_follower_misses_nothing_across_rotations(tmp_path):
    log = ContainerLog(tmp_path / "log", most_bytes=500)
    following = asyncio.create_task(lines(log, follow=True))
    for number in range(200):
        log.write("stdout", b"line %d\n" % number)
        await asyncio.sleep(0)
    log.close()

    assert await asyncio.wait_for(following, 10) == [b"line %d\n" % number for number in range(200)]


@pytest.mark.parametrize(
    ("chunks", "want"),
    [
        pytest.param([b"a", b"b\nc\n"], [b"ab\n", b"c\n"], id="a line may come in pieces"),
        pytest.param([b"no newline"], [b"no newline\n"], id="the end of the stream ends a line"),
        pytest.param([b"x" * 40_000 + b"\n"], None, id="a very long line stays whole for the reader"),
        pytest.param([b"\n\n"], [b"\n", b"\n"], id="empty lines are lines"),
    ],
)
async def test_what_was_written_is_what_is_read(tmp_path, chunks, want):
    log = ContainerLog(tmp_path / "log")
    for chunk in chunks:
        log.write("stdout", chunk)
    log.close()

    found = await lines(log)
    assert b"".join(found) == b"".join(want if want is not None else chunks)


async def test_the_tail_for_a_termination_message_is_short(tmp_path):
    log = ContainerLog(tmp_path / "log")
    log.write("stderr", b"".join(b"%04d %s\n" % (number, b"x" * 100) for number in range(100)))
    log.close()

    text = tail(log.path)
    assert len(text) == 2048
    assert text.splitlines()[-1].startswith("0099 ")
