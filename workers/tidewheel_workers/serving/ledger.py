"""What one gateway learnt of each backend: how many of its requests that takes, and when to ask it again.

P/D-Serve §3.5 leaves open how often a gateway asks a full instance again. Asking at random wastes inquiries; so a
gateway counts what it holds at each backend. When a backend refuses, what it holds there is as much as it gets, its
*limit*. A slot that one of its own requests gives back may be asked for at once. Whether there is more to have, because another
gateway gave slots back, is found by a probe after a while; each probe that is taken doubles the number of the next ones, and one
that is refused waits longer, as in TCP's congestion window. A gateway alone is refused next to never, and with several the
refusals follow the slots that come free and not the requests that wait.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from tidewheel.api.ranktable import Backend

Cause = Literal["busy", "unavailable", "unreachable"]

#: A backend refuses at once, so one that has been silent for this long has taken the request. It follows what refusals
#: take, within these bounds.
LEAST_SETTLE_SECONDS, MOST_SETTLE_SECONDS = 0.01, 0.2
#: Pauses after a refusal, when neither the backend nor experience says how long a slot stays taken.
FIRST_PAUSE_SECONDS = 0.05
LEAST_PAUSE_SECONDS, MOST_PAUSE_SECONDS = 0.005, 1.0
#: A pause grows up to so many times the time in which a slot comes free.
PAUSE_GROWTH = 8
#: Pauses after there was no connection, or 503.
AWAY_SECONDS, MOST_AWAY_SECONDS = 0.1, 0.5
#: A backend that lost a request is asked last for so long.
SUSPECT_SECONDS = 5.0
MOST_PROBES = 64
#: Where there are several gateways, one in so many of the slots that come free is left to the others for a while. Whoever
#: has more leaves more, and all gain alike by their probes, so that their shares become equal.
LEAVES_ONE_IN = 8
#: Weight of a new value in a moving mean, as in TCP's round-trip time (RFC 6298).
GAIN = 0.125


@dataclass(slots=True, eq=False)
class Hold:
    """One request's slot at a backend, or its inquiry for one."""

    backend: Backend
    asked_at: float
    is_probe: bool
    beside: int  # other requests of ours that were there
    state: Literal["asking", "taken", "over"] = "asking"


class Look(NamedTuple):
    """One backend at one moment."""

    opens_at: float  # from then on it may be asked if nothing else happens; the past is now
    holds: int  # requests of ours that are there
    has_room: bool  # it would take another one, as far as we know; a probe is no room
    is_suspect: bool  # it lost a request lately


_UNKNOWN = Look(0.0, 0, True, False)


@dataclass(slots=True)
class _Account:
    """What is known of one backend."""

    holds: int = 0  # taken, or asked for
    taken: int = 0
    limit: int | None = None  # how many it took of ours when it refused another; None when it never did
    probes: int = 0  # inquiries beyond the limit that are under way
    most_probes: int = 1
    probe_at: float = 0.0  # from then on one more may be asked for
    refusals: int = 0  # pauses in a row
    away_until: float = 0.0
    absences: int = 0  # in a row
    suspect_until: float = 0.0
    hold_seconds: float | None = None  # mean, from the inquiry until the slot was given back
    asking: dict[Hold, None] = field(default_factory=dict)  # in the order in which they were asked


