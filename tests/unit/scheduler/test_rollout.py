"""The arithmetic of a rolling update: it never exceeds its surge, never undercuts its availability, and ends."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidewheel.local.workloads.rollout import SetSize, bounds, next_sizes, template_hash


def a_set(name: str, replicas: int, available: int | None = None) -> SetSize:
    return SetSize(name=name, replicas=replicas, available=replicas if available is None else available)


def rolling(replicas: int, surge: int | str, unavailable: int | str) -> dict[str, object]:
    update = {"maxSurge": surge, "maxUnavailable": unavailable}
    return {"replicas": replicas, "strategy": {"type": "RollingUpdate", "rollingUpdate": update}}


@pytest.mark.parametrize(
    ("spec", "want"),
    [
        (rolling(10, "25%", "25%"), (3, 2)),
        (rolling(1, "25%", "25%"), (1, 0)),
        (rolling(4, 0, 0), (0, 1)),
        (rolling(4, 2, 1), (2, 1)),
    ],
)
def test_percentages_round_in_favour_of_availability(spec, want):
    assert bounds(spec) == want


def test_recreate_waits_until_the_old_pods_are_gone():
    spec = {"replicas": 2, "strategy": {"type": "Recreate"}}

    assert next_sizes(spec, a_set("new", 0), [a_set("old", 2)]) == {"new": 0, "old": 0}
    assert next_sizes(spec, a_set("new", 0), [a_set("old", 0)]) == {"new": 2}


def test_old_pods_that_never_became_available_go_first():
    sizes = next_sizes(rolling(3, 1, 0), a_set("new", 1, 0), [a_set("old", 3, 2)])

    assert sizes["old"] == 2


@given(
    replicas=st.integers(1, 12),
    surge=st.integers(0, 4),
    unavailable=st.integers(0, 4),
    started=st.randoms(use_true_random=False),
)
def test_a_rolling_update_keeps_its_bounds_and_ends(replicas, surge, unavailable, started):
    spec = rolling(replicas, surge, unavailable)
    surge, unavailable = bounds(spec)
    new, old = a_set("new", 0), a_set("old", replicas)
    for _ in range(20 * replicas):
        sizes = next_sizes(spec, new, [old])
        new = a_set("new", sizes["new"], min(new.available, sizes["new"]))
        old = a_set("old", sizes.get("old", 0))
        assert new.replicas + old.replicas <= replicas + surge
        assert new.available + old.available >= replicas - unavailable
        if new.available == replicas and not old.replicas:
            return
        # At least one more of the new pods becomes available, perhaps several.
        more = min(new.available + 1, new.replicas)
        new = a_set("new", new.replicas, started.randint(more, new.replicas))
    pytest.fail("the update did not end")


def test_a_template_has_one_hash_whatever_the_order_of_its_keys():
    assert template_hash({"a": 1, "b": 2}) == template_hash({"b": 2, "a": 1})
    assert template_hash({"a": 1}) != template_hash({"a": 2})
