"""Throughput by the ratio of prefills to decodes, P/D-Serve's Eq. 1, and who is served in time when the load grows.

Simulated, request by request, on one H200 for each instance (profile and traces: benchmarks/pd/data.py). Nothing is measured on
hardware. Ratios: for each of four traces, a closed loop of its requests keeps all instances busy, with as many sequences in a
decode as TPOT <= 30 ms allows; every split of the instances is tried and set beside the one that Eq. 1 names from T_p, T_d, b_p and
b_d alone, computed by the operator's own functions. The paper's "60 % more than other ratios" does not say which: the check is
against 1:3, the table tells also of 1:1, of the mirrored ratio and of those that Eq. 1 names for the other traces. Forwarding: Poisson arrivals at 1A to 5A with one trace's lengths, once for
5A below what the prefills can compute and once for 5A at twice that; the product's rules of forwarding beside queues in the
prefills whose lengths gateways hear of every 100 ms, which is what P/D-Serve was measured against.

    python benchmarks/pd_ratio.py [--quick] [--data DIRECTORY] [--plot FILE.svg] [--json]
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import math
import random
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.pd.data import LINKED_H200, TRACES, trace
from benchmarks.pd.telling import Check, at_least, at_most, tell

from tidewheel.planning.scaling.throughput import (
    RoleService,
    balanced_ratio,
    best_split,
    decode_batch_seconds,
)
from tidewheel.simulation.forwarding import LocalQueues, OnDemand
from tidewheel.simulation.prefill import PrefillRules
from tidewheel.simulation.service import ServiceSettings, simulate
from tidewheel.simulation.sources import ClosedLoop, OpenLoop
from tidewheel.simulation.traces import poisson

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tidewheel.planning.scaling.profile import DeviceProfile
    from tidewheel.simulation.forwarding import Gateway, Prefills
    from tidewheel.simulation.outcomes import Run
    from tidewheel.simulation.traces import Request

TPOT_SECONDS = 0.030
SLOTS = 2
#: The other ratios that Eq. 1's is compared with, prefills of all instances: one to one, and one to three.
EQUAL, ONE_TO_THREE = 0.5, 0.25
#: Of the forwarding part: the trace with the shortest deadline that all its prompts can meet alone.
FORWARDED, TTFT_SECONDS = "azure code", 0.5
PREFILLS, DECODES, GATEWAYS = 8, 2, 4
#: 5A over what the prefills alone can compute.
BELOW, BEYOND = 0.95, 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratios:
    """One trace: throughput of every split, and what Eq. 1 says."""

    name: str
    instances: int
    per_second: dict[int, float]  # by prefills
    tpot_p99: float  # the worst of all splits
    named: int  # prefills, by Eq. 1
    ratio: float
    bound: dict[int, float]  # min(n_p b_p / T_p, n_d b_d / T_d)
    others: tuple[int, ...]  # prefills that Eq. 1 names for the other traces

    @property
    def best(self) -> int:
        return max(self.per_second, key=lambda prefills: self.per_second[prefills])

    @property
    def of_best(self) -> float:
        return self.per_second[self.named] / self.per_second[self.best]

    def over(self, prefills: int) -> float:
        """How much more the best ratio gives than another."""
        return self.per_second[self.best] / self.per_second[prefills] - 1

    @property
    def over_others(self) -> tuple[float, float]:
        """Over the ratios of the other traces: the nearest and the farthest."""
        gains = [self.over(prefills) for prefills in self.others]
        return min(gains), max(gains)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--quick", action="store_true", help="fewer instances and requests; under a minute")
    options.add_argument("--data", type=Path, help="the traces as published, instead of benchmarks/data")
    options.add_argument("--plot", type=Path, help="throughput and success, as SVG or PNG")
    options.add_argument(
        "--json", action="store_true", help="the figures as one JSON object on the last line"
    )
    asked = options.parse_args()
    console = Console(stderr=asked.json, width=120)
    instances, most = (12, 3000) if asked.quick else (24, 12_000)
    with Progress(console=console, transient=True) as progress:
        traces = {name: trace(name, asked.data) for name in TRACES}
        named = {name: _named(requests, instances) for name, requests in traces.items()}
        ratios = [
            _ratios(name, requests, named, instances, most, progress, quick=asked.quick)
            for name, requests in traces.items()
        ]
        like = trace(FORWARDED, asked.data)
        steps = {share: _steps(like, share, progress, quick=asked.quick) for share in (BELOW, BEYOND)}
    console.print(_ratio_table(ratios))
    for share, rows in steps.items():
        console.print(_step_table(share, rows))
    figures = _figures(ratios, steps)
    if asked.plot is not None:
        _plot(ratios, steps, asked.plot)
    return tell(
        "pd_ratio",
        figures,
        _checks(ratios, steps),
        console=console,
        as_json=asked.json,
        engine="simulated: H200 profile",
        quick=asked.quick,
    )


# ---- ratios


def _named(requests: Sequence[Request], instances: int) -> int:
    """Prefills by Eq. 1."""
    prefill, decode = _services(requests, _within_tpot(requests))
    return best_split(instances, math.inf, prefill, decode)[0]


def _ratios(
    name: str,
    requests: Sequence[Request],
    all_named: dict[str, int],
    instances: int,
    most: int,
    progress: Progress,
    *,
    quick: bool,
) -> Ratios:
    profile = _within_tpot(requests)
    prefill, decode = _services(requests, profile)
    named = all_named[name]
    compared = {*all_named.values(), *_compared(instances), instances - named}
    tried = sorted({*range(1, instances, 2 if quick else 1), *compared})
    task = progress.add_task(name, total=len(tried))
    per_second: dict[int, float] = {}
    slow = 0.0
    for prefills in tried:
        run = _saturated(requests, profile, prefills, instances - prefills, most)
        per_second[prefills] = run.per_second()
        slow = max(slow, run.figures(ttft_seconds=math.inf)["tpot p99 ms"])
        progress.advance(task)
    return Ratios(
        name=name,
        instances=instances,
        per_second=per_second,
        tpot_p99=slow,
        named=named,
        ratio=float(balanced_ratio(prefill, decode)),
        bound={n: min(n * prefill.rate, (instances - n) * decode.rate) for n in tried},
        others=tuple(prefills for other, prefills in all_named.items() if other != name),
    )


def _within_tpot(requests: Sequence[Request]) -> DeviceProfile:
    """The device with as many sequences in a decode as the objective allows at the mean context."""
    tokens = sum(request.answer_tokens for request in requests)
    context = (
        sum((one.prompt_tokens + one.answer_tokens / 2) * one.answer_tokens for one in requests) / tokens
    )
    return replace(LINKED_H200, decode_slots=LINKED_H200.decode_batch(TPOT_SECONDS, context))


def _services(requests: Sequence[Request], profile: DeviceProfile) -> tuple[RoleService, RoleService]:
    """T_p, b_p, T_d and b_d of a trace: all that Eq. 1 is told."""
    tokens = [one.answer_tokens for one in requests]
    context = sum((one.prompt_tokens + one.answer_tokens / 2) * one.answer_tokens for one in requests)
    tpot = profile.decode_seconds(profile.decode_slots, context / sum(tokens))
    transfer = profile.transfer_seconds(fmean(one.prompt_tokens for one in requests))
    prefill_seconds = fmean(profile.prefill_seconds(one.prompt_tokens) for one in requests)
    return (
        RoleService(batch_seconds=prefill_seconds, batch_size=1),
        RoleService(
            batch_seconds=decode_batch_seconds(transfer, tpot, fmean(tokens)), batch_size=profile.decode_slots
        ),
    )


def _saturated(
    requests: Sequence[Request], profile: DeviceProfile, prefills: int, decodes: int, most: int
) -> Run:
    """As many in flight as fill all slots of both roles, for long enough that the batches turn over several times."""
    prefill, decode = _services(requests, profile)
    rate = min(prefills * prefill.rate, decodes * decode.rate)
    in_flight = math.ceil(1.3 * min(decodes * decode.batch_size, rate * decode.batch_seconds)) + 4 * prefills
    count = min(most, max(len(requests) // 4, 8 * in_flight))
    sent = list(itertools.islice(itertools.cycle(requests), count))
    settings = ServiceSettings(
        profile=profile,
        prefills=prefills,
        decodes=decodes,
        make_gateway=lambda service: OnDemand(service, SLOTS, ends_early=False),
        window_seconds=1e6,
    )
    return simulate(settings, ClosedLoop([replace(one, blocks=()) for one in sent], in_flight))


def _compared(instances: int) -> tuple[int, int]:
    return round(EQUAL * instances), round(ONE_TO_THREE * instances)


# ---- forwarding


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One load under both ways of forwarding; shares of those whose first token came in time."""

    times: int
    load: float  # over what the prefills alone can compute
    ours: Run
    queues: Run
    allowed: int  # that one line before the prefills could serve in time, if nothing took time but computing

    @property
    def of_all(self) -> tuple[float, float]:
        return tuple(run.good(TTFT_SECONDS) / len(run.outcomes) for run in (self.ours, self.queues))  # type: ignore[return-value]

    @property
    def of_allowed(self) -> tuple[float, float]:
        return tuple(run.good(TTFT_SECONDS) / self.allowed for run in (self.ours, self.queues))  # type: ignore[return-value]

    @property
    def of_accepted(self) -> float:
        good = self.ours.good(TTFT_SECONDS)
        return good / max(1, len(self.ours.answered))


