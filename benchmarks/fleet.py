"""What planning costs: one pass over 1,000 scenarios and 10,000 instances, and a week of Azure's tides through the fluid model.

Measured: CPU time of the planner's own code on this machine, one thread, with states as they are after twenty minutes. Simulated: the
service, as a fluid. A pass decides for all scenarios under one budget, as the operator does once in a window.

    python benchmarks/fleet.py [--quick] [--data DIRECTORY] [--json]
"""

from __future__ import annotations

import argparse
import gc
import math
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import linear_regression, median

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.pd.data import LINKED_H200
from benchmarks.pd.telling import Check, at_least, at_most, tell
from benchmarks.pd.tidal import CASES, TARGETS, WINDOW, scenarios_of

from tidewheel.planning.scaling.decide import decide_all
from tidewheel.planning.scaling.observed import RoleCounts, ScenarioLoad
from tidewheel.planning.scaling.scenario import Counts, Limits, Scenario
from tidewheel.planning.scaling.state import ScalingState, from_text, to_text
from tidewheel.simulation.fluid import FluidSettings, run
from tidewheel.simulation.fluid_planners import Operators

SCENARIOS, INSTANCES = 1000, 10_000
LIMITS = Limits(startup_seconds=60.0, prefill=(1, 20_000), decode=(1, 20_000), most_per_step=1000)
#: Requests per second of one prefill of 1,155-token prompts, about: what makes a fleet of the size asked for.
PER_INSTANCE = 17.0


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--quick", action="store_true", help="two days and fewer passes; under a minute")
    options.add_argument("--data", type=Path, help="the directory of the published traces; default: data/")
    options.add_argument(
        "--json", action="store_true", help="the figures as one JSON object on the last line"
    )
    asked = options.parse_args()
    console = Console(stderr=asked.json)
    figures: dict[str, float] = {}
    with Progress(console=console, transient=True) as progress:
        checks = _passes(figures, progress, quick=asked.quick)
        checks += _week(figures, progress, quick=asked.quick, data=asked.data)
    table = Table(title="What planning costs (measured)")
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name, value in figures.items():
        table.add_row(name, f"{value:g}")
    console.print(table)
    return tell("fleet", figures, checks, console=console, as_json=asked.json, quick=asked.quick)


@dataclass(slots=True)
class _Fleet:
    """Scenarios whose load goes up and down, with what they were told to have."""

    scenarios: int
    instances: int
    states: dict[str, ScalingState]
    counts: dict[str, tuple[int, int]]
    passed: int = 0

    @classmethod
    def of(cls, scenarios: int, instances: int) -> _Fleet:
        names = [f"s{number:05d}" for number in range(scenarios)]
        return cls(scenarios, instances, {}, dict.fromkeys(names, (2, 1)))

    def decide(self) -> float:
        """One pass over all; CPU seconds it took."""
        self.passed += 1
        now = self.passed * WINDOW
        told = tuple(self._told(number, name) for number, name in enumerate(self.counts))
        gc.collect()  # of what the benchmark made; the pass's own garbage counts
        began = time.process_time()
        decisions, self.states, _ = decide_all(self.states, told, budget=2 * self.instances, now=now)
        took = time.process_time() - began
        self.counts = {name: (one.prefill, one.decode) for name, one in decisions.items()}
        return took

    def _told(self, number: int, name: str) -> Scenario:
        generator = random.Random(f"{name} {self.passed}")
        tide = 1 + 0.4 * math.sin(2 * math.pi * (self.passed / 120 + number / self.scenarios))
        rate = PER_INSTANCE * self.instances / self.scenarios * tide * (1 + 0.05 * generator.gauss(0, 1))
        arrivals = max(0, round(rate * WINDOW))
        prefill, decode = self.counts[name]
        return Scenario(
            name=name,
            load=ScenarioLoad(
                seconds=WINDOW,
                arrivals=arrivals,
                finished=arrivals,
                prompt_tokens=1155.0,
                prompt_tokens_squared=1.9 * 1155.0**2,
                answer_tokens=211.0,
                answer_tokens_squared=1.6 * 211.0**2,
                prefill_seconds=0.038,
            ),
            counts=Counts(prefill=RoleCounts(ready=prefill), decode=RoleCounts(ready=decode)),
            targets=TARGETS,
            limits=LIMITS,
            profile=LINKED_H200,
        )

    @property
    def held(self) -> int:
        return sum(map(sum, self.counts.values()))


def _passes(figures: dict[str, float], progress: Progress, *, quick: bool) -> list[Check]:
    warm, timed = (12, 5) if quick else (40, 7)
    sizes = (250, 500, 1000, 2000)
    task = progress.add_task("passes", total=2 * len(sizes))
    seconds: dict[int, float] = {}
    for size in sizes:
        fleet = _Fleet.of(size, size * INSTANCES // SCENARIOS)
        for _ in range(warm if size == SCENARIOS else 6):
            fleet.decide()
        seconds[size] = median(fleet.decide() for _ in range(timed))
        figures[f"a pass over {size} scenarios, s"] = round(seconds[size], 4)
        figures[f"instances of {size} scenarios"] = fleet.held
        if size == SCENARIOS:
            held = fleet.held
            texts = {name: to_text(state) for name, state in fleet.states.items()}
            figures["state of a scenario, bytes"] = max(map(len, texts.values()))
            same = all(from_text(text) == fleet.states[name] for name, text in texts.items())
            figures["states that a restart changes"] = 0 if same else 1
        progress.advance(task)
    by_instances: dict[int, float] = {}
    for instances in (2000, 4000, 8000, 16_000):
        fleet = _Fleet.of(20, instances)
        for _ in range(6):
            fleet.decide()
        by_instances[instances] = median(fleet.decide() for _ in range(timed))
        figures[f"a pass over 20 scenarios with {fleet.held} instances, s"] = round(
            by_instances[instances], 4
        )
        progress.advance(task)
    return [
        at_least("instances in the pass that is timed", held, INSTANCES),
        at_most(f"CPU seconds of a pass over {SCENARIOS} scenarios", seconds[SCENARIOS], 1.0),
        at_most("exponent of a pass's cost in scenarios", _exponent(seconds), 1.15),
        at_most("exponent of a pass's cost in instances", _exponent(by_instances), 1.15),
        at_most("KB of a scenario's state", figures["state of a scenario, bytes"] / 1024, 8),
        at_most("states that a restart changes", figures["states that a restart changes"], 0),
    ]


def _week(figures: dict[str, float], progress: Progress, *, quick: bool, data: Path | None) -> list[Check]:
    days = 2.0 if quick else 7.0
    task = progress.add_task("week", total=1)
    began = time.process_time()
    scenarios = scenarios_of(CASES[0], days, data)
    named = {scenario.name: scenario for scenario in scenarios}
    planner = Operators(scenarios=named, limits=dict.fromkeys(named, Limits()))
    runs = run(scenarios, planner, FluidSettings(window=WINDOW))
    took = time.process_time() - began
    progress.advance(task)
    figures[f"{days:g} days of code and conv in the fluid model, s"] = round(took, 2)
    figures["decisions in them"] = 2 * len(runs["code"].windows)
    return [at_most(f"CPU seconds of {days:g} days of Azure's tides", took, 60.0)]


def _exponent(seconds: dict[int, float]) -> float:
    """The slope of log time over log size."""
    slope, _ = linear_regression([math.log(n) for n in seconds], [math.log(s) for s in seconds.values()])
    return slope


if __name__ == "__main__":
    sys.exit(main())
