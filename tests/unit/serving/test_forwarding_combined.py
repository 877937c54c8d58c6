"""A request's way in groups whose decodes compute the prompts, too: the same lines, deadlines and losses, in one step."""

from __future__ import annotations

import pytest
from tests.unit.serving.test_forwarding import (
    BUSY,
    DEADLINE,
    KILLED,
    KV,
    STREAM,
    WHOLE,
    Story,
    dispatch,
    group,
    until_it_ends,
)

from tidewheel.api.ranktable import RouteGroup, Routes
from tidewheel_workers.serving.dispatch import DispatchSettings
from tidewheel_workers.serving.forwarding_steps import (
    Answered,
    AskDecode,
    AskPrefill,
    Began,
    BreakStream,
    ClientGone,
    Finish,
    Lost,
    OutOfTime,
    Prefilled,
    ReleaseKV,
    Wait,
    Woke,
)
from tidewheel_workers.serving.pace import LEAST_SEEN
from tidewheel_workers.serving.routes import usable_groups


def combined(name: str, decode: int = 1) -> RouteGroup:
    return group(name, prefill=0, decode=decode).model_copy(update={"combined": True})


def test_a_request_goes_straight_to_a_decode_and_ends_there():
    story = Story(dispatch(combined("a")))
    assert story.last == [AskDecode(backend=combined("a").decode[0], hand_over=None, until=DEADLINE)]
    assert story.then(Began()).last == []
    assert story.held() == {"a-d0": 1}
    assert story.then(Answered()).last == [Finish()]
    assert story.held() == {}


def test_a_prompt_of_any_length_does():
    call = STREAM.__class__(ttft_seconds=DEADLINE, facts=STREAM.facts.__class__(characters=10**6))
    assert Story(dispatch(combined("a")), call=call).asked == "a-d0"


def test_the_decode_with_the_fewest_requests_is_asked_first_and_others_when_it_refuses():
    story = Story(dispatch(combined("a", decode=3), a_d0=2, a_d1=1, a_d2=3))
    assert [story.asked, story.then(BUSY).asked, story.then(BUSY).asked] == ["a-d1", "a-d0", "a-d2"]


def test_refused_by_all_it_waits_in_line_and_is_told_when_a_slot_is_free():
    world = dispatch(combined("a"))
    first = Story(world).then(Began())
    second = Story(world).later(0.1).then(BUSY)
    assert isinstance(second.last[-1], Wait)
    assert world.waiting == 1
    first.later(0.2).then(Answered())
    assert world.take_woken() == [second.request.ticket]
    assert second.later(0.1).then(Woke()).asked == "a-d0"


def test_those_who_wait_are_served_by_due_time():
    world = dispatch(combined("a"))
    Story(world).then(Began())
    late = Story(world, at=0.1).then(BUSY)
    hurried = STREAM.__class__(ttft_seconds=1.0, facts=STREAM.facts)
    soon = Story(world, call=hurried, at=0.2).then(BUSY)
    assert isinstance(soon.last[-1], Wait)
    assert [one.request.ticket for one in (soon, late)] == next(iter(world._lines.values())).waiting


def test_refused_for_ever_it_ends_at_the_deadline():
    story = Story(dispatch(combined("a")))
    until_it_ends(story, BUSY)
    assert (story.at, story.code) == (DEADLINE, "all_slots_busy")


def test_a_first_token_that_does_not_come_in_time_is_the_requests_end():
    story = Story(dispatch(combined("a"))).later(DEADLINE).then(OutOfTime())
    assert story.code == "first_token_late"
    assert story.held() == {}


def test_who_could_not_be_in_time_any_more_leaves_early():
    """What decodes took for prompts beside others is learnt, and a request gives up when that long is not left."""
    world = dispatch(combined("a"))
    for _ in range(LEAST_SEEN):
        seen = Story(world).later(4.0).then(Began())
        seen.then(Answered())
    Story(world, at=5.0).then(Began())
    story = Story(world, at=5.0).then(BUSY)
    assert 5.0 < story.waits < 5.0 + DEADLINE - 4.0


