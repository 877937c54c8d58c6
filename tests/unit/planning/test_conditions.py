"""What a PDService says of itself: conditions, Events and recorded decisions, as a user reads them."""

from __future__ import annotations

from datetime import timedelta

import pytest
from tests.unit.planning.seen import DEFAULTS, NOW, gateway_pods, group_pods, service, spec
from tests.unit.planning.world import World

from tidewheel.api.status import Condition, Decision
from tidewheel.planning.conditions import refusal_reason
from tidewheel.planning.decisions import Deed, record
from tidewheel.planning.pdservice import plan_service
from tidewheel.planning.plan import Refusal
from tidewheel.planning.times import as_time


def ready(world: World) -> tuple[str, str]:
    condition = world.condition("Ready")
    return condition["status"], condition["reason"]


def settled(**changes) -> World:
    world = World(**changes)
    world.settle()
    return world


def pod_named(world: World, part: str) -> str:
    return next(name for name in world.names("Pod") if part in name)


def test_a_service_starts_and_then_serves():
    world = World()
    world.reconcile()
    assert ready(world) == ("False", "Starting")
    world.settle()
    assert ready(world) == ("True", "Serving")
    assert world.condition("Progressing")["reason"] == "Settled"
    assert world.condition("Degraded")["reason"] == "AllMembersHealthy"
    assert [reason for reason, _ in world.events] == ["Scaling", "Scaling", "Serving"]


@pytest.mark.parametrize(
    ("said", "exit_reason", "want", "words"),
    [
        pytest.param(
            '{"reason": "ModelNotFound", "message": "no distribution llm-none; install it"}',
            "Error",
            "ModelNotFound",
            "no distribution llm-none; install it",
            id="a worker's own words are lifted",
        ),
        pytest.param("", "OOMKilled", "OutOfMemory", "memory limit", id="killed for memory"),
        pytest.param("Segmentation fault", "Error", "CrashLoop", "Segmentation fault", id="other last words"),
        pytest.param(
            '{"reason": "Nonsense", "message": "hm"}', "Error", "CrashLoop", "hm", id="an unknown reason"
        ),
        pytest.param("[1, 2]", "Error", "CrashLoop", "[1, 2]", id="JSON that is no object"),
    ],
)
def test_why_a_pod_does_not_start_stands_in_ready_and_in_an_event(said, exit_reason, want, words):
    world = World()
    world.reconcile()
    name = pod_named(world, "decode")
    world.crash_pod(name, restarts=1, message=said, reason=exit_reason)
    world.reconcile()
    assert ready(world) == ("False", want)
    assert words in world.condition("Ready")["message"]
    assert name in world.condition("Ready")["message"]
    assert any(reason == want and words in message for reason, message in world.events)


def test_the_schedulers_words_are_passed_on():
    world = World()
    world.reconcile()
    blocked = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "0/3 nodes: no gpu",
    }
    world.update_pod(pod_named(world, "decode"), {"conditions": [blocked]})
    world.reconcile()
    assert ready(world) == ("False", "Unschedulable")
    assert "0/3 nodes: no gpu" in world.condition("Ready")["message"]


def test_an_image_that_cannot_be_pulled_is_named():
    world = World()
    world.reconcile()
    waiting = {"reason": "ImagePullBackOff", "message": "manifest unknown"}
    world.update_pod(
        pod_named(world, "prefill"),
        {"containerStatuses": [{"name": "worker", "state": {"waiting": waiting}}]},
    )
    world.reconcile()
    assert ready(world) == ("False", "ImageUnavailable")


def test_a_taken_node_port_is_told_although_pods_serve():
    world = settled()
    world.refuse["Service"] = (
        422,
        "spec.ports[0].nodePort: Invalid value: 30080: provided port is already allocated",
    )
    world.change(gateway={"service": {"type": "NodePort", "nodePort": 30080}})
    world.reconcile()
    world.reconcile()
    assert ready(world) == ("False", "PortTaken")
    assert world.condition("Ready")["message"].startswith("Service chat was refused: spec.ports[0].nodePort")
    assert world.condition("Progressing")["reason"] == "PortTaken", "what runs is not what was asked for"
    world.refuse.clear()
    world.settle()
    assert ready(world) == ("True", "Serving")


