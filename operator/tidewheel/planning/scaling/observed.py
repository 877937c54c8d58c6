"""What the scaling planner is shown of a scenario: one window's load, and which instances there are."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ScenarioLoad:
    """What was measured of a scenario in one window. Means are over the window's requests; times are seconds.

    Symbols are P/D-Serve's (arXiv 2408.08147, §2.1). What was not measured keeps its default, and nothing is derived
    from it.
    """

    seconds: float  # the window's length
    arrivals: int  # I_t, whatever became of them
    prompt_tokens: float  # mean over arrivals, cached tokens included
    answer_tokens: float  # G, mean over what finished
    prompt_tokens_squared: float = (
        0.0  # mean of the square, so that the spread is known; 0 if it was not measured
    )
    answer_tokens_squared: float = 0.0
    prefix_factor: float = (
        1.0  # r_pre: measured prefill time over that of the same prompt without any cached token
    )
    finished: int = 0
    waiting: int = 0  # requests that waited for a prefill at the window's end
    rejected: int = 0  # requests that were ended without a first token
    prefill_seconds: float = 0.0  # T_p: mean time that a prompt occupies a prefill, without waiting before it
    decode_seconds: float = 0.0  # T_d: mean time from the first token to the last, the transfer included
    transfer_seconds: float = 0.0  # ξ
    ttft_seconds: float = 0.0  # mean as users saw it, waiting included
    ttft_p90_seconds: float = 0.0  # not exceeded by nine of ten
    tpot_p90_seconds: float = 0.0
    e2e_seconds: float = 0.0
    ttft_attainment: float = 1.0  # share of the arrivals whose first token came in time
    tpot_attainment: float = 1.0  # share of the finished whose tokens came fast enough
    arrival_dispersion: float = 1.0  # variance over mean of arrivals per second; 1 for Poisson

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.arrivals / self.seconds

    @property
    def ttft_share(self) -> float:
        """The part of E2E that passes before the first token; 0 if it was not measured."""
        return self.ttft_seconds / self.e2e_seconds if self.e2e_seconds > 0 else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleCounts:
    """One role's instances of one scenario."""

    ready: int
    starting: int = 0  # asked for and placed, not ready yet
    leaving: int = 0  # draining: they take no new requests and still hold their accelerators
    unplaceable: int = 0  # asked for, and no node has room

    @property
    def coming(self) -> int:
        """What serves once everything that was placed is ready."""
        return self.ready + self.starting

    @property
    def asked(self) -> int:
        """What the last decision asked for, as far as it still stands."""
        return self.ready + self.starting + self.unplaceable

    @property
    def holding(self) -> int:
        """Instances that hold accelerators now."""
        return self.ready + self.starting + self.leaving
