"""What exchanges see of a client: a stream that is counted, and one client for several prompts."""

from __future__ import annotations

import json

import pytest

from tidewheel_workers.serving.http1.messages import Request
from tidewheel_workers.serving.openai_answers import DONE, sse
from tidewheel_workers.serving.replies import Parts, Reply, usage_of
from tidewheel_workers.serving.several_prompts import Merging
from tidewheel_workers.serving.stream_meter import StreamMeter

HEADERS = (("Content-Type", "text/event-stream"),)


class Client:
    """Keeps what is sent; both the client and its stream."""

    def __init__(self) -> None:
        self.request = Request(method="POST", path="/v1/completions", query="", headers={})
        self.id = "r1"
        self.status = 0
        self.headers: list[tuple[str, str]] = []
        self.begun = 0
        self.sent = b""
        self.has_ended = False
        self.on_pressure = None

    def stream(self, headers, *, status=200):
        self.begun += 1
        self.headers, self.status = list(headers), status
        return self

    def write(self, data: bytes) -> None:
        self.sent += data

    def end(self) -> None:
        self.has_ended = True


def token(text: str, index: int = 0) -> bytes:
    return sse({"id": "c", "choices": [{"index": index, "text": text}]})


def test_a_stream_is_passed_on_and_its_tokens_counted_as_they_come():
    client, counted = Client(), []
    reply = Reply(
        client,
        meter=StreamMeter(choices=1, tells_usage=False),
        on_tokens=counted.append,
        headers=lambda _: {"x-ratelimit-limit-requests": "5"},
    )
    assert not reply.has_begun
    stream = reply.stream(HEADERS)
    assert client.headers == [*HEADERS, ("x-ratelimit-limit-requests", "5")]
    for piece in (token("a"), token("b"), token("c"), DONE):
        stream.write(piece)
    stream.end()
    assert client.sent == token("a") + token("b") + token("c") + DONE
    assert sum(counted) == 3
    assert len(counted) == 3
    assert client.has_ended
    assert reply.begun is client


def test_the_first_part_that_has_something_begins_the_stream():
    client = Client()
    parts = Parts(client, Merging(prompts=2, choices=1))
    assert parts.outlet is None
    for part in reversed(parts.all):
        part.stream(HEADERS).write(token("x"))
        part.end()
    assert (client.begun, client.has_ended) == (1, False)
    events = [json.loads(line.removeprefix("data: ")) for line in client.sent.decode().strip().split("\n\n")]
    assert [event["choices"][0]["index"] for event in events] == [1, 0]


def test_a_client_that_is_too_slow_holds_up_every_part_that_has_begun():
    client = Client()
    parts = Parts(client, Merging(prompts=3, choices=1))
    told = []
    for number, part in enumerate(parts.all[:2]):
        part.stream(HEADERS)
        part.on_pressure = lambda is_paused, number=number: told.append((number, is_paused))
    client.on_pressure(True)
    client.on_pressure(False)
    assert told == [(0, True), (1, True), (0, False), (1, False)]


@pytest.mark.parametrize(
    ("body", "usage"),
    [
        (b'{"usage": {"prompt_tokens": 3, "completion_tokens": 4}}', (3, 4)),
        (b'{"usage": null}', (0, 0)),
        (b'{"error": {}}', (0, 0)),
        (b"[]", (0, 0)),
        (b"no json", (0, 0)),
    ],
)
def test_usage_is_read_off_a_whole_answer(body, usage):
    assert usage_of(body) == usage
