"""Who decides in the fluid model: the operator's planner, what it is compared with, and one who knows the future."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from tidewheel.planning.scaling.decide import Decision, decide_all
from tidewheel.planning.scaling.queueing import DecodeWork, PrefillWork, blocked_share
from tidewheel.planning.scaling.scenario import Limits, Scenario
from tidewheel.planning.scaling.state import ScalingState
from tidewheel.simulation.fluid import FluidScenario, FluidSettings, Seen
from tidewheel.simulation.outcomes import Window
from tidewheel.simulation.service import Planner


@dataclass(slots=True, kw_only=True)
class Operators:
    """The planner that the operator runs, with one budget over all scenarios.

    `stored` is what happens to a state between two decisions, such as a way through text and back.
    """

    reads_waits: ClassVar[bool] = False

    scenarios: Mapping[str, FluidScenario]
    limits: Mapping[str, Limits]
    budget: int | None = None
    stored: Callable[[ScalingState], ScalingState] = lambda state: state
    states: dict[str, ScalingState] = field(default_factory=dict)
    decisions: list[tuple[float, dict[str, Decision]]] = field(default_factory=list)

    def plan(self, now: float, seen: Mapping[str, Seen]) -> Mapping[str, tuple[int, int]]:
        """Prefills and decodes to ask for, by scenario."""
        told = [
            Scenario(
                name=name,
                load=one.load,
                counts=one.counts,
                targets=self.scenarios[name].targets,
                limits=self.limits[name],
                profile=self.scenarios[name].profile,
            )
            for name, one in seen.items()
        ]
        states = {name: self.stored(state) for name, state in self.states.items()}
        decided, self.states, _ = decide_all(states, told, budget=self.budget, now=now)
        self.decisions.append((now, decided))
        return {name: (decision.prefill, decision.decode) for name, decision in decided.items()}


@dataclass(slots=True, kw_only=True)
class Fixed:
    """Always the same counts."""

    reads_waits: ClassVar[bool] = False

    counts: Mapping[str, tuple[int, int]]

    def plan(self, now: float, seen: Mapping[str, Seen]) -> Mapping[str, tuple[int, int]]:  # noqa: ARG002
        """Prefills and decodes to ask for, by scenario."""
        return self.counts


@dataclass(slots=True, kw_only=True)
class Reactive:
    """One more or one fewer by what the last window showed, as the load loop of NVIDIA Dynamo's planner (1.4.2) decides.

    One more of a role when its objective was missed by more than the promise allows, and none is on its way. One fewer
    only if the others would keep four fifths of the objective: TTFT by the M/D/1 wait that DistServe gives, TPOT by the
    profile at the batch that would settle (Dynamo takes N/(N-1) of the present one, which is too few, and flaps).
    """

    reads_waits: ClassVar[bool] = False

    scenarios: Mapping[str, FluidScenario]

    def plan(self, now: float, seen: Mapping[str, Seen]) -> Mapping[str, tuple[int, int]]:  # noqa: ARG002
        """Prefills and decodes to ask for, by scenario."""
        return {name: self._one(self.scenarios[name], one) for name, one in seen.items()}

    def _one(self, scenario: FluidScenario, seen: Seen) -> tuple[int, int]:
        load, targets = seen.load, scenario.targets
        prefill, decode = seen.counts.prefill, seen.counts.decode
        prefills, decodes = prefill.asked, decode.asked
        if load.ttft_attainment < targets.attainment:
            prefills += prefill.starting + prefill.unplaceable == 0
        elif prefills > 1 and not prefill.starting:
            busy = load.rate * load.prefill_seconds / (prefills - 1)
            wait = load.prefill_seconds * busy / (2 * (1 - busy)) if busy < 1 else math.inf
            prefills -= wait < 0.8 * (targets.ttft_seconds - load.prefill_seconds)
        if load.tpot_attainment < targets.attainment:
            decodes += decode.starting + decode.unplaceable == 0
        elif decodes > 1 and not decode.starting:
            batch, _ = scenario.decode.at(load.rate / (decodes - 1))
            seconds = scenario.profile.decode_seconds(batch, scenario.work.context_tokens)
            decodes -= batch <= scenario.profile.decode_slots and seconds < 0.8 * targets.tpot_seconds
        return max(1, prefills), max(1, decodes)


@dataclass(slots=True, kw_only=True)
class Each:
    """For every scenario a planner of its own, made for the simulation by request; it sees means and P90s of the window."""

    reads_waits: ClassVar[bool] = True

    scenarios: Mapping[str, FluidScenario]
    planners: Mapping[str, Planner]

    def plan(self, now: float, seen: Mapping[str, Seen]) -> Mapping[str, tuple[int, int]]:
        """Prefills and decodes to ask for, by scenario."""
        return {
            name: self.planners[name].plan(_window(self.scenarios[name], one, now))[:2]
            for name, one in seen.items()
        }


def _window(scenario: FluidScenario, seen: Seen, now: float) -> Window:
    load, prefill, decode = seen.load, seen.counts.prefill, seen.counts.decode
    batch = load.rate * load.decode_seconds / max(1, decode.ready)
    kv_use = batch * scenario.work.context_tokens / scenario.profile.kv_tokens
    return Window(
        ends=now,
        load=load,
        prefill=prefill,
        decode=decode,
        prefill_use=min(1.0, load.rate * load.prefill_seconds / max(1, prefill.ready)),
        decode_use=min(1.0, batch),
        queued_tokens=(0,) * prefill.ready,
        kv_uses=(kv_use,) * decode.ready,
        ttfts=(load.ttft_p90_seconds,),
        tpots=(load.tpot_p90_seconds,),
    )


@dataclass(slots=True, kw_only=True)
class Clairvoyant:
    """Knows the rate at every moment to come, and has under the same start-up as few instances as keep a share in each window.

    An instance is given back as soon as it is not needed for longer than another takes to start: cheaper is impossible,
    since keeping it through a longer pause costs more than starting anew, and through a shorter one less.
    """

    reads_waits: ClassVar[bool] = False

    needs: Mapping[str, Sequence[tuple[int, int]]]  # by window
    settings: FluidSettings

    def plan(self, now: float, seen: Mapping[str, Seen]) -> Mapping[str, tuple[int, int]]:  # noqa: ARG002
        """Prefills and decodes to ask for, by scenario."""
        number = round((now - self.settings.begins) / self.settings.window)
        ahead = math.ceil(self.settings.startup / self.settings.window)
        wanted = {}
        for name, needs in self.needs.items():
            coming = needs[number : number + ahead + 1] or needs[-1:]
            wanted[name] = (max(need[0] for need in coming), max(need[1] for need in coming))
        return wanted


def true_needs(scenario: FluidScenario, *, window: float, share: float) -> list[tuple[int, int]]:
    """The least prefills and decodes with which each window's requests keep their share in time, known afterwards."""
    prefill, decode, arrivals = scenario.prefill, scenario.decode, scenario.arrivals
    steps = round(window / arrivals.step)
    prefills = decodes = 1
    needs = []
    for first in range(0, len(arrivals.rates) - steps + 1, steps):
        rates = arrivals.rates[first : first + steps]
        least = share * sum(rates)
        prefills = _least(prefills, lambda n: _started(prefill, n, rates) >= least)  # noqa: B023
        decodes = _least(decodes, lambda n: _fast(decode, n, rates) >= least)  # noqa: B023
        needs.append((prefills, decodes))
    return needs


def _least(near: int, suffices: Callable[[int], bool]) -> int:
    while not suffices(near):
        near += 1
    while near > 1 and suffices(near - 1):
        near -= 1
    return near


def _started(prefill: PrefillWork, servers: int, rates: Sequence[float]) -> float:
    return sum(
        rate * prefill.in_time(blocked_share(servers, rate * prefill.mean), servers, rate * prefill.mean)
        for rate in rates
    )


def _fast(decode: DecodeWork, servers: int, rates: Sequence[float]) -> float:
    return sum(rate * decode.in_time(servers, rate) for rate in rates)
