"""Traces as people publish them, and what is said of lines that are none."""

from __future__ import annotations

import random

import pytest

from tidewheel.simulation.traces import (
    BadTrace,
    Request,
    poisson,
    read_azure,
    read_mooncake,
    read_trace,
    sped_up,
)

MOONCAKE = (
    '{"timestamp": 3000, "input_length": 20, "output_length": 5, "hash_ids": [7, 8]}\n',
    '{"timestamp": 1000, "input_length": 10, "output_length": 0, "hash_ids": []}\n',
    "\n",
)
AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n",
    "2023-11-16 18:15:46.6805900,374,44\n",
    "2023-11-16 18:15:50.9951690,396,109\n",
)


def test_mooncake_lines_are_requests_in_order_from_second_zero():
    first, second = read_mooncake(MOONCAKE, scenario="chat")
    assert first == Request(at=0.0, prompt_tokens=10, answer_tokens=1, scenario="chat")
    assert (second.at, second.blocks) == (2.0, (7, 8))


def test_azure_rows_keep_their_distances_in_time():
    first, second = read_azure(AZURE)
    assert (first.prompt_tokens, first.answer_tokens) == (374, 44)
    assert second.at == pytest.approx(4.314579, abs=1e-5)


@pytest.mark.parametrize(("lines", "count"), [(MOONCAKE, 2), (AZURE, 2)], ids=["mooncake", "azure"])
def test_a_trace_is_known_by_its_first_line(lines, count):
    assert len(read_trace(lines)) == count


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        pytest.param(('{"timestamp": 0}\n',), "line 1 of the Mooncake trace", id="a field is missing"),
        pytest.param((*AZURE, "yesterday,1,2\n"), "line 4 of the Azure trace", id="no time"),
        pytest.param(("at,prompt\n", "1,2\n"), "line 2 of the Azure trace", id="another header"),
        pytest.param(("TIMESTAMP,ContextTokens,GeneratedTokens\n",), "no request", id="a header alone"),
    ],
)
def test_what_is_no_trace_is_named(lines, says):
    with pytest.raises(BadTrace, match=says):
        read_trace(lines)


def test_a_trace_sped_up_has_the_same_requests_sooner():
    assert [one.at for one in sped_up(read_mooncake(MOONCAKE), 4)] == [0.0, 0.5]


def test_poisson_arrivals_have_their_rate_and_repeat_with_their_generator():
    like = read_mooncake(MOONCAKE)
    made, again = (poisson(like, per_second=5, count=4000, generator=random.Random(1)) for _ in range(2))
    assert made == again
    assert made[-1].at == pytest.approx(800, rel=0.05)
