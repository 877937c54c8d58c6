"""Which of the backends that may be asked now a request asks: the ranking, apart from who is asked to wait for whom."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Literal

from tidewheel_workers.serving.affinity import Affinity, load_bound

if TYPE_CHECKING:
    from tidewheel.api.ranktable import Backend, RouteGroup
    from tidewheel_workers.serving.ledger import Ledger

Role = Literal["prefill", "decode"]

#: Of more backends than these a request looks at so many that it drew (the power of d choices), and at all only
#: if none of them is free.
FEW, DRAWN = 16, 8


@dataclass(frozen=True, slots=True)
class Place:
    """A backend, what it does, and its group."""

    group: RouteGroup
    backend: Backend
    role: Role

    @property
    def name(self) -> str:
        """The backend's name."""
        return self.backend.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """The backends that certain requests may ask for a prefill, or for a decode.

    In a combined group the decodes are asked for both at once, so they stand among the prefills of other groups.
    """

    role: Role
    places: tuple[Place, ...]
    groups: tuple[RouteGroup, ...]
    affinity: Affinity

    @classmethod
    def of(cls, role: Role, groups: Sequence[RouteGroup], names: AbstractSet[str] | None) -> Pool:
        """From those groups that have the names, or from all where it says None."""
        able = tuple(group for group in groups if names is None or group.name in names)
        if role == "prefill":
            able = tuple(group for group in able if group.decode)
        places = tuple(_places(able, role))
        return cls(role=role, places=places, groups=able, affinity=Affinity([place.name for place in places]))


class Candidates:
    """Ranks backends by what the ledger knows of them.

    Args:
        ledger: of the gateway.
        fill_first: whether a prefill that has requests comes before an idle one, so that a batch forms soon.
        has_affinity: whether prompts that begin alike prefer the same prefill.
        jitter: gives numbers between 0 and 1; they draw and break ties, so that gateways do not choose alike.
    """

    def __init__(
        self, ledger: Ledger, *, fill_first: bool, has_affinity: bool, jitter: Callable[[], float]
    ) -> None:
        self._ledger = ledger
        self._fill_first = fill_first
        self._has_affinity = has_affinity
        self._jitter = jitter

    def best(
        self,
        pool: Pool,
        at: float,
        *,
        prefixes: Sequence[int] = (),
        suspects: AbstractSet[str] = frozenset(),
        fits: Callable[[int, Role], bool] | None = None,
    ) -> Place | None:
        """The best one that may be asked now and whose number of our requests fits what it does.

        In this order: one that lost neither this request (`suspects`) nor another lately; one that is known to have
        room; one whose group's decodes have room; one that may have the beginning of the prompt (`prefixes`) cached and
        has not more than its share; the one with the fewest of our requests. Filling first, the one with the most
        comes before the one with the cache.
        """
        preferred = self._preferred(pool, prefixes)
        best = self._best(self._looked_at(pool, preferred), pool, preferred, at, suspects, fits)
        if best is None and len(pool.places) > FEW:
            best = self._best(pool.places, pool, preferred, at, suspects, fits)
        return best

    def _best(
        self,
        places: Sequence[Place],
        pool: Pool,
        preferred: Mapping[str, int],
        at: float,
        suspects: AbstractSet[str],
        fits: Callable[[int, Role], bool] | None,
    ) -> Place | None:
        can_be_decoded: dict[str, bool] = {}
        best: Place | None = None
        least: tuple[bool, bool, bool, int, int, float] | None = None
        for place in places:
            name, group = place.backend.name, place.group
            opens_at, holds, has_room, is_suspect = self._ledger.look(name, at)
            if opens_at > at or (fits is not None and not fits(holds, place.role)):
                continue
            is_good = True
            if pool.role == "prefill" and len(pool.groups) > 1:
                if group.name not in can_be_decoded:
                    can_be_decoded[group.name] = any(
                        self._ledger.look(one.name, at).has_room for one in group.decode
                    )
                is_good = can_be_decoded[group.name]
            liking = preferred.get(name, len(preferred))
            fills = self._fill_first and place.role == "prefill"
            first, second = (-holds, liking) if fills else (liking, holds)
            rank = (
                is_suspect or name in suspects,
                not has_room,
                not is_good,
                first,
                second,
                self._jitter(),
            )
            if least is None or rank < least:
                best, least = place, rank
        return best

    def opens_at(self, pool: Pool, at: float) -> float:
        """When the first of them may be asked, if nothing else happens."""
        return min((self._ledger.look(place.name, at).opens_at for place in pool.places), default=math.inf)

    def decode_with_room(self, pool: Pool, at: float, *, busy: AbstractSet[str]) -> Place | None:
        """The idlest decode of the pool's groups that takes a prompt as far as we know, but for the busy groups."""
        free: list[tuple[int, float, Place]] = []
        for group in pool.groups:
            if group.name in busy or group.combined:
                continue
            for backend in group.decode:
                seen = self._ledger.look(backend.name, at)
                if seen.has_room and not seen.is_suspect:
                    free.append((seen.holds, self._jitter(), Place(group, backend, "decode")))
        return min(free, key=itemgetter(0, 1))[2] if free else None

    def fewest_holds(self, pool: Pool) -> Mapping[Role, int]:
        """How many of our requests the idlest of them has, by what it does."""
        fewest: dict[Role, int] = {}
        for place in pool.places:
            holds = self._ledger.holds(place.name)
            fewest[place.role] = min(holds, fewest.get(place.role, holds))
        return fewest or {pool.role: 0}

    def _looked_at(self, pool: Pool, preferred: Mapping[str, int]) -> Sequence[Place]:
        if len(pool.places) <= FEW:
            return pool.places
        drawn = [pool.places[int(self._jitter() * len(pool.places))] for _ in range(DRAWN)]
        return drawn + [place for place in pool.places if place.name in preferred] if preferred else drawn

    def _preferred(self, pool: Pool, prefixes: Sequence[int]) -> dict[str, int]:
        """The places where a prompt's beginning may be cached, by rank, without those that have their share."""
        if not self._has_affinity or pool.role != "prefill" or not prefixes or not pool.places:
            return {}
        held = sum(self._ledger.holds(place.name) for place in pool.places)
        bound = load_bound(held, len(pool.places))
        preferred: dict[str, int] = {}
        for prefix in prefixes:
            for name in pool.affinity.preferred(prefix):
                if self._ledger.holds(name) < bound:
                    preferred.setdefault(name, len(preferred))
        return preferred


def _places(groups: Sequence[RouteGroup], role: Role) -> Iterator[Place]:
    for group in groups:
        does: Role = "decode" if group.combined else role
        for backend in group.prefill if does == "prefill" else group.decode:
            yield Place(group, backend, does)
