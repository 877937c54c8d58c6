"""Part a of `pd_autoscale.py`: a trace whose load nobody can foresee from one half-minute to the next, so that no scaler can gain.

Mooncake's conversation trace, 12,031 requests in 59 minutes, of which 352 need more than the 2 s allowed for prefill alone. What
helps is to end early who cannot be in time; what a planner can do is to notice, and to stay.

Two devices: the one on which the known figures of one queue were taken (prefill by the polynomial of Dynamo's mocker, 0.37 s for
the mean prompt), and for the comparison with Dynamo's replay the one that it ran on (0.26 s). The replay forwards round robin,
without deadlines, and holds computed prompts (see pd_replay.py): much of the distance to it is forwarding, not planning.
"""

from __future__ import annotations

import heapq
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.pd import dynamo
from benchmarks.pd.telling import Check, at_least, at_most
from rich.table import Table

from tidewheel.planning.scaling.scenario import Limits
from tidewheel.planning.scaling.sizing import Targets
from tidewheel.simulation.forwarding import OnDemand, RoundRobin
from tidewheel.simulation.planners import DynamoLoad, KedaLaw, Ours, Reactive
from tidewheel.simulation.prefill import PrefillRules
from tidewheel.simulation.profiles import H200, H200_FITTED, mocker
from tidewheel.simulation.service import Planner, ServiceSettings, simulate
from tidewheel.simulation.sources import OpenLoop

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from tidewheel.planning.scaling.profile import DeviceProfile
    from tidewheel.simulation.outcomes import Run
    from tidewheel.simulation.traces import Request

