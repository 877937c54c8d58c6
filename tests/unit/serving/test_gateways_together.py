"""Many requests at once, at one gateway or several, in virtual time: who is served, who is turned away, what it costs."""

from __future__ import annotations

from collections import Counter

import pytest
from tests.unit.serving.fleet import Fleet

from tidewheel_workers.serving.dispatch import DispatchSettings
from tidewheel_workers.serving.prompt_facts import PromptFacts

SECONDS = 10.0


def played(load: float, *, seconds: float = SECONDS, **world) -> Fleet:
    """A fleet that was offered so many times what its prefills compute."""
    fleet = Fleet(**world)
    fleet.offer(load * fleet.capacity, seconds)
    fleet.run()
    assert all(request.ended is not None for request in fleet.requests)
    return fleet


def shares(fleet: Fleet, since: float = SECONDS) -> list[float]:
    """What each gateway got of the prefills, 1 being its share."""
    counts = Counter(request.gateway for request in fleet.in_time(since))
    return [counts[gateway] * fleet.gateways / counts.total() for gateway in range(fleet.gateways)]


@pytest.mark.parametrize("gateways", [1, 2, 8])
@pytest.mark.parametrize("load", [0.5, 1.5, 5.0])
def test_what_capacity_allows_is_served_in_time_and_the_others_are_told_before_their_time_is_over(
    load, gateways
):
    fleet = played(load, gateways=gateways)
    allowed = min(len(fleet.requests), fleet.capacity * SECONDS)
    in_time = fleet.in_time()
    assert len(in_time) >= 0.99 * allowed
    assert len(in_time) >= 0.99 * (len(in_time) + len(fleet.late))
    shed = [request for request in fleet.requests if request.error]
    on_the_wire = 3 * fleet.delay_seconds
    assert all(request.ended - request.arrived <= fleet.ttft_seconds + on_the_wire for request in shed)
    if load < 1:
        assert not shed


@pytest.mark.parametrize(("gateways", "per_served"), [(1, 0.15), (2, 0.75), (4, 1.25), (8, 2.0)])
def test_refusals_follow_the_gateways_and_the_slots_and_not_the_load(gateways, per_served):
    refused = [
        fleet.refused.total() / len(fleet.in_time())
        for fleet in (played(load, gateways=gateways) for load in (1.5, 4.0, 8.0))
    ]
    assert max(refused) < per_served
    assert refused[2] < 1.5 * refused[0] + 0.05


def test_without_hints_from_the_prefills_refusals_are_as_few():
    fleet = played(5.0, gateways=4, with_hints=False)
    assert fleet.refused.total() < 1.25 * len(fleet.in_time())
    assert len(fleet.in_time()) >= 0.99 * fleet.capacity * SECONDS


@pytest.mark.parametrize("gateways", [2, 8])
def test_gateways_get_about_the_same_when_there_is_not_enough_for_all(gateways):
    got = shares(played(2.0, seconds=4 * SECONDS, gateways=gateways))
    assert min(got) > 0.4
    assert sum(got) ** 2 / (gateways * sum(share * share for share in got)) > 0.9  # Jain's index; 1 is equal


def test_a_gateway_that_comes_late_gets_its_share_too():
    fleet = Fleet(gateways=2)
    fleet.offer(2 * fleet.capacity, SECONDS / 2, of=0)
    fleet.run(until=SECONDS / 2)
    fleet.offer(2 * fleet.capacity, 2 * SECONDS, of=1)
    fleet.offer(2 * fleet.capacity, 2 * SECONDS, of=0)
    fleet.run()
    assert min(shares(fleet, since=SECONDS)) > 0.6


def test_a_gateway_alone_under_load_may_use_all_slots_although_there_are_others():
    fleet = Fleet(gateways=4)
    fleet.offer(3 * fleet.capacity, SECONDS, of=0)
    fleet.run()
    assert len(fleet.in_time()) >= 0.99 * fleet.capacity * SECONDS


def test_no_more_requests_wait_than_may():
    fleet = played(10.0, settings=DispatchSettings(most_waiting=10))
    assert fleet.longest_line == 10
    errors = Counter(request.error for request in fleet.requests)
    assert errors["too_many_waiting"] > 0
    assert len(fleet.in_time()) >= 0.99 * fleet.capacity * SECONDS


def test_a_line_is_as_long_as_what_can_be_served_in_time():
    fleet = played(5.0)
    assert fleet.longest_line < 2 * fleet.capacity * fleet.ttft_seconds
    shed = Counter(request.error for request in fleet.requests if request.error)
    assert shed["deadline_out_of_reach"] > 0.9 * shed.total()
    at_once = sum(request.ended == request.arrived for request in fleet.requests if request.error)
    assert at_once > 0.8 * shed.total()


def test_servers_that_got_slow_are_believed_and_servers_that_got_fast_again_too():
    fleet = Fleet()
    for slowness in (1, 6, 1):
        fleet.prompt_seconds = 0.1 * slowness
        fleet.offer(30, SECONDS)
        fleet.run(until=fleet.now + SECONDS)
    fleet.run()
    begun = [request for request in fleet.requests if request.arrived > 2.5 * SECONDS]
    assert all(request in fleet.in_time() for request in begun)
    slow = fleet.in_time(SECONDS, 2 * SECONDS)
    assert len(slow) > 0.8 * SECONDS * fleet.prefills / 0.6
    assert len(fleet.late) < 0.05 * len(fleet.in_time())


def test_prompts_that_begin_alike_meet_at_one_prefill_until_it_has_its_share():
    fleet = Fleet(prefills=4)
    for prefix in range(8):
        fleet.offer(2.0, SECONDS, facts=PromptFacts(characters=400, prefixes=(prefix,)))
    fleet.run()
    spread = [
        Counter(
            request.prefilled_by
            for request in fleet.requests
            if request.forwarding.call.facts.prefixes == (prefix,)
        )
        for prefix in range(8)
    ]
    assert sum(max(places.values()) for places in spread) > 0.75 * len(fleet.requests)

    hot = Fleet(prefills=4)
    hot.offer(0.9 * hot.capacity, SECONDS, facts=PromptFacts(characters=400, prefixes=(1,)))
    hot.run()
    assert len(hot.in_time()) == len(hot.requests)
    assert max(server.busy_seconds for server in hot.servers.values()) < 0.5 * sum(
        server.busy_seconds for server in hot.servers.values()
    )


def test_filling_first_forms_batches():
    least, full = [], []
    for fill_first in (False, True):
        fleet = played(0.4, settings=DispatchSettings(fill_first=fill_first))
        assert len(fleet.in_time()) == len(fleet.requests)
        busy = [server.busy_seconds for server in fleet.servers.values()]
        least.append(min(busy) / sum(busy))
        full.append(sum(server.most_used == fleet.slots for server in fleet.servers.values()))
    assert least[0] > 0.2  # spread, each of the four has its quarter
    assert least[1] < 0.15
    assert full[1] > full[0]


@pytest.mark.parametrize("fill_first", [False, True])
def test_one_after_the_other_is_asked_until_it_is_full(fill_first):
    fleet = Fleet(prefills=2, slots=3, settings=DispatchSettings(fill_first=fill_first))
    for _ in range(4):
        fleet.arrive(at=0.0)
    fleet.run()
    used = sorted(server.most_used for server in fleet.servers.values())
    assert used == ([1, 3] if fill_first else [2, 2])
