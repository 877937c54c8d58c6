"""Planners in a simulated service's loop: the operator's own, and those that it is compared with."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from tidewheel.planning.scaling.decide import Decision, decide
from tidewheel.planning.scaling.scenario import Counts
from tidewheel.planning.scaling.state import ScalingState
from tidewheel.simulation.outcomes import quantile

if TYPE_CHECKING:
    from tidewheel.planning.scaling.observed import RoleCounts
    from tidewheel.planning.scaling.profile import DeviceProfile
    from tidewheel.planning.scaling.scenario import Limits
    from tidewheel.planning.scaling.sizing import Targets
    from tidewheel.simulation.outcomes import Window


@dataclass(slots=True)
class Ours:
    """The very function that the operator calls, shown what the simulated gateway measured.

    Args:
        profile: what the operator knows of the devices; None leaves it the online rule.
        targets: what the scenario promises.
        limits: what its spec allows.
        budget: accelerators; None for no limit.
        began_at: Unix time of the simulation's begin.
    """

    profile: DeviceProfile | None
    targets: Targets
    limits: Limits
    budget: int | None = None
    began_at: float = 0.0
    state: ScalingState = field(default_factory=ScalingState)
    decisions: list[Decision] = field(default_factory=list)

    def plan(self, window: Window) -> tuple[int, int, str]:
        """As in `service.Planner`."""
        decision, self.state = decide(
            self.state,
            window.load,
            Counts(prefill=window.prefill, decode=window.decode),
            targets=self.targets,
            limits=self.limits,
            profile=self.profile,
            now=self.began_at + window.ends,
            budget=self.budget,
        )
        self.decisions.append(decision)
        return decision.prefill, decision.decode, f"{decision.reason}: {decision.message}"


@dataclass(slots=True)
class DynamoLoad:
    """The load loop of NVIDIA Dynamo's planner 1.4.2 without a latency objective (core/load_scaling.py), one step at a time.

    A role grows by one when any of its engines is above a threshold and shrinks by one when all are below another: queued
    prompt tokens over the model's context length, and used KV. It decides nothing while an instance is starting.
    """

    target: Literal["latency", "throughput"]
    context_tokens: int = 131_072
    most: int = 16  # accelerators

    def plan(self, window: Window) -> tuple[int, int, str]:
        """As in `service.Planner`."""
        prefill, decode = window.prefill.coming, window.decode.coming
        if window.prefill.starting or window.decode.starting:
            return prefill, decode, "scaling in progress"
        queues = [tokens / self.context_tokens for tokens in window.queued_tokens]
        is_latency = self.target == "latency"
        up, down = (0.1, 0.0) if is_latency else (1.0, 0.1)
        if any(queue >= up for queue in queues):
            prefill += 1
        elif prefill > 1 and all(queue <= down if is_latency else queue < down for queue in queues):
            prefill -= 1
        up, down = (0.4, 0.1) if is_latency else (1.0, 0.6)
        if any(use >= up for use in window.kv_uses):
            decode += 1
        elif decode > 1 and all(use < down for use in window.kv_uses):
            decode -= 1
        if prefill + decode > self.most:
            prefill, decode = window.prefill.coming, window.decode.coming
        return prefill, decode, "load"


@dataclass(slots=True)
class Reactive:
    """One step up when a role misses its objective in the last window, one step down when it was hardly used: no model."""

    attainment: float = 0.99
    idle_below: float = 0.5
    most: int = 16

    def plan(self, window: Window) -> tuple[int, int, str]:
        """As in `service.Planner`."""
        load = window.load
        prefill = self._role(window.prefill, load.ttft_attainment, window.prefill_use)
        decode = self._role(window.decode, load.tpot_attainment, window.decode_use)
        if prefill + decode > self.most:
            return window.prefill.coming, window.decode.coming, "no room"
        return prefill, decode, f"TTFT {load.ttft_attainment:.3f}, TPOT {load.tpot_attainment:.3f}"

    def _role(self, counts: RoleCounts, attainment: float, use: float) -> int:
        have = counts.coming
        if attainment < self.attainment:
            return have + 1
        if use * have < self.idle_below * (have - 1):
            return max(1, have - 1)
        return have


@dataclass(slots=True)
class KedaLaw:
    """llm-d's SLO law for KEDA on each role: desired by P90 latency over objective, smoothed, with slow scaling in.

    s = P90 / SLO, at most 2, averaged over 45 s; c = ready / n. Above 0.55: n + ceil(n (s c / 0.55 - 1)); below 0.40:
    n - floor(n (1 - s / 0.40)). Up by at most max(100 %, 4) in 60 s after 30 s in which it was wanted; down by one in
    120 s, to the highest of the last 180 s.
    """

    ttft_seconds: float
    tpot_seconds: float
    most: int = 16
    _prefill: _KedaRole = field(default_factory=lambda: _KedaRole())
    _decode: _KedaRole = field(default_factory=lambda: _KedaRole())

    def plan(self, window: Window) -> tuple[int, int, str]:
        """As in `service.Planner`."""
        ttft = quantile(window.ttfts, 0.9) / self.ttft_seconds
        tpot = quantile(window.tpots, 0.9) / self.tpot_seconds
        prefill = self._prefill.wanted(ttft, window.prefill, window.ends)
        decode = self._decode.wanted(tpot, window.decode, window.ends)
        if prefill + decode > self.most:
            return window.prefill.coming, window.decode.coming, "no room"
        return prefill, decode, f"TTFT {ttft:.2f} and TPOT {tpot:.2f} of the objective at P90"


class _KedaRole:
    def __init__(self) -> None:
        self._scores: deque[tuple[float, float]] = deque()
        self._wishes: deque[tuple[float, int]] = deque()
        self._grew: deque[tuple[float, int]] = deque()
        self._shrank_at = -math.inf

    def wanted(self, raw: float, counts: RoleCounts, now: float) -> int:
        have = max(1, counts.coming)
        if not math.isnan(raw):
            self._scores.append((now, min(raw, 2.0)))
        while self._scores and self._scores[0][0] <= now - 45:
            self._scores.popleft()
        if not self._scores:
            return have
        score = sum(value for _, value in self._scores) / len(self._scores)
        wish = have
        if score > 0.55:
            wish = have + max(0, math.ceil(have * (score * counts.ready / have / 0.55 - 1)))
        elif score < 0.40:
            wish = max(1, have - math.floor(have * (1 - score / 0.40)))
        self._wishes.append((now, wish))
        while self._wishes[0][0] <= now - 180:
            self._wishes.popleft()
        lasting = min(value for at, value in self._wishes if at > now - 30)
        if lasting > have:
            grown = sum(count for at, count in self._grew if at > now - 60)
            more = min(lasting - have, max(0, max(have - grown, 4) - grown))
            self._grew.append((now, more))
            return have + more
        highest = max(value for _, value in self._wishes)
        if highest < have and now - self._shrank_at >= 120:
            self._shrank_at = now
            return have - 1
        return have
