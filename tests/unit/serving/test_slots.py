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
