"""Rank tables, routes and revisions: what pods are told of each other, and what makes a pod another pod."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from tests.unit.planning.seen import (
    DEFAULTS,
    NOW,
    group_pods,
    pod,
    ranks,
    revision_of,
    routes,
    service,
    spec,
)

from tidewheel.planning.groups import Group
from tidewheel.planning.names import Place, gateway_name, group_ordinal, member_name, place_of
from tidewheel.planning.pdservice import plan_service
from tidewheel.planning.ranks import rank_table
from tidewheel.planning.revision import gateway_revision
from tidewheel.planning.routes import routes_to, time_to_leave

SETTLE = timedelta(seconds=2)


def group(name: str, scenario: str = "default") -> Group:
    return Group(name=name, revision="r", ordinal=0, scenario=scenario)


def table(*members, complete=True, published=False):
    return rank_table(
        service="chat", group="g", revision="r", members=members, complete=complete, published=published
    )


def test_a_rank_table_waits_until_every_member_has_an_address():
    prefill, decode = group_pods(spec())
    assert table(prefill, replace(decode, ip="")) is None
    assert table(prefill, complete=False) is None
    assert [member.name for member in table(prefill, decode).members] == [prefill.name, decode.name]


def test_once_published_the_table_follows_those_who_can_be_reached():
    prefill, _ = group_pods(spec())
    substitute = pod("decode", 0, 1, ip="", ready=False)
    found = table(prefill, substitute, complete=False, published=True)
    assert [member.name for member in found.members] == [prefill.name]


def test_ranks_stay_with_the_place_when_others_come_and_go():
    before = table(*group_pods(spec(prefill={"replicas": 2}, decode={"replicas": 2})))
    wanted = spec(prefill={"replicas": 3}, decode={"replicas": 2})
    after = table(*group_pods(wanted)[1:], published=True)
    ranks_before = {member.name[-9:]: member.rank for member in before.members}
    ranks_after = {member.name[-9:]: member.rank for member in after.members}
    assert all(ranks_after[name] == rank for name, rank in ranks_before.items() if name in ranks_after)
    assert len(set(ranks_after.values())) == len(ranks_after)


def test_a_substitute_has_its_predecessors_rank():
    first, second = pod("decode", 1), pod("decode", 1, 1)
    prefill = pod("prefill", 0)
    assert table(prefill, first).members[1].rank == table(prefill, second).members[1].rank


def test_routes_leave_out_a_group_that_could_only_decode():
    prefill, decode = group_pods(spec())
    groups = [(group("whole"), [prefill, decode]), (group("half"), [replace(prefill, ready=False), decode])]
    found = routes_to(service="chat", model="smol", groups=groups)
    assert [one.name for one in found.groups] == ["whole"]


def test_routes_name_only_ready_members():
    wanted = spec(decode={"replicas": 2})
    pods = group_pods(wanted)
    pods[2] = replace(pods[2], ready=False)
    found = routes_to(service="chat", model="smol", groups=[(group("g"), pods)])
    assert [backend.name for backend in found.groups[0].decode] == [pods[1].name]


def test_routes_name_the_scenarios_in_their_order_and_how_many_gateways_there_are():
    wanted = spec(
        gateway={"replicas": 3},
        scenarios=[
            {"name": "code", "match": {"modelAliases": ["coder"]}, "ttftDeadlineSeconds": 5},
            {"name": "all-short", "match": {"promptLength": {"max": 100}}},
        ],
    )
    seen = service(wanted, *group_pods(wanted))
    found = plan_service(seen, now=NOW, defaults=DEFAULTS).children.routes
    assert [(one.name, one.ttft_deadline_seconds, one.groups) for one in found.scenarios] == [
        ("code", 5, None),
        ("all-short", None, None),
    ]
    assert found.gateways == 3
    assert found.scenarios[1].match.prompt_length.max == 100


ONE = pod("decode", 0)


@pytest.mark.parametrize(
    ("leaving", "in_routes", "in_ranks", "age", "want"),
    [
        pytest.param(ONE, True, False, 60, None, id="not while gateways may send to it"),
        pytest.param(ONE, False, True, 60, None, id="not while peers know it"),
        pytest.param(
            ONE, False, False, 0.5, timedelta(seconds=1.5), id="not before gateways have read the routes"
        ),
        pytest.param(ONE, False, False, 2, timedelta(0), id="then it goes"),
        pytest.param(
            replace(ONE, ready=False), False, False, 0, timedelta(0), id="nobody waits for a dead pod"
        ),
        pytest.param(replace(ONE, ready=False), True, False, 60, None, id="but it leaves the routes first"),
        pytest.param(replace(ONE, ready=False), False, True, 60, None, id="and the rank table"),
    ],
)
def test_map_first_then_delete(leaving, in_routes, in_ranks, age, want):
    found = time_to_leave(
        leaving,
        routes=routes(*[leaving] * in_routes, age=age),
        ranks=ranks(*[leaving] * in_ranks),
        now=NOW,
        settle=SETTLE,
    )
    assert found == want


BASE = spec()


@pytest.mark.parametrize(
    "changes",
    [
        {"groups": 7},
        {"prefill": {"replicas": 3}},
        {"suspend": True},
        {"drainSeconds": 99},
        {"rollout": {"maxSurgeGroups": 4}},
        {"gateway": {"replicas": 3, "maxBodyBytes": 2048}},
    ],
    ids=str,
)
def test_numbers_and_gateways_do_not_make_groups_anew(changes):
    assert revision_of(spec(**changes)) == revision_of(BASE)


@pytest.mark.parametrize(
    "changes",
    [
        {"image": "other"},
        {"prefill": {"slots": 5}},
        {"decode": {"accelerator": "nvidia"}},
        {"decode": {"resources": {"limits": {"memory": "1Gi"}}}},
        {"prefill": {"template": {"spec": {"priorityClassName": "high"}}}},
        {"model": {"name": "smol", "source": {"package": {"name": "other"}}}},
    ],
    ids=str,
)
def test_what_shapes_a_pod_makes_a_group_anew(changes):
    assert revision_of(spec(**changes)) != revision_of(BASE)


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"gateway": {"replicas": 3}}, True),
        ({"gateway": {"service": {"port": 8080}}}, True),
        ({"decode": {"slots": 5}}, True),
        ({"gateway": {"maxBodyBytes": 2048}}, False),
        ({"gateway": {"forwarding": {"order": "FillFirst"}}}, False),
        ({"scenarios": [{"name": "code", "match": {"modelAliases": ["coder"]}}]}, True),
        ({"image": "other"}, False),
    ],
    ids=str,
)
def test_gateways_have_a_revision_of_their_own(changes, same):
    before, after = (gateway_revision(one, image=DEFAULTS.image) for one in (BASE, spec(**changes)))
    assert (before == after) is same


def test_the_longest_names_fit_in_a_host_name():
    service = "s" * 36
    group = f"{service}-abcde-511"
    assert len(member_name(group, "prefill", Place(63, 99))) <= 63
    assert len(gateway_name(service, "abcde", Place(63, 99))) <= 63
    assert group_ordinal(group) == 511


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("chat-abcde-0-decode-3", Place(3)),
        ("chat-abcde-0-decode-3-12", Place(3, 12)),
        ("chat-abcde-0-decode-x", None),
        ("chat-abcde-0-prefill-3", None),
        ("my-decode-3", None),
    ],
)
def test_a_place_is_read_from_a_name_only_if_we_gave_it(name, want):
    assert place_of(name, service="chat", group="chat-abcde-0", role="decode", revision="abcde") == want
