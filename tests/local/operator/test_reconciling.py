"""What the operator core does with objects: it brings them to their plan, keeps them there, and then is quiet."""

from __future__ import annotations

import asyncio

import pytest
from tests.local.operator.conftest import World, names, operating, page
from tests.local.operator.fleets import FLEETS, fleet

from tidewheel.api.manifest import CONFIG_MAPS, EVENTS, LEASES, NAMESPACES, PODS, SERVICES
from tidewheel.api.meta import ANNOTATION_APPLIED
from tidewheel.controllers.operator import Operator


async def test_an_object_gets_its_children_its_status_and_an_event(world: World):
    async with operating(world):
        await world.api.create(FLEETS, fleet("f", size=3))
        seen = await world.until_ready("f", size=3)
        assert await world.pods() == ["f-0", "f-1", "f-2"]
        assert (await world.api.get(CONFIG_MAPS, "f-map", "default"))["data"] == {"colour": "red"}
        assert not seen["metadata"].get("finalizers"), "kopf wrote nothing"
        assert not seen["metadata"].get("annotations"), "kopf wrote nothing"

        async def told():
            return [
                event
                for event in (await world.api.list(EVENTS, "default")).items
                if event["note"] == "3 pods"
            ]

        (event,) = await world.until(told)
        assert event["regarding"]["uid"] == seen["metadata"]["uid"]


async def test_a_settled_object_causes_no_write_at_any_resync(world: World):
    async with operating(world, resync_seconds=1) as operator:
        await world.api.create(FLEETS, fleet("f"))
        await world.until_ready("f", size=2)
        await world.until_quiet()
        world.requests.clear()
        await resynced(world, operator)
        assert world.writes() == []


async def resynced(world: World, operator: Operator) -> None:
    """Until everything was looked at twice more."""
    reconciles = operator.metrics.reconciles.labels("fleet", "success")._value
    before = reconciles.get()

    async def twice():
        return reconciles.get() >= before + 2

    await world.until(twice)


async def test_a_changed_spec_changes_the_children_and_only_those_that_differ(world: World):
    async with operating(world):
        await world.api.create(FLEETS, fleet("f", size=3))
        await world.until_ready("f", size=3)
        await world.until_quiet()
        kept = await world.api.get(PODS, "f-0", "default")
        world.requests.clear()
        await world.api.patch(FLEETS, "f", {"spec": {"size": 2}}, "default")
        await world.until_ready("f", size=2)
        await world.until_quiet()
        assert await world.pods() == ["f-0", "f-1"]
        assert (await world.api.get(PODS, "f-0", "default"))["metadata"] == kept["metadata"]
        assert sorted(
            (write.method, write.path.split("?")[0].rpartition("/")[2]) for write in world.writes()
        ) == [
            ("DELETE", "f-2"),
            ("PATCH", "status"),  # the generation was seen
            ("PATCH", "status"),  # there are two pods
            ("POST", "events"),
        ]


async def test_what_was_done_is_told_though_someone_changes_the_object_meanwhile(world: World):
    relabelled = []

    async def relabel_first(request):
        if request.path.endswith("/fleets/f/status") and not relabelled:
            relabelled.append(
                await world.api.patch(FLEETS, "f", {"metadata": {"labels": {"a": "b"}}}, "default")
            )

    world.disturb = relabel_first
    async with operating(world):
        await world.api.create(FLEETS, fleet("f"))
        await world.until_ready("f", size=2)

        async def told():
            notes = [event["note"] for event in (await world.api.list(EVENTS, "default")).items]
            return relabelled and "f-0, f-1 created" in notes

        await world.until(told)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"data": {"colour": "blue"}}, id="a value"),
        pytest.param({"metadata": {"labels": {"colour": "blue"}}}, id="a label"),
        pytest.param(
            {"metadata": {"labels": {"tidewheel.dev/service": None}}}, id="the label we watch it by"
        ),
        pytest.param(
            {"metadata": {"annotations": {ANNOTATION_APPLIED: None}}}, id="the mark of our last apply"
        ),
    ],
)
async def test_what_someone_else_changes_in_a_child_is_repaired(world: World, change):
    async with operating(world):
        await world.api.create(FLEETS, fleet("f"))
        await world.until_ready("f", size=2)
        await world.until_quiet()
        before = await world.api.get(CONFIG_MAPS, "f-map", "default")
        await world.api.patch(CONFIG_MAPS, "f-map", change, "default")

        async def repaired():
            now = await world.api.get(CONFIG_MAPS, "f-map", "default")
            return all(
                now[part].get(key) == before[part].get(key)
                for part, key in (("metadata", "labels"), ("metadata", "annotations"), ("data", "colour"))
            )

        await world.until(repaired)
        await world.until_quiet()