class Ledger:
    """The accounts of all backends.

    Args:
        jitter: gives numbers between 0 and 1, which spread the pauses of several gateways.
    """

    def __init__(self, jitter: Callable[[], float]) -> None:
        self.gateways = 1  # that share the backends, this one included
        self._jitter = jitter
        self._accounts: dict[str, _Account] = {}
        self._settle_seconds = 4 * LEAST_SETTLE_SECONDS
        self._expected: list[tuple[float, int, Hold]] = []  # slots that will be given back unseen, by time
        self._numbers = itertools.count()

    def look(self, name: str, at: float) -> Look:
        """What is known of a backend now."""
        account = self._accounts.get(name)
        if account is None:
            return _UNKNOWN
        if account.asking:
            self._settle(account, at)
        opens_at, limit = account.away_until, account.limit
        has_room = limit is None or account.holds < limit
        if not has_room:
            opens_at = max(opens_at, account.probe_at)
            if account.probes >= account.most_probes:
                oldest = next((hold.asked_at for hold in account.asking if hold.is_probe), at)
                opens_at = max(opens_at, oldest + self._settle_seconds)
        return Look(
            opens_at,
            account.holds,
            has_room and at >= account.away_until,
            at < account.suspect_until,
        )

    def holds(self, name: str) -> int:
        """How many of our requests are at this backend."""
        account = self._accounts.get(name)
        return account.holds if account is not None else 0

    def ask(self, backend: Backend, at: float) -> Hold:
        """Count an inquiry; one that comes before the backend opens is the caller's risk."""
        account = self._accounts.setdefault(backend.name, _Account())
        is_probe = account.limit is not None and account.holds >= account.limit
        hold = Hold(backend, at, is_probe, beside=account.holds)
        account.holds += 1
        account.probes += is_probe
        account.asking[hold] = None
        return hold

    def took(self, hold: Hold, at: float) -> None:
        """The backend works on the request."""
        if hold.state == "over":
            return
        account = self._accounts[hold.backend.name]
        account.absences, account.suspect_until = 0, 0.0
        if hold.state == "asking":
            self._take(account, hold, at)

    def refused(self, hold: Hold, cause: Cause, at: float, *, retry_after: float | None = None) -> None:
        """The backend did not take the request.

        Args:
            hold: the inquiry.
            cause: busy is a full backend; the others ones that cannot be used.
            at: now.
            retry_after: seconds after which the backend wants to be asked again, if it said so.
        """
        if hold.state == "over":
            return
        account = self._accounts[hold.backend.name]
        self._settle(account, at)
        self._end(account, hold)
        if cause == "busy":
            self._settle_seconds = _bounded(
                self._settle_seconds + GAIN * (4 * (at - hold.asked_at) - self._settle_seconds),
                LEAST_SETTLE_SECONDS,
                MOST_SETTLE_SECONDS,
            )
            account.limit, account.most_probes = account.taken, 1
            if at >= account.probe_at:  # of many that were refused together only the first one counts
                account.refusals += 1
                account.probe_at = at + self._pause(account, retry_after) * (0.5 + self._jitter())
            return
        if at >= account.away_until:
            pause = min(AWAY_SECONDS * 2**account.absences, MOST_AWAY_SECONDS)
            account.absences += 1
            account.away_until = at + max(retry_after or 0.0, pause * (0.5 + self._jitter()))
        if cause == "unreachable":
            account.suspect_until = at + SUSPECT_SECONDS

    def gave_back(self, hold: Hold, at: float, *, is_wanted: bool = False) -> None:
        """The slot is free again; others may want it when ours do."""
        if hold.state == "over":
            return
        account = self._accounts[hold.backend.name]
        seconds = at - hold.asked_at
        mean = account.hold_seconds
        account.hold_seconds = seconds if mean is None else mean + GAIN * (seconds - mean)
        self._end(account, hold)
        if is_wanted and self.gateways > 1 and self._jitter() * LEAVES_ONE_IN < 1:
            account.limit = account.holds
            account.probe_at = at + self._each(account, None) * (0.5 + self._jitter())

    def will_give_back(self, hold: Hold, when: float) -> None:
        """The slot will be free at about that time, and nobody will say so."""
        heapq.heappush(self._expected, (when, next(self._numbers), hold))

    def lost(self, hold: Hold, at: float) -> None:
        """The backend failed the request; others are asked first for a while."""
        if hold.state == "over":
            return
        account = self._accounts[hold.backend.name]
        account.suspect_until = at + SUSPECT_SECONDS
        self._end(account, hold)

    def withdraw(self, hold: Hold) -> None:
        """The inquiry was not made after all."""
        if hold.state == "over":
            return
        self._end(self._accounts[hold.backend.name], hold)

    def tick(self, at: float) -> bool:
        """Let time pass; whether slots came free by it."""
        came_free = False
        while self._expected and self._expected[0][0] <= at:
            hold = heapq.heappop(self._expected)[2]
            came_free |= hold.state != "over"
            self.gave_back(hold, at)
        return came_free

    @property
    def next_tick(self) -> float:
        """When `tick` has something to do."""
        return self._expected[0][0] if self._expected else math.inf

    def forget_all_but(self, names: frozenset[str]) -> None:
        """Drop the accounts of backends that are gone, unless requests are still there."""
        self._accounts = {
            name: account for name, account in self._accounts.items() if name in names or account.holds
        }

    def _settle(self, account: _Account, at: float) -> None:
        """Count those that were not refused in time as taken."""
        while account.asking:
            hold = next(iter(account.asking))
            if hold.asked_at + self._settle_seconds > at:
                break
            self._take(account, hold, at)

    @staticmethod
    def _take(account: _Account, hold: Hold, at: float) -> None:
        del account.asking[hold]
        hold.state = "taken"
        account.taken += 1
        if account.limit is not None and account.taken > account.limit:
            account.limit = account.taken
        if hold.is_probe:
            account.probes -= 1
            account.refusals = 0
            account.probe_at = min(account.probe_at, at)
            account.most_probes = min(2 * account.most_probes, MOST_PROBES)

    @staticmethod
    def _end(account: _Account, hold: Hold) -> None:
        if hold.state == "asking":
            del account.asking[hold]
            account.probes -= hold.is_probe
        else:
            account.taken -= 1
        hold.state = "over"
        account.holds -= 1

    def _pause(self, account: _Account, retry_after: float | None) -> float:
        """Seconds until a probe: so many times the time in which a slot comes free, more for who has slots already."""
        growth = min(2 ** max(0, account.refusals - 1), PAUSE_GROWTH) * (1 + account.taken)
        pause = _bounded(growth * self._each(account, retry_after), LEAST_PAUSE_SECONDS, MOST_PAUSE_SECONDS)
        return max(retry_after or 0.0, pause)

    @staticmethod
    def _each(account: _Account, retry_after: float | None) -> float:
        """Mean seconds in which the backend frees a slot."""
        if retry_after is not None:
            return retry_after
        if account.hold_seconds is not None:
            return account.hold_seconds / max(1, account.limit or 0)
        return FIRST_PAUSE_SECONDS


def _bounded(value: float, least: float, most: float) -> float:
    return min(max(value, least), most)
