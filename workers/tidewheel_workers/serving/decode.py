"""The decode server: pulls a prompt's KV from the prefill that computed it, and writes the answer token by token.

A request without `kv_transfer_params` is computed here as a whole: gateways ask for that in combined groups, which have no
prefills, and when a prompt is short and all prefills are busy, if they are allowed to.
"""

from __future__ import annotations

import logging
import secrets
import time
from contextlib import aclosing
from typing import TYPE_CHECKING

from aiohttp import web
from opentelemetry import metrics, trace

from tidewheel.telemetry import GenAiInstruments, gen_ai_attributes
from tidewheel_workers.llm.errors import RequestError
from tidewheel_workers.serving.engine import Prompt
from tidewheel_workers.serving.engine_loop import EngineFailed
from tidewheel_workers.serving.errors import ApiError, busy, unavailable
from tidewheel_workers.serving.http_server import REQUEST_ID
from tidewheel_workers.serving.kv_client import KVClient
from tidewheel_workers.serving.kv_params import decode_asked
from tidewheel_workers.serving.kv_transport import TRANSFER_FAILED, TransferFailed, TransfersBusy
from tidewheel_workers.serving.openai_answers import DONE, Answer, fingerprint, sse
from tidewheel_workers.serving.resumed import IDS_HEADER, id_line, resumed_tokens
from tidewheel_workers.serving.service import PROMPT_TOKENS_HEADER, REQUEST_ID_HEADER
from tidewheel_workers.serving.start_errors import cannot_reserve
from tidewheel_workers.serving.worker import Worker, translate

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from tidewheel_workers.serving.device_health import DeviceWatch
    from tidewheel_workers.serving.engine import Generated, ServingEngine
    from tidewheel_workers.serving.kv_transport import HandOver, Received
    from tidewheel_workers.serving.membership import Membership
    from tidewheel_workers.serving.openai_api import ChatRequest, CompletionRequest
    from tidewheel_workers.serving.settings import WorkerSettings

log = logging.getLogger("tidewheel_workers.serving.decode")
tracer = trace.get_tracer("tidewheel_workers.serving.decode")


