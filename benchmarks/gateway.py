"""What a router adds to a request: Tidewheel's gateway beside sglang-router and vllm-router, before the same workers.

Real: the three routers, as processes with their defaults (the Rust ones with the policy that costs them least and no line per
request; ours with its line per request), sockets on loopback, HTTP. Stand-ins: prefills and decodes answer at once, and
streams bring 32 tokens, one every 20 ms, 8 phases of decodes; there is no model. One load client, one process of workers and
the routers share the machine's cores, so from about 16 requests at a time the figures are CPU time in disguise, for all arms alike.

Added latency is a percentile through the router less the same percentile without it, at the same number of callers, in the
same round. Without it means: the same two calls made by the load client itself, one after the other for the routers that ask
in turn (vllm-router and ours), at once for the one that asks at once (sglang-router). A round runs all arms, in turning
order, and a figure is the median over rounds.

    python benchmarks/gateway.py [--quick] [--json] [--peer-python PYTHON] [--callers 1,16,64]
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop
from http_load.client import Ask, Seen, load
from http_load.routers import (
    DECODES,
    HOST,
    PEERS,
    PLAIN_PEERS,
    PREFILLS,
    TIDEWHEEL,
    Router,
    answers,
    cpu_seconds,
    has,
    request,
    running,
)
from http_load.worker import STEP_SECONDS, TOKENS
from rich.console import Console
from rich.table import Table

BOUND = 2.0
#: A percentile says nothing about fewer requests, or tokens, than these.
SAMPLES = {50: 20, 99: 200}
#: What is less cannot be told from noise; a ratio to it would be one to noise.
LEAST_MICROSECONDS = 20.0
DIRECT = {
    (False, False): "direct, in turn",
    (True, False): "direct, at once",
    (False, True): "direct, one call",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is measured."""

    callers: dict[bool, tuple[int, ...]]  # by whether answers are streams
    rounds: dict[bool, int]
    seconds: dict[bool, float]
    has_plain: bool


