"""The engines of the benchmark: worker processes, each bound to cores of its own, with as many threads."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import aiohttp
import psutil

from tidewheel.api.ranktable import Member, RankTable

MODEL = "smollm2"
PORT = 8000
START_SECONDS = 180


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One process: what it does, where, and on which cores."""

    name: str
    role: Literal["prefill", "decode"]
    host: str
    cores: frozenset[int]
    in_group: bool  # with the other role; otherwise it computes prompts itself

    @property
    def url(self) -> str:
        """Where it is asked."""
        return f"http://{self.host}:{PORT}"


class Servers:
    """Use it as an asynchronous context manager; idle engines take no time of the others."""

    def __init__(self, directory: Path, places: Sequence[Place], *, source: str, context: int) -> None:
        self._directory, self._places = directory, places
        self._source, self._context = source, context
        self._processes: list[subprocess.Popen[bytes]] = []

    async def __aenter__(self) -> Servers:
        members = [
            Member(rank=rank, role=one.role, name=one.name, uid=one.name, address=one.host)
            for rank, one in enumerate(self._places)
            if one.in_group
        ]
        table = RankTable(service="chat", group="g0", revision="r1", members=tuple(members))
        (self._directory / "ranktable.json").write_text(table.to_text())
        try:
            for place in self._places:
                self._start(place)
            async with aiohttp.ClientSession() as session, asyncio.timeout(START_SECONDS):
                for place, process in zip(self._places, self._processes, strict=True):
                    await self._wait(session, place, process)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            await asyncio.to_thread(process.wait)

    def _start(self, place: Place) -> None:
        environment = {
            **{
                name: value
                for name, value in os.environ.items()
                if not name.startswith(("OTEL_", "TIDEWHEEL_"))
            },
            "TIDEWHEEL_ROLE": place.role,
            "TIDEWHEEL_SERVICE": "chat",
            "TIDEWHEEL_GROUP": "g0",
            "TIDEWHEEL_MODEL_NAME": MODEL,
            "TIDEWHEEL_MODEL_SOURCE": self._source,
            "TIDEWHEEL_MAX_CONTEXT_TOKENS": str(self._context),
            "TIDEWHEEL_SLOTS": "8",
            "TIDEWHEEL_LOG_LEVEL": "warning",
            "TIDEWHEEL_RANKS_FILE": str(
                self._directory / ("ranktable.json" if place.in_group else "nowhere.json")
            ),
            "TIDEWHEEL_TERMINATION_LOG": str(self._directory / f"{place.name}.termination"),
            "POD_NAME": place.name,
            "POD_UID": place.name,
            "POD_IP": place.host,
            "OMP_NUM_THREADS": str(len(place.cores)),
        }
        with (self._directory / f"{place.name}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", f"tidewheel_workers.serving.{place.role}"],
                env=environment,
                stdout=log,
                stderr=log,
                preexec_fn=lambda: os.sched_setaffinity(0, place.cores),
            )
        self._processes.append(process)

    @property
    def cpu_seconds(self) -> float:
        """What they took so far, all together."""
        return sum(sum(psutil.Process(process.pid).cpu_times()[:2]) for process in self._processes)

    async def _wait(
        self, session: aiohttp.ClientSession, place: Place, process: subprocess.Popen[bytes]
    ) -> None:
        """Until its model is loaded and, in a group, its peer is verified."""
        while True:
            if process.poll() is not None:
                raise RuntimeError(
                    f"{place.name} ended: {(self._directory / f'{place.name}.log').read_text()[-2000:]}"
                )
            try:
                if place.in_group:
                    async with session.get(f"{place.url}/health/ready") as answer:
                        if answer.status == 200:
                            return
                else:
                    async with session.get(f"{place.url}/v1/models") as answer:
                        if "max_model_len" in (await answer.json())["data"][0]:
                            return
            except (aiohttp.ClientError, OSError):
                pass
            await asyncio.sleep(0.1)
