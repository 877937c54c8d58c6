"""Without a profile: the sign rule tells the bottleneck, chance does not move it, and nothing is given back without evidence."""

from __future__ import annotations

import random

import pytest
from tests.unit.scaling.worlds import TARGETS, counts, load

from tidewheel.planning.scaling.online import SignState, follow


def measured(ttft: float, e2e: float, rate: float = 10.0, **more):
    """T_p and T_d make up E2E."""
    given = {"prefill_seconds": ttft, "decode_seconds": e2e - ttft, **more}
    return load(rate, ttft_seconds=ttft, e2e_seconds=e2e, **given)


def live(windows, *, prefill: int = 1, decode: int = 1, startup: float = 60.0):
    """What was said, with each word carried out at once."""
    state, said = SignState(), []
    for number, one in enumerate(windows, start=1):
        there = counts(prefill, decode)
        word, state = follow(
            state,
            one,
            there.prefill,
            there.decode,
            TARGETS,
            startup_seconds=startup,
            now=number * one.seconds,
        )
        said.append(word)
        prefill += {"more prefill": 1, "fewer prefill": -1}.get(word, 0)
        decode += {"more decode": 1, "fewer decode": -1}.get(word, 0)
    return said, (prefill, decode)


@pytest.mark.parametrize(
    ("after", "want"),
    [
        pytest.param((1.5, 3.5), "more prefill", id="E2E rises and T_p's share rises"),
        pytest.param((0.5, 4.5), "more decode", id="E2E rises and T_p's share falls"),
        pytest.param((0.7, 3.5), "stay", id="E2E rises and the share stays"),
        pytest.param((0.5, 2.6), "stay", id="E2E rises by less than a tenth"),
        pytest.param((0.3, 1.5), "stay", id="E2E falls"),
    ],
)
def test_the_sign_rule(after, want):
    said, _ = live([measured(0.5, 2.5)] * 10 + [measured(*after)] * 2)
    assert said[:10] == ["stay"] * 10
    assert said[-1] == want


def test_one_window_is_chance():
    said, _ = live([measured(0.5, 2.5)] * 10 + [measured(2.5, 4.5)] + [measured(0.5, 2.5)] * 5)
    assert set(said) == {"stay"}


def test_after_a_change_nothing_happens_until_it_works():
    said, after = live([measured(0.5, 2.5)] * 8 + [measured(2.5, 4.5)] * 5)
    assert after == (2, 1)
    assert said[9] == "more prefill"


@pytest.mark.parametrize("seed", range(5))
def test_noise_moves_nothing(seed):
    generator = random.Random(seed)

    def one():
        ttft = 0.5 * (1 + 0.2 * generator.gauss(0, 1))
        return measured(ttft, ttft + 2 * (1 + 0.2 * generator.gauss(0, 1)))

    said, _ = live([one() for _ in range(200)])
    assert sum(word.startswith("more") for word in said) <= 1


def test_what_was_carried_before_lets_the_others_go():
    busy = [measured(0.5, 2.5, rate=20.0)] * 8
    idle = [measured(0.5, 2.5, rate=4.0)] * 80
    _, after = live(busy + idle, prefill=4, decode=3)
    # 20 requests a second were carried by 4 and 3, so 4 a second are by 1 and 1
    assert after == (1, 1)


def test_without_evidence_nobody_goes():
    _, after = live([measured(0.5, 2.5, rate=4.0)] * 40, prefill=2, decode=2)
    assert after == (2, 2)


def test_a_load_that_missed_its_objective_is_no_evidence():
    missed = measured(0.5, 2.5, rate=20.0, ttft_attainment=0.9, tpot_attainment=0.9)
    _, after = live([missed] * 8 + [measured(0.5, 2.5, rate=4.0)] * 30, prefill=2, decode=2)
    assert after == (2, 2)


def test_silence_says_nothing():
    said, _ = live([load(0.0)] * 20)
    assert set(said) == {"stay"}
