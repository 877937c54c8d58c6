"""The event recorder: what becomes an Event, what counts up, what is held back, and that it never gets in the way."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest
from tests.unit.controllers.virtual_time import run

from tidewheel.kube.errors import AlreadyExists, ApiError, Forbidden, NotFound, Unavailable
from tidewheel.kube.events import EventBook, Recorder
from tidewheel.planning.plan import EventNote

ABOUT = {
    "apiVersion": "tidewheel.dev/v1alpha1",
    "kind": "PDService",
    "metadata": {"name": "chat", "namespace": "ns", "uid": "u1"},
}


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def book(clock: Clock | None = None) -> EventBook:
    return EventBook(
        controller="tidewheel.dev/operator",
        instance="me",
        clock=clock or Clock(),
        now=lambda: datetime(2026, 1, 1, tzinfo=UTC),
    )


def note(message: str = "pod p failed", *, reason: str = "ReplacingMembers") -> EventNote:
    return EventNote(type="Warning", reason=reason, action="ReplaceMember", message=message)


class Events:
    """The events of an API server that fails as it is told."""

    def __init__(self, *failures: ApiError) -> None:
        self.there: dict[str, dict[str, Any]] = {}
        self.failures = list(failures)

    async def create(self, _: Any, body: dict[str, Any]) -> None:
        await self._answer()
        if body["metadata"]["name"] in self.there:
            raise AlreadyExists("it is there")
        self.there[body["metadata"]["name"]] = dict(body)

    async def get(self, _: Any, name: str, __: str) -> dict[str, Any]:
        await self._answer()
        if name not in self.there:
            raise NotFound("expired")
        return self.there[name]

    async def patch(self, _: Any, name: str, patch: dict[str, Any], __: str) -> None:
        await self._answer()
        self.there[name] |= patch

    async def _answer(self) -> None:
        await asyncio.sleep(0.01)
        if self.failures:
            raise self.failures.pop(0)


def record(api: Events, *notes: EventNote, dropped: list[None] | None = None) -> None:
    async def main() -> None:
        lost = dropped if dropped is not None else []
        recorder = Recorder(api, book(), dropped=lambda: lost.append(None))  # type: ignore[arg-type]
        running = asyncio.create_task(recorder.run())
        for one in notes:
            recorder.record(ABOUT, one)
        await recorder.flush(at_most_seconds=60)
        running.cancel()

    run(main())


def test_an_event_says_who_saw_what_about_whom():
    api = Events()
    record(api, note())
    (event,) = api.there.values()
    assert event["reason"] == "ReplacingMembers"
    assert event["note"] == "pod p failed"
    assert event["regarding"] == {
        "apiVersion": "tidewheel.dev/v1alpha1",
        "kind": "PDService",
        "namespace": "ns",
        "name": "chat",
        "uid": "u1",
    }
    assert event["eventTime"] == "2026-01-01T00:00:00.000000Z"


def test_the_same_again_counts_up():
    api = Events()
    record(api, note(), note(), note())
    (event,) = api.there.values()
    assert event["series"]["count"] == 3


def test_a_restarted_recorder_counts_on():
    api = Events()
    record(api, note())
    record(api, note())
    (event,) = api.there.values()
    assert event["series"]["count"] == 2


def test_many_messages_of_one_reason_are_combined_after_the_tenth():
    api = Events()
    record(api, *(note(f"pod {number} failed") for number in range(15)))
    combined = [event for event in api.there.values() if event["note"].startswith("(combined")]
    assert len(api.there) == 11
    assert combined[0]["series"]["count"] == 5


def test_one_object_may_burst_and_must_then_wait_and_others_need_not():
    clock = Clock()
    entered = book(clock)
    assert sum(entered.enter(ABOUT, note()) is not None for _ in range(40)) == 25
    other = ABOUT | {"metadata": ABOUT["metadata"] | {"uid": "u2"}}
    assert entered.enter(other, note()) is not None
    clock.now = 299.0
    assert entered.enter(ABOUT, note()) is None
    clock.now = 301.0
    assert entered.enter(ABOUT, note()) is not None


def test_a_long_message_is_cut_where_the_api_would_refuse_it():
    occurrence = book().enter(ABOUT, note("x" * 5000))
    assert occurrence is not None
    assert len(occurrence.body["note"]) == 1024


def test_a_server_that_is_away_for_a_moment_loses_no_event():
    api, dropped = Events(Unavailable("away"), Unavailable("away")), []
    record(api, note(), dropped=dropped)
    assert len(api.there) == 1
    assert dropped == []


@pytest.mark.parametrize("failures", [[Forbidden("no", status=403)], [Unavailable("away")] * 4])
def test_an_event_that_cannot_be_posted_is_counted_and_the_next_one_is_posted(failures):
    api, dropped = Events(*failures), []
    record(api, note("first"), note("second"), dropped=dropped)
    assert [event["note"] for event in api.there.values()] == ["second"]
    assert len(dropped) == 1


def test_a_flood_is_held_back_and_nobody_waits():
    async def main() -> int:
        dropped: list[None] = []
        recorder = Recorder(Events(), book(), dropped=lambda: dropped.append(None))  # type: ignore[arg-type]
        for number in range(1500):
            recorder.record(ABOUT | {"metadata": ABOUT["metadata"] | {"uid": str(number)}}, note())
        return len(dropped)

    assert run(main()) == 500