def test_a_decode_that_is_silent_for_much_longer_than_others_counts_as_lost():
    world = dispatch(combined("a", decode=2), a_d1=1)
    for _ in range(20):
        world.pace.took("both", STREAM.facts.characters, 0.1, 0.0)
    story = Story(world)
    silent, until = story.asked, story.last[-1].until
    assert 1.0 < until < DEADLINE
    assert story.later(until).then(OutOfTime()).asked != silent


def test_a_stream_whose_decode_is_lost_goes_on_at_another():
    story = Story(dispatch(combined("a", decode=2))).then(Began())
    lost = story.request.inquiries, story.held()
    story.then(KILLED)
    assert isinstance(story.last[-1], AskDecode)
    assert (story.last[-1].hand_over, story.last[-1].resumed) == (None, (7, 8))
    assert story.asked not in lost[1]
    assert story.then(Began(), Answered()).last == [Finish()]
    assert story.held() == {}


def test_a_request_that_outlives_three_decodes_ends():
    assert Story(dispatch(combined("a", decode=4))).then(*[Lost(what="killed")] * 3).code == "servers_lost"
    story = Story(dispatch(combined("a", decode=4))).then(Began(), KILLED, Began(), KILLED, Began(), KILLED)
    assert isinstance(story.last[-1], BreakStream)


def test_whole_answers_tell_how_fast_the_line_moves():
    world = dispatch(combined("a"))
    for number in range(LEAST_SEEN):
        running = Story(world, call=WHOLE, at=float(number))
        waiting = Story(world, call=WHOLE, at=number + 0.1).then(BUSY)
        running.at = number + 0.5
        assert running.then(Answered()).last == [Finish()]
        waiting.then(ClientGone())
        assert world.take_woken() in ([], [waiting.request.ticket])
    assert world.ledger.holds("a-d0") == 0


def test_a_request_whose_group_is_combined_while_its_prompt_is_computed_keeps_its_kv():
    story = Story(dispatch(group("a")))
    story.routes(combined("a")).then(Prefilled(hand_over=KV))
    assert (story.asked, story.last[-1].hand_over) == ("a-d0", KV)


def test_a_request_that_is_computed_by_a_decode_does_not_notice_that_its_group_is_divided():
    story = Story(dispatch(combined("a", decode=2))).then(Began()).routes(group("a", decode=2))
    assert story.then(Answered()).last == [Finish()]
    story = Story(dispatch(combined("a", decode=2))).then(Began()).routes(group("a", decode=2)).then(KILLED)
    assert isinstance(story.last[-1], AskPrefill), "what is lost goes the new way"


def test_who_waits_goes_whichever_way_there_is_then():
    world = dispatch(group("a"))
    Story(world).then(Prefilled(hand_over=KV))
    story = Story(world).later(0.1).then(BUSY)
    story.routes(combined("a", decode=2))
    assert world.take_woken() == [story.request.ticket]
    assert story.then(Woke()).asked == "a-d1"
    assert story.last[-1].hand_over is None


def test_kv_of_a_prefill_that_is_gone_is_computed_again_by_the_decode():
    story = Story(dispatch(group("a")))
    story.routes(combined("a")).then(Prefilled(hand_over=KV), Lost(what="killed"))
    assert isinstance(story.last[0], ReleaseKV)
    assert (story.asked, story.last[-1].hand_over) == ("a-d0", None)


@pytest.mark.parametrize("affinity", [True, False])
def test_prompts_that_begin_alike_meet_at_the_decode_that_has_them_cached(affinity):
    facts = STREAM.facts.__class__(characters=100, prefixes=(12345,))
    call = STREAM.__class__(ttft_seconds=DEADLINE, facts=facts)
    world = dispatch(combined("a", decode=4), settings=DispatchSettings(has_affinity=affinity))
    first = Story(world, call=call).asked
    assert (Story(world, call=call).asked == first) == affinity


@pytest.mark.parametrize(
    ("one", "is_usable"),
    [
        pytest.param(group("a"), True, id="a prefill and a decode"),
        pytest.param(group("a", prefill=0), False, id="no prefill"),
        pytest.param(combined("a"), True, id="a decode that does both"),
        pytest.param(combined("a", decode=0), False, id="nobody"),
    ],
)
def test_a_group_is_usable_with_all_that_a_request_needs(one, is_usable):
    routes = Routes(service="chat", model="m", groups=(one,))
    assert bool(usable_groups(routes)) is is_usable
