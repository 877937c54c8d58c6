"""The event simulator beside NVIDIA Dynamo's offline replay: the same requests, the same device, the same rules.

Both are simulators; nothing is measured on hardware. The replay counts every token's iteration, ours changes of a batch. The
replay's figures are those of ai-dynamo 1.4.2, taken once and written down here; with `--dynamo PYTHON`, an interpreter that has it
(benchmarks/pd/dynamo.py says how), it runs beside ours, row by row.

Where the two differ, and why:

- In the closed loop, at 7:1 and 256 sequences in a decode, ours gives a sixth more. The replay's decode takes longer the more KV it
  holds, also that of the 144 prompts that wait for one of its sequences; in ours only sequences of the batch are read. The row below
  it has 512 sequences, so that nobody waits, and there the two agree.
- Replays of trace files keep a computed prompt in its prefill for as many iterations as its answer has tokens ("planned output
  token count differs from max_output_tokens"), or until nothing else is to be computed. For comparison ours does so too; the last
  column is what ours says without.

    python benchmarks/pd_replay.py [--quick] [--data DIRECTORY] [--dynamo PYTHON] [--json]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.pd import dynamo
from benchmarks.pd.data import trace
from benchmarks.pd.telling import Check, at_most, tell

from tidewheel.simulation.forwarding import RoundRobin
from tidewheel.simulation.prefill import PrefillRules
from tidewheel.simulation.profiles import H200_FITTED, mocker
from tidewheel.simulation.service import ServiceSettings, simulate
from tidewheel.simulation.sources import ClosedLoop, OpenLoop
from tidewheel.simulation.traces import Request

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tidewheel.simulation.outcomes import Run

PROMPT, ANSWER, COUNT, IN_FLIGHT, INSTANCES = 2048, 200, 4000, 400, 8
TTFT_SECONDS = 2.0
#: By prefills of 8, and sequences of a decode's batch: requests per second, mean TTFT ms, mean TPOT ms.
CLOSED = {
    (1, 256): (23.5, 14_965, 6.2),
    (2, 256): (46.6, 6797, 7.0),
    (3, 256): (69.1, 3877, 8.3),
    (4, 256): (90.7, 1985, 11.4),
    (5, 256): (100.2, 329, 17.9),
    (6, 256): (80.3, 338, 22.8),
    (7, 256): (39.7, 3550, 31.5),
    (7, 512): (58.4, 335, 32.2),
}
Told = dict[tuple[int, int], tuple[float, float, float, float, float]]
#: By prefills and decodes: good requests (TTFT <= 2 s), mean and p99 TTFT s, mean TPOT ms, GPU-hours; of the trace as published,
AS_PUBLISHED: Told = {
    (1, 1): (1891, 8.63, 28.03, 22.75, 1.98),
    (2, 1): (9380, 1.57, 7.68, 13.18, 2.96),
    (2, 2): (9415, 1.57, 7.67, 8.72, 3.94),
    (3, 1): (10_961, 0.97, 4.39, 12.70, 3.94),
    (3, 2): (10_966, 0.96, 4.38, 8.51, 4.92),
    (4, 2): (11_439, 0.72, 2.96, 8.44, 5.90),
}
#: and of the one in benchmarks/data, whose prompts share their first block only.
AS_INCLUDED: Told = {
    (1, 1): (1715, 8.92, 28.19, 22.9, 1.98),
    (2, 1): (9250, 1.61, 7.68, 13.2, 2.96),
    (2, 2): (9275, 1.60, 7.67, 8.7, 3.94),
    (3, 1): (10_894, 1.00, 4.42, 12.7, 3.94),
    (3, 2): (10_909, 0.99, 4.41, 8.5, 4.92),
    (4, 2): (11_396, 0.74, 2.96, 8.4, 5.90),
}
#: What the sums above explain, so that no check asks for it.
EXPLAINED = {(7, 256)}


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument(
        "--quick", action="store_true", help="under a minute; as quick in full without --dynamo"
    )
    options.add_argument("--data", type=Path, help="the traces as published, instead of benchmarks/data")
    options.add_argument(
        "--dynamo", type=Path, help="an interpreter with ai-dynamo 1.4.2, to run it beside ours"
    )
    options.add_argument(
        "--json", action="store_true", help="the figures as one JSON object on the last line"
    )
    asked = options.parse_args()
    console = Console(stderr=asked.json, width=120)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="pd-replay-") as folder:
        checks = _closed(figures, console, asked.dynamo, Path(folder))
        requests = trace("mooncake conversation", asked.data)
        told = AS_PUBLISHED if asked.data is not None else AS_INCLUDED
        python = None if asked.quick else asked.dynamo
        checks += _static(requests, told, figures, console, python, Path(folder))
    return tell(
        "pd_replay",
        figures,
        checks,
        console=console,
        as_json=asked.json,
        peer="ai-dynamo 1.4.2, run beside" if asked.dynamo else "ai-dynamo 1.4.2, written down",
        quick=asked.quick,
    )


def _closed(figures: dict[str, float], console: Console, python: Path | None, folder: Path) -> list[Check]:
    table = Table(title=f"{PROMPT} prompt and {ANSWER} answer tokens, {IN_FLIGHT} in flight (both simulated)")
    for heading in (
        "P:D",
        "sequences",
        "replay /s",
        "ours /s",
        "replay TTFT",
        "ours",
        "replay TPOT",
        "ours",
        "wall replay",
        "ours",
    ):
        table.add_column(heading, justify="right")
    checks = []
    for (prefills, sequences), told in CLOSED.items():
        decodes, theirs, wall = INSTANCES - prefills, told, ""
        if python is not None:
            began = time.perf_counter()
            seen = dynamo.closed_loop(
                python,
                folder,
                prefills,
                decodes,
                prompt=PROMPT,
                answer=ANSWER,
                requests=COUNT,
                in_flight=IN_FLIGHT,
                sequences=sequences,
            )
            wall = f"{time.perf_counter() - began:.1f} s"
            theirs = (seen["request_throughput_rps"], seen["mean_ttft_ms"], seen["mean_tpot_ms"])
        began = time.perf_counter()
        run = simulate(
            ServiceSettings(
                profile=replace(mocker(), decode_slots=sequences),
                prefills=prefills,
                decodes=decodes,
                make_gateway=RoundRobin,
                prefill_rules=PrefillRules(counts_as_one_prompt=True),
                waits_for_room=False,
            ),
            ClosedLoop([Request(at=0, prompt_tokens=PROMPT, answer_tokens=ANSWER)] * COUNT, IN_FLIGHT),
        )
        took = time.perf_counter() - began
        sums = run.figures(ttft_seconds=TTFT_SECONDS)
        ours = (COUNT / run.seconds, 1000 * sums["ttft mean s"], sums["tpot mean ms"])
        ratio = f"{prefills}:{decodes}"
        name = ratio if sequences == 256 else f"{ratio} of {sequences}"
        table.add_row(
            ratio,
            str(sequences),
            *(f"{theirs[0]:.1f}", f"{ours[0]:.1f}", f"{theirs[1]:,.0f} ms", f"{ours[1]:,.0f} ms"),
            *(f"{theirs[2]:.1f} ms", f"{ours[2]:.1f} ms", wall, f"{took:.1f} s"),
        )
        figures[f"closed loop {name}: requests/s, replay"] = round(theirs[0], 2)
        figures[f"closed loop {name}: requests/s, ours"] = round(ours[0], 2)
        figures[f"closed loop {name}: TTFT ms, replay"] = round(theirs[1], 1)
        figures[f"closed loop {name}: TTFT ms, ours"] = round(ours[1], 1)
        figures[f"closed loop {name}: TPOT ms, replay"] = round(theirs[2], 2)
        figures[f"closed loop {name}: TPOT ms, ours"] = round(ours[2], 2)
        if (prefills, sequences) not in EXPLAINED:
            for at, what in enumerate(("throughput", "TTFT", "TPOT")):
                checks.append(at_most(f"closed loop {name}, {what} off by", _off(ours[at], theirs[at]), 0.10))
    console.print(table)
    return checks


def _static(
    requests: Sequence[Request],
    rows: Told,
    figures: dict[str, float],
    console: Console,
    python: Path | None,
    folder: Path,
) -> list[Check]:
    table = Table(
        title="Mooncake conversation, static counts, round robin; good: TTFT <= 2 s (both simulated)"
    )
    for heading in (
        *("P:D", "replay good", "ours", "replay TTFT", "ours", "replay p99", "ours", "replay TPOT", "ours"),
        *("wall replay", "ours", "good without the echo"),
    ):
        table.add_column(heading, justify="right")
    checks: list[Check] = []
    for (prefills, decodes), told in rows.items():
        theirs, wall = told, ""
        if python is not None:
            began = time.perf_counter()
            seen = dynamo.trace_replay(
                python, folder, prefills, decodes, requests, H200_FITTED, ttft_seconds=TTFT_SECONDS
            )
            wall = f"{time.perf_counter() - began:.1f} s"
            theirs = (
                seen["goodput_completed_requests"],
                seen["mean_ttft_ms"] / 1000,
                seen["p99_ttft_ms"] / 1000,
                seen["mean_tpot_ms"],
                seen["gpu_hours"],
            )
        began = time.perf_counter()
        run = _replayed(requests, prefills, decodes, echoes=True)
        took = time.perf_counter() - began
        sums = run.figures(ttft_seconds=TTFT_SECONDS)
        ours = (sums["good"], sums["ttft mean s"], sums["ttft p99 s"], sums["tpot mean ms"], run.gpu_hours)
        without = _replayed(requests, prefills, decodes, echoes=False).good(TTFT_SECONDS)
        name = f"{prefills}:{decodes}"
        table.add_row(
            name,
            *(f"{theirs[0]:,}", f"{ours[0]:,}", f"{theirs[1]:.2f} s", f"{ours[1]:.2f} s"),
            *(f"{theirs[2]:.2f} s", f"{ours[2]:.2f} s", f"{theirs[3]:.1f} ms", f"{ours[3]:.1f} ms"),
            *(wall, f"{took:.1f} s", f"{without:,}"),
        )
        figures[f"conversation {name}: good without the replay's echo"] = without
        for at, what in enumerate(("good", "TTFT mean s", "TTFT p99 s", "TPOT mean ms", "GPU-hours")):
            figures[f"conversation {name}: {what}, replay"] = round(theirs[at], 3)
            figures[f"conversation {name}: {what}, ours"] = round(ours[at], 3)
            checks.append(at_most(f"conversation {name}, {what} off by", _off(ours[at], theirs[at]), 0.10))
    console.print(table)
    return checks


def _replayed(requests: Sequence[Request], prefills: int, decodes: int, *, echoes: bool) -> Run:
    settings = ServiceSettings(
        profile=replace(H200_FITTED, prefill_slots=256),
        prefills=prefills,
        decodes=decodes,
        make_gateway=RoundRobin,
        ttft_seconds=TTFT_SECONDS,
        prefill_rules=PrefillRules(
            counts_as_one_prompt=True, echoes_answers=echoes, cached_blocks=H200_FITTED.kv_tokens // 512
        ),
        waits_for_room=False,
    )
    return simulate(settings, OpenLoop(requests))


def _off(one: float, other: float) -> float:
    return abs(one / other - 1)


if __name__ == "__main__":
    sys.exit(main())
