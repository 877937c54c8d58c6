"""Who is served within the TTFT limit when more come than the prefills can compute: on-demand forwarding and local queues.

Real processes on loopback: gateways, prefills and a decode for each arm. The engine is the stand-in, whose prefills sleep
for a fixed time, one prompt after the other, so that what the prefills can do is known and the rest is measured. One arm is the
product; the other has a queue in each prefill and gateways that send to the queue that was shortest in its last report,
every 100 ms (P/D-Serve's former scheduler; benchmarks/queueing/local_queues.py), on the product's own HTTP. Load steps from A to
5A alternate between the arms, with the same arrivals; A is 0.4 of what the prefills alone can do, which is measured before
and after.

    python benchmarks/forwarding.py [--quick] [--plot FILE.svg] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import platform
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.queueing.load import WIRE_SECONDS, Load, Step, capacity_of
from benchmarks.queueing.service import Plan, running

OURS, QUEUES = "ours", "queues"
LOCAL_QUEUES = str(Path(__file__).parent / "queueing" / "local_queues.py")
#: A, as a part of what the prefills alone can do; the last step is 5A.
A = 0.4
STEPS, QUICK_STEPS = (1, 2, 3, 4, 5), (2, 5)
CAPACITY_SECONDS = 2.0
#: When the client itself sent later than this, both arms are measured again: the machine did something else.
MOST_LAG_SECONDS, ATTEMPTS = 0.1, 3


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--quick", action="store_true", help="two short steps; under a minute")
    options.add_argument("--plot", type=Path, help="success by load, as SVG or PNG")
    options.add_argument(
        "--json", action="store_true", help="the figures as one JSON object on the last line"
    )
    asked = options.parse_args()
    console = Console(stderr=asked.json)
    steps = asyncio.run(measure(console, quick=asked.quick))
    console.print(_table(steps))
    for note in _notes(steps):
        console.print(note)
    figures = _figures(steps)
    checks = _checks(steps)
    for check in checks:
        mark = "[green]holds[/]" if check["holds"] else "[red]does not hold[/]"
        console.print(f"{check['name']}: {check['value']} (bound {check['bound']}) {mark}")
    if asked.plot is not None:
        _plot(steps, asked.plot)
    if asked.json:
        environment = {
            "python": platform.python_version(),
            "machine": platform.machine(),
            "cpus": os.cpu_count(),
            "engine": "stand-in: prefills sleep",
        }
        report = {"benchmark": "forwarding", "environment": environment, "figures": figures, "checks": checks}
        print(json.dumps(report))
    return 0 if all(check["holds"] for check in checks) else 1


def _plan(**commands: tuple[str, ...]) -> Plan:
    return Plan(gateways=2, prefills=4, slots=4, prefill_ms=150, ttft_seconds=2.0, commands=commands)


async def measure(console: Console, *, quick: bool) -> list[Step]:
    """All steps of both arms; what the prefills alone can do is measured before and after each."""
    seconds = 8.0 if quick else 12.0
    queues = _plan(prefill=(LOCAL_QUEUES, "prefill"), gateway=(LOCAL_QUEUES, "gateway"))
    measured: list[Step] = []
    with tempfile.TemporaryDirectory(prefix="forwarding-") as text:
        for name in ("ours", "queues"):
            (Path(text) / name).mkdir()
        async with (
            running(_plan(), Path(text) / "ours") as ours,
            running(queues, Path(text) / "queues") as theirs,
        ):
            loads = [Load(OURS, ours), Load(QUEUES, theirs)]
            first = before = await capacity_of(ours, CAPACITY_SECONDS)
            for number, times in enumerate(QUICK_STEPS if quick else STEPS):
                for attempt in range(ATTEMPTS):
                    pair: list[Step] = []
                    for load in loads if (number + attempt) % 2 else loads[::-1]:
                        with console.status(f"{load.arm} at {times}A, {seconds:g} s"):
                            pair.append(
                                await load.step(A * times, capacity=first, seconds=seconds, seed=times)
                            )
                    after = await capacity_of(ours, CAPACITY_SECONDS)
                    # what else the machine did changes what the prefills can do, also while they only sleep
                    pair = [replace(step, capacity=(before + after) / 2) for step in pair]
                    before = after
                    if max(step.client_lag for step in pair) <= MOST_LAG_SECONDS:
                        break
                    console.print(f"{times}A: the machine was too busy for the client to send in time")
                measured += pair
    return sorted(measured, key=lambda step: (step.load, step.arm != OURS))


def _table(steps: list[Step]) -> Table:
    table = Table(title="First tokens within the limit; A is 0.4 of what the prefills alone can do")
    for heading in ("load", "arm", "sent", "capacity", "accepted", "all", "late", "shed", "TTFT p99"):
        table.add_column(heading, justify="right" if heading != "arm" else "left")
    for step in steps:
        table.add_row(
            f"{step.load / A:g}A",
            step.arm,
            str(len(step.outcomes)),
            f"{step.of_what_capacity_allows:.3f}",
            f"{step.of_the_accepted:.3f}",
            f"{step.of_all:.3f}",
            str(len(step.late)),
            str(len(step.shed)),
            f"{step.ttft(0.99):.2f} s",
        )
    return table


def _notes(steps: list[Step]) -> list[str]:
    ours = [step for step in steps if step.arm == OURS]
    capacities = [step.capacity for step in steps]
    refused = sum(step.inquiries["busy"] for step in ours)
    seconds = sum(step.refused_seconds for step in ours)
    served = sum(len(step.in_time) for step in ours)
    return [
        "in time of what capacity allows, which is what one line before the prefills could do with these arrivals if nothing "
        "but computing took time; of those that prefills accepted; of all that were sent",
        "ours: on-demand forwarding; queues: in the prefills, the shortest by its last report first",
        f"prefills alone: {min(capacities):.2f} to {max(capacities):.2f} prompts/s measured, {_plan().ideal_per_second:.2f} ideal; "
        f"TTFT limit {_plan().ttft_seconds:g} s, seen by the client with {1000 * WIRE_SECONDS:g} ms for the wire",
        f"on demand, all steps: {refused} inquiries refused for {served} requests served, "
        f"{1000 * seconds / max(1, refused):.1f} ms each, {1000 * seconds / max(1, served):.1f} ms for each request served",
        f"the client itself sent at most {1000 * max(step.client_lag for step in steps):.0f} ms late "
        f"(load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs)",
    ]


def _figures(steps: list[Step]) -> dict[str, float]:
    figures: dict[str, float] = {
        "prefills alone, prompts/s": round(fmean(step.capacity for step in steps), 3),
        "client lag s, at worst": round(max(step.client_lag for step in steps), 3),
    }
    for step in steps:
        at = f"{step.arm} at {step.load / A:g}A"
        figures |= {
            f"{at}: of what capacity allows": round(step.of_what_capacity_allows, 4),
            f"{at}: of the accepted": round(step.of_the_accepted, 4),
            f"{at}: of all": round(step.of_all, 4),
            f"{at}: TTFT p99 s": round(step.ttft(0.99), 3),
            f"{at}: slowest refusal s": round(step.slowest_refusal, 3),
            f"{at}: seconds in refused inquiries": round(step.refused_seconds, 3),
            f"{at}: refused inquiries per served": round(step.refused_per_served, 3),
        }
    return figures


def _checks(steps: list[Step]) -> list[dict[str, Any]]:
    ours = [step for step in steps if step.arm == OURS]
    queues = [step for step in steps if step.arm == QUEUES]
    overloaded = [step for step in ours if step.load > 1]
    lost = [one for step in ours for one in step.outcomes if one.status not in (200, 429, 503)]
    served = sum(len(step.in_time) for step in ours)
    wasted = sum(step.refused_seconds for step in ours)
    gap = max(
        one.of_what_capacity_allows - other.of_what_capacity_allows
        for one, other in zip(ours, queues, strict=True)
    )
    return [
        _at_least(
            "success within the TTFT limit, of what capacity allows, at the worst step",
            min(step.of_what_capacity_allows for step in ours),
            0.99,
        ),
        _at_least(
            "success within the TTFT limit, of the accepted, at the worst step",
            min(step.of_the_accepted for step in ours),
            0.99,
        ),
        _at_most(
            "seconds until the last refused request was told so, over the TTFT limit",
            max(step.slowest_refusal / step.ttft_seconds for step in overloaded),
            1.05,
        ),
        _at_most("requests that ended in any other way", len(lost), 0),
        _at_least("how much less local queues give of what capacity allows, at their worst", gap, 0.1),
        _at_most("seconds in refused inquiries, for each request served", wasted / served, 0.05),
    ]


def _at_least(name: str, value: float, bound: float) -> dict[str, Any]:
    return {"name": name, "value": round(value, 4), "bound": bound, "holds": value >= bound}


def _at_most(name: str, value: float, bound: float) -> dict[str, Any]:
    return {"name": name, "value": round(value, 4), "bound": bound, "holds": value <= bound}


def _plot(steps: list[Step], file: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (share, all_of_them) = plt.subplots(1, 2, figsize=(10, 4), sharex=True)
    for arm in (OURS, QUEUES):
        of_arm = [step for step in steps if step.arm == arm]
        loads = [step.load for step in of_arm]
        share.plot(loads, [step.of_what_capacity_allows for step in of_arm], marker="o", label=arm)
        all_of_them.plot(loads, [step.of_all for step in of_arm], marker="o", label=arm)
    ours = [step for step in steps if step.arm == OURS]
    bounds = [step.allowed(math.inf) / len(step.outcomes) for step in ours]
    all_of_them.plot([step.load for step in ours], bounds, "k:", label="what capacity allows")
    share.set(ylabel="first tokens in time, of what capacity allows", ylim=(0, 1.1))
    all_of_them.set(ylabel="first tokens in time, of all requests", ylim=(0, 1.1))
    for axis in (share, all_of_them):
        axis.set_xlabel("load, of what the prefills alone can do")
        axis.grid(alpha=0.3)
        axis.legend()
    figure.tight_layout()
    figure.savefig(file)


if __name__ == "__main__":
    sys.exit(main())
