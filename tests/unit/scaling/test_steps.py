"""Steps: both roles advance together, no step is too large, and what has no room holds up nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.scaling.worlds import counts

from tidewheel.planning.scaling.steps import step

sizes = st.integers(1, 200)


@given(have=st.tuples(sizes, sizes), wanted=st.tuples(sizes, sizes), most=st.integers(1, 20))
def test_both_roles_are_equally_far_at_every_step_and_arrive(have, wanted, most):
    begin, steps = have, 0
    while have != wanted:
        there = counts(*have)
        went = step(there.prefill, there.decode, wanted, most=most)
        assert max(abs(a - b) for a, b in zip(went, have, strict=True)) <= most
        ways = [
            (at - origin) / (end - origin)
            for at, origin, end in zip(went, begin, wanted, strict=True)
            if end != origin
        ]
        assert all(0 <= way <= 1 for way in ways)
        if len(ways) == 2:
            shortest = min(abs(end - origin) for origin, end in zip(begin, wanted, strict=True))
            assert abs(ways[0] - ways[1]) <= 1.5 / shortest  # an instance and a half, by rounding
        assert went != have
        have, steps = went, steps + 1
    longest = max(abs(a - b) for a, b in zip(begin, wanted, strict=True))
    assert steps <= -(-longest // most)


@pytest.mark.parametrize(
    ("there", "wanted", "want"),
    [
        pytest.param(counts(2, 1), (8, 4), (6, 3), id="four of six prefills and two of three decodes"),
        pytest.param(counts(8, 4), (2, 1), (4, 2), id="downwards alike"),
        pytest.param(counts(4, 4), (5, 3), (5, 3), id="a short way is gone at once"),
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
