"""What simulated runs came to, for people: a page that needs nothing but itself, and one chart of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from tidewheel.simulation.charts import Line, chart
from tidewheel.simulation.outcomes import quantile

if TYPE_CHECKING:
    from tidewheel.simulation.outcomes import Run, Window

_STYLE = """
:root { color-scheme: light dark; font-family: system-ui, sans-serif; }
body { max-width: 76rem; margin: 2rem auto; padding: 0 1rem; line-height: 1.45; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; font-size: .9rem; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #8884; }
th:first-child, td:first-child, td.text { text-align: left; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(28rem, 1fr)); gap: 1rem; }
figure { margin: 0; }
.wide { overflow-x: auto; }
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One way to serve the same requests."""

    name: str
    run: Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Runs of the same requests, and what they were promised."""

    title: str
    settings: tuple[tuple[str, str], ...]
    ttft_seconds: float
    tpot_seconds: float
    arms: tuple[Arm, ...]

    def figures(self) -> dict[str, dict[str, float]]:
        """Each arm's sums; those that are no numbers are left out."""
        return {
            arm.name: {
                name: round(value, 4)
                for name, value in arm.run.figures(
                    ttft_seconds=self.ttft_seconds, tpot_seconds=self.tpot_seconds
                ).items()
                if math.isfinite(value)
            }
            for arm in self.arms
        }

    def capacity_chart(self) -> str:
        """Prefills and decodes over time, ready and starting."""
        lines = [
            Line(
                name=f"{role}, {arm.name}",
                points=tuple((window.ends / 60, _coming(window, role)) for window in arm.run.windows),
                is_stepped=True,
            )
            for arm in self.arms
            for role in ("prefill", "decode")
        ]
        return chart("Instances, ready and starting", lines, across="minutes", up="instances", least=0)

    def charts(self) -> list[str]:
        """All charts of the page."""
        first = self.arms[0].run.windows
        load = [
            Line(
                name="requests per second",
                points=tuple((window.ends / 60, window.load.rate) for window in first),
            )
        ]
        tokens = [
            Line(
                name="prompt tokens per second, thousands",
                points=tuple(
                    (window.ends / 60, window.load.rate * window.load.prompt_tokens / 1000)
                    for window in first
                ),
            )
        ]
        return [
            chart("Load", load, across="minutes", up="requests/s", least=0),
            chart("Prompts", tokens, across="minutes", up="thousand tokens/s", least=0),
            self.capacity_chart(),
            chart(
                f"First tokens within {self.ttft_seconds:g} s",
                [self._attained(arm) for arm in self.arms],
                across="minutes",
                up="share of a window's",
                least=0,
            ),
            chart(
                "Time to first token of those that were answered",
                [_spread(arm) for arm in self.arms],
                across="percent of the requests",
                up="seconds",
                least=0,
            ),
        ]

    def html(self) -> str:
        """The whole page."""
        heading = escape(self.title)
        return "".join(
            (
                f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{heading}</title>',
                f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style>',
                f"<h1>{heading}</h1><p>Simulated, request by request. No figure was measured on hardware.</p>",
                _table(("setting", "value"), self.settings),
                "<h2>Figures</h2>",
                self._figures_table(),
                '<div class="charts">',
                *(f"<figure>{one}</figure>" for one in self.charts()),
                "</div>",
                *(_endings(arm) + _decisions(arm) for arm in self.arms),
                "</html>\n",
            )
        )

    def _attained(self, arm: Arm) -> Line:
        return Line(
            name=arm.name,
            points=tuple(
                (window.ends / 60, window.load.ttft_attainment)
                for window in arm.run.windows
                if window.load.finished + window.load.rejected
            ),
        )

    def _figures_table(self) -> str:
        figures = self.figures()
        names = list(dict.fromkeys(name for arm in figures.values() for name in arm))
        rows = [
            (name, *(f"{arm[name]:,.5g}" if name in arm else "" for arm in figures.values()))
            for name in names
        ]
        return _table(("", *figures), rows)


def _coming(window: Window, role: str) -> float:
    return float((window.prefill if role == "prefill" else window.decode).coming)


def _spread(arm: Arm) -> Line:
    values = [outcome.ttft for outcome in arm.run.answered]
    return Line(
        name=arm.name,
        points=tuple((percent, quantile(values, percent / 100)) for percent in range(1, 100)),
    )


def _endings(arm: Arm) -> str:
    rows = [(ending, f"{count:,}") for ending, count in arm.run.endings().items()]
    rows += [(f"because {why}", f"{count:,}") for why, count in arm.run.reasons().items()]
    return f"<h2>{escape(arm.name)}</h2><h3>How requests ended</h3>" + _table(("", "requests"), rows)


def _decisions(arm: Arm) -> str:
    rows: list[tuple[str, ...]] = []
    last: tuple[int, int] | None = None
    for window in arm.run.windows:
        if window.wanted is None or window.wanted == last:
            continue
        last = window.wanted
        rows.append((f"{window.ends / 60:.1f}", str(last[0]), str(last[1]), window.why))
    if not rows:
        return ""
    return "<h3>What the planner wanted, and why</h3>" + _table(
        ("minute", "prefills", "decodes", "reason"), rows
    )


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(one)}</th>" for one in headings)
    body = "".join(
        "<tr>" + "".join(f"<td{_kind(cell)}>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _kind(cell: str) -> str:
    return ' class="text"' if any(character.isalpha() for character in cell) else ""