TTFT_SECONDS, TPOT_SECONDS = 2.0, 0.03
#: Good requests at so many prefills: one FIFO queue, and the same with hopeless requests ended early; prefill alone counts.
ONE_QUEUE = {1: (24, 9541), 2: (9189, 11_338), 3: (11_213, 11_578)}
#: Of NVIDIA Dynamo 1.4.2's planner in its own offline replay of this trace, from 2:1.
DYNAMO_GOOD, DYNAMO_GPU_HOURS = 5090, 3.72
START_UPS, START_UP = (10.0, 60.0, 180.0), 60.0
STATIC = ((1, 1), (2, 1), (3, 1), (4, 1), (2, 2), (3, 2))
#: The device: prefill by the polynomial of Dynamo's mocker, which is measured of whole prompts; decode as on an H200.
DEVICE = replace(H200, prefill=mocker().prefill)
SAME_DEVICE = "ours, 95%, the replay's device"
WHOLE_PROMPTS = PrefillRules(chunk_tokens=1 << 17)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One run, with its figures."""

    name: str
    run: Run

    @property
    def good(self) -> int:
        return self.run.good(TTFT_SECONDS, TPOT_SECONDS)


def stationary(
    requests: Sequence[Request],
    figures: dict[str, float],
    console: Console,
    *,
    plot: Path | None,
    dynamo_python: Path | None,
    quick: bool,
) -> list[Check]:
    """All of part a; adds to the figures and gives the checks."""
    theirs = (DYNAMO_GOOD, DYNAMO_GPU_HOURS)
    if dynamo_python is not None:
        theirs = _replayed(requests, dynamo_python)
    figures["stationary Dynamo's replay with its load loop: good"] = theirs[0]
    figures["stationary Dynamo's replay with its load loop: GPU-hours"] = round(theirs[1], 3)
    checks = _forwarding(requests, figures, console)
    static = [Row(name=f"static {p}:{d}", run=_served(requests, prefills=p, decodes=d)) for p, d in STATIC]
    ours: list[tuple[float, float, Row]] = []
    for start in (START_UP,) if quick else START_UPS:
        for attainment in (0.95, 0.99):
            run = _served(requests, _ours(DEVICE, attainment, start), start=start)
            name = f"ours, {attainment:.0%}, start-up {start:g} s"
            ours.append((start, attainment, Row(name=name, run=run)))
    others = _others(requests)
    console.print(_table([*static, *(row for _, _, row in ours), *others], theirs))
    for row in (*static, *(row for _, _, row in ours), *others):
        figures[f"stationary {row.name}: good"] = row.good
        figures[f"stationary {row.name}: GPU-hours"] = round(row.run.gpu_hours, 3)
        figures[f"stationary {row.name}: changes"] = row.run.changes
    for _, _, row in ours:
        at_equal = best_static_at(static, row.run.gpu_hours)
        figures[f"stationary {row.name}: over the best static at equal GPU-hours"] = round(
            row.good / at_equal, 4
        )
        checks.append(at_most(f"stationary, changes, {row.name}", row.run.changes, 6))
        checks.append(
            at_least(f"stationary, good over the best static's, {row.name}", row.good / at_equal, 0.98)
        )
    lean = next(row for start, attainment, row in ours if (start, attainment) == (START_UP, 0.95))
    same = next(row for row in others if row.name == SAME_DEVICE)
    checks += [
        at_least("stationary, good over those of Dynamo's replay", lean.good / theirs[0], 2.0),
        at_most("stationary, GPU-hours for that over theirs", lean.run.gpu_hours / theirs[1], 1.0),
        at_least("stationary, good over those of Dynamo's replay, same device", same.good / theirs[0], 2.0),
        at_most("stationary, GPU-hours over theirs, same device", same.run.gpu_hours / theirs[1], 1.0),
    ]
    if plot is not None:
        _plot([*static, lean, *others], plot)
    return checks


def best_static_at(static: Sequence[Row], gpu_hours: float) -> float:
    """Good requests of the best mix of two static ratios that takes as many GPU-hours, each for a part of the time."""
    points = sorted((row.run.gpu_hours, row.good) for row in static)
    best = max((good for hours, good in points if hours <= gpu_hours), default=0.0)
    for low_hours, low in points:
        for high_hours, high in points:
            if low_hours <= gpu_hours < high_hours:
                share = (gpu_hours - low_hours) / (high_hours - low_hours)
                best = max(best, low + share * (high - low))
    return float(best)


def _ours(device: DeviceProfile, attainment: float, start: float) -> Ours:
    targets = Targets(ttft_seconds=TTFT_SECONDS, tpot_seconds=TPOT_SECONDS, attainment=attainment)
    return Ours(device, targets, Limits(startup_seconds=start))


def _served(
    requests: Sequence[Request],
    planner: Planner | None = None,
    *,
    prefills: int = 2,
    decodes: int = 1,
    start: float = START_UP,
    window: float = 30.0,
    ends_early: bool = True,
    device: DeviceProfile = DEVICE,
) -> Run:
    settings = ServiceSettings(
        profile=device,
        prefills=prefills,
        decodes=decodes,
        make_gateway=lambda service: OnDemand(service, device.prefill_slots, ends_early=ends_early),
        ttft_seconds=TTFT_SECONDS,
        tpot_seconds=TPOT_SECONDS,
        prefill_rules=WHOLE_PROMPTS,
        start_seconds=start,
        window_seconds=window,
    )
    return simulate(settings, OpenLoop(requests), planner)


def _others(requests: Sequence[Request]) -> list[Row]:
    """Ours on the replay's device, other planners behind our forwarding, and Dynamo's loop behind its own."""
    as_replayed = ServiceSettings(
        profile=H200_FITTED,
        prefills=2,
        decodes=1,
        make_gateway=RoundRobin,
        ttft_seconds=TTFT_SECONDS,
        prefill_rules=PrefillRules(counts_as_one_prompt=True, echoes_answers=True, cached_blocks=1845),
        start_seconds=START_UP,
        window_seconds=5.0,
        waits_for_room=False,
    )
    ours = _served(requests, _ours(H200_FITTED, 0.95, START_UP), device=H200_FITTED)
    return [
        Row(name=SAME_DEVICE, run=ours),
        Row(name="reactive ±1", run=_served(requests, Reactive())),
        Row(
            name="KEDA law of llm-d", run=_served(requests, KedaLaw(TTFT_SECONDS, TPOT_SECONDS), window=15.0)
        ),
        Row(name="Dynamo's load loop", run=_served(requests, DynamoLoad("latency"), window=5.0)),
        Row(
            name="Dynamo's load loop, replay's forwarding",
            run=simulate(as_replayed, OpenLoop(requests), DynamoLoad("latency")),
        ),
    ]


def _forwarding(requests: Sequence[Request], figures: dict[str, float], console: Console) -> list[Check]:
    table = Table(
        title="Good requests (TTFT <= 2 s) of 12,031 by prefills, one decode: what ending early gives (simulated)"
    )
    for heading in (
        "prefills",
        "one FIFO queue*",
        "ended early*",
        "full, FIFO",
        "full, on demand",
        "shed: hopeless",
        "shed: no prefill in time",
        "late",
    ):
        table.add_column(heading, justify="right")
    table.caption = "* prefill alone counts: no transfer, no decode, no slots"
    checks: list[Check] = []
    hopeless = sum(DEVICE.prefill_seconds(one.prompt_tokens) > TTFT_SECONDS for one in requests)
    figures["stationary: requests that need longer than allowed, alone"] = hopeless
    for prefills, wanted in ONE_QUEUE.items():
        queue = tuple(_one_queue(requests, prefills, ends_early=early) for early in (False, True))
        fifo = _served(requests, prefills=prefills, ends_early=False).good(TTFT_SECONDS)
        ours = _served(requests, prefills=prefills)
        reasons = ours.reasons()
        alone = sum(count for why, count in reasons.items() if "even alone" in why)
        good = ours.good(TTFT_SECONDS)
        late = len(ours.answered) - good
        row = (prefills, *queue, fifo, good, alone, sum(reasons.values()) - alone, late)
        table.add_row(*(f"{value:,}" for value in row))
        at = f"stationary, {prefills} prefills"
        figures |= {
            f"{at}: one FIFO queue": queue[0],
            f"{at}: one queue, ended early": queue[1],
            f"{at}: full simulator, FIFO": fifo,
            f"{at}: full simulator, on demand": good,
            f"{at}: shed as hopeless": alone,
            f"{at}: shed for want of a prefill in time": sum(reasons.values()) - alone,
        }
        checks += [
            at_most(f"{at}, one queue differs from the known figures by", _differs(queue, wanted), 0),
            at_least(f"{at}, good on demand in the full simulator", good, wanted[1]),
        ]
    console.print(table)
    return checks


def _differs(seen: tuple[int, ...], wanted: tuple[int, ...]) -> int:
    return sum(abs(one - other) for one, other in zip(seen, wanted, strict=True))


def _one_queue(requests: Sequence[Request], prefills: int, *, ends_early: bool) -> int:
    """Good ones of one queue before so many prefills, when nothing but prefill takes time."""
    free, good = [0.0] * prefills, 0
    for one in requests:
        began = max(one.at, heapq.heappop(free))
        ends = began + DEVICE.prefill_seconds(one.prompt_tokens)
        is_good = ends <= one.at + TTFT_SECONDS
        heapq.heappush(free, began if ends_early and not is_good else ends)
        good += is_good
    return good


def _replayed(requests: Sequence[Request], python: Path) -> tuple[int, float]:
    """Good requests and GPU-hours of Dynamo's planner in its own replay."""
    planner = {
        "mode": "disagg",
        "optimization_target": "latency",
        "enable_load_scaling": True,
        "enable_throughput_scaling": False,
        "max_gpu_budget": 16,
        "prefill_engine_num_gpu": 1,
        "decode_engine_num_gpu": 1,
    }
    with tempfile.TemporaryDirectory(prefix="pd-autoscale-") as folder:
        seen = dynamo.trace_replay(
            python, Path(folder), 2, 1, requests, H200_FITTED, ttft_seconds=TTFT_SECONDS, planner=planner
        )
    return seen["goodput_completed_requests"], seen["gpu_hours"]


