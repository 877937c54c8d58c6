"""A request's way through prefills and decodes, driven by events alone."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidewheel.api.ranktable import Backend, RouteGroup
from tidewheel_workers.serving.dispatch import Call, Dispatch, DispatchSettings
from tidewheel_workers.serving.forwarding import Forwarding, LossPolicy
from tidewheel_workers.serving.forwarding_steps import (
    Answered,
    AskDecode,
    AskPrefill,
    Began,
    BreakStream,
    ClientGone,
    EndStream,
    Fail,
    Finish,
    Lost,
    OutOfTime,
    Prefilled,
    Refused,
    Rejected,
    ReleaseKV,
    RequestTimedOut,
    TransferFailed,
    Wait,
    Woke,
)
from tidewheel_workers.serving.prompt_facts import PromptFacts

DEADLINE = 10.0
KV = {"remote_request_id": "t1"}
BUSY = Refused(cause="busy")
KILLED = Lost(what="killed", sent=(7, 8))
STREAM = Call(ttft_seconds=DEADLINE, facts=PromptFacts(characters=100))
WHOLE = Call(ttft_seconds=DEADLINE, facts=PromptFacts(characters=100), is_stream=False)


def group(name: str, prefill: int = 1, decode: int = 1) -> RouteGroup:
    def backends(role: str, count: int) -> tuple[Backend, ...]:
        return tuple(Backend(name=f"{name}-{role}{i}", address=f"127.0.0.{i + 1}") for i in range(count))

    return RouteGroup(name=name, prefill=backends("p", prefill), decode=backends("d", decode))


def dispatch(*groups: RouteGroup, settings: DispatchSettings | None = None, **streams: int) -> Dispatch:
    """One gateway's, with so many requests at some backends already."""
    one = Dispatch(settings or DispatchSettings(), lambda: 0.5)
    one.set_groups(groups, 0.0)
    backends = {b.name: b for g in groups for b in (*g.prefill, *g.decode)}
    for name, count in streams.items():
        for _ in range(count):
            one.ledger.took(one.ledger.ask(backends[name.replace("_", "-")], 0.0), 0.0)
    return one


@dataclass
class Story:
    """One request, told event by event."""

    world: Dispatch = field(default_factory=lambda: dispatch(group("a")))
    call: Call = STREAM
    policy: LossPolicy = field(default_factory=LossPolicy)
    at: float = 0.0

    def __post_init__(self) -> None:
        self.request = Forwarding(call=self.call, dispatch=self.world, policy=self.policy)
        self.last = self.request.start(self.at)

    def then(self, *events) -> Story:
        for event in events:
            self.last = self.request.handle(event, self.at)
        return self

    def later(self, seconds: float) -> Story:
        self.at += seconds
        return self

    def routes(self, *groups: RouteGroup) -> Story:
        self.world.set_groups(groups, self.at)
        return self

    @property
    def asked(self) -> str:
        ask = self.last[-1]
        assert isinstance(ask, AskPrefill | AskDecode), ask
        return ask.backend.name

    @property
    def waits(self) -> float:
        wait = self.last[-1]
        assert isinstance(wait, Wait), wait
        return wait.until

    @property
    def code(self) -> str:
        end = self.last[-1]
        assert isinstance(end, Fail | BreakStream), end
        return end.error.code

    def held(self) -> dict[str, int]:
        """What the ledger counts at each backend."""
        names = [b.name for g in self.world.groups for b in (*g.prefill, *g.decode)]
        return {name: self.world.ledger.holds(name) for name in names if self.world.ledger.holds(name)}


def until_it_ends(story: Story, *answers) -> list[float]:
    """Refuse whatever is asked and let each wait come to its end; gives the times at which it waited until."""
    waits = []
    for _ in range(1000):
        if story.request.has_ended:
            return waits
        last = story.last[-1]
        if isinstance(last, Wait):
            story.at = min(max(story.world.look_again_at, story.at), last.until)
            story.world.grant(story.at)
            waits.append(story.at)
            if story.request.ticket in story.world.take_woken() or story.at >= last.until:
                story.then(Woke())
        else:
            story.later(0.001).then(*answers)
    raise AssertionError("it never ends")


