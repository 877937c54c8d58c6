"""Which scenarios get the boost slots: the operator's planner against the bound and against bandits that know no recovery.

Simulated: rewards follow made-up recovery curves (exponential, sudden, logistic, in stairs) and are observed with noise.
The planner is the very code that the operator runs, with its state, its seeds and its random last slot. All figures but the
times are shares of the bound that no policy can exceed, however clever; so 1 is the ideal, which need not be attainable: with
few scenarios and one slot even the best allocation collides with itself. Behind each mean stands half the width of its 95 %
confidence interval over the seeds.

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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from tidewheel.planning.allocation.bound import relax
from tidewheel.planning.allocation.calendar import Calendar
from tidewheel.planning.allocation.certificate import certificate
from tidewheel.planning.allocation.curves import idle_grid
from tidewheel.planning.allocation.decide import decide
from tidewheel.planning.allocation.estimates import Learning
from tidewheel.planning.allocation.ring import best_calendar
from tidewheel.planning.allocation.rules import Contender, PolicyName, Rules
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
OURS, KNOWN, GREEDY = "Index", "Index, curves known", "Greedy (Myopic)"

Make = Callable[[World], Player]


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much is done. The quick run has fewer seeds, and bounds that so few can hold."""

    offline: tuple[tuple[int, int], ...] = OFFLINE
    offline_seeds: int = 10
    offline_rounds: int = 3000
    index: float = 0.99
    periodic: float = 0.96
    periodic_wide: float = 0.985
    seeds: int = 4
    greedy_seeds: int = 10
    rounds: int = 4000
    long_rounds: int = 32_000
    share: float = 0.93
    exponent: float = 0.60
    eight_rounds: int = 8000
    restart_rounds: int = 4000


QUICK = Size(
    offline=OFFLINE_QUICK,
    offline_seeds=2,
    offline_rounds=1500,
    index=0.98,
    periodic=0.94,
    periodic_wide=0.98,
    seeds=1,
    greedy_seeds=2,
    rounds=1000,
    long_rounds=2000,
    share=0.88,
    exponent=0.75,
    eight_rounds=1000,
    restart_rounds=500,
)


@dataclass(slots=True)
class Report:
    """What was found, in the order in which it was."""

    figures: dict[str, float] = field(default_factory=dict)
    halves: dict[str, float] = field(default_factory=dict)
    checks: list[dict[str, Any]] = field(default_factory=list)

    def mean(self, name: str, values: Sequence[float]) -> float:
        """Keep the mean of one value for each seed, with half the width of its interval."""
        mean = statistics.fmean(values)
        self.figures[name] = round(mean, 4)
        if len(values) > 1:
            # Student's t with the seeds' degrees of freedom, near enough for 3 to 30 seeds: 1.96 + 2.5 / (n - 2)
            quantile = 1.96 + 2.5 / max(len(values) - 2, 0.3)
            self.halves[name] = round(quantile * statistics.stdev(values) / math.sqrt(len(values)), 4)
        return mean

    def at_least(self, name: str, value: float, bound: float) -> None:
        self.checks.append(
            {"name": name, "value": round(value, 4), "bound": bound, "holds": bool(value >= bound)}
        )

    def at_most(self, name: str, value: float, bound: float) -> None:
        self.checks.append(
            {"name": name, "value": round(value, 4), "bound": bound, "holds": bool(value <= bound)}
        )


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--quick", action="store_true", help="fewer seeds and rounds; under a minute")
    options.add_argument("--plot", type=Path, help="reward and regret by round, as SVG or PNG")
    options.add_argument(
        "--json", action="store_true", help="the figures as one JSON object on the last line"
    )
    asked = options.parse_args()
    console = Console(stderr=asked.json)
    report, size = Report(), QUICK if asked.quick else Size()
    with Progress(console=console, transient=True) as progress:
        _offline(report, progress, size)
        runs = _online(report, progress, size)
        _many_slots(report, progress, size)
        _restarts(report, progress, size)
        _costs(report, progress)
    if asked.plot is not None:
        _plot(runs, asked.plot)
    console.print(_table(report))
    for check in report.checks:
        mark = "[green]holds[/]" if check["holds"] else "[red]does not hold[/]"
        console.print(f"{check['name']}: {check['value']} (bound {check['bound']}) {mark}")
    if asked.json:
        said = {
            "benchmark": "scenario_allocation",
            "environment": {
                "python": platform.python_version(),
                "machine": platform.machine(),
                "cpus": os.cpu_count(),
                "rewards": "simulated",
                "quick": asked.quick,
            },
            "figures": report.figures,
            "half_widths": report.halves,
            "checks": report.checks,
        }
        print(json.dumps(said))
    return 0 if all(check["holds"] for check in report.checks) else 1


