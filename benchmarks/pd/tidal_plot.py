"""A week of tides as a picture: load, capacity, the two roles, and attainment by hour."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tidewheel.simulation.fluid import FluidRun

#: Windows that one point of a line stands for.
APART = 20


def plot_week(
    file: Path, runs: Mapping[str, Mapping[str, FluidRun]], *, ideal: str, ours: str, attainment: float
) -> None:
    """As SVG or PNG. `runs` are by planner and scenario; the others' attainment is shown beside ours."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "tidewheel"
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(4, 2, figsize=(12, 9), sharex=True)
    for (load, capacity, roles, attained), scenario in zip(axes.T, runs[ours], strict=True):
        windows = runs[ours][scenario].windows[::APART]
        seconds = windows[1].ends - windows[0].ends
        hours = [window.ends / 3600 for window in windows]
        window_seconds = seconds / APART
        load.plot(hours, [window.arrivals / window_seconds for window in windows], linewidth=0.7)
        load.set(title=scenario, ylabel="requests/s")
        for name in ("static peak", ideal, ours):
            held = [window.holding for window in runs[name][scenario].windows[::APART]]
            capacity.step(hours, held, where="pre", linewidth=0.9, label=name)
        capacity.set_ylabel("instances")
        roles.step(hours, [window.prefills for window in windows], where="pre", label="prefill")
        roles.step(hours, [window.decodes for window in windows], where="pre", label="decode")
        roles.set_ylabel("ours, by role")
        for name, of_each in runs.items():
            if name not in ("static peak", ideal):
                attained.plot(*_by_hour(of_each[scenario]), linewidth=0.9, label=name)
        attained.axhline(attainment, color="grey", linestyle=":")
        attained.set(ylabel="TTFT in time, by hour", xlabel="hours", ylim=(0.9, 1.002))
        for axis in (capacity, roles, attained):
            axis.legend(fontsize=7, loc="best")
    figure.tight_layout()
    figure.savefig(file)


def _by_hour(one: FluidRun) -> tuple[list[float], list[float]]:
    per_hour: dict[int, list[float]] = {}
    for window in one.windows:
        counted = per_hour.setdefault(int((window.ends - 1) // 3600), [0.0, 0.0])
        counted[0] += window.in_time
        counted[1] += window.arrivals
    return [hour + 0.5 for hour in per_hour], [got / max(came, 1.0) for got, came in per_hour.values()]