class DecodeServer(Worker):
    """The decode role."""

    def __init__(self, settings: WorkerSettings, *, devices: DeviceWatch | None = None) -> None:
        super().__init__(settings, devices=devices)
        self._kv: KVClient | None = None
        self._gen_ai = GenAiInstruments.of(metrics.get_meter("tidewheel_workers.serving.decode"))
        self.metrics.watch(
            running=lambda: self._running,
            waiting=lambda: max(0, self.slots.used - self._running),
            kv_usage=lambda: self.engine.load.kv_usage if self.engine is not None else 0.0,
        )

    def connect(self, engine: ServingEngine, membership: Membership) -> KVClient:
        """Pull KV from prefills.

        Raises:
            CannotStart: there is no room for the buffers.
        """
        settings = self.settings
        # layer by layer, a transfer is as long as its prompt's computation: it takes a thread, but not the wire
        transfers = settings.slots if settings.kv_mode == "PerLayer" else settings.kv_transfers
        try:
            self._kv = KVClient(
                membership,
                engine.identity.kv,
                self.kv_metrics,
                # every request here holds a slot, so that none ever waits for a buffer
                buffers=settings.slots,
                max_tokens=engine.max_context,
                timeout_seconds=settings.kv_timeout_seconds,
                most_transfers=transfers,
                most_waiting=settings.kv_waiting,
            )
        except OSError as error:
            size = engine.identity.kv.bytes_for(engine.max_context)
            raise cannot_reserve(error, size, settings.slots) from error
        return self._kv

    async def close(self) -> None:
        """As in `Service`."""
        if self._kv is not None:
            self._kv.close()
        await super().close()

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """Answer whole or as a stream. A client that leaves ends its request at once."""
        began = time.monotonic()
        engine, parsed = await self.read(request)
        asked, resumed = decode_asked(parsed), resumed_tokens(parsed.kv_transfer_params)
        # every choice is a sequence of its own in the engine's batch
        slot = self.take_slot(parsed.choices)
        received: Received | None = None
        try:
            tokens = await self.encode(engine, parsed)
            # the client chooses the request's id, so it is not fit to be the engine's
            prompt = Prompt(
                request_id=secrets.token_hex(8),
                token_ids=tokens,
                sampling=parsed.to_sampling(),
                choices=parsed.choices,
                resumed=resumed,
            )
            received = await self._received(asked)
            computed = received.computed if received is not None else None
            if computed is None:
                self.metrics.prompt_tokens.inc(len(tokens))
            answer = Answer(
                endpoint=request.path,
                request_id=request[REQUEST_ID],
                model=self.settings.model_name,
                prompt_tokens=len(tokens),
                cached_tokens=None if computed is None else computed.cached_tokens,
                token_bytes=engine.engine.token_bytes,
                fingerprint=fingerprint(engine.engine.identity),
                choices=parsed.choices,
                includes_usage=parsed.include_usage,
                resumed=resumed,
            )
            with tracer.start_as_current_span("decode") as span:
                events = self._timed(engine.generate(prompt, computed), began, answer)
                async with aclosing(events):
                    # nothing is sent before the engine took the request
                    first = await anext(events)
                    if received is not None:
                        received.free()
                    if parsed.stream:
                        return await _stream(
                            request, parsed, answer, first, events, tells_length=asked is None
                        )
                    answer.add(first)
                    async for event in events:
                        answer.add(event)
                span.set_attribute("gen_ai.usage.output_tokens", answer.output_tokens)
            return web.json_response(answer.whole())
        except (RequestError, EngineFailed) as error:
            self.metrics.refused(type(error).__name__)
            raise translate(error, max_context=engine.engine.max_context) from error
        except TransferFailed as error:
            self.metrics.refused(error.reason)
            log.warning("the KV of request %s did not come: %s", request[REQUEST_ID], error)
            raise unavailable(TRANSFER_FAILED, f"the prompt's KV did not come: {error}") from error
        except TransfersBusy as error:
            self.metrics.refused("transfers_busy")
            raise busy(str(error)) from error
        finally:
            if received is not None:
                # an admission that was cancelled may be reading it now
                engine.after_calls(received.free)
            slot.free()

    @property
    def _running(self) -> int:
        return self.engine.load.running if self.engine is not None else 0

    async def _received(self, asked: HandOver | None) -> Received | None:
        """The prompt as a prefill computed it; None when it is to be computed here."""
        if asked is None or self._kv is None:
            return None
        return await self._kv.fetch(asked)

    async def _timed(
        self, events: AsyncGenerator[Generated], began: float, answer: Answer
    ) -> AsyncGenerator[Generated]:
        """The same events, measured."""
        labels = gen_ai_attributes(
            operation="chat" if answer.is_chat else "text_completion", request_model=answer.model
        )
        first = now = 0.0
        last: dict[int, float] = {}  # by choice: when its last token came
        tokens, reason = 0, "abort"
        try:
            async with aclosing(events):
                async for event in events:
                    now = time.monotonic()
                    if tokens == 0:
                        first = now
                        self.metrics.ttft.observe(now - began)
                    if event.choice in last:
                        self.metrics.itl.observe(now - last[event.choice])
                    last[event.choice] = now
                    tokens += 1
                    reason = event.finish_reason or reason
                    self.metrics.generation_tokens.inc()
                    yield event
        finally:
            self.metrics.finished(reason)
            self.metrics.e2e.observe(time.monotonic() - began)
            if tokens > len(last):
                self.metrics.decode_seconds.observe(now - first)
                per_choice = tokens / len(last)
                self._gen_ai.server_time_per_output_token.record((now - first) / (per_choice - 1), labels)
            self._gen_ai.client_token_usage.record(
                answer.prompt_tokens, labels | {"gen_ai.token.type": "input"}
            )
            self._gen_ai.client_token_usage.record(tokens, labels | {"gen_ai.token.type": "output"})


async def _stream(
    request: web.Request,
    parsed: ChatRequest | CompletionRequest,
    answer: Answer,
    first: Generated,
    events: AsyncGenerator[Generated],
    *,
    tells_length: bool,
) -> web.StreamResponse:
    response = web.StreamResponse(
        headers={
            "Content-Type": "text/event-stream; charset=utf-8",
            "Cache-Control": "no-cache",
            REQUEST_ID_HEADER: request[REQUEST_ID],
        }
    )
    if tells_length:
        response.headers[PROMPT_TOKENS_HEADER] = str(answer.prompt_tokens)
    tells_ids = request.headers.get(IDS_HEADER) == "1"

    def chunk(event: Generated) -> bytes:
        return id_line(event) + answer.chunk(event) if tells_ids else answer.chunk(event)

    await response.prepare(request)
    await response.write(chunk(first))
    try:
        async for event in events:
            await response.write(chunk(event))
    except (RequestError, EngineFailed) as error:
        code = "engine_failed" if isinstance(error, EngineFailed) else "request_failed"
        await response.write(sse(ApiError(500, code, str(error)).to_body()))
        return response
    if parsed.include_usage:
        await response.write(answer.usage_chunk())
    await response.write(DONE)
    await response.write_eof()
    return response


def main() -> None:
    """The program."""
    # it may come to need the other role, whose module needs what this one is made of
    from tidewheel_workers.serving.member import run_member

    run_member("decode")


if __name__ == "__main__":
    main()
