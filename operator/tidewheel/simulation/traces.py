"""Requests as they came: readers of the public traces, and made-up arrivals from a random generator that is passed in.

Readers take lines of text; whoever calls them opens the files.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

#: Tokens behind each hash of a Mooncake trace.
MOONCAKE_BLOCK_TOKENS = 512


class BadTrace(ValueError):
    """A line of a trace says nothing that can be simulated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request of a trace."""

    at: float  # seconds since the trace's begin
    prompt_tokens: int
    answer_tokens: int
    #: Names of the prompt's leading blocks of `block_tokens` tokens; equal names are equal prefixes up to there.
    blocks: tuple[int, ...] = ()
    scenario: str = ""


def read_mooncake(lines: Iterable[str], *, scenario: str = "") -> tuple[Request, ...]:
    """Mooncake's JSONL (FAST '25 release): `timestamp` ms, `input_length`, `output_length`, `hash_ids`.

    Raises:
        BadTrace: a line is no such object; the message has its number.
    """
    return _sorted(_mooncake(lines, scenario))


def read_azure(lines: Iterable[str], *, scenario: str = "") -> tuple[Request, ...]:
    """Azure's LLM inference traces of 2023 and 2024: CSV with TIMESTAMP, ContextTokens, GeneratedTokens.

    Raises:
        BadTrace: the header or a row is different; the message has its number.
    """
    return _sorted(_azure(lines, scenario))


def read_trace(lines: Iterable[str], *, scenario: str = "") -> tuple[Request, ...]:
    """Either of them, told apart by the first line."""
    iterator = iter(lines)
    first = next(iterator, "")
    whole = _chain(first, iterator)
    if first.lstrip().startswith("{"):
        return read_mooncake(whole, scenario=scenario)
    return read_azure(whole, scenario=scenario)


def sped_up(requests: Sequence[Request], by: float) -> tuple[Request, ...]:
    """The same requests, arriving so many times as fast."""
    if by <= 0:
        raise BadTrace(f"a trace cannot be sped up by {by:g}; give a number above 0")
    return tuple(replace(request, at=request.at / by) for request in requests)


def poisson(
    like: Sequence[Request], *, per_second: float, count: int, generator: random.Random
) -> tuple[Request, ...]:
    """So many requests at a Poisson process's times, with lengths drawn from a trace (and without its prefixes)."""
    at = 0.0
    drawn: list[Request] = []
    for _ in range(count):
        at += generator.expovariate(per_second)
        drawn.append(replace(generator.choice(like), at=at, blocks=()))
    return tuple(drawn)


def _chain(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _sorted(requests: Iterable[Request]) -> tuple[Request, ...]:
    ordered = sorted(requests, key=lambda request: request.at)
    if not ordered:
        raise BadTrace("the trace holds no request")
    begin = ordered[0].at
    return tuple(replace(request, at=request.at - begin) for request in ordered)


def _mooncake(lines: Iterable[str], scenario: str) -> Iterator[Request]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            yield Request(
                at=float(row["timestamp"]) / 1000,
                prompt_tokens=_count(row["input_length"], least=1),
                answer_tokens=_count(row["output_length"], least=1),
                blocks=tuple(int(name) for name in row.get("hash_ids", ())),
                scenario=scenario,
            )
        except (ValueError, KeyError, TypeError) as error:
            raise BadTrace(
                f"line {number} of the Mooncake trace is none of timestamp, input_length, output_length and hash_ids: "
                f"{error!r}"
            ) from error


def _azure(lines: Iterable[str], scenario: str) -> Iterator[Request]:
    for number, row in enumerate(csv.DictReader(lines), start=2):
        try:
            yield Request(
                at=datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp(),
                prompt_tokens=_count(row["ContextTokens"], least=1),
                answer_tokens=_count(row["GeneratedTokens"], least=1),
                scenario=scenario,
            )
        except (ValueError, KeyError, TypeError) as error:
            raise BadTrace(
                f"line {number} of the Azure trace is no TIMESTAMP, ContextTokens and GeneratedTokens: {error!r}"
            ) from error


def _count(value: object, *, least: int) -> int:
    """A whole number; traces have a few answers without any token, which count as one."""
    return max(least, int(value))  # type: ignore[call-overload, no-any-return]
