"""The life of a serving process: settings, telemetry, listening, start-up failures, signals, draining, exit code."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from typing import TYPE_CHECKING, NoReturn, Protocol

import uvloop

from tidewheel.telemetry import TelemetryMisconfigured, configure
from tidewheel_workers.llm.errors import ModelError
from tidewheel_workers.llm.termination import report_failure
from tidewheel_workers.serving.service import OpenRequests
from tidewheel_workers.serving.settings import BadSettings
from tidewheel_workers.serving.start_errors import BadEnvironment, CannotStart, cannot_listen

if TYPE_CHECKING:
    from collections.abc import Callable

    from tidewheel_workers.serving.service import Service

log = logging.getLogger(__name__)

DRAIN_POLL_SECONDS = 0.05


class Orders(Protocol):
    """Who says when a process has to drain, and when it has done so."""

    async def begin(self, service: Service, open_requests: OpenRequests, end: Callable[[], None]) -> None:
        """The process listens; call `end` when it has to drain."""

    async def drained(self, service: Service, open_requests: OpenRequests) -> None:
        """Wait until it has drained, or has no more time for it."""


class Signals:
    """The orders of a process that stands alone: SIGTERM or SIGINT, and an end when nothing is open."""

    async def begin(self, service: Service, open_requests: OpenRequests, end: Callable[[], None]) -> None:
        """As in `Orders`."""
        del service, open_requests
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, end)

    async def drained(self, service: Service, open_requests: OpenRequests) -> None:
        """As in `Orders`."""
        await wait_until_drained(service, lambda: open_requests.count)


async def wait_until_drained(service: Service, open_requests: Callable[[], int]) -> None:
    """Wait until no request is open and nothing unfinished, or the time to drain is over."""
    try:
        async with asyncio.timeout(service.settings.drain_seconds):
            while open_requests() or service.unfinished:  # noqa: ASYNC110 - two owners, one end
                await asyncio.sleep(DRAIN_POLL_SECONDS)
    except TimeoutError:
        log.warning(
            "%d requests were still open after %g s of draining",
            open_requests(),
            service.settings.drain_seconds,
        )


def run(role: str, build: Callable[[], Service], orders: Orders | None = None) -> NoReturn:
    """Run a service until it is told to end; exits 0 after a drain, 1 after a failure that was reported."""

    def work() -> None:
        telemetry = configure(f"tidewheel-{role}", log_level=log_level())
        try:
            uvloop.run(serve(build, orders or Signals()))
        finally:
            telemetry.shutdown()

    reporting(role, work)


def log_level() -> str:
    """How much this process logs."""
    return os.environ.get("TIDEWHEEL_LOG_LEVEL", "info")


def reporting(role: str, work: Callable[[], None]) -> NoReturn:
    """Do it and leave: with 0, or after reporting why it failed with 1."""
    try:
        work()
    except (BadSettings, TelemetryMisconfigured) as error:
        report_failure(BadEnvironment(str(error)))
    except ModelError as error:
        report_failure(error)
    except Exception as error:
        log.exception("the %s server failed", role)
        report_failure(CannotStart(f"{type(error).__name__}: {error}"))
    else:
        _leave(0)
    _leave(1)


async def serve(build: Callable[[], Service], orders: Orders) -> None:
    """Serve until told to end, and drain then.

    Raises:
        ModelError: the service could not start, or failed.
    """
    service = build()
    settings = service.settings
    open_requests = OpenRequests()
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def end(error: BaseException | None = None) -> None:
        if ended.done():
            return
        if error is None:
            ended.set_result(None)
        else:
            ended.set_exception(error)

    listener = service.listener(open_requests)
    try:
        try:
            await listener.start(settings.pod_ip, settings.http_port)
        except OSError as error:
            raise cannot_listen(error, settings.pod_ip, settings.http_port) from error
        await orders.begin(service, open_requests, end)
        starting = asyncio.create_task(service.start(end))
        starting.add_done_callback(lambda task: None if task.cancelled() else _pass_on(task, end))
        try:
            await ended
            open_requests.is_draining = True
            service.begin_drain()
            log.info("draining: %d requests are open", open_requests.count)
            await orders.drained(service, open_requests)
        finally:
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
    finally:
        await listener.close()
        await service.close()


def _leave(code: int) -> NoReturn:
    """End now: a thread that still loads a model or computes must not hold up whoever waits for the end."""
    logging.shutdown()
    sys.stderr.flush()
    os._exit(code)


def _pass_on(task: asyncio.Task[None], end: Callable[[BaseException | None], None]) -> None:
    if (error := task.exception()) is not None:
        end(error)
