"""A PDService as a fluid: weeks and thousands of instances in seconds, in the hands of the planner that the operator runs.

Time goes in steps of some seconds. In each step every scenario's queues are taken as stationary at the rate of that step
(Green and Kolesar's pointwise stationary approximation, Management Science 37, 1991), which holds where requests last
shorter than a step and TTFT objectives are no longer than one: `planning.scaling.queueing` gives the share of prompts that
start in time, the others being ended at once as a gateway with deadlines does, and the share of answers fast enough.
What decodes cannot take waits for the next step. Start-up, draining and a bound on accelerators are counted instance by
instance. A planner sees the requests that came, which chance makes more or fewer than were to be expected.
Requests are not followed one by one:
`simulation.service` does that, and the two are compared in tests.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar, Protocol

from tidewheel.planning.scaling.observed import RoleCounts, ScenarioLoad
from tidewheel.planning.scaling.profile import DeviceProfile
from tidewheel.planning.scaling.queueing import DecodeWork, PrefillWork, blocked_share
from tidewheel.planning.scaling.scenario import Counts
from tidewheel.planning.scaling.sizing import Targets, Workload, decode_work, prefill_work
from tidewheel.simulation.fluid_traffic import Arrivals

#: Halvings in the search for a quantile.
_HALVINGS = 6


@dataclass(frozen=True, kw_only=True)
class FluidScenario:
    """One scenario as it really is, which a planner learns only by what it sees."""

    name: str
    arrivals: Arrivals
    work: Workload
    profile: DeviceProfile
    targets: Targets
    start: tuple[int, int] = (1, 1)  # ready prefills and decodes at the beginning

    @cached_property
    def prefill(self) -> PrefillWork:
        """Its prompts on one prefill."""
        return prefill_work(self.work, self.profile, self.targets)

    @cached_property
    def decode(self) -> DecodeWork:
        """Its answers on one decode."""
        return decode_work(self.work, self.profile, self.targets)


@dataclass(frozen=True, slots=True, kw_only=True)
class FluidSettings:
    """Of the fleet; times are seconds."""

    window: float = 30.0  # between two decisions
    startup: float = 60.0
    drain: float = 15.0  # that an instance which was taken away still holds its accelerator
    accelerators: int | None = None  # that there are; what is asked for beyond them cannot be placed
    begins: float = 0.0  # seconds since the Unix epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a planner sees of a scenario when a window ends."""

    load: ScenarioLoad
    counts: Counts


class FleetPlanner(Protocol):
    """Decides for all scenarios at the end of each window."""

    #: Whether it looks at TTFT and E2E in seconds; to find them takes longer than all else, so others are not shown them.
    reads_waits: ClassVar[bool]

    def plan(self, now: float, seen: Mapping[str, Seen]) -> Mapping[str, tuple[int, int]]:
        """Prefills and decodes to ask for, by scenario."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FluidWindow:
    """What became of one scenario's window."""

    ends: float
    arrivals: float
    in_time: float  # those of them whose first token came in time
    answered: float  # those that were not ended before
    fast: float  # those of them whose tokens came fast enough
    prefills: int  # ready at its end
    decodes: int
    holding: int  # instances with an accelerator at its end


@dataclass(frozen=True, slots=True, kw_only=True)
class FluidRun:
    """One scenario's windows, and what its instances cost."""

    windows: tuple[FluidWindow, ...]
    instance_seconds: float  # starting and draining included
    changes: int  # decisions that changed a count

    @property
    def gpu_hours(self) -> float:
        """With one accelerator per instance."""
        return self.instance_seconds / 3600

    @property
    def ttft_attainment(self) -> float:
        """Share of all requests whose first token came in time."""
        total = sum(window.arrivals for window in self.windows)
        return sum(window.in_time for window in self.windows) / total if total else 1.0

    @property
    def tpot_attainment(self) -> float:
        """Share of the answered whose tokens came fast enough."""
        total = sum(window.answered for window in self.windows)
        return sum(window.fast for window in self.windows) / total if total else 1.0


def run(
    scenarios: Sequence[FluidScenario], planner: FleetPlanner, settings: FluidSettings
) -> dict[str, FluidRun]:
    """All scenarios side by side, over the time for which all have arrivals.

    Raises:
        ValueError: a window is no multiple of a step, or a TTFT objective is longer than a step.
    """
    lines = [_Line(scenario=scenario, settings=settings) for scenario in scenarios]
    per_window = round(settings.window / scenarios[0].arrivals.step)
    windows = min(len(one.arrivals.counts) for one in scenarios) // per_window
    for number in range(windows):
        now = settings.begins + (number + 1) * settings.window
        seen = {}
        for line in lines:
            load = line.window(number * per_window, per_window, now, waits=planner.reads_waits)
            seen[line.scenario.name] = Seen(load=load, counts=line.counts())
        wanted = planner.plan(now, seen)
        # who gives back comes first, so that others find room as soon as it is free
        for line in lines:
            line.shrink(wanted[line.scenario.name], now)
        free = math.inf
        if settings.accelerators is not None:
            free = settings.accelerators - sum(line.holding for line in lines)
        for line in lines:
            free -= line.grow(wanted[line.scenario.name], now, free)
    return {
        line.scenario.name: FluidRun(
            windows=tuple(line.done), instance_seconds=line.instance_seconds, changes=line.changes
        )
        for line in lines
    }


