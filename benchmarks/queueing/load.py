"""Open-loop load on an arm, what became of each request, and what the prefills alone can do."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import json
import math
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aiohttp
from benchmarks.queueing.service import MODEL, PORT
from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from benchmarks.queueing.service import Running

#: What the client sees comes so much later than what the gateway decided on.
WIRE_SECONDS = 0.05
PATH = "/v1/chat/completions"


@dataclass(slots=True)
class Outcome:
    """One request; all times are seconds since its step began."""

    planned: float
    arrived: float
    first: float | None = None  # when its first token came
    ended: float = 0.0
    status: int = 0
    code: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One load on one arm."""

    arm: str
    load: float  # of what the prefills alone can do
    ttft_seconds: float
    prefills: int
    capacity: float  # of all of them, in prompts per second
    seconds: float  # in which requests arrived
    outcomes: tuple[Outcome, ...]
    inquiries: Counter[str]  # at prefills, by outcome
    refused_seconds: float

    @property
    def in_time(self) -> list[Outcome]:
        """Those whose first token came within the limit."""
        return [one for one in self.outcomes if one.first is not None and _ttft(one) <= self._limit]

    @property
    def late(self) -> list[Outcome]:
        """Those that were computed for nothing: the first token came too late, or its time ended meanwhile."""
        return [
            one
            for one in self.outcomes
            if (one.first is not None and _ttft(one) > self._limit) or one.code == "first_token_late"
        ]

    @property
    def shed(self) -> list[Outcome]:
        """Those that were told that there is no room."""
        return [one for one in self.outcomes if one.status in (429, 503) and one.code != "first_token_late"]

    def allowed(self, until: float) -> int:
        """How many of these very arrivals one line before the prefills could serve in time, if nothing took time but computing.

        First come, first served, and who cannot be in time is passed over: with equal prompts and equal limits nobody
        could serve more. First tokens after `until` do not count.
        """
        free_at = [0.0] * self.prefills
        seconds = self.prefills / self.capacity
        served = 0
        for one in self.outcomes:
            at = max(one.arrived, heapq.heappop(free_at))
            if at + seconds <= one.arrived + self._limit:
                served += at + seconds <= until
                at += seconds
            heapq.heappush(free_at, at)
        return served

    @property
    def of_what_capacity_allows(self) -> float:
        """First tokens in time over those that could have been.

        Above capacity those count that come while requests still arrive: what a line holds at the end would else be counted
        as if the load had been lower.
        """
        until = math.inf if self.load < 1 else self.seconds
        seen = sum(one.first is not None and one.first <= until + WIRE_SECONDS for one in self.in_time)
        return seen / self.allowed(until)

    @property
    def of_the_accepted(self) -> float:
        """First tokens in time over all that prefills accepted."""
        return len(self.in_time) / max(1, len(self.in_time) + len(self.late))

    @property
    def of_all(self) -> float:
        """First tokens in time over all requests, the paper's success rate."""
        return len(self.in_time) / len(self.outcomes)

    def ttft(self, quantile: float) -> float:
        """Seconds, of those in time."""
        return _quantile([_ttft(one) for one in self.in_time], quantile)

    @property
    def slowest_refusal(self) -> float:
        """Seconds until the last of those that were shed was told so."""
        return max((one.ended - one.arrived for one in self.shed), default=0.0)

    @property
    def refused_per_served(self) -> float:
        """Inquiries that prefills refused, for each request served."""
        return self.inquiries["busy"] / max(1, len(self.in_time))

    @property
    def client_lag(self) -> float:
        """How many seconds late the client itself sent at its worst: what the machine was too busy for."""
        return max(one.arrived - one.planned for one in self.outcomes)

    @property
    def _limit(self) -> float:
        return self.ttft_seconds + WIRE_SECONDS


