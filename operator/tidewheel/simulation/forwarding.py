"""How a simulated gateway sends requests to prefills: the product's rules, and those it is compared with.

The layers forbid the simulation to import the workers, so the rules of their gateway (serving/dispatch.py) are restated here: a
prefill is asked only while it has a free slot; who must have its first token first goes first; one that would be late at the
servers that are free is passed over, a few deep; who cannot be in time anywhere leaves at once. Where the gateway learns how long a
first token takes, the simulation asks the profile.
"""

from __future__ import annotations

import itertools
import math
import random
from bisect import insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from tidewheel.simulation.clock import Clock
    from tidewheel.simulation.flights import Flight
    from tidewheel.simulation.prefill import Prefill

#: How many of a line are looked at for one that a server could still serve in time.
LOOKED_AT = 4
#: Between two reports of the local queues' lengths, as in P/D-Serve's example.
REPORT_SECONDS = 0.1


class Prefills(Protocol):
    """What a gateway sees of a service."""

    clock: Clock

    def prefills(self) -> Sequence[Prefill]:
        """Those that may be asked."""

    def beyond_prefill_seconds(self, flight: Flight) -> float:
        """What a first token needs after its prompt is computed."""

    def give_up(self, flight: Flight, ending: Literal["shed", "expired"], why: str) -> None:
        """The request ends here."""


class Gateway(Protocol):
    """Where requests come in."""

    def arrive(self, flight: Flight) -> None:
        """A request came, or one comes back whose prefill was lost."""

    def freed(self) -> None:
        """A slot came free, or a prefill joined."""

    @property
    def waiting(self) -> int:
        """Requests that stand in line here."""


Make = Callable[[Prefills], Gateway]


@dataclass(slots=True)
class OnDemand:
    """The product's gateway: no queue behind it, one line before it, and deadlines.

    Args:
        service: the prefills and what comes after them.
        slots: that each prefill has.
        ends_early: requests leave when their first token cannot come in time any more; otherwise only first come, first
            served: what a gateway without deadlines does.
    """

    service: Prefills
    slots: int
    ends_early: bool = True
    _line: list[Flight] = field(default_factory=list)

    @property
    def waiting(self) -> int:
        """As in `Gateway`."""
        return len(self._line)

    def arrive(self, flight: Flight) -> None:
        """As in `Gateway`."""
        insort(self._line, flight, key=_due)
        if self.ends_early:
            leaves = self._leaves_at(flight)
            if leaves < self.service.clock.now:
                self._leave(flight, "it needs longer than it may take, even alone on a prefill")
                return
            if not math.isinf(leaves):
                self.service.clock.at(leaves, lambda: self._look_after(flight))
        self.freed()

    def freed(self) -> None:
        """As in `Gateway`."""
        while self._line and self._grant():
            pass

    def _grant(self) -> bool:
        free = [prefill for prefill in self.service.prefills() if len(prefill.held) < self.slots]
        if not free:
            return False
        # the candidate ranking of P/D-Serve: fewest open requests first
        free.sort(key=lambda prefill: (len(prefill.held), prefill.backlog_tokens))
        for flight in self._line[:LOOKED_AT]:
            for prefill in free:
                if self.ends_early and prefill.held and self._is_late(prefill, flight):
                    continue
                self._line.remove(flight)
                prefill.take(flight)
                return True
        return False

    def _is_late(self, prefill: Prefill, flight: Flight) -> bool:
        if flight.attempts:
            return False  # it was accepted once, and is not turned away for those who wait
        computed = prefill.ready_at(flight.context_tokens)
        return computed + self.service.beyond_prefill_seconds(flight) > flight.deadline

    def _leaves_at(self, flight: Flight) -> float:
        """Until when it may wait: even an idle prefill would be too late afterwards. A stream goes on, however late."""
        if flight.attempts:
            return math.inf if flight.is_streaming else flight.deadline
        prefills = self.service.prefills()
        if not prefills:
            return flight.deadline
        alone = prefills[0].alone_seconds(flight.context_tokens)
        return flight.deadline - alone - self.service.beyond_prefill_seconds(flight)

    def _look_after(self, flight: Flight) -> None:
        if flight.prefill is None and flight.ending is None and flight in self._line:
            self._leave(flight, "no prefill came free while its first token could still have been in time")

    def _leave(self, flight: Flight, why: str) -> None:
        self._line.remove(flight)
        self.service.give_up(flight, "shed", why)


class RoundRobin:
    """Each prefill in turn, which takes everything: NVIDIA Dynamo's default router."""

    def __init__(self, service: Prefills) -> None:
        self._service = service
        self._turns = itertools.count()
        self._held: list[Flight] = []

    @property
    def waiting(self) -> int:
        """As in `Gateway`."""
        return len(self._held)

    def arrive(self, flight: Flight) -> None:
        """As in `Gateway`."""
        prefills = self._service.prefills()
        if prefills:
            prefills[next(self._turns) % len(prefills)].take(flight)
        else:
            self._held.append(flight)

    def freed(self) -> None:
        """As in `Gateway`."""
        held, self._held = self._held, []
        for flight in held:
            self.arrive(flight)


class LocalQueues:
    """What P/D-Serve was measured against: a queue in each prefill, and gateways that follow the queues' reports.

    Every gateway sends to the queue that was shortest when it last reported, counting what it sent itself since. A request
    whose deadline passes while it waits leaves its queue and costs nothing.

    Args:
        service: the prefills.
        gateways: how many there are, each with its own view; requests come to them at random.
        generator: draws gateways and breaks ties.
    """

    def __init__(self, service: Prefills, *, gateways: int, generator: random.Random) -> None:
        self._service = service
        self._generator = generator
        self._seen: list[dict[str, int]] = [{} for _ in range(gateways)]
        self._reported_at = -math.inf
        self._unsent: list[Flight] = []

    @property
    def waiting(self) -> int:
        """As in `Gateway`."""
        return len(self._unsent)

    def arrive(self, flight: Flight) -> None:
        """As in `Gateway`."""
        prefills = self._service.prefills()
        if not prefills:
            self._unsent.append(flight)
            return
        self._hear(prefills)
        seen = self._generator.choice(self._seen)
        ties = {prefill.name: self._generator.random() for prefill in prefills}
        chosen = min(prefills, key=lambda prefill: (seen.get(prefill.name, 0), ties[prefill.name]))
        seen[chosen.name] = seen.get(chosen.name, 0) + 1
        chosen.take(flight)
        if not math.isinf(flight.deadline) and not flight.is_streaming:
            self._service.clock.at(flight.deadline, lambda: self._expire(flight, chosen))

    def freed(self) -> None:
        """As in `Gateway`."""
        unsent, self._unsent = self._unsent, []
        for flight in unsent:
            self.arrive(flight)

    def _hear(self, prefills: Sequence[Prefill]) -> None:
        """The last report before now; lengths change only with what is sent and computed, so it is taken when needed."""
        now = self._service.clock.now
        if now - self._reported_at >= REPORT_SECONDS:
            self._reported_at = now
            report = {prefill.name: len(prefill.held) for prefill in prefills}
            self._seen = [dict(report) for _ in self._seen]

    def _expire(self, flight: Flight, prefill: Prefill) -> None:
        if flight.ending is None and flight.prefill is prefill and prefill.withdraw(flight):
            self._service.give_up(flight, "expired", "its time ended in a prefill's queue")


def _due(flight: Flight) -> tuple[float, int]:
    return flight.deadline, flight.number
