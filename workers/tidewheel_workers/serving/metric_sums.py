"""The metrics of several processes as those of one: what each shows, as plain values, and their sums."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prometheus_client import Metric

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

#: One process's metrics as JSON can hold them: name, help, type, and samples of name, labels and value.
Snapshot = list[list[Any]]

#: What every process sees alike, so that the sum would be a multiple.
SEEN_BY_ALL = frozenset({"tidewheel_gateway_groups"})
_LASTING = frozenset({"counter", "histogram", "summary"})
_CREATED = "_created"


def snapshot(metrics: Iterable[Metric]) -> Snapshot:
    """What a registry shows now."""
    return [
        [one.name, one.documentation, one.type, [[s.name, s.labels, s.value] for s in one.samples]]
        for one in metrics
    ]


def lasting(seen: Snapshot) -> Snapshot:
    """What stays true of a process that has ended: what it counted, not what it had open."""
    return [family for family in seen if family[2] in _LASTING]


def total(snapshots: Sequence[Snapshot]) -> list[Metric]:
    """The sum over processes; a time of creation is the first one's."""
    families: dict[str, tuple[Metric, dict[tuple[str, tuple[tuple[str, str], ...]], float]]] = {}
    for seen in snapshots:
        for name, documentation, kind, samples in seen:
            if name not in families:
                families[name] = (Metric(name, documentation, kind), {})
            values = families[name][1]
            for sample, labels, value in samples:
                key = (sample, tuple(labels.items()))
                if key not in values:
                    values[key] = value
                elif sample.endswith(_CREATED):
                    values[key] = min(values[key], value)
                elif name in SEEN_BY_ALL:
                    values[key] = max(values[key], value)
                else:
                    values[key] += value
    for family, values in families.values():
        for (sample, labels), value in values.items():
            family.add_sample(sample, dict(labels), value)
    return [family for family, _ in families.values()]
