"""A decode fetches a few prompts at a time, lets a few wait, and refuses the next at once."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from tidewheel_workers.serving.kv_queue import TransferQueue
from tidewheel_workers.serving.kv_transport import TransfersBusy


class Fetches:
    """Transfers that end when they are told to."""

    def __init__(self, **bounds: int) -> None:
        self.waits: list[float] = []
        self.queue = TransferQueue(**bounds, on_turn=self.waits.append)
        self.began: list[str] = []

    async def start(self, name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(self._run(name))
        await asyncio.sleep(0)
        return task

    async def _run(self, name: str) -> None:
        async with self.queue.turn():
            self.began.append(name)
            await asyncio.Event().wait()


async def end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    await asyncio.sleep(0)


async def test_turns_come_in_order_and_no_more_run_than_allowed():
    fetches = Fetches(most_running=2, most_waiting=2)
    a, b, c, d = [await fetches.start(name) for name in "abcd"]
    assert (fetches.began, fetches.queue.running, fetches.queue.waiting) == (["a", "b"], 2, 2)
    await end(b)
    await end(a)
    assert fetches.began == ["a", "b", "c", "d"]
    await end(c)
    await end(d)
    assert (fetches.queue.running, fetches.queue.waiting, len(fetches.waits)) == (0, 0, 4)


async def test_one_too_many_is_refused_at_once():
    fetches = Fetches(most_running=1, most_waiting=1)
    await fetches.start("a")
    b = await fetches.start("b")
    with pytest.raises(TransfersBusy, match="1 KV transfers run and 1 wait"):
        await (await fetches.start("c"))
    await end(b)
    await fetches.start("c")
    assert fetches.queue.waiting == 1


async def test_without_a_queue_only_those_run_that_can_at_once():
    fetches = Fetches(most_running=1, most_waiting=0)
    a = await fetches.start("a")
    with pytest.raises(TransfersBusy):
        await (await fetches.start("b"))
    await end(a)
    await fetches.start("b")
    assert fetches.began == ["a", "b"]


async def test_whoever_leaves_the_queue_takes_nobodys_turn():
    fetches = Fetches(most_running=1, most_waiting=2)
    a, b, _ = [await fetches.start(name) for name in "abc"]
    await end(b)
    await end(a)
    assert fetches.began == ["a", "c"]
