"""What the planner is told of a scenario: its load, its instances, what it promises and what its spec allows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tidewheel.planning.scaling.combining import Disaggregation
from tidewheel.planning.scaling.floors import Floor
from tidewheel.planning.scaling.observed import RoleCounts, ScenarioLoad
from tidewheel.planning.scaling.profile import DeviceProfile
from tidewheel.planning.scaling.sizing import Targets

Mode = Literal["Off", "Advise", "Auto"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a scenario's spec allows."""

    prefill: tuple[int, int] = (1, 64)  # least and most
    decode: tuple[int, int] = (1, 64)
    startup_seconds: float = 60.0  # from asking for an instance until it serves
    startup_by_role: tuple[float, float] | None = None  # of a prefill and of a decode, where they differ
    hold_seconds: float | None = None  # before a count shrinks; two start-ups or four windows if left out
    most_per_step: int = 8  # instances of a role that one decision adds or takes away
    floors: tuple[Floor, ...] = ()
    mode: Mode = "Auto"
    weight: float = 1.0  # of a request beside other scenarios' where the budget binds
    costs: tuple[int, int] = (1, 1)  # accelerators of a prefill and of a decode

    def __post_init__(self) -> None:
        for role, (least, most) in (("prefill", self.prefill), ("decode", self.decode)):
            if not 1 <= least <= most:
                raise ValueError(
                    f"{role}: between {least} and {most} instances is no range; keep one at least"
                )
        if self.most_per_step < 1 or min(self.startup_seconds, *self.startups) < 0:
            raise ValueError("a step adds one instance at least, and starting up takes no negative time")

    @property
    def startups(self) -> tuple[float, float]:
        """From asking for a prefill, and for a decode, until it serves; seconds."""
        return self.startup_by_role or (self.startup_seconds, self.startup_seconds)

    def hold(self, window: float) -> float:
        """How long a need must have been lower before a count follows it down."""
        if self.hold_seconds is not None:
            return self.hold_seconds
        return max(2 * self.startup_seconds, 4 * window)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """A scenario's instances."""

    prefill: RoleCounts
    decode: RoleCounts


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What the planner is told of one scenario in each window."""

    name: str
    load: ScenarioLoad
    counts: Counts
    targets: Targets
    limits: Limits
    profile: DeviceProfile | None = None  # without one the sign rule decides
    #: With Never, or where Auto so chooses, there are no prefills, and decodes compute the prompts.
    disaggregation: Disaggregation = "Always"

    @property
    def asked(self) -> tuple[int, int]:
        """Prefills and decodes that stand asked for."""
        return self.counts.prefill.asked, self.counts.decode.asked
