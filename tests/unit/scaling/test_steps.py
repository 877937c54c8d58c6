"""Steps: no role runs ahead, no step is too large, everything arrives, and what has no room holds up nothing."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.scaling.worlds import counts

from tidewheel.planning.scaling.steps import step

sizes = st.integers(1, 200)
pairs = st.tuples(sizes, sizes)


def skew(have, wanted) -> Fraction:
    return abs(Fraction(have[0], wanted[0]) - Fraction(have[1], wanted[1]))


@given(have=pairs, wanted=pairs, most=st.integers(1, 20))
def test_no_role_runs_ahead_on_the_way(have, wanted, most):
    begin, steps = have, 0
    goes_one_way = (wanted[0] >= have[0]) == (wanted[1] >= have[1])
    while have != wanted:
        there = counts(*have)
        went = step(there.prefill, there.decode, wanted, most=most)
        assert went != have
        for at, here, end in zip(went, have, wanted, strict=True):
            assert abs(at - here) <= most
            assert min(here, end) <= at <= max(here, end)
        if goes_one_way:
            assert skew(went, wanted) <= max(skew(have, wanted), Fraction(1, min(wanted)))
        have, steps = went, steps + 1
    assert steps <= sum(-(-abs(a - b) // most) for a, b in zip(begin, wanted, strict=True))


@given(have=pairs, wanted=pairs, most=st.integers(1, 20))
def test_from_nothing_and_to_nothing_no_role_is_left_alone(have, wanted, most):
    for first, last in (((0, 0), wanted), (have, (0, 0))):
        now = first
        while now != last:
            there = counts(*now)
            now = step(there.prefill, there.decode, last, most=most)
            assert (now[0] == 0) == (now[1] == 0)


@pytest.mark.parametrize(
    ("there", "wanted", "want"),
    [
        pytest.param(counts(2, 1), (8, 4), (6, 3), id="three quarters of each"),
        pytest.param(counts(8, 4), (2, 1), (4, 2), id="downwards alike"),
        pytest.param(counts(8, 1), (12, 12), (8, 5), id="who is behind catches up first"),
        pytest.param(counts(4, 4), (5, 3), (5, 3), id="a short way is gone at once"),
        pytest.param(counts(2, 9), (9, 2), (6, 5), id="one up and one down"),
        pytest.param(
            counts(2, 2, unplaceable=(3, 0)), (9, 5), (5, 5), id="prefills without room do not stop decodes"
        ),
        pytest.param(
            counts(2, 2, unplaceable=(3, 0)), (3, 2), (3, 2), id="what has no room is given up first"
        ),
    ],
)
def test_a_step(there, wanted, want):
    assert step(there.prefill, there.decode, wanted, most=4) == want