def test_a_request_goes_to_a_prefill_and_then_to_a_decode_with_its_kv():
    story = Story()
    assert story.asked == "a-p0"
    story.then(Prefilled(hand_over=KV))
    assert story.last == [AskDecode(backend=group("a").decode[0], hand_over=KV, until=DEADLINE)]
    assert story.then(Began()).last == []
    assert story.then(Answered()).last == [Finish()]
    assert story.held() == {}


def test_the_prefill_with_the_fewest_requests_is_asked_first():
    story = Story(dispatch(group("a", prefill=3), a_p0=2, a_p1=1, a_p2=3))
    order = [story.asked, story.then(BUSY).asked, story.then(BUSY).asked]
    assert order == ["a-p1", "a-p0", "a-p2"]


def test_the_decode_comes_from_the_prefills_group_even_if_another_is_idler():
    story = Story(dispatch(group("a", decode=2), group("b"), b_p0=1, a_d0=5, a_d1=4))
    assert story.then(Prefilled(hand_over=KV)).asked == "a-d1"


def test_refused_by_all_the_request_waits_and_asks_again():
    story = Story(dispatch(group("a", prefill=2))).then(BUSY, BUSY)
    assert story.waits == DEADLINE
    story.at = story.world.look_again_at
    story.world.grant(story.at)
    assert story.world.take_woken() == [story.request.ticket]
    assert story.then(Woke()).asked.startswith("a-p")


def test_as_many_as_may_be_asked_in_a_row_are_asked():
    story = Story(dispatch(group("a", prefill=5), settings=DispatchSettings(candidates=2)))
    assert isinstance(story.then(BUSY).last[-1], AskPrefill)
    assert isinstance(story.then(BUSY).last[-1], Wait)


def test_refused_for_ever_it_asks_ever_less_often_and_ends_at_the_deadline():
    story = Story()
    waits = until_it_ends(story, BUSY)
    gaps = [later - earlier for earlier, later in itertools.pairwise(waits)]
    assert gaps[0] < gaps[4] < 0.5
    assert story.request.inquiries < 80
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
    story = Story().later(DEADLINE).then(event)
    assert story.code == code
    assert story.last[-1].error.status == 503
    assert story.last[-1].error.headers == {"Retry-After": "1"}
    assert story.held() == {}


def test_without_any_backend_the_request_waits_for_one():
    story = Story(dispatch())
    assert story.waits == DEADLINE
    story.routes(group("a"))
    assert story.world.take_woken() == [story.request.ticket]
    assert story.then(Woke()).asked == "a-p0"


def test_without_any_backend_until_the_end_the_error_says_so():
    assert Story(dispatch()).later(DEADLINE).then(Woke()).code == "no_backend_ready"


def test_a_lost_prefill_is_asked_last_from_then_on():
    story = Story(dispatch(group("a", prefill=2), a_p1=1))
    assert story.asked == "a-p0"
    assert story.then(Lost(what="reset")).asked == "a-p1"
    assert story.then(BUSY).asked == "a-p0"


def test_others_avoid_a_prefill_that_was_lost_too():
    story = Story(dispatch(group("a", prefill=2), a_p1=1)).then(Lost(what="reset"))
    assert Story(story.world).asked == "a-p1"


def test_a_busy_decode_leaves_the_kv_where_it_is():
    story = Story(dispatch(group("a", decode=2), a_d1=1)).then(Prefilled(hand_over=KV), BUSY)
    assert story.last == [AskDecode(backend=group("a", decode=2).decode[1], hand_over=KV, until=DEADLINE)]
    assert story.held() == {"a-p0": 1, "a-d1": 2}


def test_a_decode_lost_before_the_first_token_means_a_new_prefill_and_the_old_kv_is_released():
    story = Story(dispatch(group("a", decode=2))).then(Prefilled(hand_over=KV))
    lost = story.asked
    story.then(Lost(what="killed"))
    assert story.last[0] == ReleaseKV(backend=group("a").prefill[0], hand_over=KV)
    assert story.asked == "a-p0"
    assert story.last[-1].until == DEADLINE
    assert story.then(Prefilled(hand_over=KV)).asked != lost