@dataclass(slots=True)
class Load:
    """A client of one arm."""

    arm: str
    service: Running
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    async def step(self, load: float, *, capacity: float, seconds: float, seed: int) -> Step:
        """Let requests arrive at random, so many times the capacity, and wait until each has ended."""
        arrivals: list[float] = []
        drawn = random.Random(seed)
        at = 0.0
        while (at := at + drawn.expovariate(load * capacity)) < seconds:
            arrivals.append(at)
        before = await self._counted()
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as session:
            began = time.monotonic()
            tasks = []
            for at in arrivals:
                await asyncio.sleep(max(0.0, began + at - time.monotonic()))
                gateway = self.service.gateways[drawn.randrange(len(self.service.gateways))]
                tasks.append(asyncio.create_task(self._ask(session, gateway, at, began)))
            outcomes = await asyncio.gather(*tasks)
        after = await self._counted()
        return Step(
            arm=self.arm,
            load=load,
            ttft_seconds=self.service.plan.ttft_seconds,
            prefills=self.service.plan.prefills,
            capacity=capacity,
            seconds=seconds,
            outcomes=tuple(outcomes),
            inquiries=Counter({name: after[0][name] - before[0][name] for name in after[0]}),
            refused_seconds=after[1] - before[1],
        )

    async def _ask(
        self, session: aiohttp.ClientSession, gateway: str, planned: float, began: float
    ) -> Outcome:
        body = {
            "model": MODEL,
            "messages": [{"role": "user", "content": f"request {next(self._numbers)} asks for little"}],
            "max_tokens": 2,
            "stream": True,
        }
        seen = Outcome(planned, time.monotonic() - began)
        try:
            async with session.post(f"http://{gateway}:{PORT}{PATH}", json=body) as answer:
                seen.status = answer.status
                if answer.status == 200:
                    await answer.content.readany()
                    seen.first = time.monotonic() - began
                    await answer.read()
                else:
                    seen.code = json.loads(await answer.read())["error"]["code"]
        except aiohttp.ClientError as error:
            seen.code = type(error).__name__
        seen.ended = time.monotonic() - began
        return seen

    async def _counted(self) -> tuple[Counter[str], float]:
        inquiries: Counter[str] = Counter()
        seconds = 0.0
        async with aiohttp.ClientSession() as session:
            for gateway in self.service.gateways:
                async with session.get(f"http://{gateway}:{PORT}/metrics") as answer:
                    text = await answer.text()
                for family in text_string_to_metric_families(text):
                    for sample in family.samples:
                        if (
                            sample.name == "tidewheel_gateway_inquiries_total"
                            and sample.labels["role"] == "prefill"
                        ):
                            inquiries[sample.labels["outcome"]] += int(sample.value)
                        if sample.name == "tidewheel_gateway_refused_inquiry_seconds_total":
                            seconds += sample.value
        return inquiries, seconds


async def capacity_of(service: Running, seconds: float) -> float:
    """Prompts per second of all prefills when each always has as many as it has slots, and nothing else happens."""
    ends = time.monotonic() + seconds
    done: dict[str, list[float]] = {host: [] for host in service.prefills}

    async def keep_busy(session: aiohttp.ClientSession, host: str, number: int) -> None:
        body: dict[str, Any] = {
            "model": MODEL,
            "messages": [{"role": "user", "content": f"prompt {number} of {host} asks for little"}],
            "max_tokens": 1,
            "kv_transfer_params": {"do_remote_decode": True},
        }
        while time.monotonic() < ends:
            async with session.post(f"http://{host}:{PORT}{PATH}", json=body) as answer:
                if answer.status == 429:  # a slot of the step before is not free yet
                    await asyncio.sleep(0.01)
                    continue
                kv = (await answer.json())["kv_transfer_params"]
            done[host].append(time.monotonic())
            async with session.post(f"http://{host}:{PORT}/kv/release", json=kv) as answer:
                await answer.read()

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(
            *(
                keep_busy(session, host, number)
                for host in service.prefills
                for number in range(service.plan.slots)
            )
        )
    # from each one's first to its last, so that neither the start nor the end counts
    return sum((len(times) - 1) / (max(times) - min(times)) for times in done.values())


def _ttft(one: Outcome) -> float:
    return (one.first or 0.0) - one.arrived


def _quantile(values: list[float], quantile: float) -> float:
    if not values:
        return float("nan")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(quantile * len(ordered)))]
