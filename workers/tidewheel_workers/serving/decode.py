"""The decode server: pulls a prompt's KV from the prefill that computed it, and writes the answer token by token.

A request without `kv_transfer_params` is computed here as a whole: gateways ask for that when a prompt is short and all
prefills are busy, if they are allowed to.
"""

from __future__ import annotations

import logging
import secrets
import time
from contextlib import aclosing
from typing import TYPE_CHECKING

from aiohttp import web
from opentelemetry import metrics, trace
from pydantic import ValidationError

from tidewheel.telemetry import GenAiInstruments, gen_ai_attributes
from tidewheel_workers.llm.errors import RequestError
from tidewheel_workers.serving.engine import Prompt
from tidewheel_workers.serving.engine_loop import EngineFailed
from tidewheel_workers.serving.errors import ApiError, invalid, unavailable
from tidewheel_workers.serving.http_server import REQUEST_ID
from tidewheel_workers.serving.kv_client import KVClient
from tidewheel_workers.serving.kv_transport import TRANSFER_FAILED, HandOver, TransferFailed
from tidewheel_workers.serving.openai_answers import DONE, Answer, fingerprint, sse
from tidewheel_workers.serving.process import run
from tidewheel_workers.serving.resumed import IDS_HEADER, RESUMED, id_line, resumed_tokens
from tidewheel_workers.serving.service import REQUEST_ID_HEADER
from tidewheel_workers.serving.settings import WorkerSettings
from tidewheel_workers.serving.worker import Worker, translate

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from tidewheel_workers.serving.engine import Generated, Prefilled, ServingEngine
    from tidewheel_workers.serving.membership import Membership
    from tidewheel_workers.serving.openai_api import ChatRequest, CompletionRequest

log = logging.getLogger("tidewheel_workers.serving.decode")
tracer = trace.get_tracer("tidewheel_workers.serving.decode")


class DecodeServer(Worker):
    """The decode role."""

    def __init__(self, settings: WorkerSettings) -> None:
        super().__init__(settings)
        self._kv: KVClient | None = None
        self._gen_ai = GenAiInstruments.of(metrics.get_meter("tidewheel_workers.serving.decode"))
        self.metrics.watch(
            running=lambda: self._running,
            waiting=lambda: max(0, self.slots.used - self._running),
            kv_usage=lambda: self.engine.load.kv_usage if self.engine is not None else 0.0,
        )

    def connect(self, engine: ServingEngine, membership: Membership) -> KVClient:
        """Pull KV from prefills."""
        self._kv = KVClient(
            membership,
            engine.identity.kv,
            self.kv_metrics,
            timeout_seconds=self.settings.kv_timeout_seconds,
        )
        return self._kv

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """Answer whole or as a stream. A client that leaves ends its request at once."""
        began = time.monotonic()
        engine, parsed = await self.read(request)
        hand_over, resumed = _hand_over(parsed), resumed_tokens(parsed.kv_transfer_params)
        # every choice is a sequence of its own in the engine's batch
        slot = self.take_slot(parsed.choices)
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
            computed = await self._computed(hand_over)
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
                    if parsed.stream:
                        return await _stream(request, parsed, answer, first, events)
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
        finally:
            slot.free()

    @property
    def _running(self) -> int:
        return self.engine.load.running if self.engine is not None else 0

    async def _computed(self, hand_over: HandOver | None) -> Prefilled | None:
        """The prompt as a prefill computed it; None when it is to be computed here."""
        if hand_over is None or self._kv is None:
            return None
        return await self._kv.fetch(hand_over)

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


def _hand_over(parsed: ChatRequest | CompletionRequest) -> HandOver | None:
    given = parsed.kv_transfer_params
    if not given or not given.keys() - {RESUMED}:
        return None
    try:
        return HandOver.model_validate(given)
    except ValidationError as error:
        fault = error.errors()[0]
        name = ".".join(map(str, fault["loc"]))
        raise invalid(
            "invalid_value",
            f"kv_transfer_params.{name}: {fault['msg']}; they must be those of a prefill's answer",
            f"kv_transfer_params.{name}",
        ) from error


async def _stream(
    request: web.Request,
    parsed: ChatRequest | CompletionRequest,
    answer: Answer,
    first: Generated,
    events: AsyncGenerator[Generated],
) -> web.StreamResponse:
    response = web.StreamResponse(
        headers={
            "Content-Type": "text/event-stream; charset=utf-8",
            "Cache-Control": "no-cache",
            REQUEST_ID_HEADER: request[REQUEST_ID],
        }
    )
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
    run("decode", lambda: DecodeServer(WorkerSettings.for_role("decode")))


if __name__ == "__main__":
    main()