def test_a_decode_that_cannot_get_the_kv_is_not_to_blame():
    story = Story(dispatch(group("a", prefill=2, decode=2), a_p1=1, a_d1=1)).then(Prefilled(hand_over=KV))
    story.then(TransferFailed(what="prefill gone"))
    assert story.asked == "a-p1"
    assert story.then(Prefilled(hand_over=KV)).asked == "a-d0"


def test_a_request_that_outlives_three_servers_ends():
    story = Story().then(*[Lost(what="killed")] * 3)
    assert story.code == "servers_lost"
    assert story.last[-1].error.status == 502


def test_a_server_that_is_silent_for_much_longer_than_others_counts_as_lost():
    story = Story(dispatch(group("a", prefill=2), a_p1=1))
    for _ in range(20):
        story.world.pace.took("prefill", STREAM.facts.characters, 0.1, 0.0)
    again = Story(story.world)
    silent, until = again.asked, again.last[-1].until
    assert 1.0 < until < DEADLINE
    again.later(until).then(OutOfTime())
    assert again.asked != silent


def test_a_group_that_left_meanwhile_means_a_new_prefill():
    story = Story().routes(group("b")).then(Prefilled(hand_over=KV))
    assert isinstance(story.last[0], ReleaseKV)
    assert story.asked == "b-p0"


def test_a_group_that_leaves_while_the_kv_waits_for_a_decode_means_a_new_prefill():
    story = Story().then(Prefilled(hand_over=KV), BUSY)
    assert isinstance(story.last[-1], Wait)
    story.routes(group("b"))
    assert story.world.take_woken() == [story.request.ticket]
    story.then(Woke())
    assert isinstance(story.last[0], ReleaseKV)
    assert story.asked == "b-p0"


# ---- a stream whose decode is lost


def test_a_stream_is_resumed_from_the_tokens_that_were_sent():
    story = Story(dispatch(group("a", prefill=2, decode=2), a_d1=1))
    story.then(Prefilled(hand_over=KV), Began(), KILLED)
    assert isinstance(story.last[-1], AskPrefill)
    assert story.last[-1].resumed == (7, 8)
    story.then(Prefilled(hand_over=KV))
    assert (story.asked, story.last[-1].resumed) == ("a-d1", (7, 8))
    assert story.then(Began(), Answered()).last == [Finish()]
    assert story.held() == {"a-d1": 1}


def test_a_stream_can_be_resumed_again_and_has_as_long_for_it_as_a_new_request():
    story = Story(dispatch(group("a", decode=3))).then(Prefilled(hand_over=KV), Began())
    story.later(100.0).then(KILLED)
    assert story.last[-1].until == 100.0 + DEADLINE
    story.then(Prefilled(hand_over=KV), Began(), Lost(what="killed", sent=(9,)))
    assert story.last[-1].resumed == (7, 8, 9)
    story.then(Prefilled(hand_over=KV), Began(), KILLED)
    assert story.code == "stream_interrupted"


def test_a_prefill_lost_while_a_stream_is_resumed_is_replaced():
    story = Story(dispatch(group("a", prefill=2))).then(Prefilled(hand_over=KV), Began(), KILLED)
    first = story.asked
    assert story.then(Lost(what="reset")).asked != first
    assert story.last[-1].resumed == (7, 8)


def test_a_decode_lost_before_it_resumed_a_stream_is_replaced():
    story = Story(dispatch(group("a", decode=3))).then(Prefilled(hand_over=KV), Began(), KILLED)
    story.then(Prefilled(hand_over=KV), Lost(what="no HTTP answer"))
    assert isinstance(story.last[-1], AskPrefill)
    assert story.last[-1].resumed == (7, 8)
    assert story.then(Prefilled(hand_over=KV), Began(), Answered()).last == [Finish()]


def test_a_stream_to_be_resumed_passes_those_who_wait():
    story = Story().then(Prefilled(hand_over=KV), Began())
    held = Story(story.world)
    refused = Story(story.world).later(0.1).then(BUSY)
    assert isinstance(refused.last[-1], Wait)
    story.later(0.1).then(KILLED)
    assert isinstance(story.last[-1], Wait)
    held.later(0.1).then(ClientGone())
    assert story.world.take_woken()[0] == story.request.ticket