async def test_what_someone_else_adds_to_a_child_stays(world: World):
    async with operating(world, resync_seconds=1) as operator:
        await world.api.create(FLEETS, fleet("f"))
        await world.until_ready("f", size=2)
        await world.until_quiet()
        world.requests.clear()
        await world.api.patch(CONFIG_MAPS, "f-map", {"data": {"theirs": "x"}}, "default")

        async def seen():
            known = operator.cache.get(CONFIG_MAPS, "default", "f-map")
            return known is not None and "theirs" in known["data"]

        await world.until(seen)
        await resynced(world, operator)
        assert (await world.api.get(CONFIG_MAPS, "f-map", "default"))["data"] == {
            "colour": "red",
            "theirs": "x",
        }
        assert world.writes() == []


async def test_a_deleted_child_comes_back(world: World):
    async with operating(world):
        await world.api.create(FLEETS, fleet("f"))
        await world.until_ready("f", size=2)
        first = (await world.api.get(PODS, "f-1", "default"))["metadata"]["uid"]
        await world.api.delete(PODS, "f-1", "default", grace_seconds=0)

        async def back():
            return (await world.api.get(PODS, "f-1", "default"))["metadata"]["uid"] != first

        await world.until(back)


async def test_an_object_of_a_childs_name_that_is_not_ours_is_never_touched(world: World):
    foreign = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "f-map", "namespace": "default"},
        "data": {"theirs": "x"},
    }
    await world.api.create(CONFIG_MAPS, foreign)
    before = await world.api.get(CONFIG_MAPS, "f-map", "default")
    async with operating(world):
        await world.api.create(FLEETS, fleet("f"))

        async def refused():
            status = (await world.fleet("f")).get("status", {})
            return status.get("refusals") == ["ConfigMap f-map: NameTaken"] and status["pods"] == 2

        await world.until(refused)
        await world.until_quiet()
        assert await world.api.get(CONFIG_MAPS, "f-map", "default") == before
        await world.api.delete(CONFIG_MAPS, "f-map", "default")
        await world.until_ready("f", size=2)
        assert (await world.api.get(CONFIG_MAPS, "f-map", "default"))["data"] == {"colour": "red"}


async def test_a_refused_child_goes_back_to_the_planner_and_is_not_sent_again_and_again(world: World):
    async def quota(request):
        if request.method != "POST" or not request.path.endswith("/pods"):
            return None
        if (await request.json())["metadata"]["name"] != "f-1":
            return None
        attempts.append(request.path)
        return 403

    attempts: list[str] = []

    world.disturb = quota
    async with operating(world):
        await world.api.create(FLEETS, fleet("f"))

        async def refused():
            return (await world.fleet("f")).get("status", {}).get("refusals") == ["Pod f-1: Forbidden"]

        await world.until(refused)
        await world.until_quiet()
        assert len(attempts) == 1
        world.disturb = None
        await world.until_ready("f", size=2)


async def test_deleting_an_object_leaves_nothing_behind(world: World):
    async with operating(world):
        await world.api.create(FLEETS, fleet("f"))
        await world.until_ready("f", size=2)
        await world.api.delete(FLEETS, "f", "default")

        async def nothing_left():
            return not await world.pods("f") and "f-map" not in await names(world, CONFIG_MAPS)

        await world.until(nothing_left)


