"""The gateway's HTTP calls to prefills and decodes: each performs one instruction and tells how it ended."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.trace import Status, StatusCode

from tidewheel.telemetry import trace_headers
from tidewheel_workers.serving.forwarding import (
    Event,
    Lost,
    OutOfTime,
    Prefilled,
    Refused,
    Rejected,
    TransferFailed,
)
from tidewheel_workers.serving.http1.client import ConnectionLost, HttpClient, Unreachable, encode_request
from tidewheel_workers.serving.kv_transport import RELEASE_PATH, TRANSFER_FAILED
from tidewheel_workers.serving.service import REQUEST_ID_HEADER

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping

    from tidewheel.api.ranktable import Backend
    from tidewheel_workers.serving.forwarding import AskDecode, AskPrefill, ReleaseKV
    from tidewheel_workers.serving.http1.client import Answer

log = logging.getLogger(__name__)
tracer = trace.get_tracer(__name__)

CONNECT_SECONDS = 2.0
RELEASE_SECONDS = 2.0
#: A whole answer, or an error, is held in memory; no model writes so much.
MOST_ANSWER_BYTES = 67_108_864
_STREAM_END = b"data: [DONE]"


class Upstream:
    """An answer on its way from a decode."""

    def __init__(self, answer: Answer, first: bytes) -> None:
        self.first = first  # of a stream: what came first; else the whole body
        self._answer = answer
        self._tail = first[-2 * len(_STREAM_END) :]

    @property
    def is_whole(self) -> bool:
        """Whether a stream came to its proper end: only then it says so."""
        return _STREAM_END in self._tail

    async def relay(self, take: Callable[[bytes], None]) -> None:
        """Hand over the rest of a stream as it comes, until its end, also where the decode is lost."""

        def pass_on(data: bytes) -> None:
            self._tail = (self._tail + data)[-2 * len(_STREAM_END) :]
            take(data)

        try:
            await self._answer.relay(pass_on)
        except ConnectionLost as error:
            log.warning("a decode was lost in mid-stream: %s", error)

    def pause(self, is_paused: bool) -> None:
        """Whether the client is too slow to take more for now."""
        self._answer.pause(is_paused)


class Backends:
    """Connections to the servers behind a gateway, and how many streams are open to each."""

    def __init__(self) -> None:
        self.open_streams: Counter[str] = Counter()
        self._client = HttpClient(connect_seconds=CONNECT_SECONDS)

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()

    async def prefill(self, ask: AskPrefill, path: str, body: Mapping[str, Any], request_id: str) -> Event:
        """Let a prefill compute the prompt."""
        prompt = {
            **body,
            "max_tokens": 1,
            "stream": False,
            "kv_transfer_params": {"do_remote_decode": True, "do_remote_prefill": False},
        }
        prompt.pop("stream_options", None)
        if "max_completion_tokens" in prompt:
            prompt["max_completion_tokens"] = 1
        with self._calling("prefill", ask.backend):
            try:
                async with asyncio.timeout_at(ask.until):
                    status, raw = await self._whole(ask.backend, path, prompt, request_id)
            except (OSError, TimeoutError) as error:
                return _failure(error, ask.backend)
            if status != 200:
                return _refusal(status, raw, ask.backend)
            hand_over = _json_object(raw).get("kv_transfer_params")
            if not isinstance(hand_over, dict) or not hand_over.get("do_remote_prefill"):
                return Lost(what=f"{ask.backend.name} answered without kv_transfer_params")
            return Prefilled(hand_over=hand_over)

    @asynccontextmanager
    async def decode(
        self, ask: AskDecode, path: str, body: Mapping[str, Any], request_id: str
    ) -> AsyncIterator[Upstream | Event]:
        """Let a decode answer; gives the answer, or its first part where it is a stream, or why there is none."""
        is_stream = bool(body.get("stream"))
        request = {**body, "kv_transfer_params": dict(ask.hand_over)}
        answer: Answer | None = None
        outcome: Upstream | Event
        with self._calling("decode", ask.backend):
            try:
                # a stream is due with its first token, a whole answer when it is complete
                async with asyncio.timeout_at(ask.until if is_stream else None):
                    answer = await self._post(ask.backend, path, request, request_id)
                    if answer.status == 200:
                        first = await (answer.next() if is_stream else answer.read(MOST_ANSWER_BYTES))
                        outcome = Upstream(answer, first) if first else Lost(what="an empty answer")
                    else:
                        outcome = _refusal(answer.status, await answer.read(MOST_ANSWER_BYTES), ask.backend)
            except (OSError, TimeoutError) as error:
                outcome = _failure(error, ask.backend)
            try:
                yield outcome
            finally:
                if answer is not None:
                    # a decode notices by this that nobody listens any more
                    answer.close()

    async def release(self, instruction: ReleaseKV) -> None:
        """Tell a prefill that its KV will not be fetched; engines that do not know this have a lease."""
        backend = instruction.backend
        try:
            async with asyncio.timeout(RELEASE_SECONDS):
                await self._whole(backend, RELEASE_PATH, instruction.hand_over, "")
        except (OSError, TimeoutError) as error:
            log.info("the KV at %s waits for its lease to end: %s", backend.name, error or "timed out")

    @contextmanager
    def _calling(self, role: str, backend: Backend) -> Iterator[trace.Span]:
        """A client span, and one open stream more."""
        self.open_streams[backend.name] += 1
        try:
            with tracer.start_as_current_span(
                role,
                kind=trace.SpanKind.CLIENT,
                attributes={
                    "server.address": backend.address,
                    "server.port": backend.port,
                    "tidewheel.backend": backend.name,
                },
            ) as span:
                yield span
        finally:
            self.open_streams[backend.name] -= 1
            if not self.open_streams[backend.name]:
                del self.open_streams[backend.name]

    async def _whole(
        self, backend: Backend, path: str, body: Mapping[str, Any], request_id: str
    ) -> tuple[int, bytes]:
        answer = await self._post(backend, path, body, request_id)
        try:
            return answer.status, await answer.read(MOST_ANSWER_BYTES)
        finally:
            answer.close()

    async def _post(self, backend: Backend, path: str, body: Mapping[str, Any], request_id: str) -> Answer:
        headers = trace_headers() | {"Content-Type": "application/json"}
        if request_id:
            headers[REQUEST_ID_HEADER] = request_id
        # compact, so that no body grows beyond what the servers take
        text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
        address = (backend.address, backend.port)
        return await self._client.send(address, encode_request("POST", address, path, headers, text.encode()))


def _refusal(status: int, raw: bytes, backend: Backend) -> Event:
    """What a status other than 200 means for the request."""
    span = trace.get_current_span()
    span.set_attribute("http.response.status_code", status)
    if status == 429:
        return Refused(cause="busy")
    error = _json_object(raw).get("error")
    code = error.get("code") if isinstance(error, dict) else None
    if status == 503 and code == TRANSFER_FAILED:
        return TransferFailed(what=f"{backend.name} could not pull the KV")
    if status == 503:
        return Refused(cause="unavailable")
    if 400 <= status < 500 and status != 408:
        return Rejected(status=status, body=raw)
    span.set_status(Status(StatusCode.ERROR))
    return Lost(what=f"{backend.name} answered {status}")


def _failure(error: Exception, backend: Backend) -> Event:
    span = trace.get_current_span()
    span.set_attribute("error.type", type(error).__name__)
    span.set_status(Status(StatusCode.ERROR))
    if isinstance(error, Unreachable):
        return Refused(cause="unreachable")
    if isinstance(error, TimeoutError):
        return OutOfTime()
    return Lost(what=f"{backend.name}: {type(error).__name__}: {error}")


def _json_object(raw: bytes) -> dict[str, Any]:
    try:
        value = json.loads(raw)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
