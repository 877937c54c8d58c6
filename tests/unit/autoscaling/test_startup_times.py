"""How long pods take to start is measured, remembered and told, and the planner looks so far ahead."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.autoscaling.loaded import PROFILE, SECONDS, LoadedWorld
from tests.unit.planning.seen import NOW

from tidewheel.planning.autoscaling.memory import Memory
from tidewheel.planning.autoscaling.startup import Startups
from tidewheel.planning.observed import ObservedPod

SINCE = NOW.timestamp()


def pod(
    number: int, *, role: str = "prefill", created: float = 1.0, took: float | None = 40.0, **more
) -> ObservedPod:
    """A pod that was created some seconds after the last look; `took` is None while it is not ready."""
    came = NOW + timedelta(seconds=created)
    return ObservedPod(
        name=f"pod-{number}",
        uid=f"uid-{number}",
        role=role,
        group="g",
        revision="r",
        ordinal=number,
        incarnation=0,
        created=came,
        phase="Running",
        ready=took is not None,
        ready_since=came + timedelta(seconds=took) if took is not None else None,
        **more,
    )


def seen(*pods: ObservedPod, before: Startups | None = None) -> Startups:
    return (before or Startups()).after(pods, since=SINCE)


@pytest.mark.parametrize(
    ("one", "want"),
    [
        pytest.param(pod(0), (40.0,), id="it came and is ready"),
        pytest.param(pod(0, created=-500.0), (), id="it was there before, and may only be ready again"),
        pytest.param(pod(0, restarts=1), (), id="it failed on the way"),
        pytest.param(pod(0, unschedulable="no node has a GPU left"), (), id="it waited for room"),
        pytest.param(pod(0, deleting=True), (), id="it leaves"),
        pytest.param(pod(0, role="gateway"), (), id="a gateway"),
        pytest.param(pod(0, took=None), (), id="it is not ready yet"),
        pytest.param(pod(0, took=9000.0), (3600.0,), id="longer than anyone looks ahead"),
    ],
)
def test_which_start_ups_count(one, want):
    assert seen(one).prefill == want


def test_a_pod_that_is_awaited_counts_once_when_it_is_ready():
    slow = pod(0, created=-300.0, took=None)
    awaiting = Startups(awaited=("uid-0",))
    still = seen(slow, before=awaiting)
    assert still == awaiting
    ready = replace(slow, ready=True, ready_since=NOW + timedelta(seconds=20))
    once = seen(ready, before=still)
    assert (once.prefill, once.awaited) == ((320.0,), ())
    assert seen(ready, before=once) == once


def test_each_role_has_its_own_and_few_tell_nothing():
    pods = [pod(n, took=30.0) for n in range(7)] + [pod(10 + n, role="decode", took=90.0) for n in range(8)]
    startups = seen(*pods)
    assert (startups.seconds("prefill"), startups.seconds("decode")) == (None, 90.0)
    assert startups.or_longer(60.0) == (60.0, 90.0)
    assert startups.or_longer(120.0) == (120.0, 120.0), "what is configured is the least"


@given(
    usual=st.lists(st.floats(1, 100), min_size=7, max_size=18),
    pulled=st.floats(101, 3000),
    place=st.integers(0, 18),
)
def test_one_image_that_had_to_be_pulled_is_not_what_all_take(usual, pulled, place):
    took = (*usual[:place], pulled, *usual[place:])
    assert Startups(prefill=took).seconds("prefill") == max(usual)


@given(took=st.lists(st.floats(0, 3000), min_size=8, max_size=60))
def test_the_last_ones_count_and_most_of_them_were_not_slower(took):
    startups = Startups()
    for number, seconds in enumerate(took):
        startups = seen(pod(number, took=seconds), before=startups)
    last = took[-20:]
    assert startups.prefill == pytest.approx(tuple(last), abs=1e-5)
    assert sum(one <= startups.seconds("prefill") + 1e-5 for one in last) >= 0.85 * len(last)


def world() -> LoadedWorld:
    loaded = LoadedWorld(scaling={"profile": PROFILE})
    loaded.settle()
    loaded.startup |= {"prefill": 95.0, "decode": 12.0}
    return loaded


def grow(loaded: LoadedWorld) -> None:
    """So many more prefills that there is something to measure by, and time until they are ready."""
    for _ in range(8):
        loaded.pass_window(default=(16.0, 1000.0, 20.0))


def told(loaded: LoadedWorld) -> dict:
    return loaded.service["status"]["scaling"]["startup"]


def test_pods_that_take_longer_than_configured_are_asked_for_earlier_and_it_is_told():
    loaded = world()
    loaded.pass_window(default=(16.0, 1000.0, 20.0))
    assert (told(loaded)["prefillSeconds"], told(loaded)["prefillMeasured"]) == (30, 0)
    grow(loaded)
    assert told(loaded)["prefillMeasured"] >= 8
    assert 95 <= told(loaded)["prefillSeconds"] <= 95 + 2 * SECONDS
    assert told(loaded)["decodeSeconds"] == 30, "what is configured is the least"
    (message,) = [one for one in loaded.told("LookAhead") if "it was 30 s" in one]
    assert "prefill" in message


def test_what_was_measured_outlives_the_operator():
    loaded = world()
    grow(loaded)
    before = told(loaded)
    assert before["prefillMeasured"] >= 8
    loaded.restart_operator()
    loaded.pass_window(default=(16.0, 1000.0, 20.0))
    assert told(loaded) == before


def test_what_an_earlier_release_remembers_is_read():
    text = Memory().to_text()
    assert Memory.from_text(text.replace(',"startups":[[],[],[]]', "")) == Memory.from_text(text) == Memory()
