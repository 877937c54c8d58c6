"""Device profiles: a built-in one, and readers of the files in which profilers leave them.

Readers take bytes or lines; whoever calls them opens the files. They live here and not in planning, which knows no formats.
"""

from __future__ import annotations

import ast
import csv
import io
import struct
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from tidewheel.planning.scaling.profile import (
    BadProfile,
    DecodeLaw,
    DecodeTable,
    DeviceProfile,
    PrefillLaw,
    PrefillTable,
)

#: One H200 with one GPU for each role, from the test data of NVIDIA Dynamo's planner (ai-dynamo wheel, Apache-2.0; the
#: model is not named there). Prefill: its 17 measured points. Decode: the plane through its 41 measured points which
#: Dynamo's own converter fits, base + by sequence + by token of KV.
H200 = DeviceProfile(
    name="h200",
    prefill=PrefillTable(
        tokens=tuple(100.0 + 1017 * step for step in range(17)),
        seconds_at=(
            0.019525,
            0.038494,
            0.049968,
            0.063215,
            0.087342,
            0.104894,
            0.123237,
            0.143295,
            0.171029,
            0.194532,
            0.232073,
            0.240384,
            0.262460,
            0.296154,
            0.313340,
            0.354090,
            0.375483,
        ),
    ),
    decode=DecodeLaw(
        base_seconds=6.0904353e-3, seconds_per_sequence=2.0327276e-5, seconds_per_kv_token=2.9340455e-8
    ),
    prefill_slots=2,
    decode_slots=256,
    kv_tokens=945_029,
)

#: The same as Dynamo's converter hands it to its mocker: a straight line through the prefill points.
H200_FITTED = replace(
    H200,
    name="h200-fitted",
    prefill=PrefillLaw(base_seconds=-1.6052174e-3, seconds_per_token=2.2118131e-5),
)

#: The times that NVIDIA Dynamo's mocker takes where it is given no profile (ai-dynamo 1.4.2): a quadratic in the prompt's
#: length and one in the share of KV in use, here as a table of it.
MOCKER_KV_TOKENS = 16_384 * 64


def mocker() -> DeviceProfile:
    """The mocker's default device, whose decode time depends on nothing but the share of KV in use."""
    rows = tuple(MOCKER_KV_TOKENS * step / 256 for step in range(257))
    seconds = tuple(
        ((-25.74 * share * share + 54.01 * share + 5.74) / 1000,) * 2
        for share in (kv_tokens / MOCKER_KV_TOKENS for kv_tokens in rows)
    )
    return DeviceProfile(
        name="mocker",
        prefill=PrefillLaw(
            base_seconds=16.50142e-3, seconds_per_token=1.518344e-5, seconds_per_token_squared=4.209989e-10
        ),
        decode=DecodeTable(kv_tokens=rows, context_tokens=(1.0, 1e6), seconds_at=seconds),
        prefill_slots=256,
        decode_slots=256,
        kv_tokens=MOCKER_KV_TOKENS,
    )


