"""Who waits is woken when it may go on, or when its time has come."""

from __future__ import annotations

import asyncio
import time

from tests.unit.serving.test_candidates import group

from tidewheel_workers.serving.dispatch import Call, Dispatch, DispatchSettings
from tidewheel_workers.serving.prompt_facts import PromptFacts
from tidewheel_workers.serving.waiting_room import WaitingRoom

CALL = Call(ttft_seconds=3600, facts=PromptFacts(characters=10))


def full(dispatch: Dispatch) -> list:
    """Take all of the one prefill's slots; gives the tickets that hold them."""
    now = time.monotonic()
    tickets = [dispatch.ticket(CALL, now) for _ in range(3)]
    for ticket in tickets:
        assert dispatch.enter(ticket, "prefill", now) is None
    for ticket in tickets[:2]:
        dispatch.took(ticket, ticket.hold, now)
    # says when to come again, so that nobody is woken by that
    dispatch.refused(tickets[2], tickets[2].hold, "busy", now, retry_after=1000)
    return tickets[:2]


def a_room() -> tuple[Dispatch, WaitingRoom]:
    dispatch = Dispatch(DispatchSettings(), lambda: 0.5)
    dispatch.set_groups([group("a", prefill=1)], time.monotonic())
    return dispatch, WaitingRoom(dispatch)


async def test_those_who_may_go_on_are_woken_and_no_others():
    dispatch, room = a_room()
    holders = full(dispatch)
    first, second = (dispatch.ticket(CALL, time.monotonic()) for _ in range(2))
    waits = []
    for ticket in (first, second):
        dispatch.enter(ticket, "prefill", time.monotonic())
        waits.append(asyncio.create_task(room.wait(ticket, time.monotonic() + 3600)))
    await asyncio.sleep(0)
    dispatch.gave_back(holders[0].hold, time.monotonic())
    room.look_around()
    await waits[0]
    assert first.hold is not None
    assert not waits[1].done()
    waits[1].cancel()
    room.close()


async def test_a_wait_ends_at_its_time():
    dispatch, room = a_room()
    full(dispatch)
    ticket = dispatch.ticket(CALL, time.monotonic())
    dispatch.enter(ticket, "prefill", time.monotonic())
    await room.wait(ticket, time.monotonic() + 0.01)
    assert ticket.hold is None
    room.close()


async def test_who_was_let_go_on_already_does_not_wait():
    dispatch, room = a_room()
    ticket = dispatch.ticket(CALL, time.monotonic())
    dispatch.enter(ticket, "prefill", time.monotonic())
    await room.wait(ticket, time.monotonic() + 3600)
    room.close()


async def test_time_alone_wakes_when_a_probe_is_due():
    dispatch, room = a_room()
    now = time.monotonic()
    refused = dispatch.ticket(CALL, now)
    dispatch.enter(refused, "prefill", now)
    dispatch.refused(refused, refused.hold, "busy", now)
    refused.hold = None
    dispatch.enter(refused, "prefill", now)
    assert refused.is_waiting
    await room.wait(refused, now + 3600)
    assert refused.hold is not None
    room.close()