@pytest.mark.parametrize(
    ("policy", "event", "want"),
    [
        pytest.param(LossPolicy(on_decode_loss="Error"), KILLED, BreakStream, id="error"),
        pytest.param(LossPolicy(), Lost(what="killed", sent=None), BreakStream, id="no tokens are told"),
        pytest.param(LossPolicy(on_decode_loss="Error"), Lost(what="", is_complete=True), EndStream, id="all is said"),
        pytest.param(LossPolicy(), Lost(what="", is_complete=True), EndStream, id="nothing to resume"),
    ],
)  # fmt: skip
def test_a_stream_that_is_not_resumed_ends(policy, event, want):
    story = Story(policy=policy).then(Prefilled(hand_over=KV), Began(), event)
    assert isinstance(story.last[-1], want)
    if want is BreakStream:
        assert story.code == "stream_interrupted"


def test_a_stream_can_end_with_a_default_text():
    policy = LossPolicy(on_decode_loss="DefaultText", default_text="Sorry.")
    story = Story(policy=policy).then(Prefilled(hand_over=KV), Began(), KILLED)
    assert story.last == [EndStream(text="Sorry.")]


@pytest.mark.parametrize(
    "events",
    [
        pytest.param([Rejected(status=400, body=b"{}")], id="refused as a bad request"),
        pytest.param([Prefilled(hand_over=KV), Rejected(status=400, body=b"{}")], id="by the decode"),
        pytest.param([Lost(what="again"), Lost(what="again")], id="three servers lost"),
    ],
)
def test_a_stream_that_cannot_be_resumed_ends_with_an_error_event(events):
    story = Story().then(Prefilled(hand_over=KV), Began(), KILLED, *events)
    assert isinstance(story.last[-1], BreakStream)
    assert story.code == "stream_interrupted"


def test_a_stream_that_finds_no_server_to_be_resumed_in_time_ends_with_an_error_event():
    story = Story().then(Prefilled(hand_over=KV), Began()).later(50.0).then(KILLED)
    until_it_ends(story, BUSY)
    assert story.at == 50.0 + DEADLINE
    assert isinstance(story.last[-1], BreakStream)


def test_a_whole_answer_whose_decode_is_lost_is_done_again_from_the_start():
    story = Story(dispatch(group("a", decode=2)), WHOLE).then(Prefilled(hand_over=KV))
    story.later(60.0).then(Lost(what="killed"))
    assert story.last[-1] == AskPrefill(backend=group("a").prefill[0], until=60.0 + DEADLINE)
    assert story.then(Prefilled(hand_over=KV), Answered()).last == [Finish()]


# ---- short prompts

SHORT = DispatchSettings(short_prompt_characters=100)


def test_a_decode_with_room_computes_a_short_prompt_when_all_prefills_are_busy():
    story = Story(dispatch(group("a"), settings=SHORT))
    assert story.asked == "a-p0"
    story.then(BUSY)
    assert story.last == [AskDecode(backend=group("a").decode[0], hand_over=None, until=DEADLINE)]
    assert story.then(Began(), Answered()).last == [Finish()]
    assert story.held() == {}


@pytest.mark.parametrize(
    ("facts", "settings"),
    [
        pytest.param(PromptFacts(characters=101), SHORT, id="not a longer one"),
        pytest.param(PromptFacts(characters=100), DispatchSettings(), id="not unless it is allowed"),
        pytest.param(PromptFacts(characters=0), DispatchSettings(), id="not even an empty one"),
    ],
)
def test_a_decode_computes_no_other_prompt(facts, settings):
    story = Story(dispatch(group("a"), settings=settings), Call(ttft_seconds=DEADLINE, facts=facts))
    assert isinstance(story.then(BUSY).last[-1], Wait)


def test_a_prompt_that_may_be_cached_waits_for_a_prefill():
    world = dispatch(group("a"), settings=DispatchSettings(short_prompt_characters=1000))
    call = Call(ttft_seconds=DEADLINE, facts=PromptFacts(characters=300, prefixes=(1,)))
    first = Story(world, call)
    assert isinstance(first.last[-1], AskPrefill)
    assert isinstance(first.then(BUSY).last[-1], Wait)


