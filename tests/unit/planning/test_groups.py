"""Which groups stay, go and come: rollouts, scaling, and the gateways' rolling replacement."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.planning.seen import NOW, gateway_pods, group_pods, pod, revision_of, spec

from tidewheel.planning.gateways import step_gateways
from tidewheel.planning.groups import groups_of
from tidewheel.planning.revision import gateway_revision
from tidewheel.planning.rolling import roll
from tidewheel.planning.scenarios import step_scenarios


def step(wanted, *pods, routed=None):
    """The step from these pods; the routes name every ready one unless `routed` says otherwise."""
    routed = {one.name for one in pods if one.ready} if routed is None else routed
    steps = step_scenarios(
        groups_of(pods),
        wanted,
        service="chat",
        revision=revision_of(wanted),
        routed=routed,
        records={},
        planned={},
    )
    (only,) = steps
    return only.step


def short(groups) -> list[str]:
    """`old-0` and `new-0` for groups of the old and the wanted revision."""
    return [f"{'old' if group.revision == 'aaaaa' else 'new'}-{group.ordinal}" for group in groups]


def retired(step) -> list[str]:
    return short(group for group, _ in step.retire)


def old(wanted, ordinal, **fields):
    return group_pods(wanted, ordinal, revision="aaaaa", **fields)


def test_a_new_service_gets_its_groups_at_once():
    assert short(step(spec(groups=3)).create) == ["new-0", "new-1", "new-2"]


def test_a_settled_service_is_left_alone():
    wanted = spec(groups=2)
    found = step(wanted, *group_pods(wanted, 0), *group_pods(wanted, 1))
    assert (short(found.keep), found.retire, found.create) == (["new-0", "new-1"], (), ())


def test_the_youngest_group_goes_first_when_all_serve():
    wanted = spec(groups=1)
    assert retired(step(wanted, *group_pods(wanted, 0), *group_pods(wanted, 1))) == ["new-1"]


def test_a_group_that_does_not_serve_goes_before_any_that_does():
    wanted = spec(groups=1)
    assert retired(step(wanted, *group_pods(wanted, 0, ready=False), *group_pods(wanted, 1))) == ["new-0"]


def test_a_group_that_left_the_routes_is_the_one_that_goes():
    wanted = spec(groups=1)
    first, second = group_pods(wanted, 0), group_pods(wanted, 1)
    assert retired(step(wanted, *first, *second, routed={one.name for one in second})) == ["new-0"]


def test_a_rollout_begins_with_a_surge_group_and_takes_nothing_away():
    wanted = spec(groups=2)
    found = step(wanted, *old(wanted, 0), *old(wanted, 1))
    assert (short(found.create), found.retire) == (["new-0"], ())


def test_an_old_group_goes_once_the_new_one_is_complete():
    wanted = spec(groups=2)
    found = step(wanted, *old(wanted, 0), *old(wanted, 1), *group_pods(wanted, 0))
    assert (found.create, retired(found)) == ((), ["old-1"])


def test_a_new_group_that_is_short_of_a_member_does_not_count_yet():
    wanted = spec(groups=1, decode={"replicas": 2})
    new = group_pods(wanted)
    new[2] = replace(new[2], ready=False)
    assert not step(wanted, *old(wanted, 0), *new).retire


def test_a_new_group_counts_only_once_gateways_know_of_it():
    wanted = spec(groups=1)
    before, after = old(wanted, 0), group_pods(wanted, 0)
    assert not step(wanted, *before, *after, routed={one.name for one in before}).retire
    assert retired(step(wanted, *before, *after)) == ["old-0"]


def test_without_surge_an_old_group_must_be_gone_before_the_new_one_comes():
    wanted = spec(groups=2, rollout={"maxSurgeGroups": 0, "maxUnavailableGroups": 1})
    found = step(wanted, *old(wanted, 0), *old(wanted, 1))
    assert (found.create, retired(found)) == ((), ["old-1"])
    draining = [replace(one, deleting=True) for one in old(wanted, 1)]
    assert not step(wanted, *old(wanted, 0), *draining).create, "its devices are still taken"
    assert short(step(wanted, *old(wanted, 0)).create) == ["new-0"]


def test_a_group_whose_pods_someone_deleted_is_refilled_where_it_is():
    wanted = spec(groups=1)
    found = step(wanted, *(replace(one, deleting=True) for one in group_pods(wanted)))
    assert (short(found.keep), found.create) == (["new-0"], ())


def test_a_group_that_drains_after_scaling_in_is_not_called_back():
    wanted = spec(groups=1)
    found = step(
        wanted, *group_pods(wanted, 0), *(replace(one, deleting=True) for one in group_pods(wanted, 1))
    )
    assert (short(found.keep), found.retire, found.create) == (["new-0"], (), ())


def test_suspending_retires_every_group():
    wanted = spec(groups=2, suspend=True)
    assert len(step(wanted, *group_pods(wanted, 0), *group_pods(wanted, 1)).retire) == 2


units = st.integers(0, 6)


@given(
    current=units,
    ready=units,
    old_serving=units,
    old_idle=units,
    leaving=units,
    wanted=units,
    surge=units,
    away=units,
)
def test_a_rolling_step_keeps_both_bounds(
    current, ready, old_serving, old_idle, leaving, wanted, surge, away
):
    ready = min(current, ready)
    new_units = [("new", index < ready) for index in range(current)]
    old_units = [("old", False)] * old_idle + [("old", True)] * old_serving
    found = roll(
        current=new_units,
        available=min(ready, wanted),
        old=old_units,
        leaving=leaving,
        wanted=wanted,
        max_surge=surge,
        max_unavailable=away,
    )
    before = ready + old_serving
    after = sum(serves for _, serves in found.keep)
    assert after >= min(before, max(wanted - away, 0))
    assert found.create == 0 or current + len(old_units) + leaving + found.create <= wanted + surge
    assert sum(age == "new" for age, _ in found.keep) + found.create <= max(wanted, 0)


def gateways(wanted, *pods):
    found = step_gateways(
        pods,
        wanted.gateway.replicas,
        revision=gateway_revision(wanted, image="registry.example/worker:1"),
        now=NOW,
    )
    return [str(joining.place) for joining in found.create], [one.name for one, _ in found.delete]


@pytest.mark.parametrize(
    ("new_ready", "deleted"),
    [(None, []), (False, []), (True, ["chat-gateway-00000-0"])],
    ids=["the new gateway comes first", "it must be ready", "then the old one goes"],
)
def test_a_gateway_is_replaced_without_a_gap(new_ready, deleted):
    wanted = spec()
    pods = [pod("gateway", 0, revision="00000")]
    if new_ready is not None:
        pods += gateway_pods(wanted, ready=new_ready)
    assert gateways(wanted, *pods) == ([] if new_ready is not None else ["0"], deleted)


def test_a_deleted_gateway_gets_a_successor_while_it_drains():
    wanted = spec(gateway={"replicas": 2})
    pods = [replace(one, deleting=True) for one in gateway_pods(wanted)]
    assert gateways(wanted, *pods) == (["0-1", "1-1"], [])
