"""Which scenarios get the boost slots: the operator's planner against the bound and against bandits that know no recovery.

Simulated: rewards follow made-up recovery curves (exponential, sudden, logistic, in stairs) and are observed with noise.
The planner is the very code that the operator runs, with its state, its seeds and its random last slot. All figures but the
times are shares of the bound that no policy can exceed, however clever; so 1 is the ideal.

    python benchmarks/scenario_allocation.py [--quick] [--plot FILE.svg] [--json]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from tidewheel.planning.allocation.bound import relax
from tidewheel.planning.allocation.curves import idle_grid
from tidewheel.planning.allocation.estimates import Learning
from tidewheel.planning.allocation.ring import best_calendar
from tidewheel.planning.allocation.rules import PolicyName, Rules
from tidewheel.planning.allocation.state import AllocationState, from_text, to_text
from tidewheel.simulation.recovering import (
    EXP3,
    UCB1,
    Allocator,
    KnownIndex,
    Player,
    World,
    mixed_curves,
    play,
)

OFFLINE = ((10, 1), (10, 2), (10, 5), (20, 1), (20, 4), (50, 5), (50, 10), (50, 25), (100, 10), (200, 20))
OFFLINE_QUICK = ((10, 2), (20, 4), (50, 10))
LONGEST_OFFLINE, LONGEST_ONLINE = 48, 24
NOISE = 0.3

Make = Callable[[World], Player]


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--quick", action="store_true", help="fewer seeds and rounds; under a minute")
    options.add_argument("--plot", type=Path, help="reward and regret by round, as SVG or PNG")
    options.add_argument(
        "--json", action="store_true", help="the figures as one JSON object on the last line"
    )
    asked = options.parse_args()
    console = Console(stderr=asked.json)
    figures: dict[str, float] = {}
    with Progress(console=console, transient=True) as progress:
        checks = _offline(figures, progress, quick=asked.quick)
        checks += _online(figures, progress, quick=asked.quick, plot=asked.plot)
        checks += _restarts(figures, progress, quick=asked.quick)
        checks += _costs(figures, progress)
    console.print(_table(figures))
    for check in checks:
        mark = "[green]holds[/]" if check["holds"] else "[red]does not hold[/]"
        console.print(f"{check['name']}: {check['value']} (bound {check['bound']}) {mark}")
    if asked.json:
        report = {
            "benchmark": "scenario_allocation",
            "environment": {
                "python": platform.python_version(),
                "machine": platform.machine(),
                "cpus": os.cpu_count(),
                "rewards": "simulated",
                "quick": asked.quick,
            },
            "figures": figures,
            "checks": checks,
        }
        print(json.dumps(report))
    return 0 if all(check["holds"] for check in checks) else 1


def _offline(figures: dict[str, float], progress: Progress, *, quick: bool) -> list[dict[str, Any]]:
    """With the curves known: what the index and the calendars earn."""
    seeds, rounds = (2, 1500) if quick else (10, 6000)
    sizes = OFFLINE_QUICK if quick else OFFLINE
    task = progress.add_task("offline", total=len(sizes) * seeds)
    index: dict[int, list[float]] = {}
    periodic: dict[int, list[float]] = {}
    overflow = 0
    for count, slots in sizes:
        by_index, by_calendar = [], []
        for seed in range(seeds):
            world = _world(seed, count, slots, LONGEST_OFFLINE)
            # the first rounds live on what had recovered before
            earned = list(play(world, KnownIndex(world), rounds))[2 * LONGEST_OFFLINE :]
            by_index.append(statistics.fmean(earned) / world.bound)
            calendar = best_calendar(world.curves, slots)
            by_calendar.append(calendar.rate(world.curves) / world.bound)
            overflow = max(overflow, calendar.busiest - slots)
            progress.advance(task)
        figures[f"offline N={count} K={slots} Index"] = round(statistics.fmean(by_index), 4)
        figures[f"offline N={count} K={slots} Periodic"] = round(statistics.fmean(by_calendar), 4)
        index.setdefault(count, []).append(statistics.fmean(by_index))
        periodic.setdefault(count, []).append(statistics.fmean(by_calendar))
    large = [value for count, values in index.items() if count >= 20 for value in values]
    checks = [
        _at_least("offline Index over the bound, N >= 20, worst K", min(large), 0.99),
        _at_least("offline Index over the bound, N = 10, worst K", min(index[10]), 0.97),
        _at_least("offline Periodic over the bound, worst", min(map(min, periodic.values())), 0.96),
        _at_most("slots that a calendar overflows by", float(overflow), 0),
    ]
    wide = [value for count, values in periodic.items() if count >= 50 for value in values]
    return [*checks, _at_least("offline Periodic over the bound, N >= 50, worst K", min(wide), 0.985)]


def _online(
    figures: dict[str, float], progress: Progress, *, quick: bool, plot: Path | None
) -> list[dict[str, Any]]:
    """With the curves to be learnt, beside bandits that know no recovery."""
    seeds = 1 if quick else 4
    rounds = 1000 if quick else 4000
    longest = 2000 if quick else 32_000
    players: dict[str, Make] = {
        "Index": _planner("Index"),
        "Periodic": _planner("Periodic"),
        "Greedy (Myopic)": _planner("Myopic"),
        "RoundRobin": _planner("RoundRobin"),
        "UCB1": lambda world: UCB1(len(world.curves), world.slots),
        "EXP3": lambda world: EXP3(len(world.curves), world.slots, seed=world.seed),
    }
    task = progress.add_task("online", total=seeds * (len(players) + 3))
    curves: dict[str, list[list[float]]] = {name: [] for name in players}
    for seed in range(seeds):
        world = _world(seed, 20, 3, LONGEST_ONLINE)
        for name, make in players.items():
            length = longest if name == "Index" else rounds
            curves[name].append(_shares(world, make(world), length))
            progress.advance(task)
    marks = (250, rounds)
    at = {
        (name, mark): statistics.fmean(shares[mark - 1] for shares in runs)
        for name, runs in curves.items()
        for mark in marks
    }
    for (name, mark), value in at.items():
        figures[f"online N=20 K=3 round {mark} {name}"] = round(value, 4)
    exponent = _regret_exponent(curves["Index"])
    figures["online N=20 K=3 regret exponent Index"] = round(exponent, 3)
    eight: dict[str, float] = {}
    length = rounds if quick else 8000
    for name in ("Index", "Greedy (Myopic)"):
        shares = [
            _shares(world, players[name](world), length)[-1]
            for world in (_world(seed, 20, 8, LONGEST_ONLINE) for seed in range(seeds))
        ]
        eight[name] = statistics.fmean(shares)
        figures[f"online N=20 K=8 round {length} {name}"] = round(eight[name], 4)
        progress.advance(task, seeds)
    if plot is not None:
        _plot(curves, plot)
    best = max(
        value for (name, mark), value in at.items() if name not in ("Index", "Periodic") and mark == rounds
    )
    return [
        _at_least("online Index over the bound at round 250", at["Index", 250], 0.80),
        _at_least(
            f"online Index over the bound at round {rounds}", at["Index", rounds], 0.88 if quick else 0.93
        ),
        _at_most("regret exponent of Index", exponent, 0.75 if quick else 0.60),
        _at_least(f"online Index over the best baseline at round {rounds}", at["Index", rounds] - best, 0.0),
        _at_least(
            "points of Index over Greedy at K = 8", 100 * (eight["Index"] - eight["Greedy (Myopic)"]), 6.0
        ),
    ]


def _restarts(figures: dict[str, float], progress: Progress, *, quick: bool) -> list[dict[str, Any]]:
    """Every 50 rounds the state goes through its stored form, as when the operator restarts."""
    rounds = 500 if quick else 4000
    task = progress.add_task("restarts", total=2)
    world = _world(1, 20, 3, LONGEST_ONLINE)
    straight = list(play(world, Allocator(20, _rules("Index", 3)), rounds))
    progress.advance(task)
    since = [0]

    def stored(state: AllocationState) -> AllocationState:
        since[0] += 1
        return from_text(to_text(state)) if since[0] % 50 == 0 else state

    restarted = list(play(world, Allocator(20, _rules("Index", 3), stored=stored), rounds))
    progress.advance(task)
    differ = sum(one != other for one, other in zip(straight, restarted, strict=True))
    figures["rounds changed by restarts"] = differ
    return [_at_most("rounds that a restart every 50 changes", differ, 0)]


def _costs(figures: dict[str, float], progress: Progress) -> list[dict[str, Any]]:
    """Time and size at 200 scenarios."""
    progress.add_task("costs", total=None)
    world = _world(0, 200, 50, LONGEST_ONLINE)
    player = Allocator(200, _rules("Index", 50))
    steps = []
    shares = play(world, player, 60)
    for _ in range(60):
        began = time.process_time()
        next(shares)
        steps.append(1000 * (time.process_time() - began))
    known = mixed_curves(random.Random(0), 200, LONGEST_OFFLINE)
    began = time.process_time()
    best_calendar(known, 50)
    planned = time.process_time() - began
    began = time.process_time()
    relax(known, 50)
    bounded = 1000 * (time.process_time() - began)
    figures["a round at N=200 K=50, median ms of CPU"] = round(statistics.median(steps), 2)
    figures["a calendar at N=200 K=50, seconds of CPU"] = round(planned, 3)
    figures["the bound at N=200 K=50, ms of CPU"] = round(bounded, 2)
    figures["state at N=200, KB"] = round(len(to_text(player.state)) / 1024, 1)
    return [
        _at_most("ms of a round at N = 200", figures["a round at N=200 K=50, median ms of CPU"], 10),
        _at_most("seconds of a calendar at N = 200", figures["a calendar at N=200 K=50, seconds of CPU"], 1),
        _at_most("KB of state at N = 200", figures["state at N=200, KB"], 64),
    ]


def _world(seed: int, count: int, slots: int, longest: int) -> World:
    curves = mixed_curves(random.Random(seed), count, longest)
    return World(curves=curves, slots=slots, noise=NOISE, seed=seed)


def _rules(policy: PolicyName, slots: int) -> Rules:
    return Rules(slots=slots, learning=Learning(starts=idle_grid(LONGEST_ONLINE)), policy=policy)


def _planner(policy: PolicyName) -> Make:
    return lambda world: Allocator(len(world.curves), _rules(policy, world.slots))


def _shares(world: World, player: Player, rounds: int) -> list[float]:
    """After each round: all reward so far over what the bound would have given."""
    totals = accumulate(play(world, player, rounds))
    return [total / (at * world.bound) for at, total in enumerate(totals, start=1)]


def _regret_exponent(runs: Sequence[Sequence[float]]) -> float:
    """The slope of log regret over log rounds, fitted to the last eighth and doublings of it."""
    marks = [len(runs[0]) // 8, len(runs[0]) // 4, len(runs[0]) // 2, len(runs[0])]
    regrets = [statistics.fmean((1 - shares[mark - 1]) * mark for shares in runs) for mark in marks]
    slope, _ = statistics.linear_regression([math.log(m) for m in marks], [math.log(r) for r in regrets])
    return slope


def _plot(curves: dict[str, list[list[float]]], file: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (reward, regret) = plt.subplots(1, 2, figsize=(11, 4.2))
    for name, runs in curves.items():
        rounds = range(20, len(runs[0]) + 1, max(1, len(runs[0]) // 400))
        shares = [statistics.fmean(shares[at - 1] for shares in runs) for at in rounds]
        reward.plot(rounds, shares, label=name)
        regret.plot(rounds, [(1 - share) * at for share, at in zip(shares, rounds, strict=True)], label=name)
    reward.axhline(1.0, color="grey", linestyle=":", label="bound")
    reward.set(xscale="log", xlabel="rounds", ylabel="reward so far over the bound", title="Reward")
    regret.set(
        xscale="log", yscale="log", xlabel="rounds", ylabel="regret, in rounds of the bound", title="Regret"
    )
    reward.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(file)


def _at_least(name: str, value: float, bound: float) -> dict[str, Any]:
    return {"name": name, "value": round(value, 4), "bound": bound, "holds": value >= bound}


def _at_most(name: str, value: float, bound: float) -> dict[str, Any]:
    return {"name": name, "value": round(value, 4), "bound": bound, "holds": value <= bound}


def _table(figures: dict[str, float]) -> Table:
    table = Table(title="Boost slots under recovering rewards (shares of the bound; 1 is the ideal)")
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name, value in figures.items():
        table.add_row(name, f"{value:g}")
    return table


if __name__ == "__main__":
    sys.exit(main())
