"""A service of real processes on loopback addresses: gateways, prefills and decodes with the stand-in engine."""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp

from tidewheel.api.ranktable import Backend, Member, RankTable, RouteGroup, Routes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

MODEL = "stand-in"
PORT = 8000
PATIENCE_SECONDS = 120

_networks = itertools.count(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What an arm consists of."""

    gateways: int
    prefills: int
    slots: int
    prefill_ms: int
    ttft_seconds: float
    commands: Mapping[str, Sequence[str]] = field(
        default_factory=dict
    )  # by role, where it is not the product's

    @property
    def ideal_per_second(self) -> float:
        """Prompts per second if nothing but the prefills' computing took time."""
        return 1000 * self.prefills / self.prefill_ms


@dataclass(slots=True, kw_only=True)
class Running:
    """An arm that runs."""

    plan: Plan
    gateways: list[str]  # addresses
    prefills: list[str]


@asynccontextmanager
async def running(plan: Plan, directory: Path) -> AsyncIterator[Running]:
    """Start it, and end it."""
    network = f"127.{160 + os.getpid() % 90}.{next(_networks)}"
    hosts = (f"{network}.{number}" for number in itertools.count(1))
    names = [("prefill", i) for i in range(plan.prefills)] + [("decode", 0)]
    members = [
        Member(rank=rank, role=role, name=f"{role}-{i}", uid=f"uid-{role}-{i}", address=next(hosts))
        for rank, (role, i) in enumerate(names)
    ]
    group = RouteGroup(
        name="g0",
        prefill=tuple(Backend(name=m.name, address=m.address) for m in members if m.role == "prefill"),
        decode=tuple(Backend(name=m.name, address=m.address) for m in members if m.role == "decode"),
    )
    ranks, routes = directory / "ranks.json", directory / "routes.json"
    ranks.write_text(RankTable(service="bench", group="g0", revision="r", members=tuple(members)).to_text())
    routes.write_text(Routes(service="bench", model=MODEL, groups=(group,), gateways=plan.gateways).to_text())
    gateways = [next(hosts) for _ in range(plan.gateways)]
    compute = {
        "TIDEWHEEL_GROUP": "g0",
        "TIDEWHEEL_MODEL_SOURCE": f"stand-in:prefill_ms={plan.prefill_ms}",
        "TIDEWHEEL_RANKS_FILE": str(ranks),
    }
    processes: list[subprocess.Popen[bytes]] = []

    def start(role: str, name: str, host: str, **environment: str) -> None:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("OTEL_", "TIDEWHEEL_"))}
        command = plan.commands.get(role, ("-m", f"tidewheel_workers.serving.{role}"))
        with (directory / f"{name}.log").open("wb") as log:
            processes.append(
                subprocess.Popen(
                    [sys.executable, *command],
                    env=kept
                    | {
                        "TIDEWHEEL_ROLE": role,
                        "TIDEWHEEL_SERVICE": "bench",
                        "TIDEWHEEL_MODEL_NAME": MODEL,
                        "TIDEWHEEL_LOG_LEVEL": "warning",
                        "TIDEWHEEL_TERMINATION_LOG": str(directory / f"{name}.termination"),
                        "POD_NAME": name,
                        "POD_UID": f"uid-{name}",
                        "POD_IP": host,
                    }
                    | environment,
                    stdout=log,
                    stderr=log,
                )
            )

    try:
        for member in members:
            slots = plan.slots if member.role == "prefill" else 1024
            start(member.role, member.name, member.address, **compute, TIDEWHEEL_SLOTS=str(slots))
        for number, host in enumerate(gateways):
            start(
                "gateway",
                f"gateway-{number}",
                host,
                TIDEWHEEL_ROUTES_FILE=str(routes),
                TIDEWHEEL_TTFT_DEADLINE_SECONDS=str(plan.ttft_seconds),
                TIDEWHEEL_GATEWAY_PROCESSES="1",
            )
        async with asyncio.timeout(PATIENCE_SECONDS):
            for host in [*(m.address for m in members), *gateways]:
                await _ready(host)
        yield Running(plan=plan, gateways=gateways, prefills=[b.address for b in group.prefill])
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()


async def _ready(host: str) -> None:
    async with aiohttp.ClientSession() as session:
        while True:
            try:
                async with session.get(f"http://{host}:{PORT}/health/ready") as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.1)