def read_npz(content: bytes, *, like: DeviceProfile) -> DeviceProfile:
    """A profile of NVIDIA Dynamo's format: prefill time by length, iteration time by KV in use and context length.

    Args:
        content: of the npz file, with the arrays prefill_isl, prefill_ttft_ms, decode_active_kv_tokens,
            decode_context_length and decode_itl (ms).
        like: gives what such a file does not say: slots, room and the link.

    Raises:
        BadProfile: an array is missing or of a kind that profiles do not have.
    """
    arrays = _arrays(content)
    kv_tokens, context = arrays.one("decode_active_kv_tokens"), arrays.one("decode_context_length")
    flat = arrays.one("decode_itl")
    rows = tuple(
        tuple(value / 1000 for value in flat[row * len(context) : (row + 1) * len(context)])
        for row in range(len(kv_tokens))
    )
    lengths = arrays.one("prefill_isl")
    times = tuple(value / 1000 for value in arrays.one("prefill_ttft_ms"))
    decode = DecodeTable(kv_tokens=kv_tokens, context_tokens=context, seconds_at=rows)
    return replace(
        like,
        name="npz",
        prefill=_straightened(PrefillTable(tokens=lengths, seconds_at=times)),
        decode=_as_law(decode),
        kv_tokens=max(like.kv_tokens, int(kv_tokens[-1])),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One measurement: of a prompt of so many tokens, or of an iteration of a batch with contexts of so many tokens."""

    role: str
    tokens: float
    batch: float
    seconds: float


def read_points(lines: Iterable[str]) -> tuple[Point, ...]:
    """Rows `role,tokens,batch,seconds`; the batch of a prefill row counts for nothing and may be left out.

    Raises:
        BadProfile: a row is unreadable.
    """
    points = []
    for number, row in enumerate(csv.DictReader(lines), start=2):
        try:
            role, tokens, seconds = row["role"], float(row["tokens"]), float(row["seconds"])
            if role not in ("prefill", "decode"):
                raise ValueError(f"role {role!r}")
            batch = float(row["batch"]) if role == "decode" else 1.0
        except (KeyError, TypeError, ValueError) as error:
            raise BadProfile(
                f"line {number} is no role,tokens,batch,seconds of a profile: {error}"
            ) from error
        points.append(Point(role=role, tokens=tokens, batch=batch, seconds=seconds))
    return tuple(points)


def read_csv(lines: Iterable[str], *, like: DeviceProfile) -> DeviceProfile:
    """A profile of rows `role,tokens,batch,seconds`: what `tidewheel profile` writes.

    A prefill row says how long a prompt of so many tokens takes; a decode row how long an iteration takes of `batch` sequences
    with `tokens` tokens of context each. Decode rows are fitted by a plane (least squares), so that they need no grid.

    Raises:
        BadProfile: a row is unreadable, or there are fewer than two prefill rows or three decode rows.
    """
    points = read_points(lines)
    prefill = {one.tokens: one.seconds for one in points if one.role == "prefill"}
    decode = [(one.batch, one.tokens, one.seconds) for one in points if one.role == "decode"]
    if len(prefill) < 2 or len(decode) < 3:
        raise BadProfile(
            f"{len(prefill)} prefill and {len(decode)} decode rows are too few; give 2 and 3 or more"
        )
    lengths = tuple(sorted(prefill))
    table = PrefillTable(tokens=lengths, seconds_at=tuple(prefill[length] for length in lengths))
    return replace(like, name="csv", prefill=table, decode=fitted(decode))


def fitted(points: Sequence[tuple[float, float, float]]) -> DecodeLaw:
    """The plane through (batch, context, seconds) that errs least in squares; parts that come out negative are left out."""
    names = [0, 1, 2]
    while True:
        columns = [[(1.0, batch, batch * context)[name] for name in names] for batch, context, _ in points]
        found = _least_squares(columns, [seconds for *_, seconds in points])
        worst = min(range(len(names)), key=lambda at: found[at])
        if found[worst] >= 0 or len(names) == 1:
            parts = {name: max(0.0, part) for name, part in zip(names, found, strict=True)}
            return DecodeLaw(
                base_seconds=parts.get(0, 0.0),
                seconds_per_sequence=parts.get(1, 0.0),
                seconds_per_kv_token=parts.get(2, 0.0),
            )
        names.pop(worst)


def fitted_prefill(points: Sequence[tuple[float, float]]) -> PrefillLaw:
    """The law through (tokens, seconds) that errs least in squares; parts that come out negative are left out.

    The part for each token stays whatever it is: prompts that cost nothing by the token are no measurement.

    Raises:
        BadProfile: longer prompts do not take longer.
    """
    names = [0, 1, 2] if len(points) > 2 else [0, 1]
    while True:
        columns = [[(1.0, tokens, tokens**2)[name] for name in names] for tokens, _ in points]
        parts = dict(zip(names, _least_squares(columns, [seconds for _, seconds in points]), strict=True))
        negative = [name for name in names if parts[name] < 0]
        if not negative:
            break
        left_out = min((name for name in negative if name != 1), key=lambda name: parts[name], default=None)
        if left_out is None:
            if 2 not in names:
                raise BadProfile("longer prompts do not take longer; measure again, on a machine at rest")
            left_out = 2
        names.remove(left_out)
    if parts[1] <= 0:
        raise BadProfile("prompts cost nothing by the token; measure longer ones")
    return PrefillLaw(
        base_seconds=parts.get(0, 0.0),
        seconds_per_token=parts[1],
        seconds_per_token_squared=parts.get(2, 0.0),
    )


class _Arrays:
    def __init__(self, arrays: Mapping[str, tuple[float, ...]]) -> None:
        self._arrays = arrays

    def one(self, name: str) -> tuple[float, ...]:
        if name not in self._arrays:
            raise BadProfile(f"the profile has no array {name}; it has {', '.join(sorted(self._arrays))}")
        return self._arrays[name]


def _arrays(content: bytes) -> _Arrays:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return _Arrays(
                {name.removesuffix(".npy"): _array(archive.read(name)) for name in archive.namelist()}
            )
    except (zipfile.BadZipFile, struct.error, SyntaxError, KeyError) as error:
        raise BadProfile(f"not an npz file of plain arrays: {error!r}") from error


def _array(content: bytes) -> tuple[float, ...]:
    """One array of NumPy's format (NEP 1), flat in row order."""
    if content[:6] != b"\x93NUMPY":
        raise BadProfile("an array of the profile has no NumPy header")
    wide = content[6] >= 2  # the header's length has four bytes since version 2
    begin = 12 if wide else 10
    (length,) = struct.unpack("<I" if wide else "<H", content[8:begin])
    header = ast.literal_eval(content[begin : begin + length].decode("latin1"))
    kinds = {"<f8": "d", "<f4": "f", "<i8": "q", "<i4": "i"}
    if header["fortran_order"] or header["descr"] not in kinds:
        raise BadProfile(f"an array of the profile is {header['descr']}; write it as float64 in C order")
    count = prod(header["shape"])
    return tuple(map(float, struct.unpack_from(f"<{count}{kinds[header['descr']]}", content, begin + length)))


def _straightened(table: PrefillTable) -> PrefillTable | PrefillLaw:
    """A law where the table is a straight line, which is faster to ask; converters write fitted lines as tables."""
    first, last = table.tokens[0], table.tokens[-1]
    slope = (table.seconds_at[-1] - table.seconds_at[0]) / (last - first)
    law = PrefillLaw(base_seconds=table.seconds_at[0] - slope * first, seconds_per_token=slope)
    is_straight = all(
        abs(law.seconds(tokens) - seconds) <= 1e-6 * table.seconds_at[-1]
        for tokens, seconds in zip(table.tokens, table.seconds_at, strict=True)
    )
    return law if is_straight else table


def _as_law(table: DecodeTable) -> DecodeTable | DecodeLaw:
    """A law where a plane says what the table says at batches of one and more, within a thousandth."""
    points = [
        (kv_tokens / context, context, seconds)
        for kv_tokens, row in zip(table.kv_tokens, table.seconds_at, strict=True)
        for context, seconds in zip(table.context_tokens, row, strict=True)
        if kv_tokens >= context
    ]
    law = fitted(points)
    is_plane = all(
        abs(law.seconds(batch, context) - seconds) <= 1e-3 * seconds for batch, context, seconds in points
    )
    return law if is_plane else table


def _least_squares(rows: Sequence[Sequence[float]], wanted: Sequence[float]) -> list[float]:
    """By Gram and Schmidt's modified way, which keeps the digits that normal equations lose; three unknowns at most."""
    columns = [list(column) for column in zip(*rows, strict=True)]
    count = len(columns)
    lengths = [sum(value * value for value in column) ** 0.5 for column in columns]
    rest, upper, right = list(wanted), [[0.0] * count for _ in range(count)], [0.0] * count
    for at in range(count):
        length = sum(value * value for value in columns[at]) ** 0.5
        if length <= 1e-9 * lengths[at]:
            raise BadProfile("the decode rows do not tell batch and context apart; measure several of both")
        unit = [value / length for value in columns[at]]
        upper[at][at] = length
        for later in range(at + 1, count):
            part = sum(one * other for one, other in zip(unit, columns[later], strict=True))
            upper[at][later] = part
            columns[later] = [value - part * one for value, one in zip(columns[later], unit, strict=True)]
        right[at] = sum(one * value for one, value in zip(unit, rest, strict=True))
        rest = [value - right[at] * one for value, one in zip(rest, unit, strict=True)]
    found = [0.0] * count
    for at in reversed(range(count)):
        known = sum(upper[at][later] * found[later] for later in range(at + 1, count))
        found[at] = (right[at] - known) / upper[at][at]
    return found
