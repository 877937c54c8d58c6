"""Checks, and the one JSON line at the end of a benchmark."""

from __future__ import annotations

import json
import os
import platform
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console

Check = dict[str, Any]


def at_least(name: str, value: float, bound: float) -> Check:
    return {"name": name, "value": round(value, 4), "bound": bound, "holds": value >= bound}


def at_most(name: str, value: float, bound: float) -> Check:
    return {"name": name, "value": round(value, 4), "bound": bound, "holds": value <= bound}


def tell(
    benchmark: str,
    figures: Mapping[str, float],
    checks: Sequence[Check],
    *,
    console: Console,
    as_json: bool,
    **environment: Any,
) -> int:
    """Print the checks, and all as JSON if asked; the exit status."""
    for check in checks:
        mark = "[green]holds[/]" if check["holds"] else "[red]does not hold[/]"
        console.print(f"{check['name']}: {check['value']} (bound {check['bound']}) {mark}")
    if as_json:
        machine = {
            "python": platform.python_version(),
            "machine": platform.machine(),
            "cpus": os.cpu_count(),
        }
        report = {
            "benchmark": benchmark,
            "environment": machine | environment,
            "figures": dict(figures),
            "checks": list(checks),
        }
        print(json.dumps(report))
    return 0 if all(check["holds"] for check in checks) else 1
