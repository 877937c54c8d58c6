"""How a soak went, for people and for machines."""

from __future__ import annotations

import json
import os
import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from tests.soak.clients import Record
from tests.soak.director import Window
from tests.soak.plans import Ending
from tests.soak.residue import Residue
from tests.soak.verdict import Check, median, quantile, recoveries, ttfts

ERRORS = (Ending.SHED, Ending.FAILED, Ending.INTERRUPTED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Soak:
    """Everything that was seen."""

    seed: int
    seconds: float
    engine: str
    records: Sequence[Record]
    windows: Sequence[Window]
    before: Sequence[Residue]
    after: Sequence[Residue]
    checks: Sequence[Check]

    @property
    def figures(self) -> dict[str, float]:
        """By name; times in seconds."""
        endings = Counter(one.ending for one in self.records)
        faults = Counter(one.fault.kind.name for one in self.windows)
        calm = ttfts(self.records, self.windows, within_faults=False)
        stormy = ttfts(self.records, self.windows, within_faults=True)
        taken = [seconds for each in recoveries(self.windows).values() for seconds in each]
        return {
            "requests": len(self.records),
            **{f"requests {how}": endings[how] for how in Ending},
            "faults": len(self.windows),
            **{f"faults: {name}": count for name, count in sorted(faults.items())},
            "ttft p50 outside of faults": quantile(calm, 0.5),
            "ttft p99 outside of faults": quantile(calm, 0.99),
            "ttft p50 within faults": quantile(stormy, 0.5),
            "ttft p99 within faults": quantile(stormy, 0.99),
            "recovery p50": median(taken),
            "recovery most": max(taken, default=0.0),
        }


def show(soak: Soak, console: Console) -> None:
    """For people."""
    console.print(_requests(soak), _faults(soak), _processes(soak))
    for check in soak.checks:
        mark = "[green]holds[/]" if check.holds else "[red]does not hold[/]"
        console.print(f"{check.name}: {check.value:g} (bound {check.bound:g}) {mark}", highlight=False)
        if not check.holds:
            for example in check.examples:
                console.print(f"    {example}", markup=False, highlight=False)
    console.print(f"seed {soak.seed}: the same seed brings the same faults", highlight=False)


def keep(soak: Soak, directory: Path) -> None:
    """Every request and every fault, beside the logs, for whoever looks for the cause of something."""
    for name, rows in (("requests", soak.records), ("faults", soak.windows)):
        lines = [json.dumps(asdict(row), default=str) for row in rows]
        (directory / f"{name}.jsonl").write_text("\n".join(lines))


def to_json(soak: Soak) -> dict[str, Any]:
    """As the benchmarks print theirs."""
    return {
        "benchmark": "soak",
        "environment": {
            "python": platform.python_version(),
            "machine": platform.machine(),
            "cpus": os.cpu_count(),
            "engine": soak.engine,
            "seed": soak.seed,
            "seconds": soak.seconds,
        },
        "figures": {name: round(value, 4) for name, value in soak.figures.items() if value == value},
        "checks": [
            {"name": one.name, "value": one.value, "bound": one.bound, "holds": one.holds}
            for one in soak.checks
        ],
    }


def _requests(soak: Soak) -> Table:
    table = Table(title=f"{len(soak.records)} requests by how they ended")
    endings = [how for how in Ending if any(one.ending is how for one in soak.records)]
    table.add_column("kind")
    for how in endings:
        table.add_column(how, justify="right")
    table.add_column("TTFT p50/p99 s", justify="right")
    kinds = sorted({one.kind for one in soak.records})
    for kind in kinds:
        mine = [one for one in soak.records if one.kind == kind]
        counts = Counter(one.ending for one in mine)
        times = [one.ttft for one in mine if one.ttft is not None]
        table.add_row(kind, *(str(counts[how] or "") for how in endings), _pair(times))
    counts = Counter(one.ending for one in soak.records)
    table.add_section()
    table.add_row("all", *(str(counts[how]) for how in endings), "")
    for name, within in (("outside of faults", False), ("within faults", True)):
        times = ttfts(soak.records, soak.windows, within_faults=within)
        table.add_row(f"streams {name}", *[""] * len(endings), _pair(times))
    for (how, code), count in sorted(
        Counter((o.ending, o.detail.partition(":")[0]) for o in soak.records if o.ending in ERRORS).items()
    ):
        table.add_row(f"{how}: {code}", *(str(count) if one is how else "" for one in endings), "")
    return table


def _faults(soak: Soak) -> Table:
    table = Table(title=f"{len(soak.windows)} faults")
    for heading in ("kind", "what", "times"):
        table.add_column(heading)
    table.add_column("until all were ready again p50/most s", justify="right")
    kinds = {one.fault.kind.name: one.fault.kind for one in soak.windows}
    for name, seconds in sorted(recoveries(soak.windows).items()):
        table.add_row(
            name, kinds[name].what, str(len(seconds)), f"{median(seconds):.1f} / {max(seconds):.1f}"
        )
    return table


def _processes(soak: Soak) -> Table:
    table = Table(title="Processes at rest: the most of a role before, and after")
    for heading in ("process", "descriptors", "threads", "MB"):
        table.add_column(heading, justify="left" if heading == "process" else "right")
    for one in soak.after:
        before = [other for other in soak.before if other.role == one.role]
        table.add_row(
            f"{one.name} (life {one.life})",
            f"{max(b.descriptors for b in before)} / {one.descriptors}",
            f"{max(b.threads for b in before)} / {one.threads}",
            f"{max(b.rss_mb for b in before):.0f} / {one.rss_mb:.0f}",
        )
    return table


def _pair(times: Sequence[float]) -> str:
    return f"{quantile(times, 0.5):.3f} / {quantile(times, 0.99):.3f}" if times else ""
