"""One client's request at the gateway: performs what `forwarding` decides and passes the answer on."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from tidewheel_workers.serving.backends import Upstream
from tidewheel_workers.serving.errors import ApiError
from tidewheel_workers.serving.forwarding import (
    Answered,
    AskDecode,
    AskPrefill,
    Began,
    BreakStream,
    ClientGone,
    Event,
    Fail,
    Finish,
    Forwarding,
    Instruction,
    Lost,
    OutOfTime,
    Refused,
    Rejected,
    ReleaseKV,
    RequestTimedOut,
    Seen,
    TransferFailed,
    Wait,
    Woke,
)
from tidewheel_workers.serving.front import error_response
from tidewheel_workers.serving.http1.messages import Response
from tidewheel_workers.serving.openai_answers import sse
from tidewheel_workers.serving.service import REQUEST_ID_HEADER
from tidewheel_workers.serving.spans import call_headers

if TYPE_CHECKING:
    from tidewheel_workers.serving.gateway import Gateway
    from tidewheel_workers.serving.replies import Caller, Outlet


class Exchange:
    """One request and its answer."""

    def __init__(self, gateway: Gateway, caller: Caller, body: dict[str, Any]) -> None:
        self._gateway = gateway
        self._caller = caller
        self._path = caller.request.path
        self._body = body
        self._headers = call_headers(caller.id)  # of the calls that this request causes
        self._began_at = time.monotonic()
        self._ends_at = self._began_at + gateway.settings.request_timeout_seconds
        self._forwarding = Forwarding(
            deadline=self._began_at + gateway.settings.ttft_deadline_seconds, jitter=gateway.random.random
        )
        self._response: Response | None = None
        self._stream: Outlet | None = None
        self.first_token_seconds: float | None = None
        self.prompt_tokens = 0  # as far as a hand-over told them
        self.error: ApiError | None = None  # how the request ended, if not well

    async def run(self) -> Response | Outlet:
        """Answer the request, well or with an error."""
        try:
            return await self._forward()
        except BaseException:
            # the client is gone, or we failed: what was asked for is not wanted any more
            await self._perform(self._forwarding.handle(ClientGone(), self._seen(), time.monotonic()))
            raise

    async def _forward(self) -> Response | Outlet:
        event = await self._perform(self._forwarding.start(self._seen(), time.monotonic()))
        while event is not None:
            self._count(event)
            event = await self._perform(self._forwarding.handle(event, self._seen(), time.monotonic()))
        return self._answer()

    async def _perform(self, instructions: list[Instruction]) -> Event | None:
        """Do it; gives how the last one ended, or None when the request has ended."""
        event: Event | None = None
        for instruction in instructions:
            match instruction:
                case ReleaseKV():
                    self._gateway.in_background(self._gateway.backends.release(instruction))
                case AskPrefill():
                    event = await self._gateway.backends.prefill(
                        instruction, self._path, self._body, self._headers, self._ends_at
                    )
                case AskDecode():
                    event = await self._decode(instruction)
                case Wait(until=until):
                    await asyncio.sleep(min(until, self._ends_at) - time.monotonic())
                    event = Woke() if time.monotonic() < self._ends_at else RequestTimedOut()
                case Finish(rejection=rejection):
                    if rejection is not None:
                        self.error = ApiError(rejection.status, "rejected", "the request is at fault")
                        self._response = Response(status=rejection.status, body=rejection.body)
                case Fail(error=error):
                    self.error = error
                    self._response = error_response(error)
                case BreakStream(error=error):
                    self.error = error
                    self._gateway.metrics.interrupted.inc()
                    if self._stream is not None:
                        self._stream.write(sse(error.to_body()))
        return event

    async def _decode(self, ask: AskDecode) -> Event:
        self.prompt_tokens = int(ask.hand_over.get("remote_tokens", 0))
        outcome = await self._gateway.backends.decode(
            ask, self._path, self._body, self._headers, self._ends_at
        )
        if not isinstance(outcome, Upstream):
            return outcome
        try:
            if not self._body.get("stream"):
                self._response = Response(body=outcome.first)
                return Answered()
            self.first_token_seconds = time.monotonic() - self._began_at
            self._forwarding.handle(Began(), self._seen(), time.monotonic())
            stream = self._stream = self._caller.stream(
                (
                    ("Content-Type", "text/event-stream; charset=utf-8"),
                    ("Cache-Control", "no-cache"),
                    (REQUEST_ID_HEADER, self._caller.id),
                )
            )
            stream.write(outcome.first)
            stream.on_pressure = outcome.pause
            try:
                await outcome.relay(stream.write)
            except TimeoutError:
                return RequestTimedOut()
            if outcome.is_whole:
                return Answered()
            return Lost(what=f"{ask.backend.name} ended its answer too early")
        finally:
            # a decode notices by this that nobody listens any more
            outcome.close()

    def _answer(self) -> Response | Outlet:
        if self._stream is not None:
            self._stream.end()
            return self._stream
        if self._response is None:
            raise RuntimeError("a request ended without an answer")
        return self._response

    def _seen(self) -> Seen:
        return Seen(groups=self._gateway.groups, open_streams=self._gateway.backends.open_streams)

    def _count(self, event: Event) -> None:
        metrics = self._gateway.metrics
        role = self._forwarding.asking
        match event:
            case Refused(cause=cause):
                metrics.inquiry(role, cause).inc()
            case Lost() | TransferFailed():
                outcome = "lost" if isinstance(event, Lost) else "transfer_failed"
                metrics.inquiry(role, outcome).inc()
                if not self._forwarding.has_begun:
                    metrics.reforwards.labels(f"{role}_{outcome}").inc()
            case OutOfTime() | Rejected():
                metrics.inquiry(role, "late" if isinstance(event, OutOfTime) else "rejected").inc()
            case Woke() | RequestTimedOut():
                pass
            case _:
                metrics.inquiry(role, "accepted").inc()
