"""Real servers take whatever is sent to them: an answer or OpenAI's error object, never a 5xx, and the processes stay as they were."""

from __future__ import annotations

import gzip
import http.client
import json
import re
import socket
import zlib

import psutil
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.local.serving.processes import Service, eventually
from tests.unit.serving.bodies import (
    ENDPOINTS,
    HOSTILE,
    VALID,
    acceptable,
    changed,
    damaged,
    encoded,
    json_values,
)

from tidewheel_workers.serving.openai_api import CHAT, COMPLETIONS

PATIENCE_SECONDS = 30
#: What Python's allocator and caches may keep of what went through a process.
MOST_GROWTH_BYTES = 96 << 20
#: Real requests take longer than calls, so fewer are tried.
SOME = settings(
    max_examples=settings().max_examples // 2,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

endpoints = st.sampled_from(ENDPOINTS)


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with Service(
        directory=tmp_path_factory.mktemp("service"),
        environment={"TIDEWHEEL_MAX_CONTEXT_TOKENS": "200", "TIDEWHEEL_KV_LEASE_SECONDS": "1"},
    ) as running:
        for worker in running.all:
            assert post(worker, CHAT, encoded(VALID[CHAT]))[0] in (200, 400)  # each is warm now
        before = {worker.name: psutil.Process(worker.process.pid).memory_info().rss for worker in running.all}
        yield running
        for worker in running.all:
            assert worker.process.poll() is None, worker.log
            assert worker.health("live") == {"alive": True}
            grown = psutil.Process(worker.process.pid).memory_info().rss - before[worker.name]
            assert grown < MOST_GROWTH_BYTES, worker.name
            assert not failures(worker), worker.name
        eventually(lambda: running.slots_used() == 0)
        assert post(running.gateway, CHAT, encoded(VALID[CHAT]))[0] == 200


def failures(worker) -> list[dict]:
    """What our own code has logged as an error, not the HTTP library of what it could not parse."""
    records = map(json.loads, worker.log.splitlines())
    return [one for one in records if one["level"] == "error" and one["logger"].startswith("tidewheel")]


def post(worker, path: str, body: bytes, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(worker.host, 8000, timeout=PATIENCE_SECONDS)
    try:
        connection.request("POST", path, body, {"Content-Type": "application/json", **headers})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def check(status: int, raw: bytes, *, also: str = "") -> str:
    """An answer, or a refusal of the client's fault in OpenAI's form, or with that code; gives its code."""
    if status == 200:
        assert raw.startswith((b"{", b"data: "))
        return ""
    told = json.loads(raw)["error"]
    assert 400 <= status < 500 or told["code"] == also, (status, raw)
    assert set(told) == {"message", "type", "param", "code"}
    assert told["message"]
    return told["code"]


@given(endpoint=endpoints, raw=st.binary(max_size=200))
@SOME
def test_any_bytes_are_refused(service, endpoint, raw):
    assert check(*post(service.gateway, endpoint, raw))


@given(endpoint_and_raw=endpoints.flatmap(lambda one: st.tuples(st.just(one), damaged(one))))
@SOME
def test_a_damaged_request_is_answered_or_refused(service, endpoint_and_raw):
    check(*post(service.gateway, *endpoint_and_raw))


@given(
    endpoint_and_body=endpoints.flatmap(lambda one: st.tuples(st.just(one), acceptable(one) | changed(one))),
    stream=st.booleans(),
)
@example(endpoint_and_body=(COMPLETIONS, {**VALID[COMPLETIONS], "messages": None}), stream=False)
@example(endpoint_and_body=(COMPLETIONS, {**VALID[COMPLETIONS], "messages": [7]}), stream=True)
@example(endpoint_and_body=(CHAT, {**VALID[CHAT], "prompt": 7}), stream=False)
@example(endpoint_and_body=(COMPLETIONS, {**VALID[COMPLETIONS], "prompt": [97.0, 98.0]}), stream=False)
@SOME
def test_a_request_with_any_values_is_answered_or_refused(service, endpoint_and_body, stream):
    endpoint, body = endpoint_and_body
    for worker in (service.gateway, service.decode[0]):
        check(*post(worker, endpoint, encoded({"stream": stream, **body})))


RESUMED = {
    "resumed_token_ids": json_values | st.lists(st.integers(-1, 300), max_size=4),
    "early": json_values,
}
HAND_OVER = {
    "do_remote_prefill": True,
    "do_remote_decode": False,
    "remote_engine_id": "prefill-0",
    "remote_host": "127.0.0.1",
    "remote_port": 7001,
    "remote_request_id": "r",
    "remote_bearer": "b",
    "remote_tokens": 3,
}


@given(
    params=st.dictionaries(st.sampled_from([*HAND_OVER, *RESUMED]), json_values)
    | st.fixed_dictionaries({"do_remote_decode": st.just(True)}, optional=RESUMED)
    | st.fixed_dictionaries(
        {name: st.just(value) | json_values for name, value in HAND_OVER.items()}, optional=RESUMED
    )
)
@SOME
def test_what_gateways_say_of_kv_is_checked_by_the_servers(service, params):
    if params.get("remote_host") == HAND_OVER["remote_host"]:
        params = {**params, "remote_host": service.prefill[0].host}
    body = encoded({**VALID[CHAT], "kv_transfer_params": params})
    check(*post(service.prefill[0], CHAT, body))
    check(*post(service.decode[0], CHAT, body), also="kv_transfer_failed")
    check(*post(service.prefill[0], "/kv/release", encoded(params)))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_body_is_answered_or_refused(service, name):
    for endpoint in ENDPOINTS:
        check(*post(service.gateway, endpoint, HOSTILE[name]))


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_body_that_unpacks_to_far_more_is_refused(service, coding):
    blank = b" " * (2 * MOST_GROWTH_BYTES)
    bomb = gzip.compress(blank, 1) if coding == "gzip" else zlib.compress(blank, 1)
    assert len(bomb) < 1 << 20  # or its size alone would be enough to refuse it
    for worker in service.all:
        assert check(*post(worker, CHAT, bomb, **{"Content-Encoding": coding}))


lines = st.sampled_from(
    [b"GET / HTTP/1.1", b"POST /v1/completions HTTP/1.1", b"POST * HTTP/9.9", b"Host: a", b"Content-Length: -1",
     b"Content-Length: 99999999999999999999", b"Content-Length: 4", b"Transfer-Encoding: chunked", b"", b"",
     b"zz", b"FFFFFFFFFFFFFFFF", b"0", b"A" * 10_000, b"x-request-id: \xff", b"Expect: 100-continue",
     b"Connection: upgrade", b"Upgrade: websocket", b"\x16\x03\x01", b"PRI * HTTP/2.0"]
)  # fmt: skip


@given(raw=st.binary(max_size=100) | st.lists(lines | st.binary(max_size=20), max_size=8).map(b"\r\n".join))
@SOME
def test_bytes_that_are_no_http_are_answered_or_dropped(service, raw):
    for worker in (service.gateway, service.decode[0]):
        with socket.create_connection((worker.host, 8000), timeout=PATIENCE_SECONDS) as connection:
            try:
                connection.sendall(raw)
                connection.shutdown(socket.SHUT_WR)
                received = b"".join(iter(lambda: connection.recv(65536), b""))
            except ConnectionError:
                continue
        assert not received or received.startswith(b"HTTP/1.")
        assert not re.search(rb"HTTP/1\.\d 5\d\d ", received), received
