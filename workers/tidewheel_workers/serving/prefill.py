"""The prefill server: computes a prompt and its first token, and holds the KV until a decode has pulled it.

It answers the requests that a gateway makes of a client's, with `kv_transfer_params: {"do_remote_decode": true}`; whatever
else they say, one token is computed. A request without them is refused, as its answer would end after one token.
"""

from __future__ import annotations

import json
import logging
import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiohttp import web
from opentelemetry import trace
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tidewheel_workers.llm.errors import PromptTooLong, RequestError
from tidewheel_workers.serving.engine import Generated, Prompt
from tidewheel_workers.serving.engine_loop import EngineFailed
from tidewheel_workers.serving.errors import busy, invalid, unavailable
from tidewheel_workers.serving.http_server import REQUEST_ID, read_body
from tidewheel_workers.serving.kv_arena import NoBuffer
from tidewheel_workers.serving.kv_early import Unwanted, compute_early
from tidewheel_workers.serving.kv_params import prefill_asked
from tidewheel_workers.serving.kv_server import KVServer
from tidewheel_workers.serving.kv_transport import HAND_OVER_HEADER, RELEASE_PATH
from tidewheel_workers.serving.openai_answers import Answer, fingerprint
from tidewheel_workers.serving.resumed import resumed_tokens
from tidewheel_workers.serving.service import REQUEST_ID_HEADER
from tidewheel_workers.serving.start_errors import cannot_listen, cannot_reserve
from tidewheel_workers.serving.worker import Worker, translate

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from tidewheel_workers.serving.device_health import DeviceWatch
    from tidewheel_workers.serving.engine import Computed, ServingEngine
    from tidewheel_workers.serving.engine_loop import EngineLoop
    from tidewheel_workers.serving.errors import ApiError
    from tidewheel_workers.serving.kv_buffer import KVBuffer
    from tidewheel_workers.serving.kv_transport import HandOver
    from tidewheel_workers.serving.membership import Membership
    from tidewheel_workers.serving.settings import WorkerSettings

log = logging.getLogger("tidewheel_workers.serving.prefill")
tracer = trace.get_tracer("tidewheel_workers.serving.prefill")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """One request that was accepted."""

    request: web.Request
    engine: EngineLoop
    prompt: Prompt
    buffer: KVBuffer
    kv: KVServer
    bearer: str | None  # for the KV, where the gateway chose it
    began: float  # on the monotonic clock

    def span(self) -> AbstractContextManager[trace.Span]:
        """A span for the computation."""
        return tracer.start_as_current_span(
            "compute prompt", attributes={"gen_ai.usage.input_tokens": len(self.prompt.token_ids)}
        )