def _steps(like: Sequence[Request], share: float, progress: Progress, *, quick: bool) -> list[Step]:
    count = 4000 if quick else 12_000
    mean = fmean(LINKED_H200.prefill_seconds(one.prompt_tokens) for one in like)
    task = progress.add_task(f"forwarding to {share:g} of the prefills", total=5)
    steps = []
    for times in range(1, 6):
        load = share * times / 5
        requests = poisson(
            like, per_second=load * PREFILLS / mean, count=count, generator=random.Random(times)
        )
        ours, queues = (
            simulate(
                ServiceSettings(
                    profile=LINKED_H200,
                    prefills=PREFILLS,
                    decodes=DECODES,
                    make_gateway=make,
                    ttft_seconds=TTFT_SECONDS,
                    # one prompt after the other, so that T_p is the same for all ways of forwarding
                    prefill_rules=PrefillRules(fills_chunks=False),
                    window_seconds=1e6,
                ),
                OpenLoop(requests),
            )
            for make in (_on_demand, _local_queues)
        )
        steps.append(Step(times=times, load=load, ours=ours, queues=queues, allowed=_allowed(requests)))
        progress.advance(task)
    return steps


def _on_demand(service: Prefills) -> Gateway:
    return OnDemand(service, SLOTS)


def _local_queues(service: Prefills) -> Gateway:
    return LocalQueues(service, gateways=GATEWAYS, generator=random.Random(7))


