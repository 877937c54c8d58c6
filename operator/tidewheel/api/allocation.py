"""Allocation: which scenarios get the spare pods of each round, by what these brought so far."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tidewheel.api.model import ApiModel, CelRule, Name
from tidewheel.api.scenarios import MOST_SCENARIOS
from tidewheel.api.status import Time

#: All scenarios of a service, and `default`.
MOST_CONTENDERS = MOST_SCENARIOS + 1
LONGEST_GAP = 1024
MOST_SLOTS = 16

ScenarioName = Annotated[str, Field(max_length=63)]

#: In how many 1/1024 of a slot a longest gap g with a shortest c needs: a turn every 2^floor(log2(g - c + 1)) rounds.
_TURNS = " : ".join(
    f"s.maxGapRounds - s.minGapRounds + 1 >= {1 << power} ? {1024 >> power}" for power in range(10, 0, -1)
)
_SLOTS_NEEDED = f"(s.state == 'Pinned' ? 1024 : !has(s.maxGapRounds) ? 0 : {_TURNS} : 1024)"


class ScenarioBoosts(ApiModel):
    """What one scenario's boosts must keep to, whatever is learnt."""

    name: Name = Field(description="name is the scenario's; `default` is everything else.")
    state: Literal["Planned", "Pinned", "Frozen"] = Field(
        "Planned",
        description=(
            "state Planned leaves its boosts to the policy. Pinned boosts it in every round, which takes a slot and is not "
            "learnt from. Frozen keeps the policy from boosting it."
        ),
    )
    min_gap_rounds: int = Field(
        1,
        ge=1,
        le=LONGEST_GAP,
        description="minGapRounds is how many rounds there are at least from one boost to the next.",
    )
    max_gap_rounds: int | None = Field(
        None,
        ge=1,
        le=LONGEST_GAP,
        description="maxGapRounds is how many there are at most; without it a scenario may never be boosted.",
    )

    cel_rules = (
        CelRule(
            rule="!has(self.maxGapRounds) || self.minGapRounds <= self.maxGapRounds",
            message="maxGapRounds must not be below minGapRounds",
            field_path=".maxGapRounds",
        ),
        CelRule(
            rule="self.state != 'Pinned' || (self.minGapRounds == 1 && !has(self.maxGapRounds))",
            message="a pinned scenario is boosted in every round; leave out minGapRounds and maxGapRounds",
            field_path=".state",
        ),
    )


