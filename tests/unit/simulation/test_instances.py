"""One prefill and one decode: what the closed forms say is what counting every iteration says."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.simulation.world import DEVICE, device, request

from tidewheel.planning.scaling.profile import DecodeLaw, PrefillLaw
from tidewheel.simulation.clock import Clock
from tidewheel.simulation.decode import Decode
from tidewheel.simulation.flights import Flight
from tidewheel.simulation.prefill import Prefill, PrefillRules
from tidewheel.simulation.prefix_cache import PrefixCache
from tidewheel.simulation.sources import OpenLoop

GROWING = device(
    decode=DecodeLaw(base_seconds=0.006, seconds_per_sequence=2e-4, seconds_per_kv_token=1e-6), decode_slots=3
)


def flight(number: int, at: float = 0.0, **what) -> Flight:
    return Flight(number, request(at, **what), math.inf)


def counted(arrivals, profile) -> list[tuple[float, float]]:
    """First token and end of each sequence, iteration by iteration."""
    now, waiting, batch = 0.0, list(range(len(arrivals))), {}
    seen = [[math.nan, math.nan] for _ in arrivals]
    while waiting or batch:
        while waiting and len(batch) < profile.decode_slots and arrivals[waiting[0]][0] <= now + 1e-12:
            one = waiting.pop(0)
            batch[one] = 0
        if not batch:
            now = arrivals[waiting[0]][0]
            continue
        kv = sum(arrivals[one][1] + done for one, done in batch.items())
        now += profile.decode_seconds(len(batch), kv / len(batch))
        for one in list(batch):
            batch[one] += 1
            if batch[one] == 1:
                seen[one][0] = now
            if batch[one] == arrivals[one][2]:
                seen[one][1] = now
                del batch[one]
    return [(first, end) for first, end in seen]


#: Some come at the same time.
ARRIVALS = st.lists(
    st.tuples(
        (st.integers(0, 1000) | st.sampled_from([0, 500])).map(lambda step: step / 997),
        st.integers(1, 3000),
        st.integers(1, 60),
    ),
    min_size=1,
    max_size=12,
).map(sorted)


@given(ARRIVALS)
def test_a_decode_in_closed_form_is_a_decode_iteration_by_iteration(arrivals):
    clock, ended = Clock(), {}
    decode = Decode("d", clock, GROWING, lambda one: ended.__setitem__(one.number, clock.now))
    flights = [flight(i, at, prompt=prompt, answer=answer) for i, (at, prompt, answer) in enumerate(arrivals)]
    for one in flights:
        clock.at(one.request.at, lambda one=one: decode.take(one))
    clock.run(lambda: False)
    for one, (first, end) in zip(flights, counted(arrivals, GROWING), strict=True):
        assert one.first_token_at == pytest.approx(first, abs=1e-6)
        assert ended[one.number] == pytest.approx(end, abs=1e-6)
    assert decode.sequences == decode.reserved_tokens == 0


def test_a_decode_takes_no_more_than_its_kv_has_room_for():
    clock, ended = Clock(), []
    decode = Decode("d", clock, device(kv_tokens=2500), lambda one: ended.append((one.number, clock.now)))
    for number in range(3):
        decode.take(flight(number, prompt=1000, answer=10))
    clock.run(lambda: False)
    # the third joins when the first two have left
    assert ended == [(0, pytest.approx(0.11)), (1, pytest.approx(0.11)), (2, pytest.approx(0.21))]


def test_a_lost_decode_tells_what_each_stream_had():
    clock = Clock()
    decode = Decode("d", clock, DEVICE, lambda _: None)
    one = flight(0, answer=10)
    decode.take(one)
    clock.at(0.055, lambda: None)
    clock.run(lambda: clock.now >= 0.055)
    assert decode.lose() == [one]
    assert one.generated == 5


def computed(prompts, rules, profile=DEVICE, answer=10) -> list[float]:
    """When each prompt is computed, all coming at once, or at their time, to a prefill whose KV leaves at once."""
    clock, ends = Clock(), {}
    prefill = Prefill(
        "p",
        clock,
        profile,
        rules,
        lambda one: (ends.__setitem__(one.number, clock.now), prefill.release(one)),
    )
    for number, what in enumerate(prompts):
        one = flight(number, answer=answer, **what)
        clock.at(one.request.at, lambda one=one: prefill.take(one))
    clock.run(lambda: False)
    return [ends[number] for number in range(len(prompts))]


@pytest.mark.parametrize(
    ("prompts", "rules", "want"),
    [
        pytest.param([(0, 500), (0, 500)], {"chunk_tokens": 500}, [0.5, 1.0], id="one after the other"),
        pytest.param(
            [(0, 500), (0, 500)], {"chunk_tokens": 1000}, [1.0, 1.0], id="who come together begin together"
        ),
        pytest.param(
            [(0, 500), (0, 500), (0, 500)],
            {"chunk_tokens": 2000, "fills_chunks": False},
            [0.5, 1.0, 1.5],
            id="unless a chunk has tokens of one prompt only",
        ),
        pytest.param(
            [(0, 100), (0.05, 400), (0.06, 500)],
            {"chunk_tokens": 1000},
            [0.1, 1.0, 1.0],
            id="those that wait fill a chunk",
        ),
        pytest.param(
            [(0, 100), (0.05, 1500), (0.06, 600)],
            {"chunk_tokens": 1000},
            [0.1, 2.1, 2.2],
            id="a long one takes two chunks",
        ),
    ],
)
def test_chunks(prompts, rules, want):
    prompts = [{"at": at, "prompt": tokens} for at, tokens in prompts]
    assert computed(prompts, PrefillRules(**rules)) == pytest.approx(want)


def test_what_comes_at_one_time_is_one_batch_however_it_was_announced():
    """A trace's requests are announced one by one, each by the one before it."""
    trace = OpenLoop([request(at=1.0, prompt=500) for _ in range(3)])
    clock, ends = Clock(), []
    prefill = Prefill("p", clock, DEVICE, PrefillRules(), lambda _: ends.append(clock.now))
    trace.begin(clock, lambda one: prefill.take(Flight(len(ends), one, math.inf)))
    clock.run(lambda: False)
    assert ends == pytest.approx([2.5] * 3)