@dataclass(slots=True)
class _Pool:
    """One role's instances."""

    ready: int
    starting: list[float] = field(default_factory=list)  # when each is ready
    leaving: list[float] = field(default_factory=list)  # when each is gone
    unplaceable: int = 0

    def pass_time(self, now: float) -> None:
        came = sum(at <= now for at in self.starting)
        if came:
            self.ready += came
            self.starting = [at for at in self.starting if at > now]
        if self.leaving:
            self.leaving = [at for at in self.leaving if at > now]

    def shrink(self, wanted: int, gone_at: float) -> bool:
        """To `wanted`: first what was never placed, then what is not ready yet, then what is."""
        over = self.ready + len(self.starting) - wanted
        before = over + self.unplaceable > 0
        self.unplaceable = 0
        while over > 0 and self.starting:
            self.starting.pop()
            over -= 1
        if over > 0:
            self.ready -= over
            self.leaving.extend([gone_at] * over)
        return before

    def grow(self, wanted: int, ready_at: float, free: float) -> int:
        """Towards `wanted` as far as there is room; says how many were placed."""
        lacking = max(0, wanted - self.ready - len(self.starting))
        placed = int(min(lacking, max(0.0, free)))
        self.starting.extend([ready_at] * placed)
        self.unplaceable = lacking - placed
        return placed

    @property
    def holding(self) -> int:
        return self.ready + len(self.starting) + len(self.leaving)

    def counts(self) -> RoleCounts:
        return RoleCounts(
            ready=self.ready,
            starting=len(self.starting),
            leaving=len(self.leaving),
            unplaceable=self.unplaceable,
        )


