"""Measuring an engine: every length and batch once, the fastest pass of each, in the form that the simulator reads."""

from __future__ import annotations

import io
import itertools

import pytest
from tests.unit.simulation.world import DEVICE

from tidewheel.simulation.profiles import read_csv
from tidewheel_workers.llm.profiling import Row, main, measure, write


class Clock:
    """A clock on which passes take what they are told."""

    def __init__(self, passes) -> None:
        self._passes = itertools.cycle(passes)
        self._now = 0.0
        self._is_running = False

    def __call__(self) -> float:
        if self._is_running:
            self._now += next(self._passes)
        self._is_running = not self._is_running
        return self._now


def rows_of(model, passes=(9.0, 3.0, 2.0, 4.0), **changes) -> list[Row]:
    return list(measure(model, longest=100, batches=(1, 3), clock=Clock(passes), **changes))


@pytest.fixture(scope="module")
def tiny(llama_of, tiny_config, tiny_tensors):
    return llama_of(tiny_config, tiny_tensors)


def test_every_length_and_batch_is_measured_once(tiny):
    assert [(row.role, row.tokens, row.batch) for row in rows_of(tiny)] == [
        ("prefill", 64, 1),
        ("prefill", 100, 1),
        ("decode", 64, 1),
        ("decode", 100, 1),
        ("decode", 64, 3),
        ("decode", 100, 3),
    ]


def test_the_fastest_pass_counts_and_the_first_does_not(tiny):
    assert {row.seconds for row in rows_of(tiny)} == {2.0}
    assert {row.seconds for row in rows_of(tiny, passes=(1.0, 3.0, 5.0, 4.0))} == {3.0}


def test_the_simulator_reads_what_is_written():
    rows = [Row(role="prefill", tokens=tokens, batch=1, seconds=tokens / 1000) for tokens in (64, 128)] + [
        Row(role="decode", tokens=tokens, batch=batch, seconds=0.01 + 0.002 * batch)
        for tokens, batch in itertools.product((64, 128), (1, 2, 4))
    ]
    out = io.StringIO()
    write(iter(rows), out)
    profile = read_csv(out.getvalue().splitlines(), like=DEVICE)
    assert profile.prefill_seconds(96) == pytest.approx(0.096)
    assert profile.decode_seconds(3, 100) == pytest.approx(0.016, rel=1e-3)


def test_a_model_that_is_not_there_is_named(capsys):
    assert main(["path:/nowhere/at/all"]) == 1
    assert "path:/nowhere/at/all cannot be measured" in capsys.readouterr().err
