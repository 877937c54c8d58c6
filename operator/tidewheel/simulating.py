"""What `tidewheel simulate` reads, runs and writes; apart from the simulation, which does no I/O."""

from __future__ import annotations

import gzip
import json
import random
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.table import Table

from tidewheel.planning.scaling.profile import BadProfile
from tidewheel.planning.scaling.scenario import Limits
from tidewheel.planning.scaling.sizing import Targets
from tidewheel.simulation.forwarding import Gateway, LocalQueues, OnDemand, Prefills, RoundRobin
from tidewheel.simulation.planners import DynamoLoad, KedaLaw, Ours, Reactive
from tidewheel.simulation.prefill import PrefillRules
from tidewheel.simulation.profiles import H200, read_csv, read_npz
from tidewheel.simulation.report import Arm, Report
from tidewheel.simulation.service import Fault, Planner, ServiceSettings, simulate
from tidewheel.simulation.sources import OpenLoop
from tidewheel.simulation.traces import BadTrace, Request, poisson, read_trace, sped_up

if TYPE_CHECKING:
    from tidewheel.planning.scaling.profile import DeviceProfile

PlannerName = Literal["tidewheel", "static", "reactive", "keda", "dynamo"]
ForwardingName = Literal["on-demand", "one-line", "local-queues", "round-robin"]


class CannotSimulate(ValueError):
    """A file or an option is not what a simulation needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The command's options; times are seconds."""

    trace: Path | None
    profile: Path | None
    prefill_slots: int | None
    decode_slots: int | None
    kv_tokens: int | None
    prefills: int
    decodes: int
    planners: tuple[PlannerName, ...]
    forwarding: ForwardingName
    ttft_seconds: float
    tpot_seconds: float
    attainment: float
    start_seconds: float
    window_seconds: float
    budget: int
    speed: float
    faults: tuple[str, ...]
    seed: int


