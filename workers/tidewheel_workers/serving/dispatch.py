"""Who of a gateway's requests asks which backend, and when: what concerns more than one request, without any I/O.

Requests that find no free backend stand in lines, the one whose first token is due first at the head. There is a line for
each set of backends that serves the same requests: the prefills of a scenario's groups, the decodes of one group. The decodes of
a combined group compute the prompts, too, and stand in the line of those that wait for a prefill. Whenever the
ledger lets a backend be asked, the first request that it may serve is told to, so that no newcomer passes those who wait.
Requests that cannot be served in time any more leave early, which leaves the slots to those that can.
"""

from __future__ import annotations

import itertools
import math
from bisect import insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from tidewheel_workers.serving.candidates import Candidates, Place, Pool, Role
from tidewheel_workers.serving.errors import ApiError
from tidewheel_workers.serving.ledger import Cause, Hold, Ledger
from tidewheel_workers.serving.pace import LineSpeed, Pace
from tidewheel_workers.serving.prompt_facts import PromptFacts

if TYPE_CHECKING:
    from tidewheel.api.ranktable import RouteGroup

#: Pauses of a request that as many backends as it may ask in a row have refused.
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.02, 0.5
#: A newcomer is turned away when it would wait so many times longer than it may: lines get shorter by those who give up.
FORECAST_MARGIN = 1.25
#: How many of a line are looked at for one that a server could still serve in time.
LOOKED_AT = 4
#: What a request is told that nobody could serve in time.
OUT_OF_REACH = "deadline_out_of_reach"


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchSettings:
    """How a gateway forwards."""

    fill_first: bool = False
    has_affinity: bool = True
    candidates: int = 4  # asked in a row
    most_waiting: int = 1024
    short_prompt_characters: int = 0  # decodes may compute these prompts


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What is known of a request before it is sent anywhere."""

    ttft_seconds: float  # how long its first token may take
    facts: PromptFacts
    groups: frozenset[str] | None = None  # that may serve it; None: all
    is_stream: bool = True


@dataclass(slots=True, eq=False, kw_only=True)
class Ticket:
    """A request's place in the lines."""

    call: Call
    order: tuple[float, int]
    deadline: float  # of the first token
    born_at: float
    must_be_served: bool = False  # was accepted once, and is not turned away for those who wait
    suspects: set[str] = field(default_factory=set)  # failed this request; asked last
    hold: Hold | None = None  # what it may ask now,
    role: Role = "prefill"  # what that is,
    group: str = ""  # and where
    line: _Key | None = None  # it stands in, or stood in last
    is_waiting: bool = False
    not_before: float = 0.0
    refusals: int = 0  # in a row
    wait_seconds: float = FIRST_WAIT_SECONDS


class _Key(NamedTuple):
    role: Role
    groups: frozenset[str] | None
    is_short: bool  # decodes may compute these prompts


@dataclass(slots=True, eq=False, kw_only=True)
class _Line:
    """Those who wait for the same backends; it ends with the last of them."""

    key: _Key
    waiting: list[Ticket] = field(default_factory=list)  # by order
    speed: LineSpeed = field(default_factory=LineSpeed)
    closed_until: float = 0.0  # no backend may be asked before, unless something happens
    paused_until: float = 0.0  # all who wait pause, and the first goes on then


