"""The gateway's HTTP side on real sockets: whatever is sent, the answer is one that OpenAI's clients understand."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import sys

import pytest
from prometheus_client import CollectorRegistry, Counter

from tidewheel_workers.serving.errors import busy
from tidewheel_workers.serving.front import Front, Route
from tidewheel_workers.serving.http1.messages import Response
from tidewheel_workers.serving.service import OpenRequests, Readiness
from tidewheel_workers.serving.settings import GatewaySettings
from tidewheel_workers.serving.spans import Spans


class Service:
    """Ready, with one counter."""

    def __init__(self) -> None:
        self.settings = GatewaySettings(model_name="m", max_body_bytes=2000)
        self.registry = CollectorRegistry()
        self.counter = Counter("tides", "Tides.", registry=self.registry)
        self.is_alive = True
        self.is_ready = True

    def readiness(self) -> Readiness:
        return Readiness(is_ready=self.is_ready, reason="Serving" if self.is_ready else "NoGroupReady")


async def echo(incoming) -> Response:
    return Response(body=incoming.request.body)


async def below(incoming) -> Response:
    return Response.of_json({"path": incoming.request.path})


async def full(_) -> Response:
    raise busy("all slots are taken")


async def broken(_) -> Response:
    raise RuntimeError("a fault of ours")


ROUTES = (
    Route("POST", "/v1/echo", echo),
    Route("GET", "/v1/below/*", below),
    Route("POST", "/v1/full", full),
    Route("POST", "/v1/broken", broken),
)


class Door:
    """A running front and what it did."""

    def __init__(self) -> None:
        self.service = Service()
        self.open_requests = OpenRequests()
        self.refused: list[int] = []
        self.front = Front(
            self.service,
            ROUTES,
            self.open_requests,
            spans=Spans(),
            member=None,
            on_refusal=self.refused.append,
        )

    async def sends(self, sent: bytes) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of one answer."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.front.server.port)
        try:
            writer.write(sent)
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = dict(line.split(": ", 1) for line in head[1:-2])
            return int(head[0].split()[1]), headers, await reader.readexactly(int(headers["Content-Length"]))
        finally:
            writer.close()

    async def asks(
        self, method: str, path: str, body: bytes = b"", *headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        head = "".join(f"{line}\r\n" for line in ("Host: x", f"Content-Length: {len(body)}", *headers))
        return await self.sends(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body)


@pytest.fixture
async def door():
    made = Door()
    await made.front.start("127.0.0.1", 0)
    yield made
    await made.front.close()


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        pytest.param(b"\x16\x03\x01\x02\x00\x01", 400, "malformed_request", id="TLS where none is spoken"),
        pytest.param(b"POST /v1/echo HTTP/1.1\r\n\r\n", 400, "malformed_request", id="no host"),
        pytest.param(b"POST /v1/echo HTTP/1.1\r\nHost: x\r\nContent-Length: 2001\r\n\r\n", 413, "body_too_large", id="too large"),
        pytest.param(b"POST /v1/echo HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 40_000, 431, "head_too_large", id="endless header"),
        pytest.param(b"POST /v1/echo HTTP/1.1\r\nHost: x\r\nContent-Encoding: br\r\n\r\n", 415, "unsupported_encoding", id="brotli"),
    ],
)  # fmt: skip
async def test_what_is_refused_before_any_handler(door, sent, status, code):
    got, headers, body = await door.sends(sent)
    error = json.loads(body)["error"]
    assert (got, error["code"], error["type"]) == (status, code, "invalid_request_error")
    assert set(error) == {"message", "type", "param", "code"}
    assert (headers["Content-Type"], headers["Connection"]) == ("application/json", "close")
    assert len(headers["x-request-id"]) == 24
    assert door.refused == [status]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        pytest.param("GET", "/nowhere", 404, "unknown_url", id="no such path"),
        pytest.param("GET", "/v1/below", 404, "unknown_url", id="the folder itself"),
        pytest.param("DELETE", "/v1/echo", 405, "method_not_allowed", id="no such method"),
        pytest.param("POST", "/v1/full", 429, "no_free_slot", id="what a handler says"),
        pytest.param("POST", "/v1/broken", 500, "internal_error", id="what a handler breaks"),
    ],
)
async def test_what_fails_later(door, method, path, status, code):
    got, headers, body = await door.asks(method, path, b"", "X-Request-Id: mine")
    assert (got, json.loads(body)["error"]["code"]) == (status, code)
    assert headers["x-request-id"] == "mine"
    assert headers.get("Allow") == ("POST" if status == 405 else None)
    assert headers.get("Retry-After") == ("1" if status == 429 else None)
    assert door.open_requests.count == 0


async def test_a_path_below_a_folder_is_decoded(door):
    _, _, body = await door.asks("GET", "/v1/below/a%2Fb")
    assert json.loads(body) == {"path": "/v1/below/a/b"}


async def test_probes_tell_what_the_service_says(door):
    assert (await door.asks("GET", "/health"))[0] == 200
    door.service.is_ready = door.service.is_alive = False
    status, _, body = await door.asks("GET", "/health/ready")
    assert (status, json.loads(body)["reason"]) == (503, "NoGroupReady")
    assert (await door.asks("GET", "/health/live"))[0] == 503
    status, headers, _ = await door.asks("GET", "/version", b"", "Connection: close")
    assert (status, headers["Connection"]) == (200, "close")


async def test_a_scrape_shows_the_registry(door):
    door.service.counter.inc(3)
    status, headers, body = await door.asks("GET", "/metrics")
    assert (status, b"tides_total 3.0" in body) == (200, True)
    assert headers["Content-Type"].startswith("text/plain; version=")


async def test_a_line_of_the_log_is_json_whatever_the_path(door, monkeypatch, caplog):
    monkeypatch.setattr(sys, "stderr", written := io.StringIO())
    caplog.set_level(logging.INFO)
    await door.asks("GET", "/v1/below/%22%5C%0A%C3%BC")
    await door.front.close()
    line = json.loads(written.getvalue())
    assert line["message"].startswith('GET /v1/below/"\\\nü 200 in ')


async def test_a_request_is_one_line_in_the_log(door, monkeypatch, caplog):
    monkeypatch.setattr(sys, "stderr", written := io.StringIO())
    caplog.set_level(logging.INFO)
    traceparent = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    await door.asks("POST", "/v1/echo", b"x", "X-Request-Id: mine", traceparent)
    await door.front.close()
    line = json.loads(written.getvalue())
    own = (
        "ts",
        "level",
        "logger",
        "message",
        "trace_id",
        "span_id",
    )  # as the formatter of all others orders them
    assert tuple(line) == (*own, "request_id", "status")
    assert line["message"].startswith("POST /v1/echo 200 in ")
    assert (line["request_id"], line["status"]) == ("mine", 200)
    assert line["trace_id"] == "0af7651916cd43dd8448eb211c80319c"
