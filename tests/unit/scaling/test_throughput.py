"""P/D-Serve's formulas: what instances carry, and the ratio at which neither role waits."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidewheel.planning.scaling.throughput import (
    RoleService,
    balanced_ratio,
    best_split,
    decode_batch_seconds,
    forwarding_target,
    prefill_batch_seconds,
    throughput,
)


def role(seconds: float, batch: float = 1) -> RoleService:
    return RoleService(batch_seconds=seconds, batch_size=batch)


services = st.builds(role, st.floats(0.001, 100), st.integers(1, 512))


@pytest.mark.parametrize(
    ("prefill", "decode", "want"),
    [
        pytest.param(role(2.0, 4), role(1.0, 8), Fraction(4), id="slow prefill asks for more prefill"),
        pytest.param(role(1.0, 4), role(4.0, 4), Fraction(1, 4), id="slow decode asks for more decode"),
        pytest.param(role(1.0), role(1.0), Fraction(1), id="equal roles stand one to one"),
        pytest.param(role(1000.0), role(1.0), Fraction(64), id="no ratio is above 64"),
        pytest.param(role(1.0), role(1000.0), Fraction(1, 64), id="nor below 1 in 64"),
    ],
)
def test_the_ratio_of_equation_1(prefill, decode, want):
    assert balanced_ratio(prefill, decode) == want


@pytest.mark.parametrize(
    ("offered", "prefills", "decodes", "requests", "bottleneck"),
    [
        pytest.param(5, 2, 2, 5, "traffic", id="both roles have room"),
        pytest.param(50, 2, 2, 20, "prefill", id="prefill is full"),
        pytest.param(50, 4, 1, 15, "decode", id="decode is full"),
    ],
)
def test_throughput_is_the_least_of_three(offered, prefills, decodes, requests, bottleneck):
    carried = throughput(offered, role(0.1), role(2.0, 30), prefills, decodes)
    assert carried.requests == pytest.approx(requests)
    assert carried.per_instance == pytest.approx(requests / (prefills + decodes))
    assert carried.bottleneck == bottleneck


def test_a_measured_table_has_its_best_ratio_where_equation_1_says():
    # requests per second of one prefill and one decode in a replay of 8 workers (2048/200 tokens, 400 in flight), which
    # measured 90.7 at 4:4, 100.2 at 5:3 and 80.3 at 6:2
    assert best_split(8, 1000.0, role(1 / 23.5), role(1 / 39.7)) == (5, 3)


@given(prefill=services, decode=services, instances=st.integers(2, 60))
def test_no_split_carries_more_than_the_chosen_one(prefill, decode, instances):
    def carried(prefills: int) -> float:
        return throughput(1e9, prefill, decode, prefills, instances - prefills).requests

    prefills, decodes = best_split(instances, 1e9, prefill, decode)
    assert prefills + decodes == instances
    assert carried(prefills) >= max(map(carried, range(1, instances))) * (1 - 1e-12)


@given(prefill=services, decode=services)
def test_the_ratio_has_integers_up_to_the_most(prefill, decode):
    ratio = balanced_ratio(prefill, decode, most=16)
    assert max(ratio.numerator, ratio.denominator) <= 16


def test_batch_times_follow_the_paper():
    assert prefill_batch_seconds(2.0, 0.25) == 0.5
    assert decode_batch_seconds(0.5, 0.02, 100) == 2.5
    assert forwarding_target(role(0.5, 4), 3) == 24


@pytest.mark.parametrize(
    ("call", "says"),
    [
        pytest.param(lambda: role(0.0), "no service", id="no time"),
        pytest.param(lambda: prefill_batch_seconds(1.0, 1.5), "prefix factor", id="prefix factor"),
        pytest.param(lambda: throughput(1, role(1), role(1), 0, 1), "keep one of each", id="no prefill"),
        pytest.param(lambda: best_split(1, 1, role(1), role(1)), "2 or more", id="one instance"),
    ],
)
def test_what_serves_nothing_is_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()
