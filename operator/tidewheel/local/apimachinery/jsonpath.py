"""The part of Kubernetes' JSONPath that printer columns use: fields, indices, slices, wildcards and simple filters."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

_STEP: Final = re.compile(
    r"""\.(?P<name>(?:\\.|[^.\[\]\\])+)
    |\[(?P<index>-?\d+)\]
    |\[(?P<slice>-?\d*:-?\d*)\]
    |\[(?P<all>\*)\]
    |\[(?P<quote>['"])(?P<key>.*?)(?P=quote)\]
    |\[\?\(\s*@(?P<path>[^=!<>()]*?)\s*(?:(?P<operator>==|!=|<=|>=|<|>)\s*(?P<literal>.+?)\s*)?\)\]""",
    re.VERBOSE,
)
_COMPARISONS: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "==": lambda one, other: one == other,
    "!=": lambda one, other: one != other,
    "<": lambda one, other: one < other,
    "<=": lambda one, other: one <= other,
    ">": lambda one, other: one > other,
    ">=": lambda one, other: one >= other,
}

_Step = Callable[[Any], list[Any]]


@dataclass(frozen=True, slots=True)
class JsonPath:
    """A parsed path."""

    steps: tuple[_Step, ...]

    def find(self, value: Any) -> list[Any]:
        """All values that the path leads to; none when a field on the way is absent."""
        found = [value]
        for step in self.steps:
            found = [each for one in found for each in step(one)]
        return found


@lru_cache(maxsize=512)
def compile_path(text: str) -> JsonPath:
    """Parse a path such as `.status.conditions[?(@.type=='Ready')].status`.

    Raises:
        ValueError: the path uses something that is not supported.
    """
    steps: list[_Step] = []
    position = 0
    rest = text.strip().removeprefix("{").removesuffix("}").removeprefix("$")
    while position < len(rest):
        found = _STEP.match(rest, position)
        if found is None:
            raise ValueError(f"the JSONPath {text!r} cannot be read from {rest[position:]!r} on")
        steps.append(_step(found))
        position = found.end()
    return JsonPath(tuple(steps))


def _step(found: re.Match[str]) -> _Step:
    if found["name"] is not None:
        name = re.sub(r"\\(.)", r"\1", found["name"])
        return _wildcard if name == "*" else _field(name)
    if found["index"] is not None:
        return _index(int(found["index"]))
    if found["slice"] is not None:
        start, _, stop = found["slice"].partition(":")
        bounds = slice(int(start) if start else None, int(stop) if stop else None)
        return lambda value: value[bounds] if isinstance(value, list) else []
    if found["all"]:
        return _wildcard
    if found["key"] is not None:
        return _field(found["key"])
    return _filter(found["path"], found["operator"], found["literal"])


def _field(name: str) -> _Step:
    return lambda value: [value[name]] if isinstance(value, dict) and name in value else []


def _index(index: int) -> _Step:
    return lambda value: (
        [value[index]] if isinstance(value, list) and -len(value) <= index < len(value) else []
    )


def _wildcard(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return list(value) if isinstance(value, list) else []


def _filter(path: str, operator: str | None, literal: str | None) -> _Step:
    inner = compile_path(path.strip())
    if operator is None:
        return lambda value: [each for each in _wildcard(value) if inner.find(each)]
    compare = _COMPARISONS[operator]
    wanted = _literal(literal or "")

    def fits(item: Any) -> bool:
        found = inner.find(item)
        try:
            return bool(found) and compare(found[0], wanted)
        except TypeError:
            return False

    return lambda value: [each for each in _wildcard(value) if fits(each)]


def _literal(text: str) -> Any:
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    try:
        return json.loads(text)
    except ValueError:
        return text


def printed(values: list[Any]) -> str:
    """Values as a string column prints them, with spaces between them."""
    return " ".join(_text(value) for value in values)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
