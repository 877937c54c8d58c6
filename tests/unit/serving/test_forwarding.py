"""A request's way through prefills and decodes, driven by events alone."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidewheel.api.ranktable import Backend, RouteGroup
from tidewheel_workers.serving.forwarding import (
    Answered,
    AskDecode,
    AskPrefill,
    Began,
    BreakStream,
    ClientGone,
    Fail,
    Finish,
    Forwarding,
    Lost,
    OutOfTime,
    Prefilled,
    Refused,
    Rejected,
    ReleaseKV,
    RequestTimedOut,
    Seen,
    TransferFailed,
    Wait,
    Woke,
)

DEADLINE = 10.0
KV = {"remote_request_id": "t1"}
BUSY = Refused(cause="busy")


def group(name: str, prefill: int = 1, decode: int = 1) -> RouteGroup:
    def backends(role: str, count: int) -> tuple[Backend, ...]:
        return tuple(Backend(name=f"{name}-{role}{i}", address=f"127.0.0.{i + 1}") for i in range(count))

    return RouteGroup(name=name, prefill=backends("p", prefill), decode=backends("d", decode))


def seen(*groups: RouteGroup, **streams: int) -> Seen:
    open_streams = {name.replace("_", "-"): count for name, count in streams.items()}
    return Seen(groups=groups or (group("a"),), open_streams=open_streams)


@dataclass
class Story:
    """One request, told event by event."""

    world: Seen = field(default_factory=seen)
    at: float = 0.0

    def __post_init__(self) -> None:
        self.request = Forwarding(deadline=DEADLINE, jitter=lambda: 0.5)
        self.last = self.request.start(self.world, self.at)

    def then(self, *events) -> Story:
        for event in events:
            self.last = self.request.handle(event, self.world, self.at)
        return self

    @property
    def asked(self) -> str:
        ask = self.last[-1]
        assert isinstance(ask, AskPrefill | AskDecode), ask
        return ask.backend.name

    @property
    def code(self) -> str:
        end = self.last[-1]
        assert isinstance(end, Fail | BreakStream), end
        return end.error.code


def test_a_request_goes_to_a_prefill_and_then_to_a_decode_with_its_kv():
    story = Story()
    assert story.asked == "a-p0"
    story.then(Prefilled(hand_over=KV))
    assert story.last == [AskDecode(backend=group("a").decode[0], hand_over=KV, until=DEADLINE)]
    assert story.then(Began()).last == []
    assert story.then(Answered()).last == [Finish()]


def test_the_prefill_with_the_fewest_open_streams_is_asked_first():
    world = seen(group("a", prefill=3), a_p0=2, a_p1=1, a_p2=3)
    story = Story(world)
    order = [story.asked, story.then(BUSY).asked, story.then(BUSY).asked]
    assert order == ["a-p1", "a-p0", "a-p2"]


def test_the_decode_comes_from_the_prefills_group_even_if_another_is_idler():
    story = Story(seen(group("a", decode=2), group("b"), b_p0=1, a_d0=5, a_d1=4))
    assert story.then(Prefilled(hand_over=KV)).asked == "a-d1"


def test_refused_by_all_the_request_waits_and_asks_again():
    story = Story(seen(group("a", prefill=2))).then(BUSY, BUSY)
    assert isinstance(story.last[-1], Wait)
    assert story.then(Woke()).asked.startswith("a-p")


def test_waits_grow_and_never_pass_the_deadline():
    story = Story()
    waits = []
    while not story.request.has_ended:
        story.then(BUSY)
        wait = story.last[-1]
        if isinstance(wait, Wait):
            waits.append(wait.until - story.at)
            story.at = wait.until
        story.then(Woke())
    assert waits[:3] == sorted(waits[:3])
    assert story.at == DEADLINE
    assert story.code == "all_slots_busy"


@pytest.mark.parametrize(
    ("event", "code"),
    [
        pytest.param(BUSY, "all_slots_busy", id="busy"),
        pytest.param(Refused(cause="unreachable"), "backends_unavailable", id="unreachable"),
        pytest.param(OutOfTime(), "first_token_late", id="slow"),
        pytest.param(Prefilled(hand_over=KV), "first_token_late", id="prefilled too late"),
    ],
)
def test_when_the_time_for_the_first_token_is_over_the_error_says_why(event, code):
    story = Story()
    story.at = DEADLINE
    story.then(event)
    assert story.code == code
    assert story.last[-1].error.status == 503
    assert story.last[-1].error.headers == {"Retry-After": "1"}


def test_without_any_backend_the_request_waits_for_one():
    story = Story(Seen(groups=(), open_streams={}))
    assert isinstance(story.last[-1], Wait)
    story.world = seen()
    assert story.then(Woke()).asked == "a-p0"


def test_a_lost_prefill_is_asked_last_from_then_on():
    story = Story(seen(group("a", prefill=2), a_p1=1))
    assert story.asked == "a-p0"
    assert story.then(Lost(what="reset")).asked == "a-p1"
    assert story.then(BUSY).asked == "a-p0"


def test_a_busy_decode_leaves_the_kv_where_it_is():
    story = Story(seen(group("a", decode=2), a_d1=1)).then(Prefilled(hand_over=KV), BUSY)
    assert story.last == [AskDecode(backend=story.world.groups[0].decode[1], hand_over=KV, until=DEADLINE)]


def test_a_decode_lost_before_the_first_token_means_a_new_prefill_and_the_old_kv_is_released():
    story = Story(seen(group("a", decode=2))).then(Prefilled(hand_over=KV))
    lost = story.asked
    story.then(Lost(what="killed"))
    assert story.last[0] == ReleaseKV(backend=group("a").prefill[0], hand_over=KV)
    assert story.asked == "a-p0"
    assert story.then(Prefilled(hand_over=KV)).asked != lost


def test_a_decode_that_cannot_get_the_kv_is_not_to_blame():
    story = Story(seen(group("a", prefill=2), a_p1=1)).then(Prefilled(hand_over=KV))
    story.then(TransferFailed(what="prefill gone"))
    assert story.asked == "a-p1"
    assert story.then(Prefilled(hand_over=KV)).asked == "a-d0"


def test_a_request_that_outlives_three_servers_ends():
    story = Story().then(*[Lost(what="killed")] * 3)
    assert story.code == "servers_lost"
    assert story.last[-1].error.status == 502


def test_a_group_that_left_meanwhile_means_a_new_prefill():
    story = Story()
    story.world = seen(group("b"))
    story.then(Prefilled(hand_over=KV))
    assert isinstance(story.last[0], ReleaseKV)
    assert story.asked == "b-p0"


def test_a_decode_lost_in_mid_stream_ends_the_stream_with_an_error():
    story = Story().then(Prefilled(hand_over=KV), Began(), Lost(what="killed"))
    assert isinstance(story.last[-1], BreakStream)
    assert story.code == "stream_interrupted"


def test_the_clients_own_fault_is_passed_on_and_the_kv_released():
    rejected = Rejected(status=400, body=b"{}")
    story = Story().then(Prefilled(hand_over=KV), rejected)
    assert isinstance(story.last[0], ReleaseKV)
    assert story.last[-1] == Finish(rejection=rejected)


def test_a_client_that_leaves_while_kv_waits_has_it_released():
    story = Story().then(Prefilled(hand_over=KV), ClientGone())
    assert [type(instruction) for instruction in story.last] == [ReleaseKV, Finish]


def test_a_timeout_before_and_after_the_first_token():
    assert isinstance(Story().then(RequestTimedOut()).last[-1], Fail)
    assert isinstance(Story().then(Prefilled(hand_over=KV), Began(), RequestTimedOut()).last[-1], BreakStream)


OUTCOMES = st.one_of(
    st.builds(Refused, cause=st.sampled_from(["busy", "unavailable", "unreachable"])),
    st.just("good"),
    st.just("good"),
    st.builds(Lost, what=st.just("lost")),
    st.builds(TransferFailed, what=st.just("no kv")),
    st.just(Rejected(status=400, body=b"{}")),
    st.just(OutOfTime()),
    st.just(RequestTimedOut()),
    st.just(ClientGone()),
)
WORLDS = st.lists(
    st.builds(group, st.sampled_from("abc"), st.integers(0, 2), st.integers(0, 2)),
    max_size=3,
    unique_by=lambda g: g.name,
)


@given(
    outcomes=st.lists(st.tuples(OUTCOMES, WORLDS, st.floats(0, 1)), max_size=60),
    seed=st.integers(0, 1000),
)
def test_every_request_ends_exactly_once_and_leaves_no_kv_behind(outcomes, seed):
    request = Forwarding(deadline=DEADLINE, jitter=random.Random(seed).random)
    at, issued, ends = 0.0, 0, []
    waiting: set[str] = set()  # KV that nobody fetched or released yet
    script = iter(outcomes)
    instructions = request.start(Seen(groups=(group("a"),), open_streams={}), at)
    for _ in range(2000):
        doing = None
        for instruction in instructions:
            match instruction:
                case ReleaseKV(hand_over=kv):
                    waiting.remove(kv["id"])
                case Finish() | Fail() | BreakStream():
                    ends.append(instruction)
                case _:
                    doing = instruction
        if doing is None:
            break
        outcome, groups, took = next(script, ("good", [group("a")], 1.0))
        world = Seen(groups=tuple(groups), open_streams={})
        if isinstance(doing, Wait):
            assert at < doing.until <= DEADLINE
            at, event = doing.until, Woke()
        else:
            at += took
            event = outcome
            if outcome == "good" and isinstance(doing, AskPrefill):
                issued += 1
                waiting.add(str(issued))
                event = Prefilled(hand_over={"id": str(issued)})
            elif outcome == "good":
                assert doing.hand_over["id"] in waiting
                waiting.remove(doing.hand_over["id"])
                assert request.handle(Began(), world, at) == []
                event = Answered()
            elif isinstance(event, TransferFailed) and isinstance(doing, AskPrefill):
                event = Lost(what="lost")
        instructions = request.handle(event, world, at)
    assert len(ends) == 1
    assert not waiting
    assert request.handle(Answered(), Seen(groups=(), open_streams={}), at) == []