def report_on(asked: Asked) -> Report:
    """Run what was asked for.

    Raises:
        CannotSimulate: a file or an option is no trace, profile or fault.
    """
    try:
        requests = _requests(asked)
        profile = _sized(_profile(asked.profile), asked)
    except (BadTrace, BadProfile, OSError) as error:
        raise CannotSimulate(str(error)) from error
    settings = ServiceSettings(
        profile=profile,
        prefills=asked.prefills,
        decodes=asked.decodes,
        make_gateway=lambda service: _gateway(asked, profile, service),
        ttft_seconds=asked.ttft_seconds,
        tpot_seconds=asked.tpot_seconds,
        prefill_rules=PrefillRules(cached_blocks=profile.kv_tokens // 512),
        start_seconds=asked.start_seconds,
        window_seconds=asked.window_seconds,
        faults=tuple(map(_fault, asked.faults)),
    )
    arms = [
        Arm(name=name, run=simulate(settings, OpenLoop(requests), _planner(name, asked, profile)))
        for name in asked.planners
    ]
    return Report(
        title=f"A simulated PDService: {_named(asked)}",
        settings=(
            ("requests", f"{len(requests):,} in {requests[-1].at / 60:.1f} min"),
            ("device", profile.name),
            ("begins with", f"{asked.prefills} prefills, {asked.decodes} decodes"),
            ("objectives", f"TTFT {asked.ttft_seconds:g} s, TPOT {1000 * asked.tpot_seconds:g} ms"),
            ("forwarding", asked.forwarding),
            ("start-up", f"{asked.start_seconds:g} s"),
            ("faults", ", ".join(asked.faults) or "none"),
        ),
        ttft_seconds=asked.ttft_seconds,
        tpot_seconds=asked.tpot_seconds,
        arms=tuple(arms),
    )


def measure_profile(model: str, *, device: str, longest: int, most: int, out: Path) -> int:
    """Have the workers' engine measured by a process of its own, since nothing here imports them; the number of rows.

    Raises:
        CannotSimulate: the workers are not installed, or the model cannot be measured; with what that process said.
    """
    module = "tidewheel_workers.llm.profiling"
    command = [sys.executable, "-m", module, model, "--device", device]
    command += ["--longest", str(longest), "--most", str(most)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own program
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise CannotSimulate(said[-1] if said else f"{module} ended with {done.returncode}")
    try:
        read_csv(done.stdout.splitlines(), like=H200)
    except BadProfile as error:
        raise CannotSimulate(f"what was measured is no profile: {error}") from error
    out.write_text(done.stdout)
    return len(done.stdout.splitlines()) - 1


def table_of(report: Report) -> Table:
    """The report's figures for a terminal."""
    figures = report.figures()
    table = Table(title=report.title)
    table.add_column("")
    for name in figures:
        table.add_column(name, justify="right")
    for name in dict.fromkeys(name for arm in figures.values() for name in arm):
        table.add_row(name, *(f"{arm[name]:,.5g}" if name in arm else "" for arm in figures.values()))
    return table


def json_of(report: Report) -> str:
    """The report's figures, and why requests ended, as one line."""
    reasons = {arm.name: arm.run.reasons() for arm in report.arms}
    return json.dumps({"settings": dict(report.settings), "figures": report.figures(), "reasons": reasons})


def _named(asked: Asked) -> str:
    return asked.trace.name if asked.trace is not None else "a made-up hour"


def _requests(asked: Asked) -> tuple[Request, ...]:
    if asked.trace is None:
        return sped_up(_made_up(random.Random(asked.seed)), asked.speed)  # noqa: S311 - a simulation
    if asked.trace.suffix == ".gz":
        with gzip.open(asked.trace, "rt") as lines:
            return sped_up(read_trace(lines), asked.speed)
    with asked.trace.open() as lines:
        return sped_up(read_trace(lines), asked.speed)


def _made_up(generator: random.Random) -> tuple[Request, ...]:
    """Half an hour of short prompts with long answers, and half an hour of long prompts with short ones."""
    chatting = [Request(at=0, prompt_tokens=size, answer_tokens=600) for size in (400, 800, 1600)]
    reading = [Request(at=0, prompt_tokens=size, answer_tokens=60) for size in (4000, 8000, 16_000)]
    first = poisson(chatting, per_second=12, count=12 * 1800, generator=generator)
    second = poisson(reading, per_second=12, count=12 * 1800, generator=generator)
    return (*first, *(replace(one, at=one.at + first[-1].at) for one in second))


def _profile(file: Path | None) -> DeviceProfile:
    if file is None:
        return H200
    if file.suffix == ".npz":
        return replace(read_npz(file.read_bytes(), like=H200), name=file.stem)
    with file.open() as lines:
        return replace(read_csv(lines, like=H200), name=file.stem)


def _sized(profile: DeviceProfile, asked: Asked) -> DeviceProfile:
    """With the room that was asked for, which measured times do not tell."""
    return replace(
        profile,
        prefill_slots=asked.prefill_slots or profile.prefill_slots,
        decode_slots=asked.decode_slots or profile.decode_slots,
        kv_tokens=asked.kv_tokens or profile.kv_tokens,
    )


def _gateway(asked: Asked, profile: DeviceProfile, service: Prefills) -> Gateway:
    if asked.forwarding == "round-robin":
        return RoundRobin(service)
    if asked.forwarding == "local-queues":
        return LocalQueues(service, gateways=2, generator=random.Random(asked.seed))  # noqa: S311 - a simulation
    return OnDemand(service, profile.prefill_slots, ends_early=asked.forwarding == "on-demand")


def _planner(name: PlannerName, asked: Asked, profile: DeviceProfile) -> Planner | None:
    if name == "static":
        return None
    if name == "reactive":
        return Reactive(attainment=asked.attainment, most=asked.budget)
    if name == "keda":
        return KedaLaw(asked.ttft_seconds, asked.tpot_seconds, most=asked.budget)
    if name == "dynamo":
        return DynamoLoad("latency", most=asked.budget)
    return Ours(
        profile,
        Targets(
            ttft_seconds=asked.ttft_seconds, tpot_seconds=asked.tpot_seconds, attainment=asked.attainment
        ),
        Limits(startup_seconds=asked.start_seconds),
        budget=asked.budget,
    )


def _fault(text: str) -> Fault:
    role, _, when = text.partition("@")
    try:
        if role == "prefill":
            return Fault(at=float(when), role="prefill")
        if role == "decode":
            return Fault(at=float(when), role="decode")
    except ValueError:
        pass
    raise CannotSimulate(f"--fault {text}: write prefill@SECONDS or decode@SECONDS")
