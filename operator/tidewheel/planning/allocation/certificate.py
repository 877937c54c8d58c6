"""How near to the best possible an allocation is: the bound on what was seen, on what might be, and what is planned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tidewheel.planning.allocation.decide import forecast
from tidewheel.planning.allocation.estimates import believed, expected
from tidewheel.planning.allocation.rules import Contender, Rules, relaxed
from tidewheel.planning.allocation.state import AllocationState


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """A proof of quality in numbers, for one moment. Rewards are per round."""

    bound: float  # no policy earns more in the long run, if the curves are as they were seen
    hoped: (
        float  # no policy earns more, if they are as good as they could reasonably be: what is left to learn
    )
    planned: float  # what the next rounds earn if the curves are as they were seen
    price: float  # what one more slot would earn, if the curves are as they were seen
    rates: tuple[float, ...]  # of each scenario: boosts per round at the bound

    @property
    def share(self) -> float | None:
        """What is planned, of the bound; above 1 while scenarios live on what had recovered before."""
        return self.planned / self.bound if self.bound > 0 else None


def certificate(
    state: AllocationState, contenders: Sequence[Contender], rules: Rules, *, at: int, rounds: int = 64
) -> Certificate:
    """The certificate before round `at`, with a look `rounds` ahead.

    It costs as much as the rounds it looks ahead, so it is made for reports and not in every decision.

    Raises:
        Infeasible: as in `admit`.
        ValueError: the round was decided before.
    """
    state = state.knowing(tuple(one.uid for one in contenders), at=at, learning=rules.learning)
    estimates = [one.estimate for one in state.scenarios]
    seen = expected(estimates, rules.learning)
    hoped = believed(estimates, rules.learning, at=state.rounds + 1)
    relaxation = relaxed(seen, contenders, rules.slots)
    curves = {one.uid: curve for one, curve in zip(contenders, seen, strict=True)}
    ahead = forecast(state, contenders, rules, at=at, rounds=rounds)
    earned = sum(curves[pick.uid].at(pick.idle) for decision in ahead for pick in decision.picks)
    return Certificate(
        bound=relaxation.value,
        hoped=relaxed(hoped, contenders, rules.slots).value,
        planned=earned / rounds,
        price=relaxation.price,
        rates=relaxation.rates,
    )
