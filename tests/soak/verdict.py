"""Whether a service has held what it promises: figures and checks from what clients saw and processes held; pure."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tests.soak.clients import Record
from tests.soak.director import MOST_SILENT, NOISES, Window
from tests.soak.plans import Ending
from tests.soak.residue import Residue

#: A fault may still be felt so long after everyone is ready again: waits, retries and leases.
AFTERMATH_SECONDS = 5.0
#: Descriptors, threads and memory that a process may hold beyond what one of its role held before the storm.
MOST_DESCRIPTORS_MORE, MOST_THREADS_MORE, MOST_MB_MORE = 40, 8, 64.0

#: What a gateway says that has lost one request with one server after the other.
GIVEN_UP = "attempts failed"
KILLS = ("kill", "kill one")
#: What a gateway may take for a request although no client sent it, in a fault of that kind.
MOST_OTHERS = {"silence": MOST_SILENT, "garbage bytes": NOISES}
#: Endings that a fault may cause.
EXCUSABLE = (Ending.SHED, Ending.FAILED, Ending.INTERRUPTED)
#: Endings that a gateway told, with the status that it counted.
TOLD = (Ending.ANSWERED, Ending.REFUSED, Ending.SHED, Ending.FAILED, Ending.INTERRUPTED)
#: Endings that nothing excuses.
NEVER = (Ending.WRONG, Ending.UNHEARD)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One promise."""

    name: str
    value: float
    bound: float
    examples: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether it was kept."""
        return self.value <= self.bound


def is_within(record: Record, windows: Iterable[Window], *, margin: float = 0.0) -> bool:
    """Whether a request was open while some fault was not overcome, or shortly after."""
    return any(one.began <= record.ended and record.sent <= one.overcome + margin for one in windows)


def is_excused(record: Record, windows: Sequence[Window]) -> bool:
    """Whether a fault explains how a request ended.

    A connection that ends without a word is explained only by the end of the gateway at its other end.
    """
    if record.ending in EXCUSABLE:
        return is_within(record, windows, margin=AFTERMATH_SECONDS)
    if record.ending is Ending.VANISHED:
        return is_within(record, _kills(windows, record.gateway, record.life))
    return record.ending not in NEVER


def is_given_up(record: Record) -> bool:
    """Whether a stream of one choice was interrupted before it had outlived as many servers as one may."""
    return record.ending is Ending.INTERRUPTED and record.choices == 1 and GIVEN_UP not in record.detail


def is_explained(complaint: str, windows: Iterable[Window]) -> bool:
    """Whether a process says by it that another was killed, and one was."""
    return "another takes its place" in complaint and any(
        one.fault.kind.name == "kill one" and complaint.startswith(f"{one.name}:") for one in windows
    )


def checks(
    records: Sequence[Record],
    windows: Sequence[Window],
    before: Sequence[Residue],
    after: Sequence[Residue],
    *,
    sent: Mapping[tuple[str, int], int],
    afterwards: Sequence[Record],
    unasked_ends: Sequence[str],
    complaints: Sequence[str],
) -> list[Check]:
    """Every promise.

    Args:
        records: all requests.
        windows: the faults as they were.
        before: the processes at rest before the storm.
        after: and at the end.
        sent: how many requests each life of a gateway was sent.
        afterwards: of the requests, those that were sent when the storm was over.
        unasked_ends: processes that ended by themselves.
        complaints: what processes logged as errors.
    """
    gone_wrong = [one for one in records if not is_excused(one, windows)]

    def ended(name: str, *endings: Ending) -> Check:
        return _none(name, [_told(one) for one in gone_wrong if one.ending in endings])

    return [
        ended("requests that vanished", Ending.VANISHED),
        ended("requests with a wrong answer", Ending.WRONG),
        ended("requests without an end", Ending.UNHEARD),
        ended("errors without a fault", *EXCUSABLE),
        _none(
            "streams of one choice that were not resumed",
            [_told(one) for one in records if is_given_up(one)],
        ),
        _none(
            "faults not overcome",
            [f"{w.fault.kind.name}: {w.name}" for w in windows if math.isinf(w.overcome)],
        ),
        _none("processes that ended by themselves", unasked_ends),
        _none(
            "requests after the storm that were not answered",
            [_told(one) for one in afterwards if one.ending in (*EXCUSABLE, *NEVER, Ending.VANISHED)],
        ),
        _none("processes that do not answer", [one.name for one in after if not one.is_alive]),
        _none(
            "slots, KV or streams held at rest",
            [f"{one.name}: {dict(one.held)}" for one in after if one.held],
        ),
        _none("half-closed sockets at rest", [one.name for one in after if one.half_closed]),
        _none("gateways whose counters do not fit", list(_miscounted(records, windows, after, sent))),
        _most("descriptors more than before", before, after, "descriptors", MOST_DESCRIPTORS_MORE),
        _most("threads more than before", before, after, "threads", MOST_THREADS_MORE),
        _most("MB of memory more than before", before, after, "rss_mb", MOST_MB_MORE),
        _none("errors in the processes' logs", complaints),
    ]


def _told(record: Record) -> str:
    taken = record.ended - record.sent
    return f"{record.kind} at {record.gateway} after {taken:.1f} s: {record.ending}, {record.detail}"


def _none(name: str, found: Sequence[str]) -> Check:
    return Check(name=name, value=len(found), bound=0, examples=tuple(found[:5]))


def _most(name: str, before: Sequence[Residue], after: Sequence[Residue], field: str, bound: float) -> Check:
    """The most that a process holds beyond the most of its role before."""
    held = {
        role: max(getattr(one, field) for one in before if one.role == role)
        for role in {one.role for one in before}
    }
    more = {one.name: getattr(one, field) - held[one.role] for one in after}
    worst = max(more, key=more.__getitem__)
    return Check(name=name, value=round(max(0.0, more[worst]), 1), bound=bound, examples=(worst,))


def _miscounted(
    records: Sequence[Record],
    windows: Sequence[Window],
    after: Sequence[Residue],
    sent: Mapping[tuple[str, int], int],
) -> Iterable[str]:
    """Gateways that count other requests than clients sent: each that was told its end once, and none that nobody sent."""
    for one in after:
        if one.role != "gateway":
            continue
        mine = [record for record in records if (record.gateway, record.life) == (one.name, one.life)]
        told = Counter(str(record.status) for record in mine if record.ending in TOLD)
        if _kills(windows, one.name, one.life):
            continue  # what a killed process had not told its supervisor yet is not counted
        others = sum(
            MOST_OTHERS.get(w.fault.kind.name, 0) for w in windows if (w.name, w.life) == (one.name, one.life)
        )
        most = sent[one.name, one.life] + others
        if (
            any(one.codes.get(code, 0.0) < number for code, number in told.items())
            or sum(one.codes.values()) > most
        ):
            yield f"{one.name} counts {dict(one.codes)} of at most {most}; clients were told {dict(told)}"


def _kills(windows: Iterable[Window], name: str, life: int) -> list[Window]:
    """Those that ended a process of this gateway in this life of it."""
    return [one for one in windows if one.fault.kind.name in KILLS and (one.name, one.life) == (name, life)]


def quantile(values: Sequence[float], share: float) -> float:
    """By the nearest rank; NaN of nothing."""
    if not values:
        return math.nan
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def ttfts(records: Sequence[Record], windows: Sequence[Window], *, within_faults: bool) -> list[float]:
    """Times to first token of streams, within or outside of faults."""
    return [one.ttft for one in records if one.ttft is not None and is_within(one, windows) is within_faults]


def recoveries(windows: Sequence[Window]) -> dict[str, list[float]]:
    """Seconds from each fault until everyone was ready again, by kind."""
    found: dict[str, list[float]] = {}
    for one in windows:
        found.setdefault(one.fault.kind.name, []).append(one.seconds)
    return found


def median(values: Sequence[float]) -> float:
    """NaN of nothing."""
    return statistics.median(values) if values else math.nan
