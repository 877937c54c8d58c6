"""What a gateway believes of a backend after what it saw there."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidewheel.api.ranktable import Backend
from tidewheel_workers.serving.ledger import (
    AWAY_SECONDS,
    MOST_AWAY_SECONDS,
    MOST_SETTLE_SECONDS,
    SUSPECT_SECONDS,
    Hold,
    Ledger,
)

P = Backend(name="p", address="127.0.0.1")
LATER = MOST_SETTLE_SECONDS


def ledger(*, gateways: int = 1, jitter: float = 0.5) -> Ledger:
    one = Ledger(lambda: jitter)
    one.gateways = gateways
    return one


def holding(one: Ledger, count: int, at: float = 0.0) -> list[Hold]:
    """So many requests that the backend works on."""
    holds = [one.ask(P, at) for _ in range(count)]
    for hold in holds:
        one.took(hold, at)
    return holds


def opens(one: Ledger, at: float, name: str = "p") -> float:
    """When it may be asked: now, or later."""
    return max(at, one.look(name, at).opens_at)


def refuse(one: Ledger, at: float, **said) -> None:
    one.refused(one.ask(P, at), "busy", at, **said)


def test_what_never_refused_may_be_asked_for_as_much_as_one_likes():
    one = ledger()
    holding(one, 100)
    assert one.look("p", 0.0).has_room
    assert opens(one, 0.0) == 0.0
    assert opens(one, 3.0, "unknown") == 3.0


def test_after_a_refusal_it_is_left_alone_until_a_slot_comes_back():
    one = ledger()
    holds = holding(one, 4)
    refuse(one, 1.0)
    assert not one.look("p", 1.0).has_room
    assert opens(one, 1.0) > 1.0
    one.gave_back(holds[0], 1.001)
    assert one.look("p", 1.001).has_room
    assert opens(one, 1.001) == 1.001
    one.ask(P, 1.001)
    assert not one.look("p", 1.001).has_room


def test_those_that_were_not_refused_in_time_count_as_taken():
    one = ledger()
    unanswered = one.ask(P, 0.0)
    refuse(one, LATER)
    one.gave_back(unanswered, LATER)
    assert one.look("p", LATER).has_room


def test_of_several_that_were_refused_together_the_pause_is_that_of_one():
    pauses = []
    for together in (1, 10):
        one = ledger()
        for hold in [one.ask(P, 0.0) for _ in range(together)]:
            one.refused(hold, "busy", 0.002)
        pauses.append(opens(one, 0.002) - 0.002)
    assert pauses[0] == pauses[1]


def test_pauses_grow_with_refused_probes_up_to_a_bound():
    one, at, pauses = ledger(), 0.0, []
    for _ in range(12):
        refuse(one, at)
        pauses.append(opens(one, at) - at)
        at += pauses[-1]
    assert pauses[:4] == sorted(pauses[:4])
    assert pauses[3] > pauses[0]
    assert pauses[-1] == pauses[-2] <= 1.0


def test_a_pause_follows_the_time_in_which_slots_come_free():
    fast, slow = ledger(), ledger()
    for one, seconds in ((fast, 0.01), (slow, 1.0)):
        for hold in holding(one, 2):
            one.gave_back(hold, seconds)
        holding(one, 2, seconds)
        refuse(one, 2.0)
    assert opens(slow, 2.0) > opens(fast, 2.0)


@pytest.mark.parametrize(("jitter", "part"), [(0.0, 0.5), (1.0, 1.5)])
def test_pauses_are_spread(jitter, part):
    pauses = []
    for spread in (0.5, jitter):
        one = ledger(jitter=spread)
        refuse(one, 0.0)
        pauses.append(opens(one, 0.0))
    assert pauses[1] == pytest.approx(part * pauses[0])


def test_a_backend_that_says_when_to_come_again_is_not_probed_before():
    one = ledger()
    refuse(one, 0.0, retry_after=3.0)
    assert opens(one, 0.0) == 3.0
    hold = holding(one, 1, 0.5)[0]
    one.gave_back(hold, 0.6)
    # but a slot that one of its own requests leaves is known to be free
    assert opens(one, 0.6) == 0.6


def test_a_probe_that_is_taken_raises_the_limit_and_allows_two():
    one = ledger()
    holding(one, 2)
    refuse(one, 0.0)
    at = opens(one, 0.0)
    first = one.ask(P, at)
    assert opens(one, at) > at  # one at a time
    one.took(first, at)
    assert opens(one, at) == at
    one.ask(P, at)
    assert opens(one, at) == at
    one.ask(P, at)
    assert opens(one, at) > at


def test_a_probe_without_an_answer_counts_as_taken_after_a_while():
    one = ledger()
    refuse(one, 0.0)
    at = opens(one, 0.0)
    one.ask(P, at)
    again = opens(one, at)
    assert at < again <= at + MOST_SETTLE_SECONDS
    assert opens(one, again) == again


@pytest.mark.parametrize("cause", ["unavailable", "unreachable"])
def test_a_backend_that_is_away_is_asked_again_ever_later_and_its_free_slots_are_no_use(cause):
    one, at, pauses = ledger(), 0.0, []
    held = holding(one, 1)[0]
    for _ in range(6):
        one.refused(one.ask(P, at), cause, at)
        assert not one.look("p", at).has_room
        pauses.append(opens(one, at) - at)
        at += pauses[-1]
    assert pauses[:3] == sorted(pauses[:3])
    assert pauses[0] == AWAY_SECONDS
    assert pauses[-1] == pytest.approx(MOST_AWAY_SECONDS)
    one.refused(one.ask(P, at), cause, at)
    one.gave_back(held, at)
    assert opens(one, at) > at
    later = opens(one, at)
    one.took(one.ask(P, later), later)
    one.refused(one.ask(P, later), cause, later)
    assert opens(one, later) == later + AWAY_SECONDS  # it was back, so this is a new absence


def test_who_lost_a_request_is_suspect_for_a_while_or_until_it_takes_one():
    one = ledger()
    one.lost(one.ask(P, 0.0), 0.0)
    assert one.look("p", SUSPECT_SECONDS / 2).is_suspect
    assert not one.look("p", SUSPECT_SECONDS).is_suspect
    one.lost(one.ask(P, 10.0), 10.0)
    one.took(one.ask(P, 10.1), 10.1)
    assert not one.look("p", 10.1).is_suspect


def test_a_slot_that_is_given_back_unseen_is_free_at_its_time():
    one = ledger()
    hold = holding(one, 1)[0]
    refuse(one, 0.5)
    one.will_give_back(hold, 0.6)
    assert one.next_tick == 0.6
    assert not one.tick(0.59)
    assert one.tick(0.6)
    assert one.look("p", 0.6).has_room
    assert one.next_tick == math.inf
    one.gave_back(hold, 0.7)
    assert one.holds("p") == 0


@pytest.mark.parametrize(
    ("gateways", "is_wanted", "leaves"),
    [(1, True, False), (2, False, False), (2, True, True)],
)
def test_a_slot_is_left_to_other_gateways_now_and_then_if_there_are_any(gateways, is_wanted, leaves):
    one = ledger(gateways=gateways, jitter=0.0)  # now
    holds = holding(one, 2)
    refuse(one, 1.0)
    one.gave_back(holds[0], 2.0, is_wanted=is_wanted)
    assert one.look("p", 2.0).has_room is not leaves


def test_accounts_of_those_who_left_are_dropped_when_nobody_is_there():
    one = ledger()
    held = holding(one, 1)[0]
    refuse(one, 0.0)
    one.forget_all_but(frozenset())
    assert not one.look("p", 0.0).has_room
    one.gave_back(held, 0.0)
    one.forget_all_but(frozenset())
    one.gave_back(held, 0.0)
    assert opens(one, 0.0) == 0.0


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["ask", "took", "refused", "away", "gave_back", "lost", "withdraw", "expect", "tick"]
        ),
        st.integers(0, 7),
        st.floats(0, 0.3),
    ),
    max_size=80,
)


@given(steps=STEPS, gateways=st.integers(1, 2))
def test_holds_are_those_that_are_open_whatever_happens_and_however_often(steps, gateways):
    one, at = ledger(gateways=gateways), 0.0
    holds: list[Hold] = []
    for step, which, passes in steps:
        at += passes
        if step == "ask":
            holds.append(one.ask(P, at))
        elif step == "tick":
            one.tick(at)
        elif holds:
            hold = holds[which % len(holds)]
            match step:
                case "took":
                    one.took(hold, at)
                case "refused":
                    one.refused(hold, "busy", at)
                case "away":
                    one.refused(hold, "unreachable", at)
                case "gave_back":
                    one.gave_back(hold, at, is_wanted=True)
                case "lost":
                    one.lost(hold, at)
                case "withdraw":
                    one.withdraw(hold)
                case "expect":
                    one.will_give_back(hold, at)
        assert one.holds("p") == sum(hold.state != "over" for hold in holds)
        assert opens(one, at) >= at
        later = opens(one, at)
        assert opens(one, later) == later  # it is not put off for ever