def test_refused_pods_are_told_and_the_way_out_is_found_when_the_refusal_ends():
    world = World()
    world.refuse["Pod"] = (403, "exceeded quota: pods")
    world.reconcile()
    world.reconcile()
    assert ready(world) == ("False", "PodRefused")
    assert "exceeded quota" in world.condition("Ready")["message"]
    world.refuse.clear()
    world.settle()
    assert ready(world) == ("True", "Serving")


@pytest.mark.parametrize(
    ("refusal", "want"),
    [
        (
            Refusal(kind="ConfigMap", name="x", status=409, reason="NameTaken", message="someone's"),
            "NameTaken",
        ),
        (
            Refusal(kind="Pod", name="x", status=422, reason="Invalid", message="port 8000 is odd"),
            "PodRefused",
        ),
        (
            Refusal(kind="Service", name="x", status=403, reason="Forbidden", message="no load balancers"),
            "PodRefused",
        ),
    ],
)
def test_a_refusal_has_its_word(refusal, want):
    assert refusal_reason(refusal) == want


def test_suspending_removes_all_pods_and_says_so():
    world = settled()
    world.change(suspend=True)
    world.settle()
    assert world.names("Pod") == []
    assert world.names("Service") == ["chat"]
    assert ready(world) == ("False", "Suspended")
    world.change(suspend=False)
    world.settle()
    assert ready(world) == ("True", "Serving")


def test_a_lost_member_is_replaced_and_the_group_serves_on():
    world = settled(decode={"replicas": 2})
    lost = pod_named(world, "decode-1")
    world.fail_pod(lost)
    world.reconcile()
    assert ready(world) == ("True", "Serving")
    assert world.condition("Degraded")["reason"] == "ReplacingMembers"
    newest = world.service["status"]["decisions"][0]
    assert newest["action"] == "ReplaceMember"
    assert lost in newest["message"]
    assert "Evicted" in newest["message"]
    world.settle()
    assert pod_named(world, "decode-1-1")
    assert lost not in world.names("Pod")
    assert world.condition("Degraded")["status"] == "False"


def test_a_member_of_an_old_group_is_replaced_by_its_like_during_a_rollout():
    world = settled(decode={"replicas": 2})
    world.change(image="registry.example/worker:2")
    world.reconcile()
    lost = next(
        one["metadata"]["name"]
        for one in world.pods
        if "decode-1" in one["metadata"]["name"] and one["spec"]["containers"][0]["image"] == DEFAULTS.image
    )
    world.fail_pod(lost)
    world.reconcile()
    substitute = next(one for one in world.pods if one["metadata"]["name"] == f"{lost}-1")
    assert substitute["spec"]["containers"][0]["image"] == DEFAULTS.image


def test_a_rollout_is_told_once_and_never_called_an_outage():
    world = settled()
    world.events.clear()
    world.change(image="registry.example/worker:2")
    world.settle()
    assert {reason for reason, _ in world.events} == {"RollingOut"}
    assert len(world.events) == 4, "a group and a gateway came, a group and a gateway went"
    assert ready(world) == ("True", "Serving")


def test_a_service_that_lost_its_last_decode_is_not_called_starting():
    world = settled()
    world.unready_pod(pod_named(world, "decode"))
    world.reconcile()
    assert ready(world) == ("False", "NoGroupReady")


def test_a_deleted_service_is_left_to_the_garbage_collector():
    wanted = spec()
    seen = service(wanted, *group_pods(wanted), deleting=True)
    intent = plan_service(seen, now=NOW, defaults=DEFAULTS)
    assert (intent.children, intent.departures, intent.status) == (None, (), None)


