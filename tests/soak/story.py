"""What goes wrong in a soak, and when: decided beforehand from a seed, without I/O, so that a storm can be told again."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Role = Literal["gateway", "prefill", "decode"]
Port = Literal["http", "kv"]
Cast = Mapping[Role, int]

#: How long a process that came back is left in peace.
REST_SECONDS = 3.0
#: Faults of the last seconds would not be seen.
CALM_END = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A way to fail."""

    name: str
    roles: tuple[Role, ...]
    what: str
    seconds: tuple[float, float] = (0.0, 0.0)  # how long it lasts, from and to
    takes_away: bool = False  # the process serves nobody meanwhile
    ports: tuple[Port, ...] = ()  # of a link; a decode has no KV port


WORKERS: tuple[Role, ...] = ("prefill", "decode")
EVERYONE: tuple[Role, ...] = ("gateway", "prefill", "decode")

KINDS: tuple[Kind, ...] = (
    Kind(name="kill", roles=EVERYONE, seconds=(0.2, 2.0), takes_away=True, what="SIGKILL, then a restart in place"),
    Kind(name="kill one", roles=("gateway",), what="SIGKILL to one of the processes that share its port"),
    Kind(name="replace", roles=WORKERS, takes_away=True, what="SIGKILL, then a substitute at another address"),
    Kind(name="drain", roles=EVERYONE, takes_away=True, what="SIGTERM after leaving the routes, then a substitute"),
    Kind(name="stall", roles=EVERYONE, seconds=(0.3, 5.0), takes_away=True, what="SIGSTOP, then SIGCONT"),
    Kind(name="cut", roles=WORKERS, ports=("http", "kv"), what="every connection of a port is reset"),
    Kind(name="truncate", roles=WORKERS, ports=("http", "kv"), seconds=(0.5, 2.0), what="answers end after some bytes"),
    Kind(name="delay", roles=WORKERS, ports=("http", "kv"), seconds=(1.0, 4.0), what="all bytes come late"),
    Kind(name="hold", roles=WORKERS, ports=("http", "kv"), seconds=(0.5, 3.0), what="nothing passes"),
    Kind(name="corrupt", roles=WORKERS, ports=("http", "kv"), seconds=(0.5, 2.0), what="answers begin with a wrong byte"),
    Kind(name="garbage frames", roles=("prefill",), what="noise on the KV port"),
    Kind(name="garbage bytes", roles=EVERYONE, what="noise on the HTTP port"),
    Kind(name="silence", roles=EVERYONE, seconds=(1.0, 4.0), what="connections that say nothing, or half a request"),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that goes wrong."""

    at: float  # seconds since the storm began
    kind: Kind
    role: Role
    place: int  # which one of its role; a substitute inherits it
    port: Port | None
    seconds: float
    seed: int  # of the bytes and amounts

    @property
    def target(self) -> str:
        """Whom it hits, for people."""
        return f"{self.role} {self.place}" + (f" {self.port}" if self.port else "")


def tell(seed: int, *, seconds: float, cast: Cast, gap_seconds: float) -> tuple[Fault, ...]:
    """The faults of a storm, in order.

    Every kind comes once, in any order, before one comes again. At no time is more than one process of a role away, nor
    one that has no other of its role: what is asked of a service then is more than its makers promise.

    Args:
        seed: the same gives the same story.
        seconds: how long the storm lasts.
        cast: processes of each role.
        gap_seconds: mean time between two faults; each gap is between half and one and a half of it.
    """
    draw = random.Random(seed)
    away: dict[Role, float] = dict.fromkeys(EVERYONE, 0.0)  # until when one of them is
    story: list[Fault] = []
    deck: list[Kind] = []
    at = gap_seconds * draw.uniform(0, 0.5)
    while at < seconds * (1 - CALM_END):
        if not deck:
            deck = draw.sample(KINDS, len(KINDS))
        fault = next((one for kind in deck if (one := _fault(kind, at, draw, cast, away)) is not None), None)
        if fault is not None:
            deck.remove(fault.kind)
            story.append(fault)
            if fault.kind.takes_away:
                away[fault.role] = at + fault.seconds + REST_SECONDS
        at += gap_seconds * draw.uniform(0.5, 1.5)
    return tuple(story)


def _fault(
    kind: Kind, at: float, draw: random.Random, cast: Cast, away: Mapping[Role, float]
) -> Fault | None:
    """One of that kind, where there is someone whom it may hit now."""
    roles = [
        role
        for role in kind.roles
        if cast[role] and not (kind.takes_away and (cast[role] < 2 or at < away[role]))
    ]
    if not roles:
        return None
    role = draw.choice(roles)
    ports = [port for port in kind.ports if port == "http" or role == "prefill"]
    return Fault(
        at=at,
        kind=kind,
        role=role,
        place=draw.randrange(cast[role]),
        port=draw.choice(ports) if ports else None,
        seconds=draw.uniform(*kind.seconds),
        seed=draw.getrandbits(32),
    )
