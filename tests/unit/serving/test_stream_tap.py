"""What a gateway takes out of a stream, what it lets pass, and how it ends one that was cut off."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidewheel_workers.serving.stream_tap import StreamTap

DONE = b"data: [DONE]\n\n"


def chunk(text: str, *, ids: str = "", finish_reason: str | None = None, separator: bytes = b"\n\n") -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish_reason}
    frame = {"id": "c1", "object": "chat.completion.chunk", "model": "m", "choices": [choice]}
    lines = [f"id: {ids}"] if ids else []
    return "\n".join([*lines, f"data: {json.dumps(frame)}"]).encode() + separator


USAGE = b'data: {"id":"c1","choices":[],"usage":{"total_tokens":3}}\n\n'
ERROR = b'data: {"error":{"code":"engine_failed"}}\n\n'


def events_of(data: bytes) -> list:
    parts = [part.removeprefix(b"data: ") for part in data.split(b"\n\n") if part]
    return [part.decode() if part == b"[DONE]" else json.loads(part) for part in parts]


def test_ids_are_taken_out_and_remembered():
    tap = StreamTap(tells_tokens=True)
    assert tap.take(chunk("a", ids="7") + chunk("bc", ids="8,9")) == chunk("a") + chunk("bc")
    assert tap.sent == (7, 8, 9)
    assert not tap.is_whole
    assert tap.take(USAGE + DONE) == USAGE + DONE
    assert tap.is_whole


def test_what_was_not_sent_as_a_whole_was_not_sent():
    tap = StreamTap(tells_tokens=True)
    assert tap.take(chunk("a", ids="7") + chunk("b", ids="8")[:-1]) == chunk("a")
    assert tap.sent == (7,)
    tap.resume()
    assert tap.sent == ()
    assert tap.take(chunk("b", ids="8")) == chunk("b")
    assert tap.sent == (8,)


def test_an_error_in_the_stream_is_not_for_the_client_but_a_reason_to_resume():
    tap = StreamTap(tells_tokens=True)
    assert tap.take(chunk("a", ids="7") + ERROR + DONE) == chunk("a")
    assert tap.has_failed
    assert not tap.is_whole
    tap.resume()
    assert tap.take(chunk("b", ids="8") + DONE) == chunk("b") + DONE
    assert tap.is_whole


@pytest.mark.parametrize(
    ("data", "is_complete"),
    [
        pytest.param(chunk("a", ids="7"), False, id="in the middle"),
        pytest.param(chunk("a", ids="7", finish_reason="stop"), True, id="after the last token"),
        pytest.param(chunk("a", ids="7", finish_reason="stop") + USAGE, True, id="after the usage"),
        pytest.param(chunk("a", ids="7") + DONE, True, id="after the end"),
        pytest.param(b'id: 1\ndata: {"choices": 5}\n\n', False, id="nonsense"),
        pytest.param(b"id: 1\ndata: []\n\n", False, id="more nonsense"),
        pytest.param(b"", False, id="nothing"),
    ],
)
def test_the_answer_is_complete_with_its_finish_reason(data, is_complete):
    tap = StreamTap(tells_tokens=True)
    tap.take(data)
    assert tap.is_complete is is_complete


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(chunk("a") + chunk("b") + DONE, id="an engine without ids"),
        pytest.param(chunk("a", separator=b"\r\n\r\n") + b"data: [DONE]\r\n\r\n", id="other line ends"),
        pytest.param(b"id: x7\ndata: {}\n\n" + DONE, id="ids that are none"),
    ],
)
@pytest.mark.parametrize("asked", [True, False])
def test_a_stream_that_tells_no_tokens_passes_as_it_comes(data, asked):
    tap = StreamTap(tells_tokens=asked)
    passed = tap.take(data[:5]) + tap.take(data[5:])
    assert passed == (data if not asked else data.replace(b"id: x7\n", b""))
    assert tap.sent is None
    assert tap.is_whole


@given(text=st.text(max_size=5), cut=st.integers(0, 200), separator=st.sampled_from([b"\n\n", b"\r\n\r\n"]))
def test_of_a_stream_without_ids_only_whole_events_pass(text, cut, separator):
    event = chunk(text, separator=separator)
    tap = StreamTap(tells_tokens=False)
    passed = tap.take(event + event[: min(cut, len(event) - 1)])
    assert passed == event
    assert not tap.is_whole


def test_what_has_no_events_is_not_held_back_for_ever():
    tap = StreamTap(tells_tokens=True)
    passed = b"".join(tap.take(b"x" * 100_000) for _ in range(30))
    assert len(passed) == 3_000_000
    assert tap.sent is None


def test_the_end_of_a_complete_answer_can_be_made_up_for():
    tap = StreamTap(tells_tokens=True)
    tap.take(chunk("a", ids="7") + chunk("b", ids="8", finish_reason="stop"))
    assert tap.end() == DONE
    usage, done = events_of(tap.end(prompt_tokens=5))
    assert usage["usage"] == {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    assert (usage["id"], usage["choices"], done) == ("c1", [], "[DONE]")
    tap.take(USAGE)
    assert tap.end(prompt_tokens=5) == DONE


@pytest.mark.parametrize("tells_tokens", [True, False])
def test_a_stream_can_end_with_a_text(tells_tokens):
    tap = StreamTap(tells_tokens=tells_tokens)
    tap.take(chunk("a", ids="7" if tells_tokens else "") + chunk("b", ids="8" if tells_tokens else "")[:10])
    last, done = events_of(tap.end(text=" Sorry."))
    assert last["choices"][0]["delta"] == {"content": " Sorry."}
    assert last["choices"][0]["finish_reason"] == "stop"
    assert (last["id"], last["model"], done) == ("c1", "m", "[DONE]")


def test_a_completion_can_end_with_a_text():
    tap = StreamTap(tells_tokens=False)
    tap.take(b'data: {"object":"text_completion","choices":[{"text":"a"}]}\n\n')
    assert events_of(tap.end(text="!"))[0]["choices"][0]["text"] == "!"


STREAMS = st.lists(
    st.one_of(
        st.builds(chunk, st.text(max_size=5), ids=st.sampled_from(["1", "1,2", "30,4,5"])),
        st.just(USAGE),
        st.builds(lambda text: chunk(text), st.text(max_size=5)),
    ),
    max_size=6,
)


@given(stream=STREAMS, cuts=st.lists(st.integers(0, 400), max_size=8), asked=st.booleans())
def test_it_does_not_matter_how_a_stream_was_cut(stream, cuts, asked):
    data = b"".join(stream) + DONE
    at_once, in_parts = StreamTap(tells_tokens=asked), StreamTap(tells_tokens=asked)
    want = at_once.take(data)
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    got = b"".join(in_parts.take(data[a:b]) for a, b in itertools.pairwise(places))
    assert got == want
    assert (in_parts.sent, in_parts.is_whole, in_parts.is_complete) == (
        at_once.sent,
        at_once.is_whole,
        at_once.is_complete,
    )


@given(data=st.lists(st.binary(max_size=40), max_size=6), asked=st.booleans())
def test_no_bytes_upset_it(data, asked):
    tap = StreamTap(tells_tokens=asked)
    for part in data:
        assert len(tap.take(part)) <= sum(map(len, data))
    assert tap.is_complete in (True, False)
    assert tap.end(text="x", prompt_tokens=1).endswith(DONE)