def _table(rows: Sequence[Row], theirs: tuple[int, float]) -> Table:
    table = Table(
        title="Mooncake conversation, start-up 60 s where not said; good: TTFT <= 2 s and TPOT <= 30 ms (simulated)"
    )
    for heading in ("planner", "GPU-h", "good", "good per GPU-h", "shed", "late", "TTFT p99", "changes"):
        table.add_column(heading, justify="left" if heading == "planner" else "right")
    for row in rows:
        figures = row.run.figures(ttft_seconds=TTFT_SECONDS, tpot_seconds=TPOT_SECONDS)
        table.add_row(
            row.name,
            f"{row.run.gpu_hours:.2f}",
            f"{row.good:,}",
            f"{row.good / row.run.gpu_hours:,.0f}",
            f"{figures['shed']:,.0f}",
            f"{figures['late']:,.0f}",
            f"{figures['ttft p99 s']:.2f} s",
            str(row.run.changes),
        )
    ideal = 12_031 - 352
    table.caption = (
        f"ideal: {ideal:,}, all but those that need longer alone; "
        f"Dynamo 1.4.2 in its own replay, with its load loop: {theirs[0]:,} at {theirs[1]:.2f} GPU-h"
    )
    return table


def _plot(rows: Sequence[Row], file: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.2))
    for row in rows:
        left.scatter(row.run.gpu_hours, row.good, label=row.name)
    left.set(xlabel="GPU-hours", ylabel="good requests", title="What GPU-hours give")
    left.legend(fontsize=7)
    left.grid(alpha=0.3)
    for row in rows:
        if row.run.changes:
            times = [window.ends / 60 for window in row.run.windows]
            right.step(
                times, [window.prefill.coming for window in row.run.windows], where="post", label=row.name
            )
    right.set(xlabel="minutes", ylabel="prefills, ready and starting", title="What planners did")
    right.legend(fontsize=7)
    right.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(file)
