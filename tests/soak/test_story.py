"""A story is the same whenever it is told, and never asks more of a service than it can hold."""

from __future__ import annotations

from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st
from tests.soak.story import KINDS, REST_SECONDS, tell

seeds = st.integers(0, 1 << 32)
casts = st.fixed_dictionaries(dict.fromkeys(("gateway", "prefill", "decode"), st.integers(1, 4)))
gaps = st.floats(0.2, 5)
CAST = {"gateway": 2, "prefill": 3, "decode": 3}


@given(seed=seeds, cast=casts, gap=gaps)
def test_the_same_seed_tells_the_same_story(seed, cast, gap):
    first, again = (tell(seed, seconds=60, cast=cast, gap_seconds=gap) for _ in range(2))
    assert first == again


def test_another_seed_tells_another_story():
    assert len({tell(seed, seconds=60, cast=CAST, gap_seconds=2) for seed in range(20)}) == 20


@given(seed=seeds, cast=casts, gap=gaps)
def test_faults_come_in_order_within_the_time_and_hit_who_is_there(seed, cast, gap):
    story = tell(seed, seconds=60, cast=cast, gap_seconds=gap)
    assert [fault.at for fault in story] == sorted(fault.at for fault in story)
    for fault in story:
        assert 0 <= fault.at < 60
        assert fault.role in fault.kind.roles
        assert 0 <= fault.place < cast[fault.role]
        assert fault.kind.seconds[0] <= fault.seconds <= fault.kind.seconds[1]
        assert (fault.port in fault.kind.ports) if fault.kind.ports else fault.port is None
        assert fault.port != "kv" or fault.role == "prefill"


@given(seed=seeds, cast=casts, gap=gaps)
def test_one_process_of_a_role_is_away_at_a_time_and_never_the_only_one(seed, cast, gap):
    until = defaultdict(float)
    for fault in tell(seed, seconds=60, cast=cast, gap_seconds=gap):
        if fault.kind.takes_away:
            assert cast[fault.role] > 1
            assert fault.at >= until[fault.role]
            until[fault.role] = fault.at + fault.seconds + REST_SECONDS


@given(seed=seeds)
def test_every_kind_comes_before_any_comes_three_times_more_than_another(seed):
    counts = dict.fromkeys(KINDS, 0)
    for fault in tell(seed, seconds=300, cast=CAST, gap_seconds=2):
        counts[fault.kind] += 1
    assert min(counts.values()) >= 1
    assert max(counts.values()) <= min(counts.values()) + 2