def _offline(report: Report, progress: Progress, size: Size) -> None:
    """With the curves known: what the index and the calendars earn."""
    task = progress.add_task("offline", total=len(size.offline) * size.offline_seeds)
    index: dict[int, list[float]] = {}
    periodic: dict[int, list[float]] = {}
    overflow, inexact, differ = 0, 0, 0.0
    for count, slots in size.offline:
        by_index, by_calendar = [], []
        for seed in range(size.offline_seeds):
            world = _world(seed, count, slots, LONGEST_OFFLINE)
            # the first rounds live on what had recovered before
            earned = list(play(world, KnownIndex(world), size.offline_rounds))[2 * LONGEST_OFFLINE :]
            by_index.append(statistics.fmean(earned) / world.bound)
            calendar = best_calendar(world.curves, slots)
            by_calendar.append(calendar.rate(world.curves) / world.bound)
            followed = _followed(calendar, world)
            overflow = max(overflow, followed.busiest - slots)
            inexact += followed.inexact
            differ = max(differ, abs(followed.rate / calendar.rate(world.curves) - 1))
            progress.advance(task)
        index.setdefault(count, []).append(report.mean(f"offline N={count} K={slots} Index", by_index))
        mean = report.mean(f"offline N={count} K={slots} Periodic", by_calendar)
        periodic.setdefault(count, []).append(mean)
    many = [value for count, values in index.items() if count >= 20 for value in values]
    wide = [value for count, values in periodic.items() if count >= 50 for value in values]
    report.at_least("offline Index over the bound, N >= 20, worst K", min(many), size.index)
    report.at_least("offline Index over the bound, N = 10, worst K", min(index[10]), 0.97)
    report.at_least("offline Periodic over the bound, worst", min(map(min, periodic.values())), size.periodic)
    report.at_least("offline Periodic over the bound, N >= 50, worst K", min(wide), size.periodic_wide)
    report.at_most("slots that a calendar overflows by, followed round by round", float(overflow), 0)
    report.at_most("gaps between boosts that are not their calendar's period", float(inexact), 0)
    report.at_most("a calendar's rate, followed, off its own figure", differ, 1e-9)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Followed:
    busiest: int  # most boosts in a round
    inexact: int  # gaps that are not the period
    rate: float  # reward per round over one cycle


def _followed(calendar: Calendar, world: World) -> _Followed:
    """A calendar's cycle twice, round by round: what is counted is the second time."""
    cycle = math.lcm(*(entry.period for entry in calendar.entries))
    periods = {entry.scenario: entry.period for entry in calendar.entries}
    boosts: dict[int, list[int]] = {scenario: [] for scenario in periods}
    busiest = 0
    for at in range(2 * cycle):
        due = calendar.due(at)
        busiest = max(busiest, len(due))
        for scenario in due:
            boosts[scenario].append(at)
    gaps = [(scenario, later, later - at) for scenario, ats in boosts.items() for at, later in pairwise(ats)]
    earned = math.fsum(world.curves[scenario].at(gap) for scenario, later, gap in gaps if later >= cycle)
    inexact = sum(gap != periods[scenario] for scenario, _, gap in gaps)
    return _Followed(busiest=busiest, inexact=inexact, rate=earned / cycle)


def _online(report: Report, progress: Progress, size: Size) -> dict[str, list[list[float]]]:
    """With the curves to be learnt, beside bandits that know no recovery."""
    players: dict[str, Make] = {
        OURS: _planner("Index"),
        KNOWN: KnownIndex,
        "Periodic": _planner("Periodic"),
        GREEDY: _planner("Myopic"),
        "RoundRobin": _planner("RoundRobin"),
        "UCB1": lambda world: UCB1(len(world.curves), world.slots),
        "EXP3": lambda world: EXP3(len(world.curves), world.slots, seed=world.seed),
    }
    task = progress.add_task("online", total=size.seeds * len(players))
    runs: dict[str, list[list[float]]] = {name: [] for name in players}
    for seed in range(size.seeds):
        world = _world(seed, 20, 3, LONGEST_ONLINE)
        for name, make in players.items():
            length = size.long_rounds if name in (OURS, KNOWN) else size.rounds
            runs[name].append(_shares(world, make(world), length))
            progress.advance(task)
    at: dict[tuple[str, int], list[float]] = {}
    for mark in (250, size.rounds, size.long_rounds):
        for name, shares in runs.items():
            if len(shares[0]) >= mark:
                at[name, mark] = [one[mark - 1] for one in shares]
                report.mean(f"online N=20 K=3 round {mark} {name}", at[name, mark])
    ceiling = [[1.0] * size.long_rounds] * size.seeds
    exponent = _regret_exponent(runs[OURS], runs[KNOWN])
    report.figures |= {
        "online N=20 K=3 exponent of Index's regret to known curves": round(exponent, 3),
        "online N=20 K=3 exponent of Index's regret to the bound": round(
            _regret_exponent(runs[OURS], ceiling), 3
        ),
    }
    early, late = (statistics.fmean(at[OURS, mark]) for mark in (250, size.rounds))
    report.at_least("online Index over the bound at round 250", early, 0.80)
    report.at_least(f"online Index over the bound at round {size.rounds}", late, size.share)
    report.at_most("regret exponent of Index", exponent, size.exponent)
    for name in (GREEDY, "RoundRobin", "UCB1", "EXP3"):
        ahead = [
            100 * (ours - theirs)
            for ours, theirs in zip(at[OURS, size.rounds], at[name, size.rounds], strict=True)
        ]
        if name == GREEDY:
            # greed comes near where slots are few, so it takes more seeds to tell the two apart
            for seed in range(size.seeds, size.greedy_seeds):
                world = _world(seed, 20, 3, LONGEST_ONLINE)
                ours, theirs = (
                    _shares(world, players[one](world), size.rounds)[-1] for one in (OURS, GREEDY)
                )
                ahead.append(100 * (ours - theirs))
        mean = report.mean(f"online N=20 K=3 round {size.rounds} points of Index over {name}", ahead)
        report.at_least(f"points of Index over {name} at round {size.rounds}", mean, 0.0)
    return runs


