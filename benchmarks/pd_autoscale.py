"""How many prefills and decodes, and when: the operator's planner beside static counts and other scalers.

Simulated, nothing is measured on hardware; every planner sees only the past. Part a, stationary: the Mooncake conversation trace
through the event simulator, where no scaler can gain and forwarding with deadlines does. Part b, tidal: a week of the Azure traces'
shape for two scenarios that share a budget, through the fluid simulator, with parts of it followed request by request.

    python benchmarks/pd_autoscale.py [--quick] [--data DIRECTORY] [--dynamo PYTHON] [--plot DIRECTORY] [--json]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.pd.data import trace
from benchmarks.pd.stationary import stationary
from benchmarks.pd.telling import tell
from benchmarks.pd.tidal import tidal


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--quick", action="store_true", help="one start-up, two days; under a minute")
    options.add_argument("--data", type=Path, help="the traces as published, instead of benchmarks/data")
    options.add_argument("--plot", type=Path, help="a directory for the plots, as SVG")
    options.add_argument(
        "--dynamo",
        type=Path,
        help="an interpreter with ai-dynamo 1.4.2, to run its planner's replay beside ours",
    )
    options.add_argument(
        "--json", action="store_true", help="the figures as one JSON object on the last line"
    )
    asked = options.parse_args()
    console = Console(stderr=asked.json, width=120)
    figures: dict[str, float] = {}
    if asked.plot is not None:
        asked.plot.mkdir(parents=True, exist_ok=True)
    requests = trace("mooncake conversation", asked.data)
    plot = asked.plot / "pd_autoscale_stationary.svg" if asked.plot is not None else None
    checks = stationary(requests, figures, console, plot=plot, dynamo_python=asked.dynamo, quick=asked.quick)
    plot = asked.plot / "pd_autoscale_tidal.svg" if asked.plot is not None else None
    checks += tidal(figures, console, quick=asked.quick, plot=plot, traces=asked.data)
    return tell(
        "pd_autoscale",
        figures,
        checks,
        console=console,
        as_json=asked.json,
        service="simulated",
        quick=asked.quick,
    )


if __name__ == "__main__":
    sys.exit(main())
