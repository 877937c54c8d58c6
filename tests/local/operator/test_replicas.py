"""Several operators as real processes: one acts, another takes over, and a killed one leaves no mess."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.local.operator.conftest import World
from tests.local.operator.fleets import FLEETS, fleet

from tidewheel.api.manifest import LEASES, PODS

REPLICA = Path(__file__).with_name("replica.py")
pytestmark = pytest.mark.slow


@dataclass
class Replica:
    process: asyncio.subprocess.Process
    log: Path

    async def end(self, number: signal.Signals) -> int:
        if self.process.returncode is None:
            self.process.send_signal(number)
        return await self.process.wait()


@asynccontextmanager
async def replicas(world: World, count: int, *flags: str) -> AsyncIterator[list[Replica]]:
    running: list[Replica] = []
    try:
        for number in range(count):
            running.append(await started(world, number, *flags))
        yield running
    finally:
        for replica in running:
            await replica.end(signal.SIGKILL)


async def started(world: World, number: int, *flags: str) -> Replica:
    log = world.directory / f"replica-{number}.log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(REPLICA), str(world.kubeconfig), *flags, stdout=output, stderr=output
        )
    return Replica(process, log)


async def holder(world: World) -> str:
    return (await world.api.get(LEASES, "tidewheel-operator", "default"))["spec"].get("holderIdentity") or ""


async def leader_of(world: World, running: list[Replica]) -> Replica:
    """The replica whose log says that it leads under the lease's present holder."""

    async def found() -> Replica | None:
        name = await holder(world)
        if not name:
            return None
        return next((one for one in running if f"leading as {name}" in one.log.read_text()), None)

    return await world.until(found)


@pytest.mark.parametrize(
    ("number", "within_seconds"), [(signal.SIGTERM, 5.0), (signal.SIGKILL, 20.0)], ids=["SIGTERM", "SIGKILL"]
)
async def test_one_acts_and_the_other_takes_over_in_time(
    world: World, number: signal.Signals, within_seconds: float
):
    async with replicas(world, 2) as running:
        first = await leader_of(world, running)
        other = next(one for one in running if one is not first)
        await world.until(lambda: says(other, "standing by"))
        await world.api.create(FLEETS, fleet("f", size=2))
        await world.until_ready("f", size=2)
        before = await holder(world)
        status = await first.end(number)
        await world.until(lambda: says(other, "leading as"), seconds=within_seconds)
        assert status == (0 if number == signal.SIGTERM else -number)
        assert await holder(world) not in ("", before)
        await world.api.patch(FLEETS, "f", {"spec": {"size": 3}}, "default")
        await world.until_ready("f", size=3)
        lease = await world.api.get(LEASES, "tidewheel-operator", "default")
        assert lease["spec"]["leaseTransitions"] == 1


async def says(replica: Replica, text: str) -> bool:
    return text in replica.log.read_text()


async def test_an_operator_killed_in_the_middle_of_a_reconcile_leaves_nothing_twice_and_nothing_behind(
    world: World,
):
    names = [f"f{number}" for number in range(8)]
    for name in names:
        await world.api.create(FLEETS, fleet(name, size=4))
    reached = asyncio.Event()
    seen: list[object] = []

    async def stuck_at_the_eleventh(request):
        if request.method == "POST" and request.path.endswith("/pods"):
            seen.append(request)
            if len(seen) > 10:
                reached.set()
                await asyncio.sleep(3600)
        return

    world.disturb = stuck_at_the_eleventh
    async with replicas(world, 1, "--no-election") as running:
        await reached.wait()
        await running[0].end(signal.SIGKILL)
        assert len(await world.pods()) == 10
        world.disturb = None
        running.append(await started(world, 1, "--no-election"))
        for name in names:
            await world.until_ready(name, size=4)
        assert await world.pods() == sorted(f"{name}-{ordinal}" for name in names for ordinal in range(4))
        owners = {fleet["metadata"]["uid"] for fleet in (await world.api.list(FLEETS, "default")).items}
        pods = (await world.api.list(PODS, "default")).items
        assert {pod["metadata"]["ownerReferences"][0]["uid"] for pod in pods} == owners


async def test_a_leader_that_loses_the_lease_ends_so_that_it_is_started_anew(world: World):
    async with replicas(world, 1) as running:
        await leader_of(world, running)
        await world.api.patch(LEASES, "tidewheel-operator", {"spec": {"holderIdentity": "thief"}}, "default")
        assert await running[0].process.wait() == 1
        assert "thief holds the lease now" in running[0].log.read_text()