def test_a_decode_that_is_full_computes_nothing():
    story = Story(dispatch(group("a"), settings=SHORT)).then(BUSY)
    assert isinstance(story.then(BUSY).last[-1], Wait)


def test_a_short_prompt_gives_way_to_prompts_that_are_computed():
    world = dispatch(group("a", decode=1), settings=SHORT)
    computed = Story(world).then(Prefilled(hand_over=KV), BUSY)
    assert isinstance(computed.last[-1], Wait)
    # were it not for the one that waits, the decode would have room
    world.ledger.took(world.ledger.ask(group("a").decode[0], 0.0), 0.0)
    assert isinstance(Story(world).then(BUSY).last[-1], Wait)


# ---- what does not fit


@pytest.mark.parametrize(
    "event",
    [Woke(), Began(), Answered(), TransferFailed(what="?"), pytest.param(None, id="nothing")],
)
def test_an_event_that_does_not_belong_to_an_inquiry_at_a_prefill_changes_nothing(event):
    story = Story()
    if event is not None:
        assert story.then(event).last == []
    assert isinstance(story.then(Prefilled(hand_over=KV)).last[-1], AskDecode)


def test_the_clients_own_fault_is_passed_on_and_the_kv_released():
    rejected = Rejected(status=400, body=b"{}")
    story = Story().then(Prefilled(hand_over=KV), rejected)
    assert isinstance(story.last[0], ReleaseKV)
    assert story.last[-1] == Finish(rejection=rejected)
    assert story.held() == {}


def test_a_client_that_leaves_while_kv_waits_has_it_released():
    story = Story().then(Prefilled(hand_over=KV), ClientGone())
    assert [type(instruction) for instruction in story.last] == [ReleaseKV, Finish]
    assert story.held() == {}


def test_a_client_that_leaves_as_its_turn_comes_leaves_the_turn_to_the_next():
    world = dispatch(group("a"))
    held = Story(world)
    first, second = Story(world).later(0.1).then(BUSY), Story(world, at=0.1)
    held.later(0.1).then(ClientGone())
    assert world.take_woken() == [first.request.ticket]
    first.then(ClientGone())
    assert world.take_woken() == [second.request.ticket]
    assert second.then(Woke()).asked == "a-p0"


def test_a_timeout_before_and_after_the_first_token():
    assert isinstance(Story().then(RequestTimedOut()).last[-1], Fail)
    assert isinstance(Story().then(Prefilled(hand_over=KV), Began(), RequestTimedOut()).last[-1], BreakStream)


