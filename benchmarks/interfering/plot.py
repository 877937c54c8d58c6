"""What interference looks like: how TPOT is spread in each arm, and every wait for a token along one round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from interfering.load import Answered


def draw(path: Path, rounds: Mapping[str, Sequence[Sequence[Answered]]], *, long_tokens: int) -> None:
    """Write an SVG: TPOT of the short chats of all rounds, and the gaps between tokens in the last one."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "tidewheel"  # the same figures give the same file
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1 + len(rounds), 1, figsize=(9, 3 + 1.9 * len(rounds)), layout="constrained")
    spread, *lines = axes
    for colour, (name, played) in enumerate(rounds.items()):
        times = sorted(one.tpot for each in played for one in each if one.kind == "short" and not one.fault)
        shares = [(rank + 1) / len(times) for rank in range(len(times))]
        spread.step([1000 * time for time in times], shares, where="post", label=name, color=f"C{colour}")
    spread.set(xscale="log", xlabel="TPOT of a short chat, ms", ylabel="share of chats", ylim=(0, 1.02))
    spread.legend(loc="lower right", fontsize="small")
    spread.grid(alpha=0.3)
    slowest = max(
        gap for played in rounds.values() for one in played[-1] if one.kind == "short" for gap in one.gaps
    )
    for colour, (axis, (name, played)) in enumerate(zip(lines, rounds.items(), strict=True)):
        for one in played[-1]:
            if one.kind == "long" and one.tokens:
                axis.axvspan(one.arrived, one.tokens[0], color="0.85", lw=0)
        points = [
            (at, gap)
            for one in played[-1]
            if one.kind == "short"
            for at, gap in zip(one.tokens[1:], one.gaps, strict=True)
        ]
        axis.plot(
            [at for at, _ in points],
            [1000 * gap for _, gap in points],
            ".",
            ms=2,
            color=f"C{colour}",
            rasterized=True,
        )
        axis.set(yscale="log", ylabel="gap, ms", ylim=(1, 1500 * slowest))
        axis.set_title(name, fontsize="small", loc="left")
        axis.grid(alpha=0.3)
    lines[-1].set_xlabel(
        f"seconds; grey: from the arrival of a {long_tokens}-token prompt to its first token"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
