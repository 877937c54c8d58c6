"""What is left in each process when nothing is asked of it: slots, streams, descriptors, memory, and what it logged."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import aiohttp
import psutil
from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.soak.fleet import Fleet, Player

#: What a worker holds for requests; all of it is nothing at rest.
HELD = (
    'tidewheel_slots{state="used"}',
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
    "tidewheel_gateway_open_streams",
)
QUIET_SECONDS = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Residue:
    """One server at rest; what the processes hold that it started is counted with its own."""

    name: str
    role: str
    life: int
    is_alive: bool
    held: Mapping[str, float]  # of HELD, what is not nothing
    codes: Mapping[str, float]  # of a gateway: requests it ended, by status
    descriptors: int
    half_closed: int  # sockets whose other end has closed them
    threads: int
    rss_mb: float


async def at_rest(fleet: Fleet) -> tuple[Residue, ...]:
    """Look until nobody holds anything, or it is clear that someone always will."""
    ends = time.monotonic() + QUIET_SECONDS
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
        while True:
            seen = await asyncio.gather(*(_look(session, player) for player in fleet.players))
            is_quiet = all(one.is_alive and not one.held and not one.half_closed for one in seen)
            if is_quiet or time.monotonic() > ends:
                return tuple(seen)
            await asyncio.sleep(0.2)


async def _look(session: aiohttp.ClientSession, player: Player) -> Residue:
    try:
        async with session.get(f"{player.worker.url}/health/live") as answer:
            is_alive = answer.status == 200
        async with session.get(f"{player.worker.url}/metrics") as answer:
            samples = samples_of(await answer.text())
        family = player.family
        return Residue(
            name=player.name,
            role=player.role,
            life=player.life,
            is_alive=is_alive,
            held={name: samples[name] for name in HELD if samples.get(name, 0.0) > 0},
            codes=_by_code(samples),
            descriptors=sum(process.num_fds() for process in family),
            half_closed=sum(
                one.status == psutil.CONN_CLOSE_WAIT
                for process in family
                for one in process.net_connections("tcp")
            ),
            threads=sum(process.num_threads() for process in family),
            rss_mb=sum(process.memory_info().rss for process in family) / 1e6,
        )
    except (aiohttp.ClientError, OSError, TimeoutError, psutil.Error):
        return Residue(
            name=player.name,
            role=player.role,
            life=player.life,
            is_alive=False,
            held={},
            codes={},
            descriptors=0,
            half_closed=0,
            threads=0,
            rss_mb=0.0,
        )


def samples_of(page: str) -> dict[str, float]:
    """A page's samples by name; slots and codes keep their label, others are summed over theirs."""
    samples: dict[str, float] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            kept = [
                f'{label}="{sample.labels[label]}"' for label in ("state", "code") if label in sample.labels
            ]
            name = sample.name + (f"{{{','.join(kept)}}}" if kept else "")
            samples[name] = samples.get(name, 0.0) + sample.value
    return samples


def _by_code(samples: Mapping[str, float]) -> dict[str, float]:
    prefix = 'tidewheel_gateway_requests_total{code="'
    return {
        name.removeprefix(prefix)[:3]: value for name, value in samples.items() if name.startswith(prefix)
    }


def complaints(
    logs: Mapping[str, str], *, is_ours: Callable[[str], bool] = lambda name: name.startswith("tidewheel")
) -> list[str]:
    """What our own code logged as an error, and whatever asyncio says nobody looked at."""
    found = []
    for name, log in logs.items():
        for line in log.splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                found.append(f"{name}: {line[:300]}")
                continue
            if record["level"] in ("error", "critical") and (
                is_ours(record["logger"]) or record["logger"] == "asyncio"
            ):
                error = record.get("error", {})
                found.append(
                    f"{name}: {record['message']} {error.get('type', '')} {error.get('message', '')}"[:300]
                )
    return found
