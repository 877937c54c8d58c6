"""What a simulated run came to: every request's outcome, the windows that a planner saw, and the sums people compare."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tidewheel.planning.scaling.observed import RoleCounts, ScenarioLoad
    from tidewheel.simulation.flights import Ending


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One request. Times are seconds, NaN where that never came."""

    at: float
    prompt_tokens: int
    answer_tokens: int
    ending: Ending
    why: str = ""
    ttft: float = math.nan
    tpot: float = math.nan
    e2e: float = math.nan
    transfer: float = math.nan
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What happened in one window, and what a planner wanted at its end."""

    ends: float
    load: ScenarioLoad
    prefill: RoleCounts
    decode: RoleCounts
    prefill_use: float  # share of the instances' time in which they computed
    decode_use: float
    #: At the window's end: tokens of each prefill's prompts of which nothing is computed, and used shares of decodes' room.
    queued_tokens: tuple[int, ...]
    kv_uses: tuple[float, ...]
    ttfts: tuple[float, ...] = ()  # of those that were answered in it
    tpots: tuple[float, ...] = ()
    wanted: tuple[int, int] | None = None
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One simulation."""

    outcomes: tuple[Outcome, ...]
    windows: tuple[Window, ...]
    seconds: float  # until the last request ended
    prefill_seconds: float  # instances' lifetimes, start-up included
    decode_seconds: float
    changes: int  # decisions of the planner that changed a count
    substitutions: int = 0

    @property
    def gpu_hours(self) -> float:
        """Of all instances, with one accelerator each."""
        return (self.prefill_seconds + self.decode_seconds) / 3600

    @property
    def answered(self) -> list[Outcome]:
        """Those that got their whole answer."""
        return [outcome for outcome in self.outcomes if outcome.ending == "answered"]

    def good(self, ttft_seconds: float, tpot_seconds: float = math.inf) -> int:
        """How many were answered in time: the first token, and the others on average."""
        return sum(outcome.ttft <= ttft_seconds and outcome.tpot <= tpot_seconds for outcome in self.answered)

    def endings(self) -> dict[str, int]:
        """How many ended how."""
        return dict(sorted(Counter(outcome.ending for outcome in self.outcomes).items()))

    def reasons(self) -> dict[str, int]:
        """Why those ended that were not answered."""
        return dict(Counter(outcome.why for outcome in self.outcomes if outcome.why).most_common())

    def per_second(self) -> float:
        """Answers per second while the service was full: between the first and the last fifth of them."""
        ends = sorted(outcome.at + outcome.e2e for outcome in self.answered)
        first, last = len(ends) // 5, len(ends) - 1 - len(ends) // 5
        if last <= first or ends[last] <= ends[first]:
            return 0.0
        return (last - first) / (ends[last] - ends[first])

    def figures(self, *, ttft_seconds: float, tpot_seconds: float = math.inf) -> dict[str, float]:
        """The sums, by name."""
        ttft = [outcome.ttft for outcome in self.answered]
        tpot = [outcome.tpot for outcome in self.answered if outcome.answer_tokens > 1]
        late = sum(outcome.ttft > ttft_seconds for outcome in self.answered)
        slow = sum(outcome.tpot > tpot_seconds for outcome in self.answered)
        return {
            "requests": len(self.outcomes),
            "good": self.good(ttft_seconds, tpot_seconds),
            "late": late,
            "slow": slow,
            "shed": sum(outcome.ending in ("shed", "expired") for outcome in self.outcomes),
            "failed": sum(outcome.ending == "failed" for outcome in self.outcomes),
            "ttft mean s": _mean(ttft),
            "ttft p50 s": quantile(ttft, 0.5),
            "ttft p99 s": quantile(ttft, 0.99),
            "tpot mean ms": 1000 * _mean(tpot),
            "tpot p99 ms": 1000 * quantile(tpot, 0.99),
            "gpu hours": self.gpu_hours,
            "changes": self.changes,
            "substitutions": self.substitutions,
            "seconds": self.seconds,
        }


def quantile(values: Iterable[float], share: float) -> float:
    """The value below which a share of them lies; NaN of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else math.nan


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else math.nan
