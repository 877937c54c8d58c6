"""The gateway's HTTP calls to prefills and decodes: each performs one instruction and tells how it ended."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import secrets
import time
from typing import TYPE_CHECKING, Any

from opentelemetry.trace import Status, StatusCode
from pydantic_core import PydanticSerializationError, from_json, to_json

from tidewheel_workers.serving.early_hand_over import EarlyHandOvers
from tidewheel_workers.serving.forwarding_steps import (
    Event,
    Lost,
    OutOfTime,
    Prefilled,
    Refused,
    Rejected,
    RequestTimedOut,
    TransferFailed,
)
from tidewheel_workers.serving.http1.client import (
    ConnectionLost,
    HttpClient,
    Unreachable,
    Whole,
    encode_request,
)
from tidewheel_workers.serving.kv_transport import RELEASE_PATH, TRANSFER_FAILED
from tidewheel_workers.serving.resumed import IDS_HEADER, RESUMED
from tidewheel_workers.serving.service import PROMPT_TOKENS_HEADER
from tidewheel_workers.serving.spans import call_headers, headers_in

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from opentelemetry import trace

    from tidewheel.api.ranktable import Backend
    from tidewheel_workers.serving.forwarding_steps import AskDecode, AskPrefill, ReleaseKV
    from tidewheel_workers.serving.http1.client import Answer
    from tidewheel_workers.serving.spans import Spans

log = logging.getLogger(__name__)

CONNECT_SECONDS = 2.0
RELEASE_SECONDS = 2.0
#: A server that wants to be left alone for longer than this is asked again nevertheless.
MOST_RETRY_AFTER_SECONDS = 30.0
#: A whole answer, or an error, is held in memory; no model writes so much.
MOST_ANSWER_BYTES = 67_108_864
_HAND_OVER = {"do_remote_decode": True, "do_remote_prefill": False}


class Upstream:
    """A stream on its way from a decode. Close it, whatever happens."""

    def __init__(self, call: _Call, answer: Answer, first: bytes, ends_at: float) -> None:
        self.first = first  # what came of it
        self._call = call
        self._answer = answer
        self._ends_at = ends_at
        self._idle_seconds = math.inf
        self._is_paused = False

    @property
    def prompt_tokens(self) -> int:
        """Of a prompt that this decode computed itself, if it says so; else 0."""
        text = self._answer.headers.get(PROMPT_TOKENS_HEADER, "")
        return int(text[:9]) if text.isascii() and text.isdigit() else 0

    async def relay(self, take: Callable[[bytes], None], *, idle_seconds: float) -> str:
        """Hand over the rest of a stream as it comes, until its end; gives why there is no more of it.

        A server that is silent for `idle_seconds`, although the client could take more, is waited for no longer.

        Raises:
            TimeoutError: the request's time is over.
        """

        def pass_on(data: bytes) -> None:
            self._expect_more()
            take(data)

        self._idle_seconds = idle_seconds
        self._expect_more()
        try:
            await self._answer.relay(pass_on)
        except TimeoutError:
            if time.monotonic() >= self._ends_at:
                raise
            return f"no token came for {idle_seconds:g} s"
        except ConnectionLost as error:
            return str(error)
        return "it ended its answer too early"

    def pause(self, is_paused: bool) -> None:
        """Whether the client is too slow to take more for now."""
        self._is_paused = is_paused
        self._answer.pause(is_paused)
        self._expect_more()

    def close(self) -> None:
        """Done with it; a decode whose answer is not complete notices that nobody listens any more."""
        self._answer.close()
        self._call.end()

    def _expect_more(self) -> None:
        """From now on."""
        until = self._ends_at
        if not self._is_paused:
            until = min(until, time.monotonic() + self._idle_seconds)
        self._answer.wait_until(until)


class Backends:
    """Connections to the servers behind a gateway.

    `headers` are those of `call_headers`, the same for all calls of one request; `ends_at` is when its time is over.
    """

    def __init__(self, spans: Spans, *, asks_early: bool = False) -> None:
        """Set up; with `asks_early` prefills are to tell where the KV will be before they compute it."""
        self._spans = spans
        self._client = HttpClient(connect_seconds=CONNECT_SECONDS)
        self._early = EarlyHandOvers()
        self._withdrawals: set[asyncio.Task[None]] = set()
        self._asks_early = asks_early
        self._asked_of_prefill = _HAND_OVER | {"early": True} if asks_early else _HAND_OVER

    async def close(self) -> None:
        """Close all connections."""
        await self._early.close()
        await asyncio.gather(*self._withdrawals, return_exceptions=True)
        await self._client.close()

    async def prefill(
        self, ask: AskPrefill, path: str, body: Mapping[str, Any], headers: dict[str, str], ends_at: float
    ) -> Event:
        """Let a prefill compute the prompt.

        When nobody waits for the answer any more, the KV that it may have offered meanwhile is given up.
        """
        most = len(ask.resumed) + 1
        bearer = secrets.token_hex(16)
        prompt = {
            **body,
            "max_tokens": most,
            "stream": False,
            "kv_transfer_params": _params({**self._asked_of_prefill, "remote_bearer": bearer}, ask),
        }
        prompt.pop("stream_options", None)
        if "max_completion_tokens" in prompt:
            prompt["max_completion_tokens"] = most
        call = self._begin("prefill", ask.backend)
        early: Mapping[str, Any] | None = None
        try:
            try:
                until, headers = min(ask.until, ends_at), headers_in(call.span, headers)
                if self._asks_early:
                    begun = await self._send(ask.backend, path, prompt, headers, until=until)
                    early = self._early.take(begun, then=call.end, until=until + RELEASE_SECONDS)
                    if early is not None:
                        return Prefilled(hand_over=early)
                    answer = await _whole(begun)
                else:
                    answer = await self._fetch(ask.backend, path, prompt, headers, until=until)
            except asyncio.CancelledError:
                self._withdraw(ask.backend, bearer)
                raise
            except OSError as error:
                if isinstance(error, TimeoutError):
                    self._withdraw(ask.backend, bearer)
                return _failure(error, call, ends_at)
            if answer.status != 200:
                return _refusal(answer, call)
            hand_over = _json_object(answer.body).get("kv_transfer_params")
            if not isinstance(hand_over, dict) or not hand_over.get("do_remote_prefill"):
                return Lost(what=f"{ask.backend.name} answered without kv_transfer_params")
            return Prefilled(hand_over=hand_over)
        finally:
            if early is None:
                call.end()

    async def decode(
        self,
        ask: AskDecode,
        path: str,
        body: Mapping[str, Any],
        headers: dict[str, str],
        ends_at: float,
        *,
        tells_tokens: bool = False,
    ) -> Upstream | Whole | Event:
        """Let a decode answer; gives a stream that has begun, or a whole answer, or why there is none.

        With `tells_tokens` it is asked to put the ids of its tokens into a stream.
        """
        is_stream = bool(body.get("stream"))
        params = _params(ask.hand_over or {}, ask)
        request = {**body, "kv_transfer_params": params} if params else body
        if tells_tokens:
            headers = {**headers, IDS_HEADER: "1"}
        call = self._begin("decode", ask.backend)
        headers = headers_in(call.span, headers)
        outcome: Upstream | Whole | Event | None = None
        try:
            # a stream is due with its first token, a whole answer when the request's time is over
            if is_stream:
                until = min(ask.until, ends_at)
                outcome = await self._open(call, path, request, headers, until=until, ends_at=ends_at)
            else:
                outcome = await self._fetch(ask.backend, path, request, headers, until=ends_at)
            if isinstance(outcome, Whole) and outcome.status != 200:
                outcome = _refusal(outcome, call)
            elif isinstance(outcome, Whole) and not outcome.body:
                outcome = Lost(what="an empty answer")
        except OSError as error:
            outcome = _failure(error, call, ends_at)
        finally:
            if not isinstance(outcome, Upstream):
                call.end()
        return outcome

    async def _open(
        self,
        call: _Call,
        path: str,
        body: Mapping[str, Any],
        headers: dict[str, str],
        *,
        until: float,
        ends_at: float,
    ) -> Upstream | Whole | Event:
        """A stream with its first part, or what came instead."""
        answer = await self._send(call.backend, path, body, headers, until=until)
        if answer.status != 200:
            return await _whole(answer)
        outcome: Upstream | None = None
        try:
            if not (first := await answer.next()):
                return Lost(what="an empty answer")
            outcome = Upstream(call, answer, first, ends_at)
            return outcome
        finally:
            if outcome is None:
                answer.close()

    async def release(self, instruction: ReleaseKV) -> None:
        """Tell a prefill that its KV will not be fetched; engines that do not know this have a lease."""
        await self._release(instruction.backend, instruction.hand_over)

    def _withdraw(self, backend: Backend, bearer: str) -> None:
        task = asyncio.get_running_loop().create_task(self._release(backend, {"remote_bearer": bearer}))
        self._withdrawals.add(task)
        task.add_done_callback(self._withdrawals.discard)

    async def _release(self, backend: Backend, what: Mapping[str, Any]) -> None:
        try:
            until = time.monotonic() + RELEASE_SECONDS
            await self._fetch(backend, RELEASE_PATH, what, call_headers(""), until=until)
        except OSError as error:
            log.info("the KV at %s waits for its lease to end: %s", backend.name, error)

    def _begin(self, role: str, backend: Backend) -> _Call:
        return _Call(backend, self._spans.of_call(role, backend))

    async def _send(
        self, backend: Backend, path: str, body: Mapping[str, Any], headers: dict[str, str], *, until: float
    ) -> Answer:
        address = (backend.address, backend.port)
        request = encode_request("POST", address, path, headers, _json_bytes(body))
        return await self._client.send(address, request, until=until)

    async def _fetch(
        self, backend: Backend, path: str, body: Mapping[str, Any], headers: dict[str, str], *, until: float
    ) -> Whole:
        address = (backend.address, backend.port)
        request = encode_request("POST", address, path, headers, _json_bytes(body))
        return await self._client.fetch(address, request, most=MOST_ANSWER_BYTES, until=until)


class _Call:
    """An inquiry at a backend, and its span."""

    __slots__ = ("backend", "span")

    def __init__(self, backend: Backend, span: trace.Span) -> None:
        self.backend = backend
        self.span = span

    def end(self) -> None:
        """It is over."""
        # a span that stands for the request's own is not ours to end, and not recording
        if self.span.is_recording():
            self.span.end()


def _params(params: Mapping[str, Any], ask: AskPrefill | AskDecode) -> Mapping[str, Any]:
    """kv_transfer_params, with what the client has of the answer."""
    return {**params, RESUMED: ask.resumed} if ask.resumed else params


async def _whole(answer: Answer) -> Whole:
    """An answer that has begun, with its body; it is closed then."""
    try:
        return await answer.whole(MOST_ANSWER_BYTES)
    finally:
        answer.close()


def _refusal(answer: Whole, call: _Call) -> Event:
    """What a status other than 200 means for the request."""
    status = answer.status
    call.span.set_attribute("http.response.status_code", status)
    if status == 429:
        return Refused(cause="busy", retry_after=_retry_after(answer.headers))
    error = _json_object(answer.body).get("error")
    code = error.get("code") if isinstance(error, dict) else None
    if status == 503 and code == TRANSFER_FAILED:
        return TransferFailed(what=f"{call.backend.name} could not pull the KV")
    if status == 503:
        return Refused(cause="unavailable", retry_after=_retry_after(answer.headers))
    if 400 <= status < 500 and status != 408:
        return Rejected(status=status, body=answer.body)
    call.span.set_status(Status(StatusCode.ERROR))
    return Lost(what=f"{call.backend.name} answered {status}")


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds after which the server wants to be asked again; the milliseconds say it more exactly."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        text = headers.get(name, "")
        if text.isascii() and text.isdigit():
            return min(int(text[:9]) * unit, MOST_RETRY_AFTER_SECONDS)
    return None


def _failure(error: OSError, call: _Call, ends_at: float) -> Event:
    call.span.set_attribute("error.type", type(error).__name__)
    call.span.set_status(Status(StatusCode.ERROR))
    if isinstance(error, Unreachable):
        return Refused(cause="unreachable")
    if isinstance(error, TimeoutError):
        return RequestTimedOut() if time.monotonic() >= ends_at else OutOfTime()
    return Lost(what=f"{call.backend.name}: {type(error).__name__}: {error}")


def _json_bytes(body: Mapping[str, Any]) -> bytes:
    """Compact, so that no body grows beyond what the servers take."""
    try:
        return to_json(body)
    except PydanticSerializationError:
        # nested deeper than it follows; the parser went deeper
        return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


def _json_object(raw: bytes) -> dict[str, Any]:
    try:
        value = from_json(raw)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