def _allowed(requests: Sequence[Request]) -> int:
    """One line before the prefills, first come first served, who cannot be in time is passed over; nothing else takes time."""
    free, served = [0.0] * PREFILLS, 0
    for one in requests:
        at = max(one.at, heapq.heappop(free))
        ends = at + LINKED_H200.prefill_seconds(one.prompt_tokens)
        if ends <= one.at + TTFT_SECONDS:
            served, at = served + 1, ends
        heapq.heappush(free, at)
    return served


# ---- what is told


def _ratio_table(ratios: Sequence[Ratios]) -> Table:
    table = Table(
        title=f"Requests per second of {ratios[0].instances} instances at TPOT <= {1000 * TPOT_SECONDS:g} ms (simulated)"
    )
    headings = (
        "trace",
        "Eq. 1 n_p/n_d",
        "named",
        "best",
        "of best",
        "ideal",
        "over 1:1",
        "over 1:3",
        "over the others'",
        "mirrored",
    )
    for heading in headings:
        table.add_column(
            heading, justify="left" if heading == "trace" else "right", no_wrap=heading == "trace"
        )
    table.caption = (
        "ideal: min(n_p b_p / T_p, n_d b_d / T_d) with T_p of prompts computed alone; "
        "exceeded where short prompts share a chunk's constant part, and by parts of a trace that are lighter than its mean"
    )
    for one in ratios:
        equal, few = _compared(one.instances)
        table.add_row(
            one.name,
            f"{one.ratio:.2f}",
            f"{one.named}:{one.instances - one.named}",
            f"{one.best}:{one.instances - one.best} ({one.per_second[one.best]:.1f}/s)",
            f"{one.of_best:.3f}",
            f"{one.bound[one.named]:.1f}/s",
            f"+{one.over(equal):.0%}",
            f"+{one.over(few):.0%}",
            " to ".join(f"+{gain:.0%}" for gain in one.over_others),
            f"+{one.over(one.instances - one.named):.0%}",
        )
    return table