class _Line:
    """One scenario on its way through time."""

    def __init__(self, *, scenario: FluidScenario, settings: FluidSettings) -> None:
        step = scenario.arrivals.step
        if abs(settings.window / step - round(settings.window / step)) > 1e-9:
            raise ValueError(f"a window of {settings.window} s is no multiple of a step of {step} s")
        if scenario.targets.ttft_seconds > step:
            raise ValueError(
                f"{scenario.name}: a TTFT objective of {scenario.targets.ttft_seconds} s needs steps that long; "
                f"they have {step} s"
            )
        self.scenario = scenario
        self._settings = settings
        self._prefill, self._decode = scenario.prefill, scenario.decode
        self._prefills, self._decodes = (_Pool(ready=count) for count in scenario.start)
        self._queued = 0.0  # requests that no decode had room for yet
        self.done: list[FluidWindow] = []
        self.instance_seconds = 0.0
        self.changes = 0

    @property
    def holding(self) -> int:
        return self._prefills.holding + self._decodes.holding

    def counts(self) -> Counts:
        return Counts(prefill=self._prefills.counts(), decode=self._decodes.counts())

    def shrink(self, wanted: tuple[int, int], now: float) -> None:
        have = (self._asked(self._prefills), self._asked(self._decodes))
        self.changes += have != wanted
        gone = now + self._settings.drain
        self._prefills.shrink(wanted[0], gone)
        self._decodes.shrink(wanted[1], gone)

    def grow(self, wanted: tuple[int, int], now: float, free: float) -> int:
        ready = now + self._settings.startup
        first = self._prefills.grow(wanted[0], ready, free)
        return first + self._decodes.grow(wanted[1], ready, free - first)

    @staticmethod
    def _asked(pool: _Pool) -> int:
        return pool.ready + len(pool.starting) + pool.unplaceable

    def window(self, first: int, steps: int, now: float, *, waits: bool) -> ScenarioLoad:
        """The steps from `first` on, of a window that ends at `now`."""
        arrivals = self.scenario.arrivals
        step = arrivals.step
        hopeless = self._prefill.hopeless_share
        count = work = in_time = answered = fast = batches = 0.0
        begins = now - steps * step
        for number in range(steps):
            at = begins + number * step
            self._prefills.pass_time(at)
            self._decodes.pass_time(at)
            self.instance_seconds += step * self.holding
            came, brought = arrivals.counts[first + number], arrivals.work[first + number]
            rate = arrivals.rates[first + number]
            share = self._started(rate * self._prefill.mean)
            started = came * share
            inflow = rate * step * share + self._queued
            tokens_in_time, batch, self._queued = self._answered(inflow, step)
            count += came
            work += brought
            in_time += started * (1 - hopeless)
            answered += started
            fast += started * tokens_in_time
            batches += batch
        self._prefills.pass_time(now)
        self._decodes.pass_time(now)
        self.done.append(
            FluidWindow(
                ends=now,
                arrivals=count,
                in_time=in_time,
                answered=answered,
                fast=fast,
                prefills=self._prefills.ready,
                decodes=self._decodes.ready,
                holding=self.holding,
            )
        )
        dispersion = _dispersion(arrivals.counts[first : first + steps])
        load = self._load(steps * step, count, work, in_time, answered, fast, batches / steps, dispersion)
        return self._with_waits(load, work / (steps * step)) if waits else load

    def _started(self, offered: float) -> float:
        """The share of prompts that start in time; those that cannot be in time anyway start like the others."""
        if self._prefills.ready < 1:
            return 0.0
        return self._prefill.in_time(
            blocked_share(self._prefills.ready, offered), self._prefills.ready, offered
        )

    def _answered(self, inflow: float, step: float) -> tuple[float, float, float]:
        """Share of answers fast enough, mean batch of an instance, and the requests left for the next step."""
        servers = self._decodes.ready
        if servers < 1:
            return 0.0, 0.0, inflow
        rate = inflow / step
        most = self._decode.rates[-1] * servers
        if rate > most:
            return 0.0, self._decode.batches[-1], inflow - most * step
        return self._decode.in_time(servers, rate), self._decode.at(rate / servers)[0], 0.0

    def _load(
        self,
        seconds: float,
        count: float,
        work: float,
        in_time: float,
        answered: float,
        fast: float,
        batch: float,
        dispersion: float,
    ) -> ScenarioLoad:
        """As the gateway's metrics would tell it. Lengths vary from window to window as the work that was drawn does."""
        truth, profile = self.scenario.work, self.scenario.profile
        service = work / count if count else 0.0
        drift = service / self._prefill.mean if count else 1.0
        tpot = truth.decode_correction * profile.decode_seconds(max(batch, 1.0), truth.context_tokens)
        decode_seconds = truth.transfer_seconds + tpot * truth.answer_tokens
        deviation = 1.28 * math.sqrt(batch / max(1, self._decodes.ready))
        slow = truth.decode_correction * profile.decode_seconds(
            max(1.0, batch + deviation), truth.context_tokens
        )
        return ScenarioLoad(
            seconds=seconds,
            arrivals=round(count),
            prompt_tokens=truth.prompt_tokens * drift,
            prompt_tokens_squared=truth.prompt_tokens_squared * drift * drift,
            answer_tokens=truth.answer_tokens,
            answer_tokens_squared=truth.answer_tokens_squared,
            prefix_factor=truth.prefix_factor,
            finished=round(answered),
            waiting=round(self._queued),
            rejected=max(0, round(count - in_time)),
            prefill_seconds=service,
            decode_seconds=decode_seconds,
            transfer_seconds=truth.transfer_seconds,
            tpot_p90_seconds=slow,
            ttft_attainment=in_time / count if count else 1.0,
            tpot_attainment=fast / answered if answered else 1.0,
            arrival_dispersion=dispersion,
        )

    def _with_waits(self, load: ScenarioLoad, offered: float) -> ScenarioLoad:
        """With the times that users saw."""
        wait_90, mean_wait = self._waits(offered)
        ttft = mean_wait + load.prefill_seconds
        return replace(
            load, ttft_seconds=ttft, ttft_p90_seconds=wait_90, e2e_seconds=ttft + load.decode_seconds
        )

    def _waits(self, offered: float) -> tuple[float, float]:
        """TTFT that nine of ten do not exceed, up to twice the objective, and the mean wait before service."""
        objective, servers = self.scenario.targets.ttft_seconds, self._prefills.ready
        if servers < 1:
            return 2 * objective, objective
        blocked = blocked_share(servers, offered)
        late = 1 - self._prefill.in_time(blocked, servers, offered)
        variability = self._prefill.variability
        if offered < servers:
            delayed = blocked / (1 - offered / servers * (1 - blocked))
            wait = min(objective, delayed * variability * self._prefill.mean / (servers - offered))
        else:
            wait = objective
        if late >= 0.1:
            return objective * min(2.0, late / 0.1), wait
        low, high = 0.0, objective
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            is_enough = self._prefill.within(middle, blocked, servers, offered) >= 0.9
            low, high = (low, middle) if is_enough else (middle, high)
        return high, wait


def _dispersion(counts: Sequence[float]) -> float:
    """Variance over mean; 1 where too little came to tell."""
    mean = sum(counts) / len(counts)
    if len(counts) < 3 or mean < 1:
        return 1.0
    return sum((count - mean) ** 2 for count in counts) / (len(counts) - 1) / mean
