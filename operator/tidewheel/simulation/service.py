"""A simulated PDService: gateway, prefills, the KV link and decodes, with a planner in the loop and faults on the way.

Deterministic: the same settings, requests and generator give the same run. One instance is one pod with one accelerator.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, Literal, Protocol, TypeVar

from tidewheel.planning.scaling.observed import RoleCounts
from tidewheel.simulation.clock import Clock
from tidewheel.simulation.decode import Decode
from tidewheel.simulation.flights import Ending, Flight
from tidewheel.simulation.outcomes import Outcome, Run, Window
from tidewheel.simulation.prefill import Prefill, PrefillRules
from tidewheel.simulation.watching import Watch

if TYPE_CHECKING:
    from tidewheel.planning.scaling.profile import DeviceProfile
    from tidewheel.simulation.forwarding import Gateway
    from tidewheel.simulation.forwarding import Make as MakeGateway
    from tidewheel.simulation.sources import Source
    from tidewheel.simulation.traces import Request

Role = Literal["prefill", "decode"]

#: Of moving means, as in the product's gateway and in RFC 6298.
GAIN = 1 / 8


class Planner(Protocol):
    """Decides how many instances there should be, from what was seen so far."""

    def plan(self, window: Window) -> tuple[int, int, str]:
        """Prefills, decodes, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """An instance dies."""

    at: float
    role: Role
    number: int = 0  # which of the ready ones, counted from the oldest


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSettings:
    """One service and its objectives; times are seconds."""

    profile: DeviceProfile
    prefills: int
    decodes: int
    make_gateway: MakeGateway
    ttft_seconds: float = math.inf  # objective and deadline of the first token
    tpot_seconds: float = math.inf
    prefill_rules: PrefillRules = field(default_factory=PrefillRules)
    start_seconds: float = 60.0  # from asking for an instance until it serves
    window_seconds: float = 10.0
    faults: tuple[Fault, ...] = ()
    #: KV is fetched by a decode that has room for the sequence; otherwise by each in turn, where it waits for room.
    waits_for_room: bool = True
    #: What was lost with a decode is computed again from what the client has; otherwise it fails, as in P/D-Serve.
    resumes: bool = True


Instance = TypeVar("Instance", Prefill, Decode)


@dataclass(slots=True)
class _Pool(Generic[Instance]):
    """One role's instances."""

    ready: list[Instance] = field(default_factory=list)
    leaving: list[Instance] = field(default_factory=list)
    starting: list[int] = field(default_factory=list)  # their numbers
    seconds: float = 0.0  # lifetimes, until `counted_at`
    counted_at: float = 0.0

    def count(self, now: float) -> None:
        """Call before any change."""
        held = len(self.ready) + len(self.leaving) + len(self.starting)
        self.seconds += held * (now - self.counted_at)
        self.counted_at = now

    def counts(self) -> RoleCounts:
        return RoleCounts(ready=len(self.ready), starting=len(self.starting), leaving=len(self.leaving))


def simulate(settings: ServiceSettings, source: Source, planner: Planner | None = None) -> Run:
    """Run until the source's last request has ended.

    Args:
        settings: the service as it is in the beginning, when all its instances are ready.
        source: of the requests.
        planner: asked at the end of every window; without one the counts stay.
    """
    return _Service(settings, source, planner).run()


