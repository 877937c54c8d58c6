"""The gateway's HTTP calls to prefills and decodes: each performs one instruction and tells how it ended."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
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
from tidewheel_workers.serving.http_server import REQUEST_ID_HEADER
from tidewheel_workers.serving.kv_transport import RELEASE_PATH, TRANSFER_FAILED

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

    from aiohttp.client import _RequestContextManager

    from tidewheel.api.ranktable import Backend
    from tidewheel_workers.serving.forwarding import AskDecode, AskPrefill, ReleaseKV

log = logging.getLogger(__name__)
tracer = trace.get_tracer(__name__)

CONNECT_SECONDS = 2.0
RELEASE_SECONDS = 2.0
_STREAM_END = b"data: [DONE]"


class Upstream:
    """An answer on its way from a decode."""

    def __init__(self, response: aiohttp.ClientResponse, first: bytes) -> None:
        self.response = response
        self.first = first  # of a stream: what came first; else the whole body
        self._tail = first[-len(_STREAM_END) * 2 :]

    @property
    def is_whole(self) -> bool:
        """Whether a stream came to its proper end: only then it says so."""
        return _STREAM_END in self._tail

    async def next(self) -> bytes:
        """More of a stream; empty at its end, also where the decode is lost."""
        try:
            data = await self.response.content.readany()
        except (aiohttp.ClientError, OSError) as error:
            log.warning("a decode was lost in mid-stream: %s", error)
            return b""
        self._tail = (self._tail + data)[-len(_STREAM_END) * 2 :]
        return data


class Backends:
    """Connections to the servers behind a gateway, and how many streams are open to each."""

    def __init__(self) -> None:
        self.open_streams: Counter[str] = Counter()
        # a hand-over needs no more than one connection per open request, which the slots bound
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=10, keepalive_timeout=30),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
            auto_decompress=False,
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

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
                async with (
                    asyncio.timeout_at(ask.until),
                    self._post(ask.backend, path, prompt, request_id) as response,
                ):
                    status, raw = response.status, await response.read()
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
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
        response: aiohttp.ClientResponse | None = None
        outcome: Upstream | Event
        with self._calling("decode", ask.backend):
            try:
                # a stream is due with its first token, a whole answer when it is complete
                async with asyncio.timeout_at(ask.until if is_stream else None):
                    response = await self._post(ask.backend, path, request, request_id)
                    if response.status == 200:
                        first = await (response.content.readany() if is_stream else response.read())
                        outcome = Upstream(response, first) if first else Lost(what="an empty answer")
                    else:
                        outcome = _refusal(response.status, await response.read(), ask.backend)
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                outcome = _failure(error, ask.backend)
            try:
                yield outcome
            finally:
                if response is not None:
                    # a decode notices by this that nobody listens any more
                    response.close()

    async def release(self, instruction: ReleaseKV) -> None:
        """Tell a prefill that its KV will not be fetched; engines that do not know this have a lease."""
        backend = instruction.backend
        try:
            async with (
                asyncio.timeout(RELEASE_SECONDS),
                self._post(backend, RELEASE_PATH, instruction.hand_over, "") as response,
            ):
                await response.read()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
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

    def _post(
        self, backend: Backend, path: str, body: Mapping[str, Any], request_id: str
    ) -> _RequestContextManager:
        host = f"[{backend.address}]" if ":" in backend.address else backend.address
        headers = trace_headers() | {"Content-Type": "application/json"}
        if request_id:
            headers[REQUEST_ID_HEADER] = request_id
        # compact, so that no body grows beyond what the servers take
        text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
        return self._session.post(
            f"http://{host}:{backend.port}{path}",
            data=text.encode(),
            headers=headers,
        )


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
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
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
