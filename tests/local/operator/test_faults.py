"""What may go wrong around the operator, and that it converges all the same: nothing lost, nothing twice."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
from tests.local.operator.conftest import HOST, World, names, operating, serving
from tests.local.operator.fleets import FLEETS, fleet
from tests.ports import free_port

from tidewheel.api.manifest import CONFIG_MAPS, PODS

FLEET_NAMES = [f"f{number}" for number in range(6)]


async def settled(world: World, *, size: int) -> None:
    """Until every fleet has its pods and its map, and nothing else is there."""
    for name in FLEET_NAMES:
        await world.until_ready(name, size=size)
    pods = sorted(f"{name}-{ordinal}" for name in FLEET_NAMES for ordinal in range(size))
    maps = {f"{name}-map" for name in FLEET_NAMES}

    async def all_there():
        there = set(await names(world, CONFIG_MAPS)) - {"kube-root-ca.crt"}
        return await world.pods() == pods and there == maps

    await world.until(all_there)


@pytest.mark.parametrize(
    "status", [pytest.param(409, id="409"), pytest.param(429, id="429"), pytest.param(500, id="500")]
)
async def test_it_converges_though_a_third_of_the_answers_are_errors(world: World, status: int):
    # By chance: each third one could be the same write of each attempt.
    chance = random.Random(3)

    async def one_in_three(request):
        # The election has tests of its own, and nobody conflicts with who only reads.
        if "/leases" in request.path or (status == 409 and request.method == "GET"):
            return None
        return status if chance.random() < 1 / 3 else None

    async with operating(world):
        world.disturb = one_in_three
        for name in FLEET_NAMES:
            await world.api.create(FLEETS, fleet(name, size=3))
        await settled(world, size=3)
        for name in FLEET_NAMES:
            await world.api.patch(FLEETS, name, {"spec": {"size": 1}}, "default")
        await settled(world, size=1)


async def test_it_converges_though_its_watches_are_cut_all_the_time(world: World):
    async def cut() -> None:
        while True:
            await asyncio.sleep(0.05)
            world.server.cut_watches()

    async with operating(world):
        cutting = asyncio.create_task(cut())
        for name in FLEET_NAMES:
            await world.api.create(FLEETS, fleet(name, size=2))
        await settled(world, size=2)
        for name in FLEET_NAMES:
            await world.api.patch(FLEETS, name, {"spec": {"size": 3}}, "default")
        await settled(world, size=3)
        cutting.cancel()


async def test_what_vanished_while_history_was_lost_is_noticed(tmp_path: Path):
    """After 410 kopf lists anew and says nothing of what is gone: the cache is laid beside a list."""
    async with serving(tmp_path, history=5) as world, operating(world) as operator:
        await world.api.create(FLEETS, fleet("f", size=3))
        await world.until_ready("f", size=3)
        await world.until_quiet()

        async def no_watch(request):
            return 500 if request.query.get("watch") == "true" else None

        world.disturb = no_watch
        world.server.cut_watches()
        before = (await world.api.get(PODS, "f-1", "default"))["metadata"]["uid"]
        await world.api.delete(PODS, "f-1", "default", grace_seconds=0)
        for number in range(20):
            await world.api.patch(PODS, "f-0", {"metadata": {"annotations": {"n": str(number)}}}, "default")
        assert operator.cache.get(PODS, "default", "f-1") is not None, "it does not know yet"
        world.disturb = None

        async def back():
            return (await world.api.get(PODS, "f-1", "default"))["metadata"]["uid"] != before

        await world.until(back)
        await world.until_ready("f", size=3)


async def test_what_a_watch_never_told_is_found_at_the_next_resync(world: World):
    """The silent watch: it stays open and brings nothing."""
    async with operating(world, resync_seconds=1) as operator:
        await world.api.create(FLEETS, fleet("f", size=2))
        await world.until_ready("f", size=2)
        await world.until_quiet()
        # As if the watch had lost the DELETED event.
        ghost = operator.cache.get(PODS, "default", "f-1")
        assert ghost is not None
        operator._feed.take = lambda *_: None
        await world.api.delete(PODS, "f-1", "default", grace_seconds=0)

        async def back():
            return (await world.api.get(PODS, "f-1", "default"))["metadata"]["uid"] != ghost["metadata"][
                "uid"
            ]

        await world.until(back)


async def test_it_goes_on_when_the_api_server_is_restarted(tmp_path: Path):
    port, data = free_port(HOST), tmp_path / "data.db"
    async with serving(tmp_path, port=port, data=data) as world:
        await world.api.create(FLEETS, fleet("f", size=1))
        operation = operating(world)
        operator = await operation.__aenter__()
        await world.until_ready("f", size=1)
    # Down for a moment: connections are refused.
    await asyncio.sleep(1.0)
    async with serving(tmp_path, port=port, data=data) as world:
        await world.api.patch(FLEETS, "f", {"spec": {"size": 3}}, "default")
        await world.until_ready("f", size=3)
        assert operator.leads
        assert await world.pods() == ["f-0", "f-1", "f-2"]
        await operation.__aexit__(None, None, None)


async def test_it_believes_a_server_whose_history_went_back(tmp_path: Path):
    """A restored backup: the same objects with lower versions, and other ones."""
    port = free_port(HOST)
    async with serving(tmp_path, port=port) as world:
        for name in FLEET_NAMES:
            await world.api.create(FLEETS, fleet(name, size=1))
        operation = operating(world, resync_seconds=1)
        operator = await operation.__aenter__()
        await settled(world, size=1)
    async with serving(tmp_path, port=port) as world:
        await world.api.create(FLEETS, fleet("other", size=2))
        await world.until_ready("other", size=2)
        assert await world.pods() == ["other-0", "other-1"]

        async def forgotten():
            return list(operator.cache.names(FLEETS)) == [("default", "other")]

        await world.until(forgotten)
        await operation.__aexit__(None, None, None)


async def test_a_reconcile_that_is_cut_short_by_the_end_is_taken_up_by_the_next_operator(world: World):
    reached = asyncio.Event()

    async def stuck(request):
        if request.method == "POST" and request.path.endswith("/pods") and await name_of(request) == "f-1":
            reached.set()
            await asyncio.sleep(3600)
        return

    world.disturb = stuck
    await world.api.create(FLEETS, fleet("f", size=3))
    async with operating(world, shutdown_seconds=0.1):
        await reached.wait()
    world.disturb = None
    before = {pod["metadata"]["uid"] for pod in (await world.api.list(PODS, "default")).items}
    async with operating(world):
        await world.until_ready("f", size=3)
        after = {pod["metadata"]["uid"] for pod in (await world.api.list(PODS, "default")).items}
        assert before <= after
        assert len(after) == 3


async def name_of(request) -> str:
    return (await request.json())["metadata"]["name"]
