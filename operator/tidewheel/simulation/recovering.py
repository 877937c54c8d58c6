"""A world of scenarios whose reward recovers while they are left alone, and the bandits that know nothing of it.

It drives the very planning code that the operator runs, round by round, and the baselines to compare it with.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from tidewheel.planning.allocation.bound import relax
from tidewheel.planning.allocation.curves import RecoveryCurve
from tidewheel.planning.allocation.decide import decide
from tidewheel.planning.allocation.index import worth_now
from tidewheel.planning.allocation.rules import Contender, Rules
from tidewheel.planning.allocation.state import AllocationState, Reward


class Player(Protocol):
    """Who chooses the scenarios of each round."""

    def choose(self, at: int) -> Sequence[int]:
        """The scenarios to boost in round `at`, no more than there are slots."""

    def learn(self, at: int, scenario: int, reward: float) -> None:
        """What one of them brought."""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """The truth that a player does not know."""

    curves: tuple[RecoveryCurve, ...]
    slots: int
    noise: float  # standard deviation of an observed reward
    seed: int

    @property
    def bound(self) -> float:
        """Reward per round that no player exceeds in the long run."""
        return relax(self.curves, self.slots).value


def mixed_curves(generator: random.Random, count: int, longest: int) -> tuple[RecoveryCurve, ...]:
    """A family of all kinds: exponential, sudden, logistic and in stairs, with heights of 0.2 to 1 and all paces."""
    return tuple(_mixed_curve(generator, longest) for _ in range(count))


def play(world: World, player: Player, rounds: int) -> Iterator[float]:
    """The mean reward of each round's boosts; all scenarios begin fully recovered.

    What a player is told has noise; what is counted has none, so that fewer rounds tell players apart.
    """
    generator = random.Random(world.seed)  # noqa: S311 - a simulation
    idle = [curve.starts[-1] for curve in world.curves]
    for at in range(1, rounds + 1):
        chosen = frozenset(player.choose(at))
        earned = 0.0
        for scenario in sorted(chosen):
            reward = world.curves[scenario].at(idle[scenario])
            earned += reward
            player.learn(at, scenario, reward + generator.gauss(0, world.noise))
        idle = [1 if scenario in chosen else rounds + 1 for scenario, rounds in enumerate(idle)]
        yield earned


class Allocator:
    """The operator's own planner as a player.

    Args:
        scenarios: how many there are.
        rules: as a service would set them.
        stored: what happens to the state between two rounds, such as a way through text and back.
        uids: the scenarios' names; their numbers if left out.
    """

    def __init__(
        self,
        scenarios: int,
        rules: Rules,
        *,
        stored: Callable[[AllocationState], AllocationState] = lambda state: state,
        uids: Sequence[str] | None = None,
    ) -> None:
        self.state = AllocationState()
        self._rules = rules
        self._stored = stored
        self._contenders = [Contender(uid=uid) for uid in uids or map(str, range(scenarios))]
        self._places = {one.uid: place for place, one in enumerate(self._contenders)}

    def choose(self, at: int) -> Sequence[int]:
        """As in `Player`."""
        # the world begins long after the last boost of anyone
        first = at + self._rules.learning.starts[-1]
        self.state, decision = decide(self._stored(self.state), self._contenders, self._rules, at=first)
        return [self._places[pick.uid] for pick in decision.picks]

    def learn(self, at: int, scenario: int, reward: float) -> None:
        """As in `Player`."""
        number = at + self._rules.learning.starts[-1]
        told = Reward(round=number, uid=self._contenders[scenario].uid, value=reward)
        self.state, _ = self.state.settle(told, self._rules.learning)


class KnownIndex:
    """The index of the true curves: what there is to learn."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._idle = [curve.starts[-1] for curve in world.curves]
        price = relax(world.curves, world.slots).price
        # a scenario's worth stays as it is from the last step of its curve on
        self._worths = [
            [worth_now(curve, idle, price) for idle in range(1, curve.starts[-1] + 1)]
            for curve in world.curves
        ]

    def choose(self, at: int) -> Sequence[int]:
        """As in `Player`."""
        del at
        scores = [
            table[min(idle, len(table)) - 1] for table, idle in zip(self._worths, self._idle, strict=True)
        ]
        ranked = sorted(range(len(scores)), key=lambda i: (-scores[i], -self._idle[i], i))
        chosen = {i for i in ranked[: self._world.slots] if scores[i] >= 0}
        self._idle = [1 if i in chosen else idle + 1 for i, idle in enumerate(self._idle)]
        return sorted(chosen)

    def learn(self, at: int, scenario: int, reward: float) -> None:
        """There is nothing to learn."""
        del at, scenario, reward


class UCB1:
    """Auer et al. 2002, the K best upper bounds: rewards are taken to depend on the scenario alone."""

    def __init__(self, scenarios: int, slots: int) -> None:
        self._slots = slots
        self._counts = [0] * scenarios
        self._sums = [0.0] * scenarios

    def choose(self, at: int) -> Sequence[int]:
        """As in `Player`."""
        bounds = [
            total / count + math.sqrt(2 * math.log(at) / count) if count else math.inf
            for count, total in zip(self._counts, self._sums, strict=True)
        ]
        return sorted(range(len(bounds)), key=lambda i: (-bounds[i], i))[: self._slots]

    def learn(self, at: int, scenario: int, reward: float) -> None:
        """As in `Player`."""
        del at
        self._counts[scenario] += 1
        self._sums[scenario] += reward


class EXP3:
    """Auer et al. 2002 for adversarial rewards, with K picks without replacement."""

    def __init__(self, scenarios: int, slots: int, *, seed: int, gamma: float = 0.1) -> None:
        self._slots = slots
        self._gamma = gamma
        self._logs = [0.0] * scenarios
        self._generator = random.Random(seed)  # noqa: S311 - a simulation
        self._chances: list[float] = []

    def choose(self, at: int) -> Sequence[int]:
        """As in `Player`."""
        del at
        highest = max(self._logs)
        weights = [math.exp(log - highest) for log in self._logs]
        total, count = sum(weights), len(weights)
        self._chances = [(1 - self._gamma) * weight / total + self._gamma / count for weight in weights]
        # the order of exponential clocks is a draw without replacement
        clocks = [self._generator.expovariate(chance) for chance in self._chances]
        return sorted(range(count), key=lambda i: clocks[i])[: self._slots]

    def learn(self, at: int, scenario: int, reward: float) -> None:
        """As in `Player`."""
        del at
        step = self._gamma / len(self._logs)
        self._logs[scenario] += step * reward / min(1.0, self._slots * self._chances[scenario])


def _mixed_curve(generator: random.Random, longest: int) -> RecoveryCurve:
    kind = generator.choice(("exponential", "sudden", "logistic", "stairs"))
    height = generator.uniform(0.2, 1)
    pace = math.exp(generator.uniform(0, math.log(longest / 2)))
    jumps = [generator.randint(1, longest) for _ in range(4)]
    shapes: dict[str, Callable[[int], float]] = {
        "exponential": lambda d: 1 - math.exp(-d / pace),
        "sudden": lambda d: float(d >= pace),
        "logistic": lambda d: 1 / (1 + math.exp(-4 * (d - pace) / pace)),
        "stairs": lambda d: sum(d >= jump for jump in jumps) / 4,
    }
    rewards = tuple(height * shapes[kind](d) for d in range(1, longest + 1))
    return RecoveryCurve(tuple(range(1, longest + 1)), rewards)