def _many_slots(report: Report, progress: Progress, size: Size) -> None:
    """Where slots are many, greed takes what would be worth more later."""
    task = progress.add_task("many slots", total=2 * size.seeds)
    finals: dict[str, list[float]] = {}
    for name, policy in ((OURS, "Index"), (GREEDY, "Myopic")):
        for seed in range(size.seeds):
            world = _world(seed, 20, 8, LONGEST_ONLINE)
            player = Allocator(20, _rules(policy, 8))
            finals.setdefault(name, []).append(_shares(world, player, size.eight_rounds)[-1])
            progress.advance(task)
        report.mean(f"online N=20 K=8 round {size.eight_rounds} {name}", finals[name])
    ahead = [100 * (ours - theirs) for ours, theirs in zip(finals[OURS], finals[GREEDY], strict=True)]
    mean = report.mean(f"online N=20 K=8 round {size.eight_rounds} points of Index over Greedy", ahead)
    report.at_least("points of Index over Greedy at K = 8", mean, 6.0)


def _restarts(report: Report, progress: Progress, size: Size) -> None:
    """Every 50 rounds the state goes through its stored form, as when the operator restarts."""
    task = progress.add_task("restarts", total=2)
    world = _world(1, 20, 3, LONGEST_ONLINE)
    straight = Allocator(20, _rules("Index", 3))
    one = _picks(world, straight, size.restart_rounds)
    progress.advance(task)
    since = [0]

    def stored(state: AllocationState) -> AllocationState:
        since[0] += 1
        return from_text(to_text(state)) if since[0] % 50 == 0 else state

    restarted = Allocator(20, _rules("Index", 3), stored=stored)
    other = _picks(world, restarted, size.restart_rounds)
    progress.advance(task)
    differ = sum(before != after for before, after in zip(one, other, strict=True))
    differ += to_text(straight.state) != to_text(restarted.state)
    report.figures["rounds changed by restarts"] = differ
    report.at_most("rounds that a restart every 50 changes", differ, 0)


def _costs(report: Report, progress: Progress) -> None:
    """Time and size at 200 scenarios."""
    progress.add_task("costs", total=None)
    world = _world(0, 200, 50, LONGEST_ONLINE)
    rules = _rules("Index", 50)
    player = Allocator(200, rules)
    whole = list(_timed(play(world, player, 100)))[-60:]
    contenders = [Contender(uid=str(scenario)) for scenario in range(200)]
    at = (player.state.decided or 0) + 1
    steps = list(_timed(decide(player.state, contenders, rules, at=at) for _ in range(60)))
    known = mixed_curves(random.Random(0), 200, LONGEST_OFFLINE)
    (planned,) = _timed(best_calendar(known, slots) for slots in (50,))
    (bounded,) = _timed(relax(known, slots).value for slots in (50,))
    (certified,) = _timed(
        certificate(player.state, contenders, rules, at=at, rounds=rounds) for rounds in (64,)
    )
    named = Allocator(
        200, rules, uids=[f"5f0e6a1c-7d3b-4c9a-8e21-{scenario:012d}" for scenario in range(200)]
    )
    for _ in play(world, named, 400):
        pass
    report.figures |= {
        "an index step at N=200 K=50, median ms of CPU": round(statistics.median(steps), 2),
        "the same with its 50 rewards, median ms of CPU": round(statistics.median(whole), 2),
        "a calendar at N=200 K=50, ms of CPU": round(planned, 1),
        "the bound at N=200 K=50, ms of CPU": round(bounded, 2),
        "a certificate with 64 rounds ahead at N=200, ms of CPU": round(certified, 1),
        "state at N=200 with 36-character uids, KB": round(len(to_text(named.state)) / 1024, 1),
    }
    report.at_most("ms of an index step at N = 200, rewards included", statistics.median(whole), 10)
    report.at_most("seconds of a calendar at N = 200", planned / 1000, 1)
    report.at_most("KB of state at N = 200", len(to_text(named.state)) / 1024, 64)


