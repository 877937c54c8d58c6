"""What pods' metrics say of a scenario's load: pages as real processes write them, and differences between two looks."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

from tidewheel.api.distribution import Distribution
from tidewheel.planning.load import page
from tidewheel.planning.load.page import PodCounts, Series, read_page
from tidewheel.planning.load.window import Look, Staff, Window, load_in
from tidewheel_workers.serving.gateway_metrics import GatewayMetrics
from tidewheel_workers.serving.metrics import KVMetrics, WorkerMetrics

STAFF = Staff(gateways=("g",), prefills=("p",), decodes=("d",))


class Gateway:
    """A gateway's real metrics."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.waiting = 0
        self.now = 1_000_000_007.5
        self.metrics = GatewayMetrics(
            self.registry, open_requests=lambda: 0, groups=lambda: 1, waiting=lambda: self.waiting
        )

    def answer(
        self, scenario: str, *, ttft: float = 0.2, tpot: float = 0.02, prompt: int = 100, output: int = 50
    ) -> None:
        of = self.metrics.of(scenario)
        self.metrics.arrived(scenario, at=self.now)
        of.ttft.observe(ttft)
        of.tpot.observe(tpot)
        of.duration.observe(ttft + tpot * output)
        of.prompt_tokens.observe(prompt)
        of.output_tokens.observe(output)

    def shed(self, scenario: str) -> None:
        self.metrics.arrived(scenario, at=self.now)
        self.metrics.early_terminations.labels("all_slots_busy", scenario).inc()

    def page(self) -> PodCounts:
        return read_page(generate_latest(self.registry).decode())


class Engine:
    """A prefill's or a decode's."""

    def __init__(self, role: str) -> None:
        self.registry = CollectorRegistry()
        self.metrics = WorkerMetrics(self.registry, model_name="m")
        self.kv = KVMetrics(self.registry, role=role)

    def page(self) -> PodCounts:
        return read_page(generate_latest(self.registry).decode())


def load(first: Look, last: Look, scenario: str = "chat", **promises: float):
    promised = {"ttft_seconds": 0.25, "tpot_seconds": 0.03} | promises
    return load_in(Window(first=first, last=last), scenarios=(scenario,), staff=STAFF, **promised)


def test_a_page_gives_what_planning_looks_at_and_leaves_the_rest():
    gateway = Gateway()
    gateway.answer("chat")
    gateway.metrics.request("200", "chat").inc()
    counts = gateway.page()
    assert counts.values[Series(page.ARRIVALS, "chat")] == 1
    assert counts.distributions[Series(page.PROMPT_TOKENS, "chat")].mean == 100
    assert counts.scenarios == {"chat"}
    assert {series.name for series in counts.values} == {
        page.ARRIVALS,
        page.ARRIVALS_BY_SECOND,
        page.WAITING,
    }
    assert counts.values[Series(page.ARRIVALS_BY_SECOND, "chat", "7")] == 1


def test_a_page_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"."):
        read_page("<html>not metrics</html>")


def test_a_window_has_what_came_between_two_looks_and_nothing_else():
    gateway, prefill, decode = Gateway(), Engine("prefill"), Engine("decode")
    gateway.answer("chat", prompt=7)

    def look(at: float) -> Look:
        return Look(at=at, pods={"g": gateway.page(), "p": prefill.page(), "d": decode.page()})

    first = look(100.0)
    for _ in range(3):
        gateway.answer("chat", prompt=200, output=10, ttft=0.2)
    gateway.answer("chat", prompt=200, output=10, ttft=0.9, tpot=0.2)
    gateway.shed("chat")
    gateway.answer("code", prompt=9999)
    gateway.waiting = 6
    for seconds in (0.1, 0.3):
        prefill.metrics.prefill_seconds.observe(seconds)
        decode.metrics.decode_seconds.observe(10 * seconds)
        decode.kv.seconds.observe(0.05)
    seen = load(first, look(110.0))
    assert (seen.seconds, seen.arrivals, seen.finished, seen.rejected) == (10.0, 5, 4, 1)
    assert (seen.prompt_tokens, seen.answer_tokens, seen.rate) == (200, 10, 0.5)
    assert seen.waiting == 5  # of six arrivals five were of this scenario
    assert seen.prefill_seconds == pytest.approx(0.2)
    assert seen.decode_seconds == pytest.approx(2.05)
    assert seen.transfer_seconds == pytest.approx(0.05)
    assert seen.ttft_attainment == pytest.approx(3 / 5)
    assert seen.tpot_attainment == pytest.approx(3 / 4)
    assert seen.e2e_seconds == pytest.approx((3 * 0.4 + 2.9) / 4)
    assert seen.prefix_factor == 1.0
    assert seen.prompt_tokens_squared >= seen.prompt_tokens**2


