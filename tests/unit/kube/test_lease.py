"""The election: what a candidate may do when, and that two never lead at a time, whatever happens."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.controllers.virtual_time import run
from tests.unit.kube.fake_leases import FakeLeases

from tidewheel.kube.errors import Forbidden
from tidewheel.kube.lease import Election, Elector, LeaseLost, LeaseTimes, Wait, Write

NOW = datetime(2026, 1, 1, tzinfo=UTC)
TIMES = LeaseTimes(duration=15, renew_deadline=10, retry=2)


def lease(holder: str = "", *, version: str = "1", transitions: int = 0, duration: int = 15) -> dict:
    return {
        "metadata": {"name": "l", "namespace": "ns", "resourceVersion": version},
        "spec": {"holderIdentity": holder, "leaseDurationSeconds": duration, "leaseTransitions": transitions},
    }


def election_that_saw(seen: dict | None, at: float = 0.0) -> Election:
    election = Election("me", TIMES)
    election.saw(seen, at)
    return election


@pytest.mark.parametrize(
    ("seen", "at", "want"),
    [
        pytest.param(None, 0.0, Write, id="no lease: create it"),
        pytest.param(lease(""), 0.0, Write, id="given back: take it"),
        pytest.param(lease("me"), 0.0, Write, id="ours from before a restart: take it up"),
        pytest.param(lease("other"), 0.0, Wait, id="another's: wait"),
        pytest.param(lease("other"), 14.9, Wait, id="another's, not yet run out: wait"),
        pytest.param(lease("other"), 15.0, Write, id="another's, run out by our clock: take it"),
        pytest.param(lease("other", duration=60), 15.0, Wait, id="what the holder promised counts"),
    ],
)
def test_when_a_candidate_may_take_the_lease(seen, at, want):
    assert isinstance(election_that_saw(seen).decide(at, NOW), want)


def test_a_lease_that_changes_is_held_however_old_its_times_are():
    election = election_that_saw(lease("other", version="1"), at=0.0)
    election.saw(lease("other", version="2"), at=14.0)
    assert election.decide(28.0, NOW) == Wait(seconds=1.0), "the wait ends exactly when the lease does"
    assert isinstance(election.decide(29.0, NOW), Write)


def test_seeing_the_same_record_again_does_not_prolong_it():
    election = election_that_saw(lease("other", version="1"), at=0.0)
    election.saw(lease("other", version="1"), at=14.0)
    assert isinstance(election.decide(15.0, NOW), Write)


def test_taking_over_counts_a_transition_and_renewing_does_not():
    election = election_that_saw(lease("other", transitions=3))
    taken = election.decide(20.0, NOW)
    assert isinstance(taken, Write)
    assert taken.spec["leaseTransitions"] == 4
    assert taken.version == "1"
    election.wrote(lease("me", version="2", transitions=4), asked_at=20.0)
    renewed = election.decide(22.0, NOW)
    assert isinstance(renewed, Write)
    assert renewed.spec["leaseTransitions"] == 4


def test_giving_it_back_empties_the_holder_and_ends_the_lead():
    election = election_that_saw(None)
    assert election.release(NOW) is None, "not ours, nothing to give"
    election.wrote(lease("me"), asked_at=0.0)
    assert election.leads
    given = election.release(NOW)
    assert given is not None
    assert given.spec["holderIdentity"] == ""
    assert given.spec["leaseTransitions"] == 0
    election.wrote(lease("", version="2"), asked_at=1.0)
    assert not election.leads


def test_a_slow_answer_counts_from_when_it_was_asked_for():
    election = election_that_saw(None)
    election.wrote(lease("me"), asked_at=5.0)
    assert not election.must_stop(14.9)
    assert election.must_stop(15.0)
    assert election.seconds_left(12.0) == 3.0


def candidate(leases: FakeLeases, name: str, **more) -> Elector:
    loop = asyncio.get_running_loop()
    return Elector(
        leases.api_of(name),
        namespace="ns",
        name="l",
        identity=name,
        times=TIMES,
        clock=loop.time,
        now=lambda: NOW,
        chance=lambda: 0.5,
        **more,
    )


def test_the_first_candidate_leads_and_the_second_takes_over_soon_after_it_gives_up():
    async def main():
        leases, told = FakeLeases(), []
        first = candidate(leases, "first", changed=told.append)
        await first.acquire()
        holding = first.start_holding()
        second = asyncio.create_task(candidate(leases, "second").acquire())
        await asyncio.sleep(100)
        assert not second.done()
        holding.cancel()
        await asyncio.gather(holding, return_exceptions=True)
        await first.release()
        gave_up = asyncio.get_running_loop().time()
        await second
        assert asyncio.get_running_loop().time() - gave_up <= 2.5
        assert leases.spec["holderIdentity"] == "second"
        assert told == [True, False]

    run(main())


def test_when_the_leader_dies_the_second_takes_over_within_twenty_seconds():
    async def main():
        leases = FakeLeases()
        first = candidate(leases, "first")
        await first.acquire()
        holding = first.start_holding()
        second = asyncio.create_task(candidate(leases, "second").acquire())
        await asyncio.sleep(50.9)
        leases.cut_off("first")
        holding.cancel()
        died = asyncio.get_running_loop().time()
        await second
        assert asyncio.get_running_loop().time() - died <= 20

    run(main())


def test_a_leader_that_cannot_renew_stops_before_its_lease_runs_out():
    async def main():
        loop = asyncio.get_running_loop()
        leases = FakeLeases()
        first = candidate(leases, "first")
        await first.acquire()
        holding = first.start_holding()
        await asyncio.sleep(31)
        leases.cut_off("first")
        cut = loop.time()
        with pytest.raises(LeaseLost, match="not renewed"):
            await holding
        assert loop.time() - cut < TIMES.duration - 2

    run(main())


def test_a_leader_whose_renewals_fail_for_a_while_goes_on():
    async def main():
        leases = FakeLeases()
        first = candidate(leases, "first")
        await first.acquire()
        holding = first.start_holding()
        leases.cut_off("first")
        await asyncio.sleep(7)
        leases.restore("first")
        await asyncio.sleep(60)
        assert not holding.done()
        holding.cancel()

    run(main())


def test_a_leader_that_finds_another_in_the_lease_stops_at_once():
    async def main():
        leases = FakeLeases()
        first = candidate(leases, "first")
        await first.acquire()
        holding = first.start_holding()
        leases.write({**leases.spec, "holderIdentity": "thief"})
        with pytest.raises(LeaseLost, match="thief"):
            await holding

    run(main())


def test_a_lease_that_someone_deleted_is_made_anew():
    async def main():
        leases = FakeLeases()
        first = candidate(leases, "first")
        await first.acquire()
        holding = first.start_holding()
        leases.delete()
        await asyncio.sleep(5)
        assert leases.spec["holderIdentity"] == "first"
        assert not holding.done()
        holding.cancel()

    run(main())


def test_without_the_right_to_leases_it_says_what_to_grant_and_goes_on_asking(caplog):
    async def main():
        leases = FakeLeases()
        leases.refuse("first", Forbidden("leases is forbidden", status=403))
        acquiring = asyncio.create_task(candidate(leases, "first").acquire())
        await asyncio.sleep(10)
        assert "get, create and update on leases in ns" in caplog.text
        leases.restore("first")
        await acquiring

    run(main())


NAMES = ("a", "b", "c")
disturbances = st.lists(
    st.tuples(
        st.sampled_from(("cut_off", "restore", "give_up")), st.sampled_from(NAMES), st.floats(0.1, 30.0)
    ),
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(disturbances=disturbances)
def test_at_no_moment_do_two_lead_and_in_the_end_one_does(disturbances):
    async def replica(leases: FakeLeases, name: str, leading: set[str]) -> None:
        def changed(leads: bool) -> None:
            if leads:
                leading.add(name)
                assert leading == {name}, "two lead"
            else:
                leading.discard(name)

        while True:
            elector = candidate(leases, name, changed=changed)
            await elector.acquire()
            try:
                await elector.hold()
            except LeaseLost:
                continue
            except asyncio.CancelledError:
                await elector.release()
                raise

    async def main():
        leases, leading = FakeLeases(), set()
        replicas = {name: asyncio.create_task(replica(leases, name, leading)) for name in NAMES}
        for what, name, seconds in disturbances:
            match what:
                case "cut_off":
                    leases.cut_off(name)
                case "restore":
                    leases.restore(name)
                case "give_up":
                    replicas[name].cancel()
                    await asyncio.gather(replicas[name], return_exceptions=True)
                    replicas[name] = asyncio.create_task(replica(leases, name, leading))
            await asyncio.sleep(seconds)
        for name in NAMES:
            leases.restore(name)
        await asyncio.sleep(60)
        assert len(leading) == 1
        for task in replicas.values():
            assert not task.done() or task.exception() is None
            task.cancel()

    run(main())
