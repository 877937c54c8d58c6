"""How many prefills and decodes each scenario should have now, and why: the planner that operator and simulators call.

For each scenario, after every window: remember what its requests are like, judge the forecasts, expect the load when an
instance asked for now would be ready, size both roles for it, keep scheduled floors, limits and holding times; then divide
the budget over all scenarios; then go at most one step. Growth waits for nothing. Shrinking waits until the need has been
lower for a holding time, and asks that the rest carry what was ever needed in it, with a twentieth to spare. Everything is
a function of the arguments: the same state, windows and counts give the same decision, before a restart and after.

Where a scenario may run combined (`combining`), its decodes compute the prompts as well: then 0 prefills are asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from tidewheel.planning.scaling.budget import Ask, Shares, share
from tidewheel.planning.scaling.combining import Disaggregation, runs_combined
from tidewheel.planning.scaling.forecast import Kind
from tidewheel.planning.scaling.observed import ScenarioLoad
from tidewheel.planning.scaling.profile import DeviceProfile
from tidewheel.planning.scaling.scenario import Counts, Limits, Scenario
from tidewheel.planning.scaling.sizing import Targets, decode_attainment, prefill_attainment
from tidewheel.planning.scaling.state import ScalingState
from tidewheel.planning.scaling.steps import step
from tidewheel.planning.scaling.throughput import Bottleneck
from tidewheel.planning.scaling.wish import Reason, Wish, wish_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What one scenario should have, and why."""

    prefill: int  # to ask for; in the modes Off and Advise what there is already
    decode: int
    advised: tuple[int, int]  # what Auto would ask for now
    needed: tuple[int, int]  # for the forecast load, before floors, limits, budget and holding
    reason: Reason
    message: str
    bottleneck: Bottleneck = "traffic"  # what would fall short first with the present instances
    ratio: Fraction | None = None  # of the needed counts
    forecast: Kind | None = None
    expected_rate: float = 0.0  # requests per second at the horizon
    attainment: tuple[float, float] | None = None  # expected shares of TTFT and TPOT with what is asked for
    hopeless_share: float = 0.0  # prompts that no number of prefills serves in time
    #: Instances that would do both, if that needs clearly fewer, or that is chosen.
    combined: int | None = None


def decide(
    state: ScalingState,
    load: ScenarioLoad,
    counts: Counts,
    *,
    targets: Targets,
    limits: Limits,
    profile: DeviceProfile | None,
    now: float,
    budget: int | None = None,
    disaggregation: Disaggregation = "Always",
) -> tuple[Decision, ScalingState]:
    """One scenario that has its budget for itself.

    Args:
        state: after the window before; `ScalingState()` at first.
        load: of the window that ends now.
        counts: as they are now.
        targets: what is promised.
        limits: what is allowed.
        profile: what one device can do, if that is known.
        now: seconds since the Unix epoch.
        budget: accelerators.
        disaggregation: whether there must, or must not, be prefills.
    """
    scenario = Scenario(
        name="",
        load=load,
        counts=counts,
        targets=targets,
        limits=limits,
        profile=profile,
        disaggregation=disaggregation,
    )
    decisions, states, _ = decide_all({"": state}, (scenario,), budget=budget, now=now)
    return decisions[""], states[""]


def decide_all(
    states: Mapping[str, ScalingState], scenarios: Sequence[Scenario], *, budget: int | None, now: float
) -> tuple[dict[str, Decision], dict[str, ScalingState], Shares]:
    """All scenarios that share a budget of accelerators. Cost grows linearly with scenarios and instances.

    Nothing that this asks for exceeds the budget, together with what still holds accelerators: what one scenario gives
    back another gets once it is free. Instances that no node has room for are asked for no more, and hold up nothing.
    """
    wishes: list[Wish] = []
    after: dict[str, ScalingState] = {}
    for scenario in scenarios:
        wish, after[scenario.name] = wish_of(states.get(scenario.name, ScalingState()), scenario, now=now)
        wishes.append(wish)
    shares = share(budget, [_ask(wish) for wish in wishes])
    steps = [_step(wish, granted) for wish, granted in zip(wishes, shares.granted, strict=True)]
    if budget is not None:
        steps = _within(budget, wishes, steps)
    decisions = {
        wish.scenario.name: _decision(wish, granted, taken, shares)
        for wish, granted, taken in zip(wishes, shares.granted, steps, strict=True)
    }
    return decisions, after, shares