async def test_an_object_deleted_and_made_anew_gets_children_of_its_own(world: World):
    async with operating(world):
        await world.api.create(FLEETS, fleet("f"))
        first = await world.until_ready("f", size=2)
        await world.api.delete(FLEETS, "f", "default")
        await world.api.create(FLEETS, fleet("f"))

        async def owned_by_the_second():
            pods = (await world.api.list(PODS, "default", label_selector="tidewheel.dev/service=f")).items
            owners = {pod["metadata"]["ownerReferences"][0]["uid"] for pod in pods}
            return len(pods) == 2 and owners and first["metadata"]["uid"] not in owners

        await world.until(owned_by_the_second)


async def test_only_the_namespaces_asked_for_are_served(world: World):
    for name in ("one", "two", "three"):
        await world.api.create(
            NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
        )
    async with operating(world, namespaces=("one", "two")):
        for name in ("one", "two", "three"):
            await world.api.create(FLEETS, fleet("f", namespace=name))

        async def served():
            return {pod["metadata"]["namespace"] for pod in (await world.api.list(PODS)).items} == {
                "one",
                "two",
            }

        await world.until(served)
        await world.until_quiet()
        assert await served()


async def test_the_probes_and_the_metrics_tell_the_truth(world: World):
    async with operating(world) as operator:
        await world.api.create(FLEETS, fleet("f"))
        await world.until_ready("f", size=2)
        status, text = await page(operator.health.health_address, "/readyz")
        assert (status, "[+]caches ok" in text) == (200, True)
        status, text = await page(operator.health.health_address, "/healthz")
        assert (status, "[+]watches ok" in text) == (200, True)
        _, text = await page(operator.health.metrics_address, "/metrics")
        for line in (
            'controller_runtime_reconcile_total{controller="fleet",result="success"}',
            'workqueue_depth{name="fleet"} 0.0',
            'leader_election_master_status{name="tidewheel-operator"} 1.0',
            'rest_client_requests_total{code="201",method="PATCH"}',
            'tidewheel_cached_objects{kind="Pod"} 2.0',
        ):
            assert line in text


async def test_before_its_crd_is_there_it_is_alive_but_not_ready_and_says_why(world: World):
    from tests.local.operator.fleets import FLEET_CRD

    from tidewheel.api.manifest import CRDS
    from tidewheel.controllers.operator import run_operator
    from tidewheel.controllers.settings import Address, OperatorSettings

    await world.api.delete(CRDS, FLEET_CRD["metadata"]["name"])
    stop, operators = asyncio.Event(), []
    from tests.local.operator.fleets import FleetController

    running = asyncio.create_task(
        run_operator(
            OperatorSettings(kubeconfig=world.kubeconfig, health_address=Address(host="127.0.8.1")),
            stop=stop,
            controllers=(FleetController(),),
            started=operators.append,
        )
    )

    async def says_why():
        if not operators:
            return False
        status, text = await page(operators[0].health.health_address, "/readyz")
        return status == 503 and "fleets.test.tidewheel.dev is not served" in text

    await world.until(says_why)
    assert (await page(operators[0].health.health_address, "/healthz"))[0] == 200
    await world.api.create(CRDS, FLEET_CRD)

    async def ready():
        return (await page(operators[0].health.health_address, "/readyz"))[0] == 200

    await world.until(ready)
    stop.set()
    await running


async def test_a_wanted_end_gives_the_lease_back(world: World):
    async with operating(world) as operator:

        async def leads():
            return operator.leads

        await world.until(leads)
    lease = await world.api.get(LEASES, "tidewheel-operator", "default")
    assert lease["spec"]["holderIdentity"] == ""


async def test_children_of_others_are_not_even_listed(world: World):
    await world.api.create(
        SERVICES,
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "theirs", "namespace": "default"},
            "spec": {"ports": [{"port": 80}]},
        },
    )
    async with operating(world):
        lists = [
            r.path for r in world.requests if r.agent.startswith("tidewheel-operator") and "/pods" in r.path
        ]
        assert lists
        assert all("labelSelector=tidewheel.dev/service" in path.replace("%2F", "/") for path in lists)
