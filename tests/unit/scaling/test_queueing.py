"""The closed forms against what they stand for: a queue followed request by request, and the exact distribution of batches."""

from __future__ import annotations

import heapq
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidewheel.planning.scaling.queueing import (
    DecodeWork,
    PrefillWork,
    blocked_share,
    erlang_b,
    late_share,
    spread,
)


def queue(servers: int, load: float, patience: float, service, *, requests: int = 60_000) -> float:
    """The share of Poisson arrivals that cannot start within their patience; they leave at once. Mean service is 1."""
    generator = random.Random(7)
    free = [0.0] * servers
    at, late = 0.0, 0
    for _ in range(requests):
        at += generator.expovariate(load * servers)
        if free[0] - at > patience:
            late += 1
            continue
        heapq.heapreplace(free, max(at, free[0]) + service(generator))
    return late / requests


def exponential(generator: random.Random) -> float:
    return generator.expovariate(1.0)


def constant(_: random.Random) -> float:
    return 1.0


@pytest.mark.parametrize("servers", [1, 3, 8])
@pytest.mark.parametrize("load", [0.6, 0.9, 1.0, 1.3])
@pytest.mark.parametrize("patience", [0.0, 0.5, 2.0, 8.0])
def test_exponential_service_is_met_exactly(servers, load, patience):
    offered = load * servers
    expected = late_share(blocked_share(servers, offered), servers, offered, patience, 1.0)
    assert queue(servers, load, patience, exponential) == pytest.approx(expected, abs=0.012)


@pytest.mark.parametrize("servers", [2, 6])
@pytest.mark.parametrize("load", [0.7, 0.9, 1.2])
def test_constant_service_is_met_nearly(servers, load):
    offered = load * servers
    expected = late_share(blocked_share(servers, offered), servers, offered, 3.0, 0.5)
    assert queue(servers, load, 3.0, constant) == pytest.approx(expected, abs=0.02)


def test_erlang_b_has_its_known_values():
    losses = erlang_b(10.0)
    table = [next(losses) for _ in range(15)]
    assert table[9] == pytest.approx(0.2146, abs=1e-4)
    assert table[14] == pytest.approx(0.0365, abs=1e-4)
    assert blocked_share(15, 10.0) == table[14]


@given(
    servers=st.integers(1, 200),
    load=st.floats(0.01, 3.0),
    patience=st.floats(0, 100),
    variability=st.floats(0.1, 10),
)
def test_a_share_is_a_share_and_patience_helps(servers, load, patience, variability):
    offered = load * servers
    blocked = blocked_share(servers, offered)
    late = late_share(blocked, servers, offered, patience, variability)
    assert -1e-12 <= late <= 1
    assert late_share(blocked, servers, offered, patience + 1, variability) <= late + 1e-9
    assert late >= 1 - 1 / load - 1e-9  # what cannot be carried is late


@given(mean=st.floats(0.1, 1e4), variance=st.floats(0, 4))
def test_a_spread_keeps_its_mean(mean, variance):
    points = spread(mean, variance)
    assert sum(weight for _, weight in points) == pytest.approx(1, abs=1e-3)
    assert sum(value * weight for value, weight in points) == pytest.approx(mean, rel=0.03)


def decode(most: int = 200) -> DecodeWork:
    """Iterations of 10 ms and 0.1 ms for each sequence; answers of 100 tokens."""
    batches = [1.0 * 1.3**step for step in range(24)]
    return DecodeWork.of(
        [(batch, 0.01 + 1e-4 * batch) for batch in batches], answer_tokens=100, most=most, objective=True
    )


@given(
    servers=st.integers(1, 40),
    load=st.floats(0.01, 1.5),
    ttft=st.floats(0.1, 20),
    clumps=st.floats(0.2, 9),
)
def test_the_share_in_time_is_what_is_left_by_those_that_are_late(servers, load, ttft, clumps):
    work = PrefillWork.of(
        [(0.05, 0.6), (0.2, 0.3), (1.0, 0.1)], ttft_seconds=ttft, arrival_variability=clumps
    )
    offered = load * servers
    blocked = blocked_share(servers, offered)
    late = sum(
        weight * late_share(blocked, servers, offered, patience, work.variability)
        for patience, weight in work.patience
    )
    assert work.in_time(blocked, servers, offered) == pytest.approx(1 - late, abs=1e-8)


def exactly_in_time(rate: float, most: int) -> float:
    """P(an arrival makes the batch no larger than `most`) under P(k) ∝ Π λ G τ(j)/j."""
    logs, total = [0.0], 0.0
    for k in range(1, 2000):
        total += math.log(rate * 100 * (0.01 + 1e-4 * k) / k)
        logs.append(total)
    top = max(logs)
    weights = [math.exp(value - top) for value in logs]
    return sum(weights[:most]) / sum(weights)


@pytest.mark.parametrize("rate", [20.0, 40.0, 55.0, 60.0, 66.0, 72.0])
def test_the_normal_batch_is_near_the_exact_one(rate):
    assert decode(200).in_time(1, rate) == pytest.approx(exactly_in_time(rate, 200), abs=0.05)


def test_more_than_a_decode_carries_is_never_in_time():
    assert decode().in_time(1, 1e4) == 0
    assert math.isinf(decode().at(1e4)[0])


def test_prompts_longer_than_the_objective_are_nobodys_fault():
    work = PrefillWork.of([(0.1, 0.9), (5.0, 0.1)], ttft_seconds=1.0, arrival_variability=1.0)
    assert work.hopeless_share == pytest.approx(0.1)
    assert work.in_time(blocked_share(50, 1.0), 50, 1.0) == pytest.approx(1.0)
