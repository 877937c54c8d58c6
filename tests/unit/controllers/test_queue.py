"""The work queue: what client-go promises, in virtual time."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.controllers.virtual_time import run

from tidewheel.controllers.queue import Backoff, WorkQueue

FULL = Backoff(first=1.0, most=8.0, chance=lambda: 1.0)


class Seen:
    """A queue observer that remembers."""

    def __init__(self) -> None:
        self.depths: list[int] = []
        self.waits: list[float] = []
        self.works: list[float] = []
        self.retries = 0

    def added(self, depth: int) -> None:
        self.depths.append(depth)

    def started(self, depth: int, waited_seconds: float) -> None:
        self.depths.append(depth)
        self.waits.append(waited_seconds)

    def finished(self, worked_seconds: float) -> None:
        self.works.append(worked_seconds)

    def retried(self) -> None:
        self.retries += 1


def test_a_key_that_waits_is_not_added_twice():
    async def main():
        queue: WorkQueue[str] = WorkQueue()
        queue.add("a")
        queue.add("a")
        assert len(queue) == 1

    run(main())


def test_a_key_added_while_it_is_worked_on_waits_until_that_is_done():
    async def main():
        queue: WorkQueue[str] = WorkQueue()
        queue.add("a")
        assert await queue.get() == "a"
        queue.add("a")
        queue.add("a")
        assert len(queue) == 0
        queue.done("a")
        assert len(queue) == 1

    run(main())


def test_a_key_that_always_comes_back_does_not_hold_up_the_others():
    async def main():
        queue: WorkQueue[str] = WorkQueue()
        served = []
        for key in ("hot", "b", "c"):
            queue.add(key)
        for _ in range(4):
            key = await queue.get()
            served.append(key)
            if key == "hot":
                queue.add("hot")
            queue.done(key)
        assert served == ["hot", "b", "c", "hot"]

    run(main())


@pytest.mark.parametrize("delays", [(5.0, 2.0), (2.0, 5.0), (2.0,)])
def test_of_several_delays_the_earliest_wins_and_the_key_comes_once(delays):
    async def main():
        loop = asyncio.get_running_loop()
        queue: WorkQueue[str] = WorkQueue()
        for delay in delays:
            queue.add_after("a", delay)
        assert await queue.get() == "a"
        assert loop.time() == pytest.approx(2.0)
        queue.done("a")
        await asyncio.sleep(10)
        assert len(queue) == 0

    run(main())


def test_who_works_on_a_key_says_anew_when_to_look_again():
    async def main():
        queue: WorkQueue[str] = WorkQueue()
        queue.add_after("a", 5.0)
        queue.add("a")
        await queue.get()
        queue.done("a")
        await asyncio.sleep(10)
        assert len(queue) == 0, "the old delay went with the work that followed it"

    run(main())


def test_failures_of_one_key_wait_longer_and_longer_up_to_a_bound_until_one_success():
    async def main():
        queue: WorkQueue[str] = WorkQueue(backoff=FULL)
        assert [queue.retry("a") for _ in range(6)] == [1.0, 2.0, 4.0, 8.0, 8.0, 8.0]
        assert queue.retry("b") == 1.0
        queue.forget("a")
        assert queue.retry("a") == 1.0
        assert queue.retry("a", at_least=30.0) == 30.0, "the server's Retry-After is kept"

    run(main())


@given(failures=st.integers(1, 10**6), chance=st.floats(0, 1, exclude_max=True))
def test_backoff_stays_within_its_bounds_whatever_the_count(failures, chance):
    seconds = Backoff(first=0.05, most=60.0, chance=lambda: chance).seconds(failures)
    assert 0.025 <= seconds <= 60.0


def test_a_closed_queue_gives_out_nothing_and_wakes_all_who_wait():
    async def main():
        queue: WorkQueue[str] = WorkQueue()
        waiting = [asyncio.create_task(queue.get()) for _ in range(3)]
        await asyncio.sleep(0)
        queue.add_after("late", 1.0)
        queue.close()
        assert await asyncio.gather(*waiting) == [None, None, None]
        queue.add("a")
        assert await queue.get() is None

    run(main())


def test_a_worker_that_is_cancelled_as_it_is_woken_loses_no_key():
    async def main():
        queue: WorkQueue[str] = WorkQueue()
        first, second = (asyncio.create_task(queue.get()) for _ in range(2))
        await asyncio.sleep(0)
        queue.add("a")
        first.cancel()
        assert await second == "a"

    run(main())


def test_it_tells_how_long_keys_waited_and_were_worked_on():
    async def main():
        seen = Seen()
        queue: WorkQueue[str] = WorkQueue(observer=seen, backoff=FULL)
        queue.add("a")
        await asyncio.sleep(3)
        await queue.get()
        await asyncio.sleep(2)
        assert queue.busy_seconds() == [pytest.approx(2.0)]
        queue.retry("a")
        queue.done("a")
        assert seen.waits == [pytest.approx(3.0)]
        assert seen.works == [pytest.approx(2.0)]
        assert seen.depths == [1, 0]
        assert seen.retries == 1

    run(main())


class Steps:
    """What can happen to a queue, as hypothesis draws it."""

    keys = st.sampled_from("abcd")
    steps = st.lists(
        st.one_of(
            st.tuples(st.just("add"), keys),
            st.tuples(st.just("add_after"), keys, st.floats(0.01, 5.0)),
            st.tuples(st.just("sleep"), st.floats(0.01, 3.0)),
        ),
        max_size=60,
    )


@given(steps=Steps.steps, workers=st.integers(1, 4), work_seconds=st.floats(0.0, 2.0))
def test_no_wish_is_lost_and_no_key_is_worked_on_twice_at_once(steps, workers, work_seconds):
    async def main():
        loop = asyncio.get_running_loop()
        queue: WorkQueue[str] = WorkQueue()
        busy: set[str] = set()
        began: dict[str, list[float]] = {}

        async def work() -> None:
            while (key := await queue.get()) is not None:
                assert key not in busy
                busy.add(key)
                began.setdefault(key, []).append(loop.time())
                await asyncio.sleep(work_seconds)
                busy.remove(key)
                queue.done(key)

        tasks = [asyncio.create_task(work()) for _ in range(workers)]
        wished: dict[str, float] = {}
        for step in steps:
            match step:
                case ("add", key):
                    queue.add(key)
                    wished[key] = loop.time()
                case ("add_after", key, delay):
                    queue.add_after(key, delay)
                case ("sleep", seconds):
                    await asyncio.sleep(seconds)
        await asyncio.sleep(1000)
        queue.close()
        await asyncio.gather(*tasks)
        for key, at in wished.items():
            assert began[key][-1] >= at, "every wish is followed by work"

    run(main())
