"""The prefill server: computes a prompt and its first token, and holds the KV until a decode has pulled it.

It answers the requests that a gateway makes of a client's, with `kv_transfer_params: {"do_remote_decode": true}`; whatever
else they say, one token is computed. A request without them is refused, as its answer would end after one token.
"""

from __future__ import annotations

import json
import logging
import secrets
import time
from typing import TYPE_CHECKING

from aiohttp import web
from opentelemetry import trace
from pydantic import ValidationError

from tidewheel_workers.llm.errors import RequestError
from tidewheel_workers.serving.engine import Generated, Prompt
from tidewheel_workers.serving.engine_loop import EngineFailed
from tidewheel_workers.serving.errors import invalid
from tidewheel_workers.serving.http_server import REQUEST_ID, read_body
from tidewheel_workers.serving.kv_buffer import KVBuffer
from tidewheel_workers.serving.kv_server import KVServer
from tidewheel_workers.serving.kv_transport import RELEASE_PATH, HandOver
from tidewheel_workers.serving.openai_answers import Answer, fingerprint
from tidewheel_workers.serving.process import run
from tidewheel_workers.serving.resumed import resumed_tokens
from tidewheel_workers.serving.settings import WorkerSettings
from tidewheel_workers.serving.start_errors import cannot_listen
from tidewheel_workers.serving.worker import Worker, translate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tidewheel_workers.serving.engine import ServingEngine
    from tidewheel_workers.serving.membership import Membership

log = logging.getLogger("tidewheel_workers.serving.prefill")
tracer = trace.get_tracer("tidewheel_workers.serving.prefill")


class PrefillServer(Worker):
    """The prefill role."""

    def __init__(self, settings: WorkerSettings) -> None:
        super().__init__(settings)
        self._kv: KVServer | None = None
        self.metrics.watch(
            running=lambda: self.slots.used - self._waiting, waiting=lambda: 0, kv_usage=self._kv_usage
        )

    def routes(self) -> Sequence[web.RouteDef]:
        """As in `Worker`."""
        return (*super().routes(), web.post(RELEASE_PATH, self._release))

    def connect(self, engine: ServingEngine, membership: Membership) -> None:
        """Listen for decodes.

        Raises:
            CannotStart: the KV port cannot be bound.
        """
        settings = self.settings
        kv = KVServer(
            membership,
            engine.identity.kv,
            self.kv_metrics,
            lease_seconds=settings.kv_lease_seconds,
            timeout_seconds=settings.kv_timeout_seconds,
        )
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
        """Compute a prompt; the answer's kv_transfer_params say where its KV waits.

        A free slot is taken at once or the answer is 429. The slot stays taken until the KV was released, so
        that the memory for waiting KV is bounded by the slots.
        """
        began = time.monotonic()
        engine, parsed = await self.read(request)
        if not (parsed.kv_transfer_params or {}).get("do_remote_decode") or self._kv is None:
            raise invalid(
                "not_a_hand_over",
                'this is a prefill server; it takes requests with kv_transfer_params {"do_remote_decode": true} '
                "from a gateway. Send yours to the gateway",
                "kv_transfer_params",
            )
        slot = self.take_slot()
        try:
            tokens = await self.encode(engine, parsed)
            with tracer.start_as_current_span(
                "compute prompt", attributes={"gen_ai.usage.input_tokens": len(tokens)}
            ):
                # the client chooses the request's id, so it is not fit to be the engine's
                prompt = Prompt(
                    request_id=secrets.token_hex(8),
                    token_ids=tokens,
                    sampling=parsed.to_sampling(),
                    choices=parsed.choices,
                    resumed=resumed_tokens(parsed.kv_transfer_params),
                )
                sink = KVBuffer.for_tokens(engine.engine.identity.kv, prompt.kv_tokens)
                computed = await engine.compute(prompt, sink)
            hand_over = self._kv.offer(sink.filled(computed), on_release=slot.free)
        except (RequestError, EngineFailed) as error:
            slot.free()
            self.metrics.refused(type(error).__name__)
            raise translate(error, max_context=engine.engine.max_context) from error
        except BaseException:
            slot.free()
            raise
        taken = time.monotonic() - began
        self.metrics.ttft.observe(taken)
        self.metrics.prefill_seconds.observe(taken)
        self.metrics.e2e.observe(taken)
        self.metrics.prompt_tokens.inc(len(tokens))
        self.metrics.generation_tokens.inc(len(computed.first))
        self.metrics.finished("length")
        answer = Answer(
            endpoint=request.path,
            request_id=request[REQUEST_ID],
            model=self.settings.model_name,
            prompt_tokens=len(tokens),
            cached_tokens=computed.cached_tokens,
            token_bytes=engine.engine.token_bytes,
            fingerprint=fingerprint(engine.engine.identity),
            choices=len(computed.first),
        )
        for choice, first in enumerate(computed.first):
            answer.add(
                Generated(
                    request_id=request[REQUEST_ID],
                    token=first.token,
                    text=engine.engine.token_bytes(first.token).decode(errors="replace"),
                    output_tokens=1,
                    choice=choice,
                    finish_reason="length",
                    logprob=first.logprob,
                )
            )
        return web.json_response(answer.whole() | {"kv_transfer_params": hand_over.model_dump()})

    async def _release(self, request: web.Request) -> web.Response:
        """Give a KV up that nobody will fetch: its bearer is proof enough."""
        raw = await read_body(request)
        try:
            hand_over = HandOver.model_validate_json(raw)
        except ValidationError as error:
            raise invalid("invalid_value", "the body must be the kv_transfer_params of an answer") from error
        released = self._kv is not None and self._kv.withdraw(hand_over)
        return web.Response(text=json.dumps({"released": released}), content_type="application/json")

    @property
    def _waiting(self) -> int:
        return self._kv.waiting if self._kv is not None else 0

    def _kv_usage(self) -> float:
        # what waits to be pulled lies beside the engine's pool, one buffer a slot
        return self._waiting / self.slots.total


def main() -> None:
    """The program."""
    run("prefill", lambda: PrefillServer(WorkerSettings.for_role("prefill")))


if __name__ == "__main__":
    main()