def _step_table(share: float, steps: Sequence[Step]) -> Table:
    title = f"First tokens within {TTFT_SECONDS:g} s, {FORWARDED}; 5A is {share:g} of what {PREFILLS} prefills can compute"
    table = Table(title=f"{title} (simulated)")
    for heading in (
        "load",
        "on demand",
        "queues",
        "on demand*",
        "queues*",
        "of the accepted",
        "shed",
        "queues late",
    ):
        table.add_column(heading, justify="right")
    for step in steps:
        late = sum(one.ttft > TTFT_SECONDS for one in step.queues.answered)
        table.add_row(
            f"{step.times}A",
            *(f"{value:.4f}" for value in (*step.of_all, *step.of_allowed, step.of_accepted)),
            str(step.ours.endings().get("shed", 0)),
            str(late),
        )
    table.caption = "* of what one line before the prefills allows, if nothing but computing took time"
    return table


def _figures(ratios: Sequence[Ratios], steps: dict[float, list[Step]]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for one in ratios:
        equal, few = _compared(one.instances)
        figures |= {
            f"{one.name}: Eq. 1 n_p/n_d": round(one.ratio, 3),
            f"{one.name}: prefills named": one.named,
            f"{one.name}: prefills best": one.best,
            f"{one.name}: requests/s at the named": round(one.per_second[one.named], 2),
            f"{one.name}: requests/s at the best": round(one.per_second[one.best], 2),
            f"{one.name}: ideal requests/s at the named": round(one.bound[one.named], 2),
            f"{one.name}: named over best": round(one.of_best, 4),
            f"{one.name}: best over 1:1": round(one.over(equal), 3),
            f"{one.name}: best over 1:3": round(one.over(few), 3),
            f"{one.name}: best over the other traces' ratios, at most": round(one.over_others[1], 3),
            f"{one.name}: best over the mirrored ratio": round(one.over(one.instances - one.named), 3),
            f"{one.name}: TPOT p99 ms, worst split": round(one.tpot_p99, 2),
        }
    for share, rows in steps.items():
        for step in rows:
            at = f"5A at {share:g}, {step.times}A"
            for name, values in (("of all", step.of_all), ("of what capacity allows", step.of_allowed)):
                figures[f"{at}: on demand {name}"] = round(values[0], 4)
                figures[f"{at}: local queues {name}"] = round(values[1], 4)
            figures[f"{at}: on demand of the accepted"] = round(step.of_accepted, 4)
    return figures


def _checks(ratios: Sequence[Ratios], steps: dict[float, list[Step]]) -> list[Check]:
    below, beyond = steps[BELOW][-1], steps[BEYOND][-1]
    checks = [
        at_least(f"Eq. 1's choice over the best ratio, {one.name}", one.of_best, 0.95) for one in ratios
    ]
    checks += [
        at_least(f"best ratio over 1:3, {one.name}", one.over(_compared(one.instances)[1]), 0.6)
        for one in ratios
    ]
    return [
        *checks,
        at_least("on demand in time at 5A below capacity, of all", below.of_all[0], 0.99),
        at_least("on demand in time at 5A beyond capacity, of what it allows", beyond.of_allowed[0], 0.99),
        at_least("on demand in time at 5A beyond capacity, of the accepted", beyond.of_accepted, 0.99),
        at_most("local queues in time at 5A beyond capacity, of what it allows", beyond.of_allowed[1], 0.57),
        at_least(
            "points that local queues lose at worst, of what capacity allows",
            100 * max(step.of_allowed[0] - step.of_allowed[1] for rows in steps.values() for step in rows),
            42.3,
        ),
    ]


def _plot(ratios: Sequence[Ratios], steps: dict[float, list[Step]], file: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, *rights) = plt.subplots(1, 3, figsize=(14, 4.2))
    for one in ratios:
        line = left.plot(
            one.per_second.keys(),
            [value / one.per_second[one.best] for value in one.per_second.values()],
            label=one.name,
        )
        left.axvline(one.named, color=line[0].get_color(), linestyle=":")
    left.set(
        xlabel=f"prefills of {ratios[0].instances} instances",
        ylabel="throughput over the best",
        title="By ratio; dotted: Eq. 1",
    )
    for axis, (share, rows) in zip(rights, steps.items(), strict=True):
        loads = [step.load for step in rows]
        axis.plot(loads, [step.of_all[0] for step in rows], marker="o", label="on demand")
        axis.plot(loads, [step.of_all[1] for step in rows], marker="o", label="local queues")
        axis.plot(
            loads,
            [step.allowed / len(step.ours.outcomes) for step in rows],
            "k:",
            label="what capacity allows",
        )
        axis.set(xlabel="load over the prefills' capacity", ylim=(0, 1.05), title=f"In time, 5A = {share:g}")
    for axis in (left, *rights):
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(file)


if __name__ == "__main__":
    sys.exit(main())
