"""One thread that owns the engine, and the bridge from it to the event loop: calls go in, tokens come out."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from tidewheel_workers.serving.engine import Computed, EngineLoad, Failed, Generated

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Sequence

    from tidewheel_workers.serving.engine import (
        Happening,
        KVSink,
        Prefilled,
        Prompt,
        ServingEngine,
    )

log = logging.getLogger(__name__)

STOP_SECONDS = 5.0

T = TypeVar("T")
Call = Callable[["ServingEngine"], Any]


class EngineFailed(Exception):
    """The engine broke: every request in it is lost and the process has to be replaced."""


async def in_daemon_thread(work: Callable[[], T]) -> T:
    """Do it in a thread that neither a cancellation nor the end of the process waits for."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except Exception as caught:  # noqa: BLE001 - it belongs to whoever waits for the future
            error = caught
        try:
            loop.call_soon_threadsafe(_settle, future, result, error)
        except RuntimeError:
            log.debug("the event loop is closed; nobody waits for this any more")

    threading.Thread(target=run, name="loading", daemon=True).start()
    return await future


class EngineLoop:
    """Runs an engine. Create it and use it on the event loop's thread."""

    def __init__(self, engine: ServingEngine, *, on_failure: Callable[[Exception], None]) -> None:
        self.engine = engine
        self.load = EngineLoad()
        self._on_failure = on_failure
        self._loop = asyncio.get_running_loop()
        self._calls: queue.SimpleQueue[tuple[Call, asyncio.Future[Any] | None] | None] = queue.SimpleQueue()
        self._streams: dict[str, asyncio.Queue[Happening | EngineFailed]] = {}
        self._failure: EngineFailed | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the engine can take work."""
        return self._failure is None and self._thread.is_alive()

    async def call(self, work: Callable[[ServingEngine], T]) -> T:
        """Run `work` between two steps; what has not begun when the caller is cancelled is never run.

        Raises:
            EngineFailed: the engine broke, now or before.
            RequestError: whatever `work` raises.
        """
        if self._failure is not None:
            raise EngineFailed(str(self._failure))
        future: asyncio.Future[T] = self._loop.create_future()
        self._calls.put((work, future))
        return await future

    def after_calls(self, then: Callable[[], None]) -> None:
        """Do something here when the engine has done all that was asked of it before, or is broken."""

        def settled(future: asyncio.Future[None]) -> None:
            future.exception()  # a broken engine uses nothing any more, which is as good
            then()

        if self._failure is not None:
            then()
            return
        future: asyncio.Future[None] = self._loop.create_future()
        future.add_done_callback(settled)
        self._calls.put((lambda _: None, future))

    async def compute(
        self, prompt: Prompt, sink: KVSink, *, taken: Callable[[], Awaitable[None]] | None = None
    ) -> Computed:
        """Compute a prompt into a sink; a caller that is cancelled takes the prompt back.

        Args:
            prompt: what to compute.
            sink: where its KV goes.
            taken: awaited when the engine has taken the prompt, while it computes.

        Raises:
            EngineFailed: the engine broke.
            RequestError: the engine does not take the prompt, or cannot go on with it.
        """
        async with self._happenings(prompt.request_id) as happenings:
            await self.call(lambda engine: engine.submit(prompt, sink))
            if taken is not None:
                await taken()
            async for event in happenings:
                if isinstance(event, Computed):
                    return event
        raise EngineFailed("the engine gave up a prompt without a word")

    async def generate(self, prompt: Prompt, computed: Prefilled | None) -> AsyncGenerator[Generated]:
        """Write the answer, the first tokens included; leaving early aborts the request.

        Args:
            prompt: what is asked.
            computed: the prompt's KV, when it was computed elsewhere.

        Raises:
            EngineFailed: the engine broke.
            RequestError: the engine does not take the request, or cannot go on with it.
        """
        open_choices = prompt.choices
        async with self._happenings(prompt.request_id) as happenings:
            if computed is None:
                await self.call(lambda engine: engine.submit(prompt, None))
            else:
                for event in await self.call(lambda engine: engine.admit(prompt, computed)):
                    open_choices -= event.finish_reason is not None
                    yield event
            while open_choices:
                happened = await anext(happenings)
                if isinstance(happened, Generated):
                    open_choices -= happened.finish_reason is not None
                    yield happened

    @asynccontextmanager
    async def _happenings(self, request_id: str) -> AsyncIterator[AsyncIterator[Happening]]:
        """What happens to a request; when the caller leaves, the request is taken back if it is still there."""
        events: asyncio.Queue[Happening | EngineFailed] = asyncio.Queue()
        self._streams[request_id] = events

        async def happenings() -> AsyncIterator[Happening]:
            while True:
                event = await events.get()
                if isinstance(event, EngineFailed):
                    raise EngineFailed(str(event))
                if isinstance(event, Failed):
                    raise event.error
                yield event

        try:
            yield happenings()
        finally:
            del self._streams[request_id]
            # calls are run in order, so this comes after an admission that was cancelled while it ran
            self._calls.put((lambda engine: engine.abort(request_id), None))

    async def stop(self) -> None:
        """End the thread after the step it is in; one that hangs is left behind. Requests that are not done are lost."""
        self._calls.put(None)
        await asyncio.to_thread(self._thread.join, STOP_SECONDS)
        self._end(self._failure or EngineFailed("the engine was stopped"))

    def _run(self) -> None:
        try:
            while self._take_calls():
                if self.load.has_work:
                    events = self.engine.step()
                    self.load = self.engine.load()
                    self._post(self._deliver, events)
        except Exception as error:  # noqa: BLE001 - whatever broke, every waiting request must hear of it
            self._post(self._fail, error)

    def _take_calls(self) -> bool:
        """Run what was asked for; waits when there is nothing else to do. False when the loop is to end.

        What is asked for meanwhile has its turn after the next step, so that answers go on however many calls come.
        """
        waits = not self.load.has_work
        for _ in range(max(1, self._calls.qsize())):
            try:
                call = self._calls.get(block=waits)
            except queue.Empty:
                break
            if call is None:
                return False
            waits = False
            work, future = call
            if future is None or not future.cancelled():
                self._answer(work, future)
        return True

    def _answer(self, work: Call, future: asyncio.Future[Any] | None) -> None:
        """Run one call; what comes out, an error too, belongs to whoever waits for it."""
        result, error = None, None
        try:
            result = work(self.engine)
        except Exception as caught:
            error = caught
            if future is None:
                raise
        if future is not None:
            self._post(_settle, future, result, error)
        self.load = self.engine.load()

    def _post(self, work: Callable[..., None], *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(work, *arguments)
        except RuntimeError:
            log.debug("the event loop is closed; the engine's last word is dropped")

    def _deliver(self, events: Sequence[Happening]) -> None:
        for event in events:
            if (stream := self._streams.get(event.request_id)) is not None:
                stream.put_nowait(event)

    def _fail(self, error: Exception) -> None:
        log.error("the engine failed", exc_info=error)
        self._end(EngineFailed(f"the engine failed: {error}"))
        self._on_failure(error)

    def _end(self, failure: EngineFailed) -> None:
        """Whoever waits hears of it, and whoever comes."""
        self._failure = failure
        for stream in self._streams.values():
            stream.put_nowait(failure)
        while True:
            try:
                call = self._calls.get_nowait()
            except queue.Empty:
                break
            if call is not None and call[1] is not None:
                _settle(call[1], None, EngineFailed(str(failure)))


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)