class _Release(BaseModel):
    """What a gateway says to give up a KV."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    remote_bearer: str = Field(max_length=64)


class PrefillServer(Worker):
    """The prefill role."""

    def __init__(self, settings: WorkerSettings, *, devices: DeviceWatch | None = None) -> None:
        super().__init__(settings, devices=devices)
        self._kv: KVServer | None = None
        self.metrics.watch(
            running=lambda: self.slots.used - self._waiting, waiting=lambda: 0, kv_usage=self._kv_usage
        )

    def routes(self) -> Sequence[web.RouteDef]:
        """As in `Worker`."""
        return (*super().routes(), web.post(RELEASE_PATH, self.release))

    def connect(self, engine: ServingEngine, membership: Membership) -> None:
        """Listen for decodes.

        Raises:
            CannotStart: the KV port cannot be bound, or there is no room for the buffers.
        """
        settings = self.settings
        try:
            kv = KVServer(
                membership,
                engine.identity.kv,
                self.kv_metrics,
                buffers=settings.slots,
                max_tokens=engine.max_context,
                lease_seconds=settings.kv_lease_seconds,
                timeout_seconds=settings.kv_timeout_seconds,
                mode=settings.kv_mode,
            )
        except OSError as error:
            raise cannot_reserve(
                error, engine.identity.kv.bytes_for(engine.max_context), settings.slots
            ) from error
        try:
            port = kv.listen(settings.pod_ip, settings.kv_port, engine_id=settings.pod_name)
        except OSError as error:
            raise cannot_listen(error, settings.pod_ip, settings.kv_port) from error
        log.info("serving KV on %s:%d", settings.pod_ip, port)
        self._kv = kv

    async def close(self) -> None:
        """As in `Service`."""
        if self._kv is not None:
            await self._kv.close()
        await super().close()

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """Compute a prompt; kv_transfer_params, or a header when that was asked for, say where its KV is to be had.

        A free slot is taken at once or the answer is 429. The slot stays taken until the KV was released, so
        that the memory for waiting KV is bounded by the slots.
        """
        began = time.monotonic()
        engine, parsed = await self.read(request)
        asked = prefill_asked(parsed)
        if asked is None or self._kv is None:
            raise invalid(
                "not_a_hand_over",
                'this is a prefill server; it takes requests with kv_transfer_params {"do_remote_decode": true} '
                "from a gateway. Send yours to the gateway",
                "kv_transfer_params",
            )
        slot = self.take_slot()
        try:
            prompt = Prompt(
                # the client chooses the request's id, so it is not fit to be the engine's
                request_id=secrets.token_hex(8),
                token_ids=await self.encode(engine, parsed),
                sampling=parsed.to_sampling(),
                choices=parsed.choices,
                resumed=resumed_tokens(parsed.kv_transfer_params),
            )
            if prompt.kv_tokens >= (most := engine.engine.max_context):
                raise PromptTooLong(
                    f"the prompt has {prompt.kv_tokens} tokens; at most {most - 1} leave room for an answer"
                )
            buffer = self._kv.reserve(prompt.kv_tokens, on_free=slot.free)
        except (RequestError, NoBuffer) as error:
            slot.free()
            raise self._refused(error, engine) from error
        except BaseException:
            slot.free()
            raise
        work = _Work(
            request=request,
            engine=engine,
            prompt=prompt,
            buffer=buffer,
            kv=self._kv,
            bearer=asked.remote_bearer,
            began=began,
        )
        try:
            if asked.early and self.settings.kv_mode == "PerLayer":
                return await self._answer_early(work)
            return await self._answer_whole(work)
        except (RequestError, EngineFailed, Unwanted) as error:
            raise self._refused(error, engine) from error
        finally:
            buffer.drop()

    async def _answer_whole(self, work: _Work) -> web.StreamResponse:
        """Compute, then tell where the KV waits."""
        with work.span():
            computed = await work.engine.compute(work.prompt, work.buffer)
        offer = work.kv.offer(work.buffer, bearer=work.bearer)
        offer.finish(computed)
        return web.json_response(
            self._answer(work, computed) | {"kv_transfer_params": offer.hand_over.model_dump()}
        )

    async def _answer_early(self, work: _Work) -> web.StreamResponse:
        """Tell where the KV is to be had as soon as the engine has the prompt; the body follows as ever."""
        response = web.StreamResponse(
            headers={"Content-Type": "application/json", REQUEST_ID_HEADER: work.request[REQUEST_ID]}
        )

        async def begin(hand_over: HandOver) -> None:
            response.headers[HAND_OVER_HEADER] = hand_over.model_dump_json()
            await response.prepare(work.request)

        try:
            with work.span():
                computed = await compute_early(
                    work.engine, work.prompt, work.buffer, work.kv, begin=begin, bearer=work.bearer
                )
            body = self._answer(work, computed)
        except (RequestError, EngineFailed, Unwanted) as error:
            if not response.prepared:
                raise
            # the head said 200 already; the decode is told over its connection
            body = self._refused(error, work.engine).to_body()
        await response.write(json.dumps(body).encode())
        await response.write_eof()
        return response

    def _answer(self, work: _Work, computed: Computed) -> dict[str, Any]:
        taken = time.monotonic() - work.began
        self.metrics.ttft.observe(taken)
        self.metrics.prefill_seconds.observe(taken)
        self.metrics.e2e.observe(taken)
        self.metrics.prompt_tokens.inc(len(work.prompt.token_ids))
        self.metrics.generation_tokens.inc(len(computed.first))
        self.metrics.finished("length")
        request_id, loaded = work.request[REQUEST_ID], work.engine.engine
        answer = Answer(
            endpoint=work.request.path,
            request_id=request_id,
            model=self.settings.model_name,
            prompt_tokens=len(work.prompt.token_ids),
            cached_tokens=computed.cached_tokens,
            token_bytes=loaded.token_bytes,
            fingerprint=fingerprint(loaded.identity),
            choices=len(computed.first),
        )
        for choice, first in enumerate(computed.first):
            answer.add(
                Generated(
                    request_id=request_id,
                    token=first.token,
                    text=loaded.token_bytes(first.token).decode(errors="replace"),
                    output_tokens=1,
                    choice=choice,
                    finish_reason="length",
                    logprob=first.logprob,
                )
            )
        return answer.whole()

    def _refused(self, error: Exception, engine: EngineLoop) -> ApiError:
        self.metrics.refused(type(error).__name__)
        if isinstance(error, Unwanted):
            return unavailable("not_wanted", str(error))
        if isinstance(error, NoBuffer):
            return busy(str(error))
        return translate(error, max_context=engine.engine.max_context)

    async def release(self, request: web.Request) -> web.Response:
        """Give a KV up that nobody will fetch: its bearer is proof enough."""
        raw = await read_body(request)
        try:
            bearer = _Release.model_validate_json(raw).remote_bearer
        except ValidationError as error:
            raise invalid(
                "invalid_value", "the body must be an answer's kv_transfer_params, or its remote_bearer"
            ) from error
        released = self._kv is not None and self._kv.withdraw(bearer)
        return web.Response(text=json.dumps({"released": released}), content_type="application/json")

    @property
    def _waiting(self) -> int:
        return self._kv.waiting if self._kv is not None else 0

    def _kv_usage(self) -> float:
        # what waits to be pulled lies beside the engine's pool, one buffer a slot
        return self._waiting / self.slots.total


def main() -> None:
    """The program."""
    # it may come to need the other role, whose module needs what this one is made of
    from tidewheel_workers.serving.member import run_member

    run_member("prefill")


if __name__ == "__main__":
    main()