def _timed(steps: Iterator[object]) -> Iterator[float]:
    """Milliseconds of CPU that each step takes."""
    while True:
        began = time.process_time()
        try:
            next(steps)
        except StopIteration:
            return
        yield 1000 * (time.process_time() - began)


def _world(seed: int, count: int, slots: int, longest: int) -> World:
    curves = mixed_curves(random.Random(seed), count, longest)
    return World(curves=curves, slots=slots, noise=NOISE, seed=seed)


def _rules(policy: PolicyName, slots: int) -> Rules:
    return Rules(slots=slots, learning=Learning(starts=idle_grid(LONGEST_ONLINE)), policy=policy)


def _planner(policy: PolicyName) -> Make:
    return lambda world: Allocator(len(world.curves), _rules(policy, world.slots))


def _shares(world: World, player: Player, rounds: int) -> list[float]:
    """After each round: all reward so far over what the bound would have given."""
    bound = world.bound
    totals = accumulate(play(world, player, rounds))
    return [total / (at * bound) for at, total in enumerate(totals, start=1)]


class _Watched:
    """A player whose choices are written down."""

    def __init__(self, player: Player) -> None:
        self._player = player
        self.picks: list[tuple[int, ...]] = []

    def choose(self, at: int) -> Sequence[int]:
        chosen = self._player.choose(at)
        self.picks.append(tuple(chosen))
        return chosen

    def learn(self, at: int, scenario: int, reward: float) -> None:
        self._player.learn(at, scenario, reward)


def _picks(world: World, player: Player, rounds: int) -> list[tuple[int, ...]]:
    watched = _Watched(player)
    for _ in play(world, watched, rounds):
        pass
    return watched.picks


def _regret_exponent(runs: Sequence[Sequence[float]], best: Sequence[Sequence[float]]) -> float:
    """The slope of log regret over log rounds, fitted to the first eighth of the rounds and doublings of it.

    Regret is what is missing to the best that is known to be possible. What that lacks of the bound is the collisions of
    periods, which no learning makes up for: it grows with the rounds, and would be added to any planner's regret.
    """
    marks = [len(runs[0]) // 8, len(runs[0]) // 4, len(runs[0]) // 2, len(runs[0])]
    regrets = [
        statistics.fmean(
            (ceiling[mark - 1] - shares[mark - 1]) * mark for shares, ceiling in zip(runs, best, strict=True)
        )
        for mark in marks
    ]
    slope, _ = statistics.linear_regression([math.log(m) for m in marks], [math.log(r) for r in regrets])
    return slope


def _plot(runs: dict[str, list[list[float]]], file: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "scenario allocation"
    import matplotlib.pyplot as plt

    figure, (reward, regret) = plt.subplots(1, 2, figsize=(11, 4.2))
    for name, shares in runs.items():
        last = len(shares[0])
        rounds = sorted({round(20 * (last / 20) ** (step / 150)) for step in range(151)})
        means = [statistics.fmean(one[at - 1] for one in shares) for at in rounds]
        style = {"linestyle": "--", "color": "grey"} if "known" in name else {}
        reward.plot(rounds, means, label=name, **style)
        regret.plot(
            rounds, [(1 - mean) * at for mean, at in zip(means, rounds, strict=True)], label=name, **style
        )
    reward.axhline(1.0, color="grey", linestyle=":", label="bound")
    reward.set(xscale="log", xlabel="rounds", ylabel="reward so far over the bound", title="Reward")
    regret.set(
        xscale="log", yscale="log", xlabel="rounds", ylabel="regret, in rounds of the bound", title="Regret"
    )
    regret.set_ylim(bottom=1)
    figure.suptitle("20 scenarios, 3 slots a round, simulated rewards", fontsize=10)
    handles, labels = reward.get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=len(labels), fontsize=8)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)


def _table(report: Report) -> Table:
    table = Table(title="Boost slots under recovering rewards (shares of the bound; 1 is the ideal)")
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_column("±", justify="right")
    for name, value in report.figures.items():
        half = report.halves.get(name)
        table.add_row(name, f"{value:g}", "" if half is None else f"{half:g}")
    return table


if __name__ == "__main__":
    sys.exit(main())