def test_a_cached_prefix_is_not_computed_again():
    shared = [{"prompt": 1000, "blocks": (1, 2)}, {"prompt": 1000, "blocks": (1, 3)}]
    rules = PrefillRules(chunk_tokens=1000, block_tokens=400, cached_blocks=10)
    assert computed(shared, rules) == pytest.approx([1.0, 1.6])


def test_the_least_recently_used_blocks_are_forgotten_first():
    cache = PrefixCache(2, 400)
    hits = []
    for name in (1, 2, 1, 3, 2):
        hits.append(cache.cached_tokens([name], 500))
        cache.add([name])
    assert hits == [0, 0, 400, 0, 0]


def test_a_block_is_of_no_use_without_those_before_it_and_the_last_token_is_always_computed():
    cache = PrefixCache(10, 400)
    cache.add([1, 2, 3])
    assert cache.cached_tokens([9, 2, 3], 1200) == 0
    assert cache.cached_tokens([1, 2, 9], 1200) == 800
    assert cache.cached_tokens([1, 2, 3], 1200) == 1199


def test_attention_over_earlier_chunks_is_paid_for():
    squared = device(
        prefill=PrefillLaw(base_seconds=0.0, seconds_per_token=0.0, seconds_per_token_squared=1e-6)
    )
    whole = computed([{"prompt": 2000}], PrefillRules(chunk_tokens=2000), squared)
    chunks = computed([{"prompt": 2000}], PrefillRules(chunk_tokens=500), squared)
    assert whole == chunks == pytest.approx([4.0])


def test_the_reference_s_echo_keeps_a_prompt_until_its_answer_or_the_others_are_over():
    rules = PrefillRules(chunk_tokens=500, echoes_answers=True)
    prompts = [{"prompt": 500}] * 5
    # each echo takes a token of the chunk; an answer of three is over two iterations after its first, and the last ones leave
    # when nothing is left to compute
    assert computed(prompts, rules, answer=3) == pytest.approx([1.498, 2.495, 2.5, 2.5, 2.5])
