"""PDServiceScalers: which of them a service follows, and what each is told."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.planning.seen import NOW
from tests.unit.planning.world import World

from tidewheel.api.manifest import PD_SERVICE_SCALERS, PD_SERVICES, PODS
from tidewheel.controllers.controller import Key
from tidewheel.controllers.feed import Feed
from tidewheel.controllers.scaler import PDServiceScalerController

CODE = {
    "name": "code",
    "match": {"modelAliases": ["coder"]},
    "groups": {"replicas": 1, "prefill": 2, "decode": 1},
}
CHAT = {"name": "short", "match": {"promptLength": {"max": 9}}}


def active(world: World, name: str) -> tuple[str, str]:
    (condition,) = world.scaler(name)["conditions"]
    return condition["status"], condition["reason"]


def scaled(**spec) -> World:
    world = World(scenarios=[CODE, CHAT])
    world.put_scaler("one", **spec)
    world.settle()
    return world


def test_a_service_follows_its_scaler():
    world = scaled(role="decode", replicas=3)
    assert active(world, "one") == ("True", "Scaled")
    assert world.service["status"]["scenarios"][0]["decode"]["summary"] == "3/3"
    assert world.service["status"]["scenarios"][1]["decode"]["summary"] == "1/1", (
        "other scenarios keep theirs"
    )
    assert "PDServiceScaler one asks for 3 decode" in world.service["status"]["scenarios"][0]["reason"]
    world.put_scaler("one", role="decode", replicas=1)
    world.settle()
    assert world.service["status"]["scenarios"][0]["decode"]["summary"] == "1/1"


def test_pods_are_spread_evenly_over_the_groups():
    world = World(groups=2)
    world.put_scaler("one", role="decode", replicas=3)
    world.settle()
    groups = [
        one["metadata"]["labels"]["tidewheel.dev/group"]
        for one in world.pods
        if one["metadata"]["labels"]["tidewheel.dev/role"] == "decode"
    ]
    assert sorted(groups.count(group) for group in set(groups)) == [1, 2]


def test_it_counts_as_an_autoscaler_does():
    world = scaled(scenario="code", role="prefill", replicas=4)
    status = world.scaler("one")
    assert (status["replicas"], status["readyReplicas"]) == (4, 4)
    assert status["selector"] == (
        "tidewheel.dev/service=chat,tidewheel.dev/role=prefill,tidewheel.dev/scenario=code"
    )
    default = scaled(role="decode").scaler("one")["selector"]
    assert default == "tidewheel.dev/service=chat,tidewheel.dev/role=decode,!tidewheel.dev/scenario"


@pytest.mark.parametrize(
    ("change", "scaler", "want"),
    [
        pytest.param({}, {"service": "other"}, ("False", "ServiceNotFound"), id="there is no such service"),
        pytest.param({}, {"scenario": "none"}, ("False", "ScenarioHasNoGroups"), id="no such scenario"),
        pytest.param({}, {"scenario": "short"}, ("False", "ScenarioHasNoGroups"), id="one without groups"),
        pytest.param(
            {"scaling": {"mode": "Auto"}}, {}, ("False", "ScaledByOperator"), id="the operator scales"
        ),
        pytest.param({"scaling": {"mode": "Advise"}}, {}, ("True", "Scaled"), id="the operator only advises"),
        pytest.param({"groups": 3}, {"replicas": 1}, ("True", "ReplicasBounded"), id="each group needs one"),
        pytest.param({}, {"replicas": 99}, ("True", "ReplicasBounded"), id="a group has no more than 64"),
        pytest.param({"model": 3}, {}, ("False", "ServiceNotFound"), id="a spec that cannot be read"),
    ],
)
def test_what_a_scaler_is_told(change, scaler, want):
    world = World(scenarios=[CODE, CHAT])
    world.change(**change)
    world.put_scaler("one", **scaler)
    assert active(world, "one") == want


def test_of_two_for_the_same_pods_the_older_is_followed():
    world = World()
    world.put_scaler("newer", replicas=5)
    world.put_scaler("older", replicas=2, created=NOW - timedelta(days=1))
    world.put_scaler("beside", role="prefill", replicas=3)
    world.settle()
    assert (active(world, "older")[0], active(world, "beside")[0]) == ("True", "True")
    assert active(world, "newer") == ("False", "ScalerConflict")
    assert world.service["status"]["decode"]["summary"] == "2/2"
    assert world.service["status"]["prefill"]["summary"] == "3/3"


def test_in_auto_mode_the_service_does_not_move():
    world = World(scaling={"mode": "Auto"})
    world.put_scaler("one", replicas=3)
    world.settle()
    assert world.service["status"]["decode"]["summary"] == "1/1"
    (told,) = world.service["status"]["scenarios"]
    assert told["reason"] == "spec.groups is 1, as no planner has decided yet"


def test_a_condition_keeps_its_time_while_its_status_stays():
    world = scaled(replicas=2)
    before = world.scaler("one")["conditions"][0]["lastTransitionTime"]
    world.now += timedelta(hours=1)
    world.put_scaler("one", replicas=70)
    told = world.scaler("one")["conditions"][0]
    assert (told["reason"], told["lastTransitionTime"]) == ("ReplicasBounded", before)
    world.change(scaling={"mode": "Auto"})
    assert world.scaler("one")["conditions"][0]["lastTransitionTime"] != before


def test_whoever_depends_on_a_change_is_looked_at():
    world = scaled(replicas=2)
    world.put_scaler("rival", replicas=1)
    told: list[tuple[str, Key]] = []
    feed = Feed(
        world.cache,
        (world.controller, PDServiceScalerController()),
        lambda kind, key: told.append((kind.kind, key)),
    )
    assert PD_SERVICE_SCALERS in feed.parents
    assert feed.selector(PD_SERVICE_SCALERS) is None

    def concerned(resource, manifest) -> set[tuple[str, str]]:
        told.clear()
        newer = int(manifest["metadata"]["resourceVersion"]) + 1000
        feed.take(
            resource,
            "MODIFIED",
            manifest | {"metadata": manifest["metadata"] | {"resourceVersion": str(newer)}},
        )
        return {(kind, key.name) for kind, key in told}

    scalers = {("PDServiceScaler", "one"), ("PDServiceScaler", "rival")}
    one = world.cache.get(PD_SERVICE_SCALERS, "ns", "one")
    assert concerned(PD_SERVICE_SCALERS, one) == scalers | {("PDService", "chat")}
    assert concerned(PD_SERVICES, world.service) == scalers | {("PDService", "chat")}
    assert concerned(PODS, world.pods[0]) == scalers | {("PDService", "chat")}


pairs = st.tuples(st.integers(1, 5), st.integers(1, 5))


@settings(max_examples=40, deadline=None)
@given(
    groups=st.integers(1, 2),
    asked=st.lists(pairs, min_size=1, max_size=3),
    percent=st.sampled_from([0, 50]),
    data=st.data(),
)
def test_in_whatever_order_pods_come_a_scaled_ratio_keeps_to_its_bound(groups, asked, percent, data):
    """The world checks it each time the routes change."""
    world = World(groups=groups, rollout={"maxSkewPercent": percent})
    world.settle()
    for prefill, decode in asked:
        for role, replicas in (("prefill", prefill), ("decode", decode)):
            world.put_scaler(f"scale-{role}", role=role, replicas=groups * replicas)
        world.reconcile()
        while waiting := [name for name in world.names("Pod") if not world.is_ready(name)]:
            name = data.draw(st.sampled_from(waiting))
            world.run_pod(name)
            world.reconcile()
            world.run_pod(name)
            world.reconcile()
            world.now += timedelta(seconds=3)
    world.settle()
    status = world.service["status"]
    assert status["prefill"]["summary"] == f"{groups * prefill}/{groups * prefill}"
    assert status["decode"]["summary"] == f"{groups * decode}/{groups * decode}"