FULL = Plan(
    callers={False: (1, 4, 16, 64, 256), True: (1, 4, 16, 64, 256)},
    rounds={False: 5, True: 3},
    seconds={False: 0.8, True: 1.5},
    has_plain=True,
)
QUICK = Plan(
    callers={False: (1, 64), True: (64,)},
    rounds={False: 3, True: 2},
    seconds={False: 0.5, True: 1.0},
    has_plain=False,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One way to have requests answered."""

    name: str
    baseline: str  # the arm that it is compared with; its own name where it is one
    steps: tuple[tuple[int, ...], ...]  # ports asked one after the other, or within a step at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What one arm showed in one round; microseconds."""

    seen: Seen
    cpu: float

    def percentile(self, kind: str, percent: int) -> float | None:
        """Of `whole`, `first` or `token`; None of too few."""
        values = sorted(getattr(self.seen, kind))
        if len(values) < SAMPLES[percent]:
            return None
        return values[min(len(values) - 1, len(values) * percent // 100)] / 1000


Rounds = dict[str, list[Round]]


async def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--quick", action="store_true", help="few callers and rounds; under a minute")
    options.add_argument(
        "--json", action="store_true", help="the figures as one JSON object on the last line"
    )
    options.add_argument("--callers", type=_numbers, help="numbers of callers, such as 1,16,64")
    options.add_argument(
        "--peer-python", default=sys.executable, help="an interpreter that has the other routers"
    )
    asked = options.parse_args()
    console = Console(stderr=asked.json)
    plan = QUICK if asked.quick else FULL
    if asked.callers:
        plan = Plan(
            callers=dict.fromkeys((False, True), asked.callers),
            rounds=plan.rounds,
            seconds=plan.seconds,
            has_plain=plan.has_plain,
        )
    routers = [TIDEWHEEL]
    for peer in (*PEERS, *(PLAIN_PEERS if plan.has_plain else ())):
        if has(asked.peer_python, peer.module):
            routers.append(peer)
        else:
            console.print(f"[yellow]{peer.name} is left out: pip install 'tidewheel\\[bench]' brings it[/]")
    figures: dict[str, float] = {}
    checks: list[dict[str, Any]] = []
    with (
        tempfile.TemporaryDirectory(prefix="gateway-") as directory,
        running(routers, asked.peer_python, Path(directory)) as processes,
    ):
        for port in (*DECODES, *(router.port for router in routers)):
            await answers(port)
        gc.freeze()
        for is_stream in (False, True):
            for callers in plan.callers[is_stream]:
                what = f"{'streamed' if is_stream else 'whole'}, {callers} callers"
                with console.status(what):
                    measured = await _measure(routers, processes, plan, callers, is_stream=is_stream)
                arms = {arm.name: arm for arm in _arms(routers)}
                console.print(_table(what, arms, measured, is_stream=is_stream))
                figures |= _figures(what, arms, measured, is_stream=is_stream)
                checks += _checks(what, arms, figures, is_stream=is_stream)
    for check in checks:
        mark = "[green]holds[/]" if check["holds"] else "[red]does not hold[/]"
        console.print(f"{check['name']}: {check['value']} (bound {check['bound']}) {mark}")
    if asked.json:
        report = {
            "benchmark": "gateway",
            "environment": _environment(asked.peer_python, routers),
            "figures": figures,
            "checks": checks,
        }
        print(json.dumps(report))
    return 0 if all(check["holds"] for check in checks) else 1


def _arms(routers: list[Router]) -> list[Arm]:
    """The baselines that are needed, then the routers."""
    by_hand = {
        "direct, in turn": ((PREFILLS[0],), (DECODES[0],)),
        "direct, at once": ((PREFILLS[0], DECODES[0]),),
        "direct, one call": ((DECODES[0],),),
    }
    routed = [
        Arm(name=one.name, baseline=DIRECT[one.asks_at_once, one.is_plain], steps=((one.port,),))
        for one in routers
    ]
    needed = {arm.baseline for arm in routed}
    return [Arm(name=name, baseline=name, steps=by_hand[name]) for name in by_hand if name in needed] + routed


async def _measure(
    routers: list[Router], processes: dict[str, Any], plan: Plan, callers: int, *, is_stream: bool
) -> Rounds:
    arms = _arms(routers)
    measured: Rounds = defaultdict(list)
    for number in range(plan.rounds[is_stream]):
        shift = number % len(arms)
        for arm in (*arms[shift:], *arms[:shift]):
            steps = [
                [
                    # a prefill that is asked in turn is asked for one whole token
                    Ask(
                        host=HOST,
                        port=port,
                        request=request(port, is_stream=is_stream and (port != PREFILLS[0] or len(step) > 1)),
                    )
                    for port in step
                ]
                for step in arm.steps
            ]
            process = processes.get(arm.name)
            before = cpu_seconds(process) if process is not None else 0.0
            seen = await load(
                steps,
                callers=callers,
                warm_seconds=0.2,
                seconds=plan.seconds[is_stream],
                spread_seconds=TOKENS * STEP_SECONDS if is_stream else 0.0,
            )
            used = cpu_seconds(process) - before if process is not None else 0.0
            if seen.errors:
                raise RuntimeError(f"{arm.name}: {seen.errors} of {len(seen.whole)} requests failed")
            measured[arm.name].append(Round(seen=seen, cpu=used))
    return measured


def _kinds(*, is_stream: bool) -> dict[str, str]:
    return {"first": "to the first byte", "token": "per token"} if is_stream else {"whole": "whole answer"}


def _added(arm: Arm, measured: Rounds, kind: str, percent: int) -> list[float | None]:
    """By round."""
    pairs = zip(measured[arm.name], measured[arm.baseline], strict=True)
    return [
        None if (with_it := one.percentile(kind, percent)) is None or (without := base.percentile(kind, percent)) is None
        else with_it - without
        for one, base in pairs
    ]  # fmt: skip


def _figures(what: str, arms: dict[str, Arm], measured: Rounds, *, is_stream: bool) -> dict[str, float]:
    figures: dict[str, float] = {}
    for name, arm in arms.items():
        rounds = measured[name]
        figures[f"{name}, {what}: requests/s"] = round(_median([one.seen.per_second for one in rounds]), 1)
        for kind, words in _kinds(is_stream=is_stream).items():
            for percent in SAMPLES:
                values = (
                    [one.percentile(kind, percent) for one in rounds]
                    if arm.baseline == name
                    else _added(arm, measured, kind, percent)
                )
                known = [value for value in values if value is not None]
                if known:
                    added = "" if arm.baseline == name else "added "
                    figures[f"{name}, {what}: {added}p{percent} {words} us"] = round(_median(known), 1)
        if arm.baseline != name:
            figures[f"{name}, {what}: CPU us per request"] = round(_cpu(rounds), 1)
    return figures


def _cpu(rounds: list[Round]) -> float:
    """Of the router's processes, by request that began in the whole of a round, warming up included."""
    return _median([1e6 * one.cpu / one.seen.begun for one in rounds])


def _checks(
    what: str, arms: dict[str, Arm], figures: dict[str, float], *, is_stream: bool
) -> list[dict[str, Any]]:
    """Ours over the better of the Rust routers, wherever enough was seen of all."""
    checks = []
    peers = [peer.name for peer in PEERS if peer.name in arms]
    for words in _kinds(is_stream=is_stream).values():
        for percent in SAMPLES:
            added = [
                figures.get(f"{name}, {what}: added p{percent} {words} us")
                for name in (TIDEWHEEL.name, *peers)
            ]
            if len(added) < 2 or None in added:
                continue
            ours, *theirs = (max(value, LEAST_MICROSECONDS) for value in added if value is not None)
            name = f"{what}: added p{percent} {words}, ours over the better Rust router's"
            checks.append(_check(name, round(ours / min(theirs), 2), BOUND))
    return checks


def _table(what: str, arms: dict[str, Arm], measured: Rounds, *, is_stream: bool) -> Table:
    table = Table(title=f"{what}; added microseconds (direct: all of them)")
    table.add_column("arm")
    for words in _kinds(is_stream=is_stream).values():
        for percent in SAMPLES:
            table.add_column(f"p{percent} {words}", justify="right")
    table.add_column("requests/s", justify="right")
    table.add_column("CPU us/request", justify="right")
    figures = _figures(what, arms, measured, is_stream=is_stream)
    for name, arm in arms.items():
        added = "" if arm.baseline == name else "added "
        cells = [
            figures.get(f"{name}, {what}: {added}p{percent} {words} us")
            for words in _kinds(is_stream=is_stream).values()
            for percent in SAMPLES
        ]
        cells += [figures[f"{name}, {what}: requests/s"], figures.get(f"{name}, {what}: CPU us per request")]
        table.add_row(name, *("" if cell is None else f"{cell:,.0f}" for cell in cells))
    return table


def _check(name: str, value: float, bound: float) -> dict[str, Any]:
    return {"name": name, "value": value, "bound": bound, "holds": value <= bound}


def _median(values: list[float]) -> float:
    return statistics.median(values)


def _environment(python: str, routers: list[Router]) -> dict[str, Any]:
    versions = {}
    for module in sorted({router.module for router in routers} - {TIDEWHEEL.module}):
        told = subprocess.run(
            [python, "-c", f"import importlib.metadata as m; print(m.version({module!r}))"],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        versions[module] = told.stdout.strip()
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 1),
        "peers": versions,
        "workers": "stand-in: prefills and decodes that answer at once",
    }


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


if __name__ == "__main__":
    sys.exit(uvloop.run(main()))
