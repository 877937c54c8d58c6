"""Streamed text is the decoded text, cut only where a stop string or the end says so."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidewheel_workers.llm.loading import LoadedModel
from tidewheel_workers.llm.text import OutputText, StreamDecoder


class Bytes:
    """A tokenizer whose every token is one byte."""

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode(errors="replace")


def streamed(text: OutputText, tokens: Sequence[int]) -> list[str]:
    deltas = []
    for token in tokens:
        deltas.append(text.push(token))
        if text.stopped:
            break
    return [*deltas, text.finish()]


@given(tokens=st.binary(max_size=60))
def test_deltas_of_any_bytes_add_up_to_the_decoded_text(tokens: bytes) -> None:
    decoder = StreamDecoder(Bytes())
    assert "".join([*map(decoder.push, tokens), decoder.finish()]) == Bytes().decode(tokens)


@given(tokens=st.lists(st.integers(0, 49151), max_size=60))
def test_deltas_of_any_real_tokens_add_up_to_the_decoded_text(smollm: LoadedModel, tokens: list[int]) -> None:
    decoder = StreamDecoder(smollm.tokenizer)
    assert "".join([*map(decoder.push, tokens), decoder.finish()]) == smollm.tokenizer.decode(tokens)


def test_a_character_comes_out_when_its_last_byte_is_there() -> None:
    decoder = StreamDecoder(Bytes())
    assert [decoder.push(byte) for byte in "a😀b".encode()] == ["a", "", "", "", "😀", "b"]


def test_half_a_character_at_the_end_is_not_lost() -> None:
    decoder = StreamDecoder(Bytes())
    assert [decoder.push(byte) for byte in "é".encode()[:1]] == [""]
    assert decoder.finish() == "\ufffd"


@pytest.mark.parametrize(
    ("stop", "want"),
    [
        pytest.param(("END",), ["a", "b", "", "", "", ""], id="what could become a stop string is held back"),
        pytest.param(("ENX",), ["a", "b", "", "", "END", "c", ""], id="and released when it does not"),
        pytest.param(("Dc", "b"), ["a", "", ""], id="the first stop string to come ends the text"),
        pytest.param(("cd",), ["a", "b", "E", "N", "D", "", "c"], id="the end releases what was held"),
    ],
)
def test_stop_strings(stop: tuple[str, ...], want: list[str]) -> None:
    assert streamed(OutputText(Bytes(), stop), b"abENDc") == want


@pytest.mark.parametrize(
    ("least", "want"),
    [
        pytest.param(4, "ab", id="one that is complete in time ends the answer"),
        pytest.param(5, "abEN", id="one that is complete too early is text"),
        pytest.param(7, "abENDcEx", id="and so is every one"),
    ],
)
def test_stop_strings_wait_for_the_least_number_of_tokens(least: int, want: str) -> None:
    text = OutputText(Bytes(), ("END", "DcE"))
    got = [text.push(token, may_stop=at >= least) for at, token in enumerate(b"abENDcEx")]
    assert "".join([*got, text.finish()]) == want


@given(
    text=st.text(alphabet="ab", max_size=30),
    stop=st.lists(st.text(alphabet="ab", min_size=1, max_size=4), max_size=3),
)
def test_text_ends_before_the_stop_string_that_is_complete_first(text: str, stop: list[str]) -> None:
    so_far = (text[:end] for end in range(len(text) + 1))
    ended = next((part for part in so_far if any(one in part for one in stop)), None)
    want = text if ended is None else ended[: min(ended.find(one) for one in stop if one in ended)]
    assert "".join(streamed(OutputText(Bytes(), stop), text.encode())) == want
