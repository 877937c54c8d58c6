"""Slots are taken at once or not at all, all that a request needs together."""

from __future__ import annotations

import pytest

from tidewheel_workers.serving.errors import ApiError
from tidewheel_workers.serving.slots import Slots


def refusal(slots: Slots, count: int) -> tuple[int, str]:
    with pytest.raises(ApiError) as refused:
        slots.take(count)
    return refused.value.status, refused.value.code


def test_a_request_takes_all_its_slots_or_none():
    slots = Slots(4)
    three = slots.take(3)
    assert refusal(slots, 2) == (429, "no_free_slot")
    assert slots.used == 3
    slots.take()
    assert refusal(slots, 1) == (429, "no_free_slot")
    three.free()
    three.free()
    assert slots.used == 1


def test_what_could_never_be_taken_is_the_requests_fault():
    assert refusal(Slots(4), 5) == (400, "invalid_value")


def test_a_refusal_says_in_what_time_a_slot_comes_free():
    now = 0.0
    slots = Slots(2, clock=lambda: now)
    assert slots.seconds_to_free == 1.0
    for _ in range(50):
        taken = [slots.take(), slots.take()]
        now += 0.4
        for slot in taken:
            slot.free()
    assert slots.seconds_to_free == pytest.approx(0.2)
    slots.take(2)
    with pytest.raises(ApiError) as refused:
        slots.take()
    assert refused.value.headers == {"Retry-After": "1", "retry-after-ms": "200"}