@pytest.mark.parametrize(
    ("wanted", "reason", "words"),
    [
        pytest.param(
            spec(decode={"accelerator": "tpu"}),
            "UnknownAccelerator",
            "spec.decode: accelerator 'tpu'",
            id="row",
        ),
        pytest.param(
            spec(decode={"resources": {"requests": {"memory": "2Gi"}, "limits": {"memory": "1G"}}}),
            "InvalidSpec",
            "exceeds its limit",
            id="limits below requests",
        ),
        pytest.param(
            spec(decode={"accelerator": "nvidia", "resources": {"limits": {"nvidia.com/gpu": 1}}}),
            "InvalidSpec",
            "devicesPerPod",
            id="devices asked for twice",
        ),
        pytest.param(
            spec(prefill={"template": {"containers": []}}),
            "InvalidSpec",
            "PodTemplateSpec has metadata",
            id="template",
        ),
        pytest.param(
            spec(prefill={"template": {"spec": {"containers": [{"image": "x"}]}}}),
            "InvalidSpec",
            "spec.prefill.template.spec.containers[0]",
            id="a container without a name",
        ),
        pytest.param(None, "InvalidSpec", "spec is missing", id="no spec at all"),
    ],
)
def test_a_spec_that_cannot_work_changes_no_pod_and_says_why(wanted, reason, words):
    good = spec()
    seen = service(wanted, *group_pods(good), *gateway_pods(good))
    intent = plan_service(seen, now=NOW, defaults=DEFAULTS)
    condition = intent.status.conditions[0]
    assert (condition.type, condition.status, condition.reason) == ("Ready", "False", reason)
    assert words in condition.message
    assert intent.children is None
    assert not intent.departures


def test_the_time_of_a_condition_moves_only_when_its_status_flips():
    world = settled()
    before = world.condition("Ready")["lastTransitionTime"]
    world.now += timedelta(hours=1)
    world.change(groups=2)
    world.settle()
    after = world.condition("Ready")
    assert after["message"].startswith("2 of 2 groups")
    assert after["lastTransitionTime"] == before
    assert after["observedGeneration"] == 2


def test_a_settled_plan_is_cheap_in_writes_and_says_nothing():
    world = settled(groups=3)
    writes, events = world.writes, len(world.events)
    world.now += timedelta(hours=1)
    assert world.reconcile() is False
    assert (world.writes, len(world.events)) == (writes, events)


def test_decisions_keep_the_last_ten_and_tell_a_deed_once():
    past: tuple[Decision, ...] = ()
    for number in range(12):
        past, events = record(past, [Deed(action="Do", reason="Because", message=f"deed {number}")], now=NOW)
        assert len(events) == 1
    assert [decision.message for decision in past] == [f"deed {number}" for number in range(11, 1, -1)]
    again, events = record(past, [Deed(action="Do", reason="Because", message="deed 11")], now=NOW)
    assert (again, events) == (past, ())
    later, events = record(
        past, [Deed(action="Do", reason="Because", message="deed 11")], now=NOW + timedelta(hours=1)
    )
    assert len(events) == 1
    assert later[0].time == as_time(NOW + timedelta(hours=1))


def test_conditions_are_always_the_same_three():
    world = World(groups=0)
    world.reconcile()
    conditions = [Condition.model_validate(one) for one in world.service["status"]["conditions"]]
    assert [one.type for one in conditions] == ["Ready", "Progressing", "Degraded"]
    assert ready(world) == ("False", "ScaledToZero")


def test_a_service_is_not_settled_while_a_group_leaves_or_is_off_the_routes():
    world = settled(groups=2)
    world.change(groups=1)
    world.reconcile()
    assert world.condition("Progressing")["status"] == "True", "the second group still finishes its requests"
    world.change(groups=2)
    while world.reconcile():
        is_complete = world.service["status"]["readyGroups"] == 2
        assert is_complete or world.condition("Progressing")["status"] == "True"
    world.settle()
    assert world.service["status"]["readyGroups"] == 2
    assert world.condition("Progressing")["reason"] == "Settled"