class Dispatch:
    """One gateway's requests and what it knows of the backends.

    After every call `take_woken` gives those who need not wait any longer, and `look_again_at` the time at which `grant`
    is to be called next.

    Args:
        settings: how it forwards.
        jitter: gives numbers between 0 and 1; they spread pauses and break ties.
    """

    def __init__(self, settings: DispatchSettings, jitter: Callable[[], float]) -> None:
        self.settings = settings
        self.ledger = Ledger(jitter)
        self.pace = Pace()
        self.groups: tuple[RouteGroup, ...] = ()
        self._candidates = Candidates(
            self.ledger, fill_first=settings.fill_first, has_affinity=settings.has_affinity, jitter=jitter
        )
        self._jitter = jitter
        self._numbers = itertools.count()
        self._lines: dict[_Key, _Line] = {}
        self._pools: dict[tuple[Role, frozenset[str] | None], Pool] = {}
        self._woken: list[Ticket] = []

    # ---- what the gateway tells and asks

    def set_groups(self, groups: Sequence[RouteGroup], at: float, *, gateways: int = 1) -> None:
        """From now on requests may go to these groups, which so many gateways share."""
        self.groups = tuple(groups)
        self.ledger.gateways = gateways
        self._pools.clear()
        self.ledger.forget_all_but(frozenset(b.name for g in groups for b in (*g.prefill, *g.decode)))
        for key, line in list(self._lines.items()):
            if key.role == "decode" and not self._pool(key.role, key.groups).places:
                # the group left; its KV is of no use to another
                self._woken += line.waiting
                for ticket in list(line.waiting):
                    self._remove(ticket)
        self._open()
        self.grant(at)

    def ticket(self, call: Call, at: float) -> Ticket:
        """A place for a new request."""
        deadline = at + call.ttft_seconds
        return Ticket(call=call, order=(deadline, next(self._numbers)), deadline=deadline, born_at=at)

    @property
    def waiting(self) -> int:
        """Requests that stand in line for a prefill."""
        return sum(len(line.waiting) for line in self._lines.values() if line.key.role == "prefill")

    @property
    def look_again_at(self) -> float:
        """When time alone may let someone go on."""
        times = [max(line.closed_until, line.paused_until) for line in self._lines.values()]
        return min(self.ledger.next_tick, *times) if times else math.inf

    def take_woken(self) -> list[Ticket]:
        """Those who need not wait any longer, once."""
        woken, self._woken = self._woken, []
        return woken

    def grant(self, at: float) -> None:
        """Let go on who may."""
        if self.ledger.tick(at):
            self._open()
        lines = [line for line in self._lines.values() if line.closed_until <= at]
        while lines:
            line = min(lines, key=lambda one: one.waiting[0].order)
            if not self._grant_first(line, at) or not line.waiting:
                lines.remove(line)

    # ---- what one request does

    def enter(self, ticket: Ticket, role: Role, at: float, *, group: str = "") -> ApiError | None:
        """Line up for a prefill, or for a decode of a group; `ticket.hold` says whether it may go on at once.

        Gives the error with which the request ends when waiting is of no use.
        """
        groups = frozenset((group,)) if group else ticket.call.groups
        key = ticket.line = _Key(role, groups, role == "prefill" and self._is_short(ticket))
        if not self._lines and ticket.not_before <= at and self._let_go(ticket, key, at):
            return None
        if (line := self._lines.get(key)) is None:
            line = self._lines[key] = _Line(key=key)
        insort(line.waiting, ticket, key=_order)
        ticket.is_waiting = True
        self.grant(at)
        if not ticket.is_waiting:
            self._woken.remove(ticket)  # it is told so right now
            return None
        if ticket.must_be_served or role == "decode":
            return None
        error = self._turned_away(line, ticket, at)
        if error is not None:
            self.leave(ticket, at)
        return error

    def leave(self, ticket: Ticket, at: float) -> None:
        """The request waits no longer; a backend that it was to ask is free for others."""
        if ticket.is_waiting:
            self._remove(ticket)
        if ticket.hold is not None:
            self.ledger.withdraw(ticket.hold)
            ticket.hold = None
            self._open()
            self.grant(at)

    def can_decode(self, group: str) -> bool:
        """Whether the group has decodes at all."""
        return bool(self._pool("decode", frozenset((group,))).places)

    def can_serve(self, call: Call) -> bool:
        """Whether there is anybody who may serve such a request."""
        return bool(self._pool("prefill", call.groups).places)

    def gives_up_at(self, ticket: Ticket, at: float) -> float:
        """Until when a request may wait for a prefill: no longer than its first token could still come in time."""
        if ticket.must_be_served:
            return ticket.deadline
        # the best that can happen soon is a free slot at the idlest server
        fewest = self._candidates.fewest_holds(self._pool("prefill", ticket.call.groups))
        characters = ticket.call.facts.characters
        return ticket.deadline - min(
            self.pace.first_token_seconds(characters, at, beside=max(0, holds - 1), does=role)
            for role, holds in fewest.items()
        )

    def took(self, ticket: Ticket, hold: Hold, at: float) -> None:
        """The backend works on the request."""
        self.ledger.took(hold, at)
        ticket.refusals, ticket.wait_seconds = 0, FIRST_WAIT_SECONDS
        if ticket.line is not None and (line := self._lines.get(ticket.line)) is not None:
            line.speed.left(at)
        self._open()
        self.grant(at)

    def refused(
        self, ticket: Ticket, hold: Hold, cause: Cause, at: float, *, retry_after: float | None = None
    ) -> None:
        """The backend did not take it; after as many as may be asked in a row the request pauses."""
        self.ledger.refused(hold, cause, at, retry_after=retry_after)
        if cause == "unreachable":
            ticket.suspects.add(hold.backend.name)
        ticket.refusals += 1
        if ticket.refusals >= self.settings.candidates:
            ticket.refusals = 0
            ticket.not_before = at + ticket.wait_seconds * (0.5 + self._jitter())
            ticket.wait_seconds = min(2 * ticket.wait_seconds, LONGEST_WAIT_SECONDS)

    def gave_back(self, hold: Hold, at: float) -> None:
        """The request left the backend, which has a free slot now."""
        self.ledger.gave_back(hold, at, is_wanted=bool(self._lines))
        self._open()
        self.grant(at)

    def lost(self, ticket: Ticket, hold: Hold, at: float) -> None:
        """The backend failed the request."""
        ticket.suspects.add(hold.backend.name)
        self.ledger.lost(hold, at)
        self._open()
        self.grant(at)

    # ---- how it is decided

    def _grant_first(self, line: _Line, at: float) -> bool:
        """Let the first of a line go on that can; False when none can."""
        line.paused_until = 0.0
        is_prefill = line.key.role == "prefill"
        for ticket in line.waiting[:LOOKED_AT]:
            if ticket.not_before > at:
                continue
            is_late = is_prefill and ticket.born_at < at and at >= self.gives_up_at(ticket, at)
            if is_late or self._let_go(ticket, line.key, at):
                self._remove(ticket)
                self._woken.append(ticket)
                return True
            line.closed_until = self._candidates.opens_at(self._pool(line.key.role, line.key.groups), at)
            if line.closed_until > at:
                return False
        # those who may be asked would be too late for the first ones, or these pause
        pauses = [one.not_before for one in line.waiting[:LOOKED_AT] if one.not_before > at]
        line.paused_until = min(pauses, default=math.inf)
        return False

    def _let_go(self, ticket: Ticket, key: _Key, at: float) -> bool:
        """Let a request ask the best backend that may be asked now, if there is one."""
        place, role = self._place_for(ticket, key, self._pool(key.role, key.groups), at)
        if place is None:
            return False
        ticket.hold = self.ledger.ask(place.backend, at)
        ticket.group, ticket.role = place.group.name, role
        return True

    def _remove(self, ticket: Ticket) -> None:
        """It stands in line no longer."""
        ticket.is_waiting = False
        if ticket.line is not None:
            waiting = self._lines[ticket.line].waiting
            waiting.remove(ticket)
            if not waiting:
                del self._lines[ticket.line]

    def _place_for(self, ticket: Ticket, key: _Key, pool: Pool, at: float) -> tuple[Place | None, Role]:
        """Whom a request may ask now."""
        if key.role == "decode":
            return self._candidates.best(pool, at, suspects=ticket.suspects), "decode"
        facts = ticket.call.facts

        def in_time(holds: int, role: Role) -> bool:
            # an idle server is always asked, or estimates that are wrong would never be put right
            needed = 0.0
            if holds:
                needed = self.pace.first_token_seconds(facts.characters, at, beside=holds, does=role)
            return at + needed <= ticket.deadline

        place = self._candidates.best(
            pool, at, prefixes=facts.prefixes, suspects=ticket.suspects, fits=in_time
        )
        if place is None and key.is_short:
            return self._candidates.decode_with_room(pool, at, busy=self._owed()), "decode"
        return place, place.role if place is not None else "prefill"

    def _owed(self) -> frozenset[str]:
        """The groups in which computed prompts wait for a decode."""
        return frozenset(name for key in self._lines if key.role == "decode" for name in key.groups or ())

    def _is_short(self, ticket: Ticket) -> bool:
        """Whether a decode may compute the prompt: it is short, and no prefill is likely to have it cached."""
        facts = ticket.call.facts
        if not 0 < facts.characters <= self.settings.short_prompt_characters:
            return False
        affinity = self._pool("prefill", ticket.call.groups).affinity
        return not any(affinity.knows(prefix) for prefix in facts.prefixes)

    def _turned_away(self, line: _Line, ticket: Ticket, at: float) -> ApiError | None:
        """Why a request that would have to wait should not."""
        ahead = line.waiting.index(ticket)
        forecast = line.speed.seconds_for(ahead, at)
        if self.waiting > self.settings.most_waiting:
            return ApiError(
                429,
                "too_many_waiting",
                f"{self.settings.most_waiting} requests wait already, the limit of this gateway; try again later",
                retry_after_seconds=forecast or 1,
            )
        patience = max(0.0, self.gives_up_at(ticket, at) - at)
        if forecast is not None and forecast > FORECAST_MARGIN * patience:
            return out_of_reach(
                f"{ahead} requests wait already, so that the first token would come later than the "
                f"{ticket.call.ttft_seconds:g} s allowed",
                retry_after_seconds=forecast - patience,
            )
        return None

    def _open(self) -> None:
        """Something happened that may let someone go on."""
        for line in self._lines.values():
            line.closed_until = 0.0

    def _pool(self, role: Role, groups: frozenset[str] | None) -> Pool:
        if (pool := self._pools.get((role, groups))) is None:
            pool = self._pools[role, groups] = Pool.of(role, self.groups, groups)
        return pool


def out_of_reach(why: str, *, retry_after_seconds: float = 1) -> ApiError:
    """The end of a request that nobody could serve in time."""
    return ApiError(503, OUT_OF_REACH, f"{why}; try again later", retry_after_seconds=retry_after_seconds)


def _order(ticket: Ticket) -> tuple[float, int]:
    return ticket.order
