"""How a request ended is told apart, and nothing that is not right passes for it."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.soak.plans import CHAT, COMPLETIONS, WEIGHTS, Ending, Plan, Seen, ending, plan


def asked(**fields) -> Plan:
    return Plan(**{"kind": "stream", "endpoint": CHAT, "body": b"", "text": "abc", **fields})


def chunk(text: str, *, index: int = 0, reason: str | None = None) -> bytes:
    choice = {"index": index, "delta": {"content": text}, "finish_reason": reason}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


def error(code: str = "stream_interrupted") -> bytes:
    return json.dumps({"error": {"message": "lost", "type": "server_error", "code": code}}).encode()


DONE = b"data: [DONE]\n\n"
RIGHT = chunk("a") + chunk("bc", reason="stop")
USAGE = b'data: {"choices": [], "usage": {}}\n\n'
ERROR_EVENT = b"data: " + error() + b"\n\n"


@pytest.mark.parametrize(
    ("raw", "want"),
    [
        pytest.param(RIGHT + DONE, Ending.ANSWERED, id="right"),
        pytest.param(RIGHT + USAGE + DONE, Ending.ANSWERED, id="right, with the usage"),
        pytest.param(RIGHT, Ending.VANISHED, id="without its end"),
        pytest.param(b"", Ending.VANISHED, id="nothing"),
        pytest.param(chunk("a") + ERROR_EVENT, Ending.INTERRUPTED, id="an error"),
        pytest.param(ERROR_EVENT, Ending.INTERRUPTED, id="an error at once"),
        pytest.param(chunk("x") + ERROR_EVENT, Ending.WRONG, id="an error behind a wrong beginning"),
        pytest.param(chunk("a") + ERROR_EVENT + DONE, Ending.WRONG, id="two ends"),
        pytest.param(RIGHT + DONE + DONE, Ending.WRONG, id="the same end twice"),
        pytest.param(RIGHT + DONE + b"data:", Ending.WRONG, id="something behind the end"),
        pytest.param(chunk("ab", reason="stop") + DONE, Ending.WRONG, id="a token too few"),
        pytest.param(chunk("abcd", reason="stop") + DONE, Ending.WRONG, id="a token too many"),
        pytest.param(chunk("abc") + DONE, Ending.WRONG, id="no reason"),
        pytest.param(RIGHT + chunk("", reason="stop") + DONE, Ending.WRONG, id="two reasons"),
        pytest.param(chunk("abc", index=1, reason="stop") + DONE, Ending.WRONG, id="another choice"),
        pytest.param(chunk("a") + b"data: {\n\n" + DONE, Ending.WRONG, id="a damaged event"),
        pytest.param(chunk("a")[:-9] + ERROR_EVENT, Ending.WRONG, id="an error in the middle of an event"),
    ],
)
def test_streams(raw, want):
    assert ending(asked(is_stream=True), Seen(status=200, raw=raw))[0] is want


def test_every_choice_of_a_stream_has_to_be_right():
    both = chunk("abc", index=1, reason="stop") + chunk("ab") + chunk("c", reason="length")
    plan_of_two = asked(is_stream=True, choices=2)
    assert ending(plan_of_two, Seen(status=200, raw=both + DONE))[0] is Ending.ANSWERED
    assert ending(plan_of_two, Seen(status=200, raw=RIGHT + DONE))[0] is Ending.WRONG


def whole(text: str = "abc", **fields) -> bytes:
    choice = {"index": 0, "message": {"content": text}, "text": text, "finish_reason": "stop"}
    return json.dumps({"choices": [choice | fields]}).encode()


@pytest.mark.parametrize(
    ("seen", "want"),
    [
        pytest.param(Seen(status=200, raw=whole()), Ending.ANSWERED, id="right"),
        pytest.param(Seen(status=200, raw=whole("abd")), Ending.WRONG, id="another text"),
        pytest.param(Seen(status=200, raw=whole(finish_reason=None)), Ending.WRONG, id="no reason"),
        pytest.param(Seen(status=200, raw=b"<html>"), Ending.WRONG, id="something else"),
        pytest.param(Seen(status=200, raw=whole()[:9], end="broken"), Ending.VANISHED, id="a part of it"),
        pytest.param(Seen(), Ending.VANISHED, id="nothing"),
        pytest.param(Seen(status=200, raw=b"{", end="left"), Ending.LEFT, id="the client left"),
        pytest.param(Seen(end="unheard"), Ending.UNHEARD, id="nothing for a long time"),
        pytest.param(Seen(status=503, raw=error()), Ending.SHED, id="shed"),
        pytest.param(Seen(status=429, raw=error()), Ending.SHED, id="shed by its key"),
        pytest.param(Seen(status=502, raw=error()), Ending.FAILED, id="failed"),
        pytest.param(Seen(status=500, raw=error()), Ending.WRONG, id="a failure of the server itself"),
        pytest.param(Seen(status=400, raw=error()), Ending.WRONG, id="refused although it was right"),
        pytest.param(Seen(status=502, raw=b"<html>"), Ending.WRONG, id="an error without its object"),
        pytest.param(
            Seen(status=502, raw=error()[:9], end="broken"), Ending.VANISHED, id="a part of an error"
        ),
    ],
)
@pytest.mark.parametrize("endpoint", [CHAT, COMPLETIONS])
def test_whole_answers(seen, want, endpoint):
    assert ending(asked(endpoint=endpoint), seen)[0] is want


@pytest.mark.parametrize(
    ("status", "want"), [(413, Ending.REFUSED), (400, Ending.WRONG), (200, Ending.WRONG)]
)
def test_a_request_that_is_wrong_has_to_be_refused_for_what_it_is(status, want):
    assert ending(asked(wants_status=413), Seen(status=status, raw=error()))[0] is want


@given(seed=st.integers(0, 1 << 32))
def test_plans_come_from_their_seed_and_know_their_answer(seed):
    first, again = (
        [plan(random.Random(seed), number, has_choices=True) for number in range(3)] for _ in range(2)
    )
    assert first == again
    for one in first:
        if one.wants_status == 200:
            body = json.loads(one.body)
            prompt = body.get("prompt") or body["messages"][0]["content"]
            assert prompt.startswith(one.text)
            assert len(one.text) == min(len(prompt), body.get("max_tokens", len(prompt)))
            assert one.is_stream == body.get("stream", False)
            assert one.choices == body.get("n", 1)


def test_every_kind_is_asked_for():
    draw = random.Random(1)
    assert {plan(draw, number, has_choices=True).kind for number in range(500)} == set(WEIGHTS)
