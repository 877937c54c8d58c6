"""A histogram of a metrics page at one moment: what gateways draw their figures from, and the planner its loads."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """Values that were observed since a process began, in buckets.

    Quantiles and shares are interpolated within a bucket, as Prometheus' `histogram_quantile` does.
    """

    #: Upper bound, and how many values are at most that; both rise.
    buckets: tuple[tuple[float, float], ...] = ()
    #: Sum of all values.
    total: float = 0.0

    @property
    def count(self) -> float:
        """How many values."""
        return self.buckets[-1][1] if self.buckets else 0.0

    @property
    def mean(self) -> float | None:
        """The mean; None of nothing."""
        return self.total / self.count if self.count else None

    def since(self, earlier: Distribution) -> Distribution:
        """What came between."""
        before = dict(earlier.buckets)
        return Distribution(
            buckets=tuple((bound, count - before.get(bound, 0.0)) for bound, count in self.buckets),
            total=self.total - earlier.total,
        )

    def plus(self, other: Distribution) -> Distribution:
        """Both together; they have the same bounds, or one has none."""
        if not self.buckets or not other.buckets:
            return self if self.buckets else other
        more = dict(other.buckets)
        return Distribution(
            buckets=tuple((bound, count + more.get(bound, 0.0)) for bound, count in self.buckets),
            total=self.total + other.total,
        )

    def quantile(self, part: float) -> float | None:
        """Below it lies that part of the values, 0 to 1; None of nothing."""
        wanted = part * self.count
        if not self.count:
            return None
        low, below = 0.0, 0.0
        for bound, count in self.buckets:
            if count >= wanted and count > below:
                # the last bucket has no upper bound: its lower one is the best that can be said
                return low if bound == math.inf else low + (bound - low) * (wanted - below) / (count - below)
            low, below = bound, count
        return low

    def share_up_to(self, limit: float) -> float | None:
        """Which part of the values is at most `limit`, 0 to 1; None of nothing."""
        if not self.count:
            return None
        low, below = 0.0, 0.0
        for bound, count in self.buckets:
            if limit <= bound:
                inside = 0.0 if bound == math.inf else (limit - low) / (bound - low)
                return (below + (count - below) * inside) / self.count
            low, below = bound, count
        return 1.0

    @property
    def mean_square(self) -> float | None:
        """The mean of the squares, as if the values of a bucket lay in its middle, but never less than the mean's square."""
        if not self.count or self.mean is None:
            return None
        low, below, total = 0.0, 0.0, 0.0
        for bound, count in self.buckets:
            middle = low if bound == math.inf else (low + bound) / 2
            total += (count - below) * middle**2
            low, below = bound, count
        return max(total / self.count, self.mean**2)
