"""Whether labels satisfy a selector in the structured form that specs use (matchLabels, matchExpressions)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tidewheel.api.manifest import Manifest


def selects(selector: Manifest | None, labels: Mapping[str, str]) -> bool:
    """Whether a LabelSelector matches: an empty one everything, a missing one nothing."""
    if selector is None:
        return False
    wanted: Mapping[str, str] = selector.get("matchLabels") or {}
    return all(labels.get(key) == value for key, value in wanted.items()) and meets_all(
        selector.get("matchExpressions") or [], labels
    )


def meets_all(requirements: Iterable[Manifest], labels: Mapping[str, str]) -> bool:
    """Whether labels meet every requirement (`key`, `operator`, `values`)."""
    return all(_meets(requirement, labels) for requirement in requirements)


def _meets(requirement: Manifest, labels: Mapping[str, str]) -> bool:
    present = labels.get(requirement["key"])
    values = requirement.get("values") or []
    match requirement["operator"]:
        case "In":
            return present in values
        case "NotIn":
            return present not in values
        case "Exists":
            return present is not None
        case "DoesNotExist":
            return present is None
        case "Gt" | "Lt" as operator:
            if present is None or not _is_integer(present) or len(values) != 1 or not _is_integer(values[0]):
                return False
            return int(present) > int(values[0]) if operator == "Gt" else int(present) < int(values[0])
        case _:
            return False


def _is_integer(text: str) -> bool:
    return text.removeprefix("-").isdecimal()