class _Service:
    def __init__(self, settings: ServiceSettings, source: Source, planner: Planner | None) -> None:
        self.clock = Clock()
        self._settings = settings
        self._source = source
        self._planner = planner
        self._prefill: _Pool[Prefill] = _Pool()
        self._decode: _Pool[Decode] = _Pool()
        self._numbers = itertools.count()
        self._turns = itertools.count()
        self._flights: list[Flight] = []
        self._owed: deque[Flight] = deque()  # computed, and no decode has room
        self._fetched_after = 0.0  # moving mean of the seconds from computed to fetched
        self._ended = 0
        self._changes = 0
        self._substitutions = 0
        self._windows: list[Window] = []
        self._watch = Watch(settings.ttft_seconds, settings.tpot_seconds, settings.profile)
        self._gateway: Gateway = settings.make_gateway(self)

    def run(self) -> Run:
        for _ in range(self._settings.prefills):
            self._add("prefill")
        for _ in range(self._settings.decodes):
            self._add("decode")
        for fault in self._settings.faults:
            self.clock.at(fault.at, lambda fault=fault: self._break(fault))  # type: ignore[misc]
        self._source.begin(self.clock, self._receive)
        self.clock.at(self._settings.window_seconds, self._close_window)
        self.clock.run(self._is_over)
        for pool in (self._prefill, self._decode):
            pool.count(self.clock.now)
        return Run(
            outcomes=tuple(_outcome(flight) for flight in self._flights),
            windows=tuple(self._windows),
            seconds=self.clock.now,
            prefill_seconds=self._prefill.seconds,
            decode_seconds=self._decode.seconds,
            changes=self._changes,
            substitutions=self._substitutions,
        )

    # ---- what the gateway sees

    def prefills(self) -> Sequence[Prefill]:
        """As in `forwarding.Prefills`."""
        return self._prefill.ready

    def beyond_prefill_seconds(self, flight: Flight) -> float:
        """As in `forwarding.Prefills`: the transfer, the rest of the emptiest decode's iteration, and the next one.

        While computed prompts wait for a decode, as long as they did lately; the product's gateway learns that, too.
        """
        profile = self._settings.profile
        seconds = profile.transfer_seconds(flight.context_tokens)
        if self._owed:
            seconds = max(seconds, self._fetched_after)
        if self._decode.ready:
            return seconds + 2 * min(decode.iteration_seconds for decode in self._decode.ready)
        return seconds + profile.decode_seconds(1, flight.context_tokens)

    def give_up(self, flight: Flight, ending: Literal["shed", "expired"], why: str) -> None:
        """As in `forwarding.Prefills`."""
        self._end(flight, ending, why)

    # ---- a request's way

    def _receive(self, request: Request) -> None:
        deadline = request.at + self._settings.ttft_seconds
        flight = Flight(len(self._flights), request, deadline)
        self._flights.append(flight)
        self._watch.arrived(request)
        self._gateway.arrive(flight)

    def _computed(self, flight: Flight) -> None:
        flight.prefilled_at = self.clock.now
        self._watch.computed(flight)
        self._owed.append(flight)
        self._hand_over()

    def _hand_over(self) -> None:
        """Send computed prompts to decodes."""
        while self._owed:
            flight = self._owed[0]
            decode = self._decode_for(flight)
            if decode is None:
                return
            self._owed.popleft()
            flight.decode = decode
            decode.expect(flight)
            self._transfer(flight)

    def _decode_for(self, flight: Flight) -> Decode | None:
        decodes = self._decode.ready
        if not decodes:
            return None
        if not self._settings.waits_for_room:
            return decodes[next(self._turns) % len(decodes)]
        best = min(decodes, key=lambda decode: decode.sequences)
        return best if best.has_room(flight) else None

    def _transfer(self, flight: Flight) -> None:
        """A prefill sends one KV after the other."""
        prefill = flight.prefill
        seconds = self._settings.profile.transfer_seconds(flight.context_tokens)
        if prefill is None or not seconds:
            self._arrive(flight, flight.decode, flight.attempts)
            return
        prefill.link_free_at = max(prefill.link_free_at, self.clock.now) + seconds
        decode, attempt = flight.decode, flight.attempts
        self.clock.at(prefill.link_free_at, lambda: self._arrive(flight, decode, attempt))

    def _arrive(self, flight: Flight, decode: Decode | None, attempt: int) -> None:
        if flight.ending is not None or decode is None or flight.attempts != attempt or decode.is_lost:
            return  # one end of the transfer died meanwhile
        flight.transferred_at = self.clock.now
        self._fetched_after += GAIN * (flight.transferred_at - flight.prefilled_at - self._fetched_after)
        prefill = flight.prefill
        decode.take(flight)
        if prefill is not None:
            prefill.release(flight)
            self._tidy(self._prefill, prefill, is_empty=not prefill.held)
        self._gateway.freed()

    def _finished(self, flight: Flight) -> None:
        decode = flight.decode
        self._end(flight, "answered")
        if decode is not None:
            self._tidy(self._decode, decode, is_empty=not decode.sequences)
        self._hand_over()

    def _end(self, flight: Flight, ending: Ending, why: str = "") -> None:
        flight.ending, flight.why, flight.ended_at = ending, why, self.clock.now
        self._ended += 1
        self._watch.ended(flight)
        self._source.ended()

    def _is_over(self) -> bool:
        return self._ended == self._source.count

    # ---- instances

    def _add(self, role: Role) -> None:
        name = f"{role}-{next(self._numbers)}"
        settings = self._settings
        if role == "prefill":
            self._prefill.count(self.clock.now)
            made = Prefill(name, self.clock, settings.profile, settings.prefill_rules, self._computed)
            self._prefill.ready.append(made)
            self._gateway.freed()
        else:
            self._decode.count(self.clock.now)
            self._decode.ready.append(Decode(name, self.clock, settings.profile, self._finished))
            self._hand_over()

    def _pool(self, role: Role) -> _Pool[Prefill] | _Pool[Decode]:
        return self._prefill if role == "prefill" else self._decode

    def _start(self, role: Role) -> None:
        pool = self._pool(role)
        pool.count(self.clock.now)
        number = next(self._numbers)
        pool.starting.append(number)

        def ready() -> None:
            if number in pool.starting:
                pool.count(self.clock.now)
                pool.starting.remove(number)
                self._add(role)

        self.clock.after(self._settings.start_seconds, ready)

    def _scale(self, role: Role, wanted: int) -> bool:
        """Start or drain until so many serve or will; a start that is not ready yet is called off first."""
        pool = self._pool(role)
        before = len(pool.ready) + len(pool.starting)
        for _ in range(before, wanted):
            self._start(role)
        pool.count(self.clock.now)
        for _ in range(wanted, before):
            if pool.starting:
                pool.starting.pop()
            elif role == "prefill":
                idlest = min(self._prefill.ready, key=lambda one: (len(one.held), one.backlog_tokens))
                self._drain(self._prefill, idlest, is_empty=not idlest.held)
            else:
                emptiest = min(self._decode.ready, key=lambda one: one.sequences)
                self._drain(self._decode, emptiest, is_empty=not emptiest.sequences)
        return wanted != before

    def _drain(self, pool: _Pool[Instance], one: Instance, *, is_empty: bool) -> None:
        """It gets nothing new, and leaves when it is empty."""
        one.is_leaving = True
        pool.ready.remove(one)
        pool.leaving.append(one)
        self._tidy(pool, one, is_empty=is_empty)

    def _tidy(self, pool: _Pool[Instance], one: Instance, *, is_empty: bool) -> None:
        if one.is_leaving and is_empty and one in pool.leaving:
            pool.count(self.clock.now)
            pool.leaving.remove(one)

    def _break(self, fault: Fault) -> None:
        """An instance dies; one substitute is started, and what was in it goes on elsewhere or fails."""
        pool = self._pool(fault.role)
        if fault.number >= len(pool.ready):
            return
        pool.count(self.clock.now)
        lost = pool.ready.pop(fault.number)
        self._start(fault.role)
        self._substitutions += 1
        for flight in lost.lose():
            if flight in self._owed:
                self._owed.remove(flight)
            was_streaming = flight.is_streaming and flight.first_token_at <= self.clock.now
            if flight.prefill is not None and flight.prefill is not lost:
                flight.prefill.release(flight)
            if flight.decode is not None and flight.decode is not lost:
                flight.decode.forget(flight)
            if isinstance(lost, Decode) and not self._settings.resumes:
                self._end(flight, "failed", "its decode was lost")
                continue
            if not was_streaming:
                flight.first_token_at, flight.generated = math.nan, 0
            flight.prefill = flight.decode = None
            flight.attempts += 1
            self._gateway.arrive(flight)
        self._gateway.freed()

    # ---- windows

    def _close_window(self) -> None:
        settings = self._settings
        prefill, decode = self._prefill, self._decode
        window = self._watch.close(
            ends=self.clock.now,
            seconds=settings.window_seconds,
            waiting=self._gateway.waiting,
            prefill=prefill.counts(),
            decode=decode.counts(),
            prefills=[*prefill.ready, *prefill.leaving],
            decodes=[*decode.ready, *decode.leaving],
        )
        if self._planner is not None:
            wanted_prefill, wanted_decode, why = self._planner.plan(window)
            changed = [self._scale("prefill", wanted_prefill), self._scale("decode", wanted_decode)]
            self._changes += any(changed)
            window = self._watch.decided(window, (wanted_prefill, wanted_decode), why)
        self._windows.append(window)
        self.clock.after(settings.window_seconds, self._close_window)


def _outcome(flight: Flight) -> Outcome:
    request = flight.request
    is_answered = flight.ending == "answered"
    return Outcome(
        at=request.at,
        prompt_tokens=request.prompt_tokens,
        answer_tokens=request.answer_tokens,
        ending=flight.ending or "failed",
        why=flight.why,
        ttft=flight.ttft,
        tpot=flight.tpot if is_answered else math.nan,
        e2e=flight.ended_at - request.at,
        transfer=flight.transferred_at - flight.prefilled_at,
        cached_tokens=flight.cached_tokens,
    )