class Allocation(ApiModel):
    """How spare pods go round the scenarios that have groups of their own, and the groups for everything else.

    Each round some scenarios are boosted: they get `podsPerSlot` more pods of a role. What a boost brings drops after one and
    recovers while a scenario does without, so boosts are planned by what they brought after so many idle rounds.
    """

    mode: Literal["Off", "Shadow", "Auto"] = Field(
        "Off",
        description=(
            "mode Off decides nothing and keeps what was learnt. Shadow decides, and says in the status whom it would boost. "
            "Auto boosts."
        ),
    )
    policy: Literal["Index", "Periodic", "Myopic", "RoundRobin"] = Field(
        "Index",
        description=(
            "policy Index boosts those that lose most by waiting. Periodic keeps a calendar with a fixed period for each "
            "scenario, made anew as more is learnt. Myopic takes the highest reward of this round, RoundRobin the longest idle; "
            "both are there to compare with."
        ),
    )
    role: Literal["prefill", "decode"] = Field("decode", description="role is what the pods of a boost are.")
    slots: int = Field(
        1, ge=1, le=MOST_SLOTS, description="slots is how many scenarios are boosted in a round at most."
    )
    pods_per_slot: int = Field(
        1, ge=1, le=64, description="podsPerSlot is how many pods a boosted scenario gets."
    )
    good_requests_per_minute: int = Field(
        ge=1,
        le=1_000_000,
        description=(
            "goodRequestsPerMinute is what the pods of one slot can add at best, in requests that keep every promise: a reward of "
            "100 percent. `tidewheel profile` measures it."
        ),
    )
    round_seconds: int = Field(
        600,
        ge=10,
        le=86_400,
        description="roundSeconds is how long a round takes; rounds begin at multiples of it, counted from 1970 in UTC.",
    )
    burn_in_seconds: int = Field(
        120,
        ge=0,
        le=43_200,
        description=(
            "burnInSeconds is the first part of a round in which nothing is measured: its pods start, and requests end "
            "that arrived before. A boost whose pods do not serve by then does not count as one."
        ),
    )
    longest_idle_rounds: int = Field(
        24,
        ge=1,
        le=LONGEST_GAP,
        description="longestIdleRounds is after how many rounds without a boost a scenario is taken to be fully recovered.",
    )
    reward_deadline_rounds: int = Field(
        3,
        ge=1,
        le=64,
        description="rewardDeadlineRounds is after how many rounds a reward that could not be measured is given up.",
    )
    fewest_requests: int = Field(
        100,
        ge=1,
        le=1_000_000,
        description=(
            "fewestRequests must arrive in a round's measured part for a verdict; who had fewer in the last round is not boosted."
        ),
    )
    optimism_percent: int = Field(
        25,
        ge=0,
        le=400,
        description="optimismPercent is how much what is little known is favoured, in percent of the reward's range.",
    )
    explore_percent: int = Field(
        5,
        ge=0,
        le=50,
        description=(
            "explorePercent is how often, under Index and Myopic, the last slot goes to anyone at random. Under Index it falls with "
            "the square root of the rounds, to a third after 800. The chance of every pick is recorded."
        ),
    )
    hold_out_percent: int = Field(
        0,
        ge=0,
        le=50,
        description="holdOutPercent is the part of the rounds without boosts, pins and longest gaps aside, to compare with.",
    )
    seed: int = Field(
        0, ge=0, le=2_147_483_647, description="seed makes the random choices; the same seed makes the same."
    )
    scenarios: tuple[ScenarioBoosts, ...] = Field(
        (),
        max_length=MOST_CONTENDERS,
        description="scenarios are those with rules of their own; the others are Planned.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )

    cel_rules = (
        CelRule(
            rule="2 * self.burnInSeconds <= self.roundSeconds",
            message="burnInSeconds must leave half of roundSeconds to measure in",
            field_path=".burnInSeconds",
        ),
        CelRule(
            rule=(
                f"!has(self.scenarios) || self.scenarios.map(s, {_SLOTS_NEEDED}).sum() <= 1024 * self.slots"
            ),
            message=(
                "pinned scenarios and maxGapRounds need more slots than there are: a pin takes one, and a gap one in every "
                "2^floor(log2(maxGapRounds - minGapRounds + 1)) rounds; raise slots or maxGapRounds, or unpin some"
            ),
            field_path=".slots",
        ),
    )


class BoostPick(ApiModel):
    """A scenario that is boosted in this round."""

    name: ScenarioName = Field(description="name is the scenario's.")
    reason: Literal["Pinned", "LongestGap", "Ranked", "Explored"] = Field(
        description=(
            "reason is Pinned, LongestGap (its next turn would be too late), Ranked (by the policy) or Explored (at random)."
        )
    )
    idle_rounds: int = Field(
        ge=1, description="idleRounds is how many rounds ago its last boost was, or it was first seen."
    )
    worth_percent: int | None = Field(
        None,
        ge=-1_000_000_000,
        description=(
            "worthPercent is the policy's score: under Index what the boost is worth now beside later, to be compared "
            "with pricePercent; under RoundRobin a hundred for each idle round."
        ),
    )
    chance_percent: int = Field(
        100, ge=0, le=100, description="chancePercent is the chance with which it was to be picked, rounded."
    )


class BoostReward(ApiModel):
    """What became of a boost."""

    round: int = Field(ge=0, description="round is the boost's.")
    name: ScenarioName = Field(description="name is the scenario's.")
    verdict: Literal["Measured", "NotSaturated", "InsufficientData", "NoBaseline", "NotApplied"] = Field(
        description=(
            "verdict is Measured; NotSaturated (all requests were good without it: a reward of 0); InsufficientData (too few "
            "requests); NoBaseline (it was boosted in every round that is still remembered); or NotApplied (its pods "
            "did not serve in time). The last three teach nothing."
        )
    )
    reward_percent: int | None = Field(
        None,
        ge=-100,
        le=100,
        description="rewardPercent is what it added, in percent of goodRequestsPerMinute.",
    )


class ForecastRound(ApiModel):
    """A round to come, if nothing more is learnt and nothing given at random."""

    round: int = Field(ge=0, description="round is its number.")
    names: tuple[ScenarioName, ...] = Field(
        (), max_length=MOST_SLOTS, description="names are the scenarios that would be boosted."
    )


class ScenarioAllocation(ApiModel):
    """What is known of one scenario's boosts."""

    name: ScenarioName = Field(description="name is the scenario's.")
    idle_rounds: int = Field(ge=0, description="idleRounds is how many rounds ago its last boost was.")
    rewards: int = Field(0, ge=0, description="rewards is how many were learnt from.")
    expected_percent: int | None = Field(
        None,
        ge=-100,
        le=100,
        description="expectedPercent is the mean reward seen after as many idle rounds as now, or after fewer.",
    )
    hoped_percent: int = Field(
        100,
        ge=-100,
        le=100,
        description="hopedPercent is what it could reasonably be: what the policy plans by.",
    )
    index_percent: int = Field(
        0,
        ge=-1_000_000_000,
        description="indexPercent is the Whittle index of that: what a slot may cost before this boost is better left.",
    )
    resets: int = Field(
        0, ge=0, description="resets is how often its rewards changed so much that learning began anew."
    )
    reason: str = Field(
        "",
        max_length=64,
        description="reason is why the policy leaves it out, if it does: Frozen or InsufficientData.",
    )


class AllocationStatus(ApiModel):
    """The last round that was decided, and what it rests on. Rewards are in percent of goodRequestsPerMinute."""

    round: int = Field(0, ge=0, description="round is its number: seconds since 1970 over roundSeconds.")
    time: Time = Field(description="time is when it began.")
    outcome: Literal["Boosted", "Shadow", "HeldOut", "NobodyEligible", "Infeasible"] = Field(
        "Boosted",
        description=(
            "outcome is Boosted; Shadow (nothing is done); HeldOut (nobody by the policy, to compare with); NobodyEligible; or "
            "Infeasible (pins and longest gaps need more slots)."
        ),
    )
    message: str = Field("", max_length=1024, description="message says who is boosted and why, for people.")
    picks: tuple[BoostPick, ...] = Field(
        (), max_length=MOST_CONTENDERS, description="picks are the scenarios that are boosted."
    )
    price_percent: int | None = Field(
        None,
        ge=-1_000_000_000,
        description="pricePercent is what one more slot would earn, under Index: boosts that are worth less do not pay.",
    )
    forecast: tuple[ForecastRound, ...] = Field(
        (), max_length=16, description="forecast is who would be boosted in the next rounds."
    )
    bound_percent: int = Field(
        0,
        ge=-1_000_000_000,
        description="boundPercent is the reward per round that no policy exceeds, if the rewards are as they were seen.",
    )
    planned_percent: int = Field(
        0,
        ge=-1_000_000_000,
        description="plannedPercent is what the next 64 rounds earn on average, if the rewards are as they were seen.",
    )
    hoped_percent: int = Field(
        0,
        ge=-1_000_000_000,
        description="hopedPercent is the bound if the rewards are as good as they could reasonably be: what is left to learn.",
    )
    scenarios: tuple[ScenarioAllocation, ...] = Field(
        (),
        max_length=MOST_CONTENDERS,
        description="scenarios is what is known of each.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    rewards: tuple[BoostReward, ...] = Field(
        (), max_length=20, description="rewards are the last ones, newest first."
    )
    late: int = Field(0, ge=0, description="late is how many rewards were given up at their deadline.")
