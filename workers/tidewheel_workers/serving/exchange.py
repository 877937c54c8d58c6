"""One client's request at the gateway: performs what `forwarding` decides and passes the answer on."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from aiohttp import web

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
from tidewheel_workers.serving.http_server import REQUEST_ID_HEADER, error_response
from tidewheel_workers.serving.openai_answers import sse

if TYPE_CHECKING:
    from tidewheel_workers.serving.gateway import Gateway


class Exchange:
    """One request and its answer."""

    def __init__(
        self, gateway: Gateway, request: web.Request, body: dict[str, Any], *, request_id: str
    ) -> None:
        self._gateway = gateway
        self._request = request
        self._body = body
        self._request_id = request_id
        self._began_at = time.monotonic()
        self._forwarding = Forwarding(
            deadline=self._began_at + gateway.settings.ttft_deadline_seconds, jitter=gateway.random.random
        )
        self._response: web.StreamResponse | None = None
        self.first_token_seconds: float | None = None
        self.error: ApiError | None = None  # how the request ended, if not well

    async def run(self) -> web.StreamResponse:
        """Answer the request, well or with an error."""
        try:
            try:
                async with asyncio.timeout(self._gateway.settings.request_timeout_seconds) as limit:
                    return await self._forward()
            except TimeoutError:
                if not limit.expired():
                    raise
                await self._perform(
                    self._forwarding.handle(RequestTimedOut(), self._seen(), time.monotonic())
                )
                return self._answer()
        except BaseException:
            # the client is gone, or we failed: what was asked for is not wanted any more
            await self._perform(self._forwarding.handle(ClientGone(), self._seen(), time.monotonic()))
            raise

    async def _forward(self) -> web.StreamResponse:
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
                        instruction, self._request.path, self._body, self._request_id
                    )
                case AskDecode():
                    event = await self._decode(instruction)
                case Wait(until=until):
                    await asyncio.sleep(until - time.monotonic())
                    event = Woke()
                case Finish(rejection=rejection):
                    if rejection is not None:
                        self.error = ApiError(rejection.status, "rejected", "the request is at fault")
                        self._response = web.Response(
                            status=rejection.status, body=rejection.body, content_type="application/json"
                        )
                case Fail(error=error):
                    self.error = error
                    self._response = error_response(error)
                case BreakStream(error=error):
                    self.error = error
                    self._gateway.metrics.interrupted.inc()
                    if self._response is not None:
                        await self._response.write(sse(error.to_body()))
        return event

    async def _decode(self, ask: AskDecode) -> Event:
        async with self._gateway.backends.decode(
            ask, self._request.path, self._body, self._request_id
        ) as outcome:
            if not isinstance(outcome, Upstream):
                return outcome
            if not self._body.get("stream"):
                self._response = web.Response(body=outcome.first, content_type="application/json")
                return Answered()
            self.first_token_seconds = time.monotonic() - self._began_at
            self._forwarding.handle(Began(), self._seen(), time.monotonic())
            response = web.StreamResponse(
                headers={
                    "Content-Type": "text/event-stream; charset=utf-8",
                    "Cache-Control": "no-cache",
                    REQUEST_ID_HEADER: self._request_id,
                }
            )
            self._response = response
            await response.prepare(self._request)
            data = outcome.first
            while data:
                await response.write(data)
                data = await outcome.next()
            if outcome.is_whole:
                return Answered()
            return Lost(what=f"{ask.backend.name} ended its answer too early")

    def _answer(self) -> web.StreamResponse:
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
                metrics.inquiries.labels(role, cause).inc()
            case Lost() | TransferFailed():
                outcome = "lost" if isinstance(event, Lost) else "transfer_failed"
                metrics.inquiries.labels(role, outcome).inc()
                if not self._forwarding.has_begun:
                    metrics.reforwards.labels(f"{role}_{outcome}").inc()
            case OutOfTime() | Rejected():
                metrics.inquiries.labels(role, "late" if isinstance(event, OutOfTime) else "rejected").inc()
            case Woke():
                pass
            case _:
                metrics.inquiries.labels(role, "accepted").inc()
