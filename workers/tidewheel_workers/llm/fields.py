"""Typed reading of what a model's files say: config.json, its neighbours and GGUF metadata hold what someone wrote there."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeVar

from tidewheel_workers.llm.errors import ModelUnreadable

if TYPE_CHECKING:
    from collections.abc import Mapping

T = TypeVar("T")

_WORDS: dict[type, str] = {int: "a whole number", str: "a text", bool: "true or false", dict: "an object"}


class Fields:
    """Named values of one file; a missing value is the default, or an error where there is none."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self._values = values
        self._where = where

    def is_a(self, name: str, kind: type) -> bool:
        """Whether a value is there and of that type."""
        return _is(self._values.get(name), kind)

    def whole(self, name: str, default: int | None = None) -> int:
        """A whole number.

        Raises:
            ModelUnreadable: it is missing, or no whole number.
        """
        return self._present(name, self.maybe(name, int), default)

    def number(self, name: str, default: float | None = None) -> float:
        """A finite number.

        Raises:
            ModelUnreadable: it is missing, or no finite number.
        """
        value = self._values.get(name)
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value)
        ):
            raise self._wrong(name, value, "a finite number")
        return self._present(name, None if value is None else float(value), default)

    def maybe(self, name: str, kind: type[T]) -> T | None:
        """A value of that type, or None where there is none.

        Raises:
            ModelUnreadable: it is of another type.
        """
        value = self._values.get(name)
        if value is not None and not _is(value, kind):
            raise self._wrong(name, value, _WORDS[kind])
        return value

    def many(self, name: str, kind: type[T]) -> list[T]:
        """A list of values of that type; empty where there is none.

        Raises:
            ModelUnreadable: it is no list, or holds something else.
        """
        value = self._values.get(name)
        if value is None:
            return []
        if not isinstance(value, list) or not all(_is(item, kind) for item in value):
            raise self._wrong(name, value, f"a list, each {_WORDS[kind]}")
        return value

    def one_or_many(self, name: str, kind: type[T]) -> list[T]:
        """Like `many`; a single value stands for a list of it."""
        single = self.maybe(name, kind) if self.is_a(name, kind) else None
        return self.many(name, kind) if single is None else [single]

    def inner(self, name: str) -> Fields:
        """An object's own fields; none where there is no object.

        Raises:
            ModelUnreadable: it is something else.
        """
        return Fields(self.maybe(name, dict) or {}, f"{name} in {self._where}")

    def _present(self, name: str, value: T | None, default: T | None) -> T:
        if value is not None:
            return value
        if default is None:
            raise ModelUnreadable(f"{self._where} has no {name}; the file is incomplete or of another kind")
        return default

    def _wrong(self, name: str, value: Any, want: str) -> ModelUnreadable:
        shown = repr(value)
        shown = shown if len(shown) <= 60 else f"{shown[:60]}..."
        return ModelUnreadable(f"{self._where}: {name} is of the wrong type: {shown} where {want} belongs")


def _is(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False
