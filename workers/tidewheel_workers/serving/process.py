"""The life of a serving process: settings, telemetry, listening, start-up failures, signals, draining, exit code."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

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


def run(role: str, build: Callable[[], Service]) -> NoReturn:
    """Run a service until it is told to end; exits 0 after a drain, 1 after a failure that was reported."""
    try:
        telemetry = configure(f"tidewheel-{role}", log_level=os.environ.get("TIDEWHEEL_LOG_LEVEL", "info"))
        try:
            uvloop.run(serve(build))
        finally:
            telemetry.shutdown()
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


async def serve(build: Callable[[], Service]) -> None:
    """Serve until SIGTERM or SIGINT and drain then.

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
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, end)
        starting = asyncio.create_task(service.start(end))
        starting.add_done_callback(lambda task: None if task.cancelled() else _pass_on(task, end))
        try:
            await ended
            await _drain(service, open_requests)
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


async def _drain(service: Service, open_requests: OpenRequests) -> None:
    open_requests.is_draining = True
    service.begin_drain()
    log.info("draining: %d requests are open", open_requests.count)
    try:
        async with asyncio.timeout(service.settings.drain_seconds):
            while open_requests.count or service.unfinished:  # noqa: ASYNC110 - two owners, one end
                await asyncio.sleep(DRAIN_POLL_SECONDS)
    except TimeoutError:
        log.warning(
            "%d requests were still open after %g s of draining",
            open_requests.count,
            service.settings.drain_seconds,
        )
