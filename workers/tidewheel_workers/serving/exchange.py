"""One client's request at the gateway: performs what `forwarding` decides and passes the answer on."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from tidewheel_workers.serving.backends import Upstream
from tidewheel_workers.serving.errors import ApiError
from tidewheel_workers.serving.forwarding_steps import (
    Answered,
    AskDecode,
    AskPrefill,
    Began,
    BreakStream,
    ClientGone,
    EndStream,
    Event,
    Fail,
    Finish,
    Instruction,
    Lost,
    OutOfTime,
    Refused,
    Rejected,
    ReleaseKV,
    RequestTimedOut,
    TransferFailed,
    Wait,
    Woke,
)
from tidewheel_workers.serving.front import error_response
from tidewheel_workers.serving.http1.client import Whole
from tidewheel_workers.serving.http1.messages import Response
from tidewheel_workers.serving.openai_answers import sse
from tidewheel_workers.serving.service import REQUEST_ID_HEADER
from tidewheel_workers.serving.spans import call_headers
from tidewheel_workers.serving.stream_tap import StreamTap

if TYPE_CHECKING:
    from tidewheel_workers.serving.gateway import Gateway
    from tidewheel_workers.serving.replies import Caller, Outlet


log = logging.getLogger(__name__)


class Exchange:
    """One request and its answer."""

    def __init__(self, gateway: Gateway, caller: Caller, body: dict[str, Any]) -> None:
        self._gateway = gateway
        self._caller = caller
        self._path = caller.request.path
        self._forwarder = gateway.forwarder
        self._forwarding, self.scenario = self._forwarder.forwarding_of(caller.request, body)
        # servers know no aliases
        self._body = body = {**body, "model": gateway.settings.model_name}
        self._headers = call_headers(caller.id)  # of the calls that this request causes
        self._began_at = time.monotonic()
        self._ends_at = self._began_at + gateway.settings.request_timeout_seconds
        self._response: Response | None = None
        self._stream: Outlet | None = None
        can_resume = self._forwarder.can_resume(body)
        if can_resume and body.get("seed") is None and body.get("temperature") != 0:
            # the draws of a stream that is resumed must go on where they were
            body["seed"] = self._forwarder.random.getrandbits(62)
        self._tap = StreamTap(tells_tokens=can_resume)
        self.first_token_seconds: float | None = None
        self.prompt_tokens = 0  # as far as a hand-over told them
        self.error: ApiError | None = None  # how the request ended, if not well

    async def run(self) -> Response | Outlet:
        """Answer the request, well or with an error."""
        try:
            return await self._forward()
        except BaseException:
            # the client is gone, or we failed: what was asked for is not wanted any more
            await self._perform(self._next(ClientGone()))
            raise

    async def _forward(self) -> Response | Outlet:
        event = await self._perform(self._next(None))
        while event is not None:
            self._count(event)
            event = await self._perform(self._next(event))
        return self._answer()

    def _next(self, event: Event | None) -> list[Instruction]:
        """What to do after this event, or at first; what it means for other requests is seen to."""
        now = time.monotonic()
        instructions = (
            self._forwarding.handle(event, now) if event is not None else self._forwarding.start(now)
        )
        self._forwarder.waiting_room.look_around()
        return instructions

    async def _perform(self, instructions: list[Instruction]) -> Event | None:
        """Do it; gives how the last one ended, or None when the request has ended."""
        event: Event | None = None
        for instruction in instructions:
            match instruction:
                case ReleaseKV():
                    self._gateway.in_background(self._gateway.backends.release(instruction))
                case AskPrefill():
                    event = await self._prefill(instruction)
                case AskDecode():
                    event = await self._decode(instruction)
                case Wait(until=until):
                    await self._forwarder.waiting_room.wait(
                        self._forwarding.ticket, min(until, self._ends_at)
                    )
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
                case EndStream(text=text):
                    if text:
                        self._gateway.metrics.interrupted.inc()
                    self._end_stream(text)
        return event

    async def _prefill(self, ask: AskPrefill) -> Event:
        began = time.monotonic()
        event = await self._gateway.backends.prefill(
            ask, self._path, self._body, self._headers, self._ends_at
        )
        if isinstance(event, Refused):
            self._gateway.metrics.refused_seconds.inc(time.monotonic() - began)
        return event

    async def _decode(self, ask: AskDecode) -> Event:
        if ask.hand_over is not None:
            self.prompt_tokens = int(ask.hand_over.get("remote_tokens", 0)) - len(ask.resumed)
        outcome = await self._gateway.backends.decode(
            ask,
            self._path,
            self._body,
            self._headers,
            self._ends_at,
            tells_tokens=self._tap.tells_tokens,
        )
        if not isinstance(outcome, Upstream | Whole):
            return outcome
        if ask.hand_over is None:
            self._gateway.metrics.prefilled_by_decodes.inc()
        if isinstance(outcome, Whole):
            self._response = Response(body=outcome.body)
            return Answered()
        if ask.hand_over is None:
            self.prompt_tokens = outcome.prompt_tokens
        try:
            return await self._relay(ask, outcome)
        finally:
            # a decode notices by this that nobody listens any more
            outcome.close()

    async def _relay(self, ask: AskDecode, outcome: Upstream) -> Event:
        """Pass a stream on to its end."""
        tap, stream = self._tap, self._stream
        if stream is None:
            self.first_token_seconds = time.monotonic() - self._began_at
            stream = self._stream = self._caller.stream(
                (
                    ("Content-Type", "text/event-stream; charset=utf-8"),
                    ("Cache-Control", "no-cache"),
                    (REQUEST_ID_HEADER, self._caller.id),
                )
            )
        else:
            self._gateway.metrics.resumed.inc()
            tap.resume()
        self._next(Began())
        stream.write(tap.take(outcome.first))
        stream.on_pressure = outcome.pause
        if stream.is_under_pressure:
            outcome.pause(True)
        try:
            why = await outcome.relay(
                lambda data: stream.write(tap.take(data)),
                idle_seconds=self._gateway.settings.stream_idle_seconds,
            )
        except TimeoutError:
            return RequestTimedOut()
        finally:
            stream.on_pressure = None
        if tap.is_whole:
            return Answered()
        what = f"{ask.backend.name}: {'its engine failed' if tap.has_failed else why}"
        log.warning("a stream lost its decode: %s", what, extra={"request_id": self._caller.id})
        return Lost(what=what, sent=tap.sent, is_complete=tap.is_complete)

    def _end_stream(self, text: str) -> None:
        """End the stream as its decode would have."""
        if self._stream is None:
            return
        options = self._body.get("stream_options")
        wants_usage = isinstance(options, dict) and bool(options.get("include_usage"))
        prompt_tokens = self.prompt_tokens if wants_usage and self.prompt_tokens > 0 else None
        self._stream.write(self._tap.end(text=text, prompt_tokens=prompt_tokens))

    def _answer(self) -> Response | Outlet:
        if self._stream is not None:
            self._stream.end()
            return self._stream
        if self._response is None:
            raise RuntimeError("a request ended without an answer")
        return self._response

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