OUTCOMES = st.one_of(
    st.builds(
        Refused,
        cause=st.sampled_from(["busy", "unavailable", "unreachable"]),
        retry_after=st.none() | st.floats(0, 2),
    ),
    st.just("good"),
    st.just("good"),
    st.just("begun"),
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
POLICIES = st.builds(LossPolicy, on_decode_loss=st.sampled_from(["Resume", "Error", "DefaultText"]))
ENDINGS = (Finish, Fail, BreakStream, EndStream)


@given(
    outcomes=st.lists(st.tuples(OUTCOMES, WORLDS, st.floats(0, 1)), max_size=60),
    seed=st.integers(0, 1000),
    policy=POLICIES,
    short=st.booleans(),
    call=st.sampled_from([STREAM, WHOLE]),
)
def test_every_request_ends_exactly_once_and_leaves_no_kv_and_no_slot_behind(
    outcomes, seed, policy, short, call
):
    world = Dispatch(SHORT if short else DispatchSettings(), random.Random(seed).random)
    world.set_groups([group("a")], 0.0)
    request = Forwarding(call=call, dispatch=world, policy=policy)
    at, issued, ends = 0.0, 0, []
    waiting: set[str] = set()  # KV that nobody fetched or released yet
    sent: tuple[int, ...] = ()
    script = iter(outcomes)
    instructions = request.start(at)
    for _ in range(2000):
        doing = None
        for instruction in instructions:
            match instruction:
                case ReleaseKV(hand_over=kv):
                    waiting.discard(kv["id"])
                case Finish() | Fail() | BreakStream() | EndStream():
                    ends.append(instruction)
                case _:
                    doing = instruction
        if doing is None:
            break
        outcome, groups, took = next(script, ("good", [group("a")], 1.0))
        world.set_groups(groups, at)
        if isinstance(doing, Wait):
            assert at < doing.until
            woken = world.take_woken()
            at = at if request.ticket in woken else max(at, min(world.look_again_at, doing.until))
            world.grant(at)
            event = Woke()
        else:
            assert doing.resumed == sent
            at += took
            event = outcome
            if outcome in ("good", "begun") and isinstance(doing, AskPrefill):
                issued += 1
                waiting.add(str(issued))
                event = Prefilled(hand_over={"id": str(issued)})
            elif outcome in ("good", "begun"):
                if doing.hand_over is not None:
                    assert doing.hand_over["id"] in waiting
                    waiting.remove(doing.hand_over["id"])
                if call.is_stream:
                    assert request.handle(Began(), at) == []
                event = Answered()
                if outcome == "begun" and call.is_stream:
                    event = Lost(what="lost", sent=(issued,))
                    sent += (issued,)
            elif isinstance(event, TransferFailed) and isinstance(doing, AskPrefill):
                event = Lost(what="lost")
        instructions = request.handle(event, at)
    assert len(ends) == 1
    assert not waiting
    assert world.waiting == 0
    assert {name: world.ledger.holds(name) for g in "abc" for role in "pd" for i in range(2)
            for name in [f"{g}-{role}{i}"] if world.ledger.holds(name)} == {}  # fmt: skip
    assert request.handle(Answered(), at) == []


ANY_EVENT = st.one_of(
    OUTCOMES.filter(lambda event: not isinstance(event, str)),
    st.builds(Prefilled, hand_over=st.just(KV)),
    st.builds(Lost, what=st.just(""), sent=st.none() | st.just((1,)), is_complete=st.booleans()),
    st.sampled_from([Began(), Answered(), Woke()]),
)


@given(
    events=st.lists(st.tuples(ANY_EVENT, st.floats(0, 2)), max_size=40),
    seed=st.integers(0, 1000),
    policy=POLICIES,
    call=st.sampled_from([STREAM, WHOLE]),
)
def test_events_in_any_order_end_a_request_at_most_once_and_a_timeout_always_does(events, seed, policy, call):
    world = Dispatch(SHORT, random.Random(seed).random)
    world.set_groups([group("a", 2, 2), group("b")], 0.0)
    request = Forwarding(call=call, dispatch=world, policy=policy)
    at = 0.0
    said = request.start(at)
    for event, took in events:
        at += took
        said += request.handle(event, at)
        world.grant(at)
    said += request.handle(RequestTimedOut(), at)
    assert sum(isinstance(instruction, ENDINGS) for instruction in said) == 1
    assert isinstance(said[-1], ENDINGS)
    assert not any(world.ledger.holds(b.name) for g in world.groups for b in (*g.prefill, *g.decode))


@given(order=st.randoms(use_true_random=False), count=st.integers(1, 12), slots=st.integers(1, 3))
def test_those_who_wait_are_served_in_the_order_in_which_their_first_tokens_are_due(order, count, slots):
    world = dispatch(group("a"))
    budgets = [10.0 + order.randrange(5) for _ in range(count)]
    held = [Story(world) for _ in range(slots)]
    Story(world).later(0.1).then(BUSY, ClientGone())
    waiting = [Story(world, Call(ttft_seconds=budget, facts=STREAM.facts), at=0.12) for budget in budgets]
    assert all(isinstance(story.last[-1], Wait) for story in waiting)
    world.take_woken()
    served = []
    running = held
    while running:
        leaving = running.pop(0)
        leaving.at = 0.13
        leaving.then(ClientGone())
        for ticket in world.take_woken():
            story = next(story for story in waiting if story.request.ticket is ticket)
            if not story.request.has_ended:
                assert story.then(Woke()).asked == "a-p0"
                served.append(story)
                running.append(story)
    dues = [story.request.ticket.order for story in served]
    assert dues == sorted(dues)
    assert len(served) == count
