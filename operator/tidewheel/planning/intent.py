"""What planning wants of the cluster, before it has the form of manifests; `tidewheel.building` gives it that form."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from tidewheel.api.pdservice import PDServiceSpec, PDServiceStatus
from tidewheel.api.ranktable import RankTable, Role, Routes
from tidewheel.api.scenarios import DEFAULT_SCENARIO
from tidewheel.planning.names import Place
from tidewheel.planning.observed import ObservedPod
from tidewheel.planning.plan import EventNote


@dataclass(frozen=True, slots=True, kw_only=True)
class PodOrder:
    """One pod to create."""

    name: str
    role: Role
    #: Empty for a gateway.
    group: str
    revision: str
    #: Whom its group serves.
    scenario: str = DEFAULT_SCENARIO
    #: The spec it is built from: the recorded one of its revision if that is an older one.
    spec: PDServiceSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Departure:
    """One pod to delete now; every map is already without it."""

    pod: ObservedPod
    grace_seconds: int
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Marking:
    """What a pod says of its role from now on; nothing of it changes what the pod runs."""

    pod: ObservedPod
    #: Its place in the new role, if it gets that now.
    turned: tuple[Role, Place] | None = None
    #: The role it is to take later.
    flips_to: Role | None = None
    #: When that, or the new role, began; None once it is over.
    began: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Children:
    """The children that are not pods, and the pods to create."""

    spec: PDServiceSpec
    revision: str
    routes: Routes
    #: Groups and pods in groups that should be there in the end.
    wanted_groups: int = 0
    wanted_members: int = 0
    rank_tables: tuple[RankTable, ...] = ()
    pods: tuple[PodOrder, ...] = ()
    #: What the planner of the numbers remembers, and that of the boosts; None for nothing.
    scaling_memory: str | None = None
    boosts_memory: str | None = None
    #: Groups and revisions that still have pods: their maps and records stay although they are not written now.
    groups: frozenset[str] = frozenset()
    revisions: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """The outcome of planning one PDService."""

    #: None: leave all children as they are.
    children: Children | None = None
    departures: tuple[Departure, ...] = ()
    markings: tuple[Marking, ...] = ()
    status: PDServiceStatus | None = None
    events: tuple[EventNote, ...] = ()
    look_again_in: float | None = None
