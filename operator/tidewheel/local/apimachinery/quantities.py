"""Kubernetes quantities (`500m`, `1.5Gi`): how they are read, compared and printed in their one canonical form."""

from __future__ import annotations

import re
from decimal import ROUND_UP, Decimal
from functools import lru_cache
from typing import Final

_PATTERN: Final = re.compile(
    r"([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))(?:(Ki|Mi|Gi|Ti|Pi|Ei)|([numkMGTPE]?)|[eE]([+-]?[0-9]+))"
)
_BINARY: Final = ("", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei")
_DECIMAL: Final = {-9: "n", -6: "u", -3: "m", 0: "", 3: "k", 6: "M", 9: "G", 12: "T", 15: "P", 18: "E"}
_POWERS: Final = {suffix: power for power, suffix in _DECIMAL.items()}
_NANO: Final = Decimal("1e-9")


class MalformedQuantity(ValueError):
    """The text is not a quantity."""

    def __init__(self, text: str) -> None:
        super().__init__(
            "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
        )
        self.text = text


@lru_cache(maxsize=4096)
def quantity(text: str) -> Decimal:
    """The number that a quantity stands for, in units (cores, bytes).

    Raises:
        MalformedQuantity: it is not a quantity.
    """
    return _read(text)[0]


@lru_cache(maxsize=4096)
def canonical(text: str) -> str:
    """The quantity as the API server prints it: an integer with the largest suffix that keeps it one.

    Raises:
        MalformedQuantity: it is not a quantity.
    """
    value, style = _read(text)
    if value == 0:
        return "0"
    if style == "binary" and abs(value) >= 1024 and value == value.to_integral_value():
        number, step = int(value), 0
        while number % 1024 == 0 and step + 1 < len(_BINARY):
            number, step = number // 1024, step + 1
        return f"{number}{_BINARY[step]}"
    value = value.quantize(_NANO, rounding=ROUND_UP).normalize()
    power = -9
    while power < 18 and value.scaleb(-power - 3) == value.scaleb(-power - 3).to_integral_value():
        power += 3
    number = int(value.scaleb(-power))
    if style == "exponent":
        return f"{number}e{power}" if power else str(number)
    return f"{number}{_DECIMAL[power]}"


def _read(text: str) -> tuple[Decimal, str]:
    found = _PATTERN.fullmatch(text)
    if found is None:
        raise MalformedQuantity(text)
    digits, binary, decimal, exponent = found.groups()
    number = Decimal(digits)
    if binary:
        return number * 1024 ** _BINARY.index(binary), "binary"
    if exponent:
        return number.scaleb(int(exponent)), "exponent"
    return number.scaleb(_POWERS[decimal]), "decimal"