def test_a_prefix_factor_is_what_the_cache_left_to_compute():
    def counted(queries: float, hits: float) -> Look:
        values = {Series(page.PREFIX_QUERIES): queries, Series(page.PREFIX_HITS): hits}
        return Look(at=queries, pods={"p": PodCounts(values=values)})

    assert load(counted(100, 90), counted(300, 130)).prefix_factor == pytest.approx(1 - 40 / 200)


def test_a_process_that_began_anew_counts_from_its_beginning():
    before, after = Gateway(), Gateway()
    for _ in range(5):
        before.answer("chat")
    for _ in range(2):
        after.answer("chat")
    first, last = Look(at=0, pods={"g": before.page()}), Look(at=10, pods={"g": after.page()})
    assert load(first, last).arrivals == 2


def test_pods_that_came_count_and_pods_that_are_gone_do_not():
    old, new = Gateway(), Gateway()
    old.answer("chat")
    new.answer("chat")
    new.answer("chat")
    staff = Staff(gateways=("g", "h"), prefills=(), decodes=())
    first, last = Look(at=0, pods={"g": old.page()}), Look(at=10, pods={"h": new.page()})
    seen = load_in(
        Window(first=first, last=last), scenarios=("chat",), staff=staff, ttft_seconds=1, tpot_seconds=1
    )
    assert seen.arrivals == 2


def test_a_window_in_which_nothing_happened_promises_nothing_and_breaks_nothing():
    seen = load(Look(at=0), Look(at=10))
    assert (seen.arrivals, seen.finished, seen.waiting, seen.rejected) == (0, 0, 0, 0)
    assert (seen.ttft_attainment, seen.tpot_attainment, seen.prefix_factor) == (1.0, 1.0, 1.0)


def test_a_window_without_length_is_refused():
    with pytest.raises(ValueError, match="must end after it begins"):
        load(Look(at=10), Look(at=10))


def histogram(values: list[float], bounds: tuple[float, ...]) -> Distribution:
    counts = tuple((bound, float(sum(value <= bound for value in values))) for bound in (*bounds, math.inf))
    return Distribution(buckets=counts, total=sum(values))


@given(values=st.lists(st.floats(0.01, 7.9), min_size=1), limit=st.floats(0.01, 10))
def test_shares_and_squares_are_within_what_the_buckets_allow(values, limit):
    bounds = (1.0, 2.0, 4.0, 8.0)
    seen = histogram(values, bounds)
    below = max((bound for bound in (0.0, *bounds) if bound <= limit), default=0.0)
    above = min((bound for bound in (*bounds, math.inf) if bound >= limit), default=math.inf)
    at_least, at_most = (sum(value <= bound for value in values) / len(values) for bound in (below, above))
    assert at_least - 1e-9 <= seen.share_up_to(limit) <= at_most + 1e-9
    assert seen.mean_square >= seen.mean**2
    assert seen.mean_square <= 4 * sum(value**2 for value in values) / len(values) + 1


@given(first=st.lists(st.floats(0, 9)), later=st.lists(st.floats(0, 9)))
def test_what_came_between_and_what_was_there_are_all(first, later):
    bounds = (1.0, 3.0)
    before, after = histogram(first, bounds), histogram([*first, *later], bounds)
    assert after.since(before).count == len(later)
    together = before.plus(after.since(before))
    assert together.buckets == after.buckets
    assert together.total == pytest.approx(after.total)
