"""A histogram of a metrics page at one moment: what gateways draw their figures from, and the planner its loads."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

Key = TypeVar("Key", bound=Hashable)


class Sample(Protocol):
    """One line of a metrics page, as prometheus_client gives it."""

    @property
    def name(self) -> str:
        """With the suffix of a histogram's series."""

    @property
    def labels(self) -> Mapping[str, str]:
        """All of them."""

    @property
    def value(self) -> float:
        """At this moment."""


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


def add_up(
    samples: Iterable[Sample], key: Callable[[str, Mapping[str, str]], Key | None]
) -> tuple[dict[Key, float], dict[Key, Distribution]]:
    """Counters and gauges, and histograms, added up over the labels that nobody asks for.

    Args:
        samples: of one page.
        key: under which a series is added up, by its name (a histogram's without suffix) and labels; None leaves it out.
    """
    values: dict[Key, float] = defaultdict(float)
    totals: dict[Key, float] = defaultdict(float)
    buckets: dict[Key, dict[float, float]] = defaultdict(lambda: defaultdict(float))
    for sample in samples:
        name, _, part = sample.name.rpartition("_")
        if part not in ("bucket", "sum", "count"):
            name = sample.name
        found = key(name, sample.labels)
        if found is None or part == "count":
            continue
        if part == "bucket":
            buckets[found][float(sample.labels["le"])] += sample.value
        elif part == "sum":
            totals[found] += sample.value
        else:
            values[found] += sample.value
    distributions = {
        found: Distribution(buckets=tuple(sorted(counts.items())), total=totals[found])
        for found, counts in buckets.items()
    }
    return dict(values), distributions
