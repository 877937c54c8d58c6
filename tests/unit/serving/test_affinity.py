"""Prompts that begin alike go to the same few backends, and move only when those leave."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidewheel_workers.serving.affinity import MEMORY, Affinity, load_bound

NAMES = [f"p{i}" for i in range(8)]


def test_gateways_agree_without_talking():
    assert all(
        Affinity(NAMES).preferred(prefix) == Affinity(NAMES[::-1]).preferred(prefix) for prefix in range(100)
    )


def test_prefixes_spread_over_all_backends():
    first = Counter(Affinity(NAMES).preferred(prefix * 7919)[0] for prefix in range(4000))
    assert set(first) == set(NAMES)
    assert max(first.values()) < 1.25 * min(first.values())


@given(prefix=st.integers(0, 2**64 - 1), leaving=st.sampled_from(NAMES))
def test_when_a_backend_leaves_only_its_own_prefixes_move(prefix, leaving):
    before = Affinity(NAMES).preferred(prefix)
    after = Affinity([name for name in NAMES if name != leaving]).preferred(prefix)
    stayed = [name for name in before if name != leaving]
    assert list(after[: len(stayed)]) == stayed


def test_a_prefix_is_known_once_it_came_by_and_until_many_others_did():
    affinity = Affinity(NAMES)
    assert not affinity.knows(1)
    affinity.preferred(1)
    assert affinity.knows(1)
    for other in range(2, MEMORY + 2):
        affinity.preferred(other)
    assert not affinity.knows(1)


@pytest.mark.parametrize(("holds", "backends", "bound"), [(0, 4, 2), (16, 4, 7), (16, 1, 23)])
def test_a_preferred_backend_holds_little_more_than_its_share(holds, backends, bound):
    assert load_bound(holds, backends) == bound
