"""A stand-in for prefill and decode servers that costs as little as possible: canned answers, no parsing to speak of.

It speaks what vLLM's router, SGLang's router and Tidewheel's gateway expect of prefills (`kv_transfer_params` in a whole
answer; a stream of one token where a stream is asked for) and of decodes. Streams are written as a continuous batch is:
a decode of 32 sequences steps every `STEP_SECONDS` and writes one token to each of its streams; every token carries the
time at which it was written.

    python worker.py HOST PREFILL_PORT,... DECODE_PORT,...
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time

import uvloop

TOKENS = 32
STEP_SECONDS = 0.02
#: Decodes step at times of their own, so the streams are spread over as many phases.
PHASES = 8
MODEL = "stand-in"

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
_STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_MISSING = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
_FRAME = {
    "id": "chatcmpl-0123456789abcdef01234567",
    "object": "chat.completion.chunk",
    "created": 1,
    "model": MODEL,
}
_ASKED = b"post /v1/chat/completions http"
_END = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _whole(extra: dict[str, object], tokens: int) -> bytes:
    usage = {"prompt_tokens": 100, "completion_tokens": tokens, "total_tokens": 100 + tokens}
    message = {"role": "assistant", "content": " word" * tokens}
    choice = {"index": 0, "message": message, "finish_reason": "length"}
    body = _json(_FRAME | {"object": "chat.completion", "choices": [choice], "usage": usage} | extra)
    return _HEAD % (len(body), body)


PREFILLED = _whole(
    {
        "kv_transfer_params": {
            "do_remote_prefill": True,
            "do_remote_decode": False,
            "remote_engine_id": "0123456789abcdef",
            "remote_block_ids": list(range(8)),
            "remote_host": "127.0.0.1",
            "remote_port": 7001,
            "tp_size": 1,
        }
    },
    1,
)
ANSWERED = _whole({}, TOKENS)
_TOKEN = _json(_FRAME | {"choices": [{"index": 0, "delta": {"content": " @%d@"}, "finish_reason": None}]})
INFO = {
    "/v1/models": {
        "object": "list",
        "data": [{"id": MODEL, "object": "model", "created": 1, "owned_by": "x"}],
    },
    "/get_server_info": {"model_path": MODEL, "served_model_name": MODEL, "version": "0.5.5", "dp_size": 1},
    "/server_info": {"model_path": MODEL, "served_model_name": MODEL, "version": "0.5.5", "dp_size": 1},
    "/get_model_info": {"model_path": MODEL, "is_generation": True},
    "/model_info": {"model_path": MODEL, "is_generation": True},
    "/version": {"version": "0.11.0"},
    "/health": {},
    "/health_generate": {},
}
KNOWN = {path.encode(): _HEAD % (len(_json(value)), _json(value)) for path, value in INFO.items()}


def token() -> bytes:
    """One event of a stream in its chunk."""
    event = b"data: " + _TOKEN % time.monotonic_ns() + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(event), event)


class Phase:
    """Decodes that step at the same time."""

    def __init__(self) -> None:
        self.streams: list[Connection] = []

    def step(self) -> None:
        """One token for each."""
        streams, self.streams = self.streams, []
        for one in streams:
            if one.transport is not None and one.step():
                self.streams.append(one)


class Connection(asyncio.Protocol):
    """One client of one role."""

    count = 0

    def __init__(self, role: str, phases: list[Phase]) -> None:
        self.transport: asyncio.Transport | None = None
        self._role = role
        self._phases = phases
        self._buffer = b""
        self._left = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self.transport = None

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n") + 4
        if end < 4:
            return
        head = self._buffer[:end].lower()
        at = head.find(b"content-length:")
        size = int(head[at + 15 : head.find(b"\r\n", at)]) if at > 0 else 0
        if len(self._buffer) < end + size:
            return
        body, self._buffer = self._buffer[end : end + size], self._buffer[end + size :]
        if not head.startswith(_ASKED):
            self._write(KNOWN.get(head.partition(b" ")[2].partition(b" ")[0], _MISSING))
            return
        is_stream = b'"stream":true' in body or b'"stream": true' in body
        if self._role == "prefill":
            self._write(_STREAM_HEAD + token() + _END if is_stream else PREFILLED)
        elif is_stream:
            self._left = TOKENS - 1
            self._write(_STREAM_HEAD + token())
            Connection.count += 1
            self._phases[Connection.count % PHASES].streams.append(self)
        else:
            self._write(ANSWERED)

    def step(self) -> bool:
        """One token more; whether there are further ones."""
        self._left -= 1
        self._write(token() if self._left else token() + _END)
        return self._left > 0

    def _write(self, data: bytes) -> None:
        if self.transport is not None:
            self.transport.write(data)


async def main(host: str, prefills: str, decodes: str) -> None:
    """Serve until killed."""
    loop = asyncio.get_running_loop()
    phases = [Phase() for _ in range(PHASES)]
    for role, ports in (("prefill", prefills), ("decode", decodes)):
        for port in ports.split(","):
            await loop.create_server(
                lambda role=role: Connection(role, phases), host, int(port), backlog=1024
            )
    gc.freeze()
    gc.disable()
    began = loop.time()
    ticks = 0
    while True:
        ticks += 1
        await asyncio.sleep(max(0.0, began + ticks * STEP_SECONDS / PHASES - loop.time()))
        phases[ticks % PHASES].step()


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:4]))