def _ask(wish: Wish) -> Ask:
    limits = wish.scenario.limits
    least = (min(limits.prefill[0], wish.wanted[0]), min(limits.decode[0], wish.wanted[1]))
    if limits.mode != "Auto":
        # what there is stays, whatever others need
        have = wish.scenario.asked
        return Ask(name=wish.scenario.name, need=have, least=have, costs=limits.costs)
    return Ask(
        name=wish.scenario.name,
        need=wish.wanted,
        least=least,
        rate=max(wish.rate, 1e-9),
        weight=limits.weight,
        costs=limits.costs,
    )


def _step(wish: Wish, granted: tuple[int, int]) -> tuple[int, int]:
    if wish.scenario.limits.mode != "Auto":
        return wish.scenario.asked
    counts = wish.scenario.counts
    return step(counts.prefill, counts.decode, granted, most=wish.scenario.limits.most_per_step)


def _within(budget: int, wishes: Sequence[Wish], steps: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """With growth cut to what is free now: what others give back is free only once it is gone."""
    free = budget
    for wish in wishes:
        costs, counts = wish.scenario.limits.costs, wish.scenario.counts
        for cost, of_role in zip(costs, (counts.prefill, counts.decode), strict=True):
            free -= cost * (of_role.asked + of_role.leaving)
    cut = []
    for wish, wanted in zip(wishes, steps, strict=True):
        costs = wish.scenario.limits.costs
        have = [min(one, here) for one, here in zip(wanted, wish.scenario.asked, strict=True)]
        while roles := [role for role in (0, 1) if have[role] < wanted[role] and costs[role] <= free]:
            # the role that is further from what is wanted first
            role = min(roles, key=lambda role: have[role] / wanted[role])
            have[role] += 1
            free -= costs[role]
        if runs_combined(wish.scenario.asked) and have[0] < wanted[0]:
            # too few prefills would have to compute all prompts
            free += costs[0] * have[0]
            have[0] = 0
        cut.append((have[0], have[1]))
    return cut


def _decision(wish: Wish, granted: tuple[int, int], taken: tuple[int, int], shares: Shares) -> Decision:
    scenario = wish.scenario
    limits = scenario.limits
    reason, message = wish.reason, wish.message
    if shares.binds and granted != wish.wanted:
        reason = "BudgetBinds" if shares.is_feasible else "BudgetTooSmall"
        message = shares.reason
    elif any(
        counts.unplaceable and want >= counts.asked
        for counts, want in zip((scenario.counts.prefill, scenario.counts.decode), wish.wanted, strict=True)
    ):
        reason = "NoRoom"
        message = f"{message}; no node has room for all of them, so no more are asked for"
    attainment = None
    if wish.works is not None and wish.demands is not None and not runs_combined(taken):
        attainment = (
            prefill_attainment(max(1, taken[0]), wish.demands[0], wish.works[0]),
            decode_attainment(max(1, taken[1]), wish.demands[1], wish.works[1]),
        )
    return Decision(
        prefill=taken[0],
        decode=taken[1],
        advised=wish.wanted if limits.mode == "Advise" else taken,
        needed=wish.needed,
        reason=reason,
        message=message,
        bottleneck=_bottleneck(wish),
        ratio=Fraction(wish.needed[0], wish.needed[1]) if min(wish.needed) > 0 else None,
        forecast=wish.forecast,
        expected_rate=wish.rate,
        attainment=attainment,
        hopeless_share=wish.works[0].hopeless_share if wish.works is not None else 0.0,
        combined=wish.combined,
    )


def _bottleneck(wish: Wish) -> Bottleneck:
    """The role that lacks the greater part of what is needed."""
    counts = wish.scenario.counts
    lacks = [
        1 - have.coming / max(need, 1) if need > 0 else 0.0
        for have, need in zip((counts.prefill, counts.decode), wish.needed, strict=True)
    ]
    if max(lacks) <= 0:
        return "traffic"
    return "prefill" if lacks[0] >= lacks[1] else "decode"


def _of(wish: Wish) -> Counts:
    return wish.scenario.counts
