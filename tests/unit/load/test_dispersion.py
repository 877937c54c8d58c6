"""How clumped arrivals are, told from the pages of gateways: the same however the requests are split among them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

from tidewheel.planning.load.page import PodCounts, read_page
from tidewheel.planning.load.window import Look, Staff, Window, load_in
from tidewheel_workers.serving.gateway_metrics import GatewayMetrics
from tidewheel_workers.serving.metric_sums import snapshot, total

#: A Unix time; 7 s into a turn of the clock.
BEGAN = 1_000_000_000.25 + 7
#: When a request came, and which client sent it.
Request = tuple[float, int]


class Gateways:
    """Several gateways' real metrics, and the pages that they show."""

    def __init__(self, many: int) -> None:
        self.registries = [CollectorRegistry() for _ in range(many)]
        self.all = [
            GatewayMetrics(one, open_requests=lambda: 0, groups=lambda: 1, waiting=lambda: 0)
            for one in self.registries
        ]

    def look(self, at: float) -> Look:
        pages = {
            f"g{number}": read_page(generate_latest(one).decode())
            for number, one in enumerate(self.registries)
        }
        return Look(at=at, pods=pages)


def measured(
    requests: Iterable[Request], *, seconds: float, by: Callable[[int, int], int], many: int
) -> float:
    """The dispersion in a window, with the requests dealt out to `many` gateways by (number, client)."""
    gateways = Gateways(many)
    first = gateways.look(BEGAN)
    for number, (at, client) in enumerate(requests):
        gateways.all[by(number, client)].arrived("chat", at=at)
    return dispersion(first, gateways.look(BEGAN + seconds))


def dispersion(first: Look, last: Look) -> float:
    staff = Staff(gateways=tuple(last.pods), prefills=(), decodes=())
    return load_in(
        Window(first=first, last=last), scenarios=("chat",), staff=staff, ttft_seconds=1, tpot_seconds=1
    ).arrival_dispersion


def clumps(size: int, rate: float, *, seconds: float, seed: int) -> list[Request]:
    """A client comes now and then and sends so many requests at once: variance over mean is `size`."""
    chance, found, at, client = random.Random(seed), [], BEGAN, 0
    while (at := at + chance.expovariate(rate / size)) < BEGAN + seconds:
        found += [(at, client)] * size
        client += 1
    return found


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("seconds", [15.0, 30.0, 100.0])
@pytest.mark.parametrize("rate", [0.5, 20.0])
def test_it_is_met_on_average_whatever_the_window_and_the_rate(size, seconds, rate):
    found = [
        measured(clumps(size, rate, seconds=seconds, seed=seed), seconds=seconds, by=lambda *_: 0, many=1)
        for seed in range(30)
    ]
    # a window in which nothing came tells 1
    told = [one for one in found if one != 1.0]
    deviation = size * math.sqrt(2 / (min(seconds, 30.0) - 5) / len(told))
    assert fmean(told) == pytest.approx(size, abs=4 * deviation)


SPLITS = {
    "by chance": lambda number, _: random.Random(number).randrange(3),
    "in turn": lambda number, _: number % 3,
    "by client": lambda _, client: client % 3,
    "mostly to one": lambda number, client: 0 if client % 7 else 1 + number % 2,
}


@pytest.mark.parametrize("how", SPLITS)
@settings(max_examples=15, deadline=None)
@given(size=st.integers(1, 9), rate=st.floats(1, 40), seconds=st.floats(8, 100), seed=st.integers(0, 999))
def test_several_gateways_tell_what_one_would(how, size, rate, seconds, seed):
    requests = clumps(size, rate, seconds=seconds, seed=seed)
    one = measured(requests, seconds=seconds, by=lambda *_: 0, many=1)
    several = measured(requests, seconds=seconds, by=SPLITS[how], many=3)
    assert several == pytest.approx(one)


def test_the_processes_of_a_gateway_tell_what_one_would():
    gateways = Gateways(3)
    for number, (at, _) in enumerate(clumps(4, 20.0, seconds=30.0, seed=1)):
        gateways.all[number % 3].arrived("chat", at=at)
    together = CollectorRegistry()
    together.register(_Collected(total([snapshot(one.collect()) for one in gateways.registries])))
    summed = read_page(generate_latest(together).decode())
    apart = dispersion(Look(at=BEGAN), gateways.look(BEGAN + 30))
    assert dispersion(Look(at=BEGAN), Look(at=BEGAN + 30, pods={"g0": summed})) == pytest.approx(apart)
    assert apart > 2


def test_a_load_that_rises_evenly_over_turns_of_the_clock_is_no_clump():
    steady = [(BEGAN + second + 0.1, 0) for second in range(320) for _ in range(10 + second // 32)]
    assert measured(steady, seconds=320.0, by=lambda *_: 0, many=1) < 0.2


@pytest.mark.parametrize("seconds", [2.0, 5.0])
def test_too_short_a_window_tells_nothing(seconds):
    requests = clumps(9, 50.0, seconds=seconds, seed=0)
    assert measured(requests, seconds=seconds, by=lambda *_: 0, many=1) == 1.0


def test_gateways_that_do_not_count_by_second_tell_nothing():
    counts: Sequence[PodCounts] = (PodCounts(), PodCounts())
    first, last = (Look(at=BEGAN + 30 * n, pods={"g": one}) for n, one in enumerate(counts))
    assert dispersion(first, last) == 1.0


class _Collected:
    """A registry's collector of what is given."""

    def __init__(self, metrics) -> None:
        self._metrics = metrics

    def collect(self):
        return self._metrics
