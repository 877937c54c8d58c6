"""What a controller decided: the one value that every planner returns and the executor carries out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tidewheel.api.manifest import Manifest, Resource


@dataclass(frozen=True, slots=True, kw_only=True)
class Deletion:
    """One object to delete, only if it is still the one that was seen."""

    resource: Resource
    namespace: str
    name: str
    uid: str
    reason: str
    #: Seconds the object may take to end; the object's own grace period without it.
    grace_seconds: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EventNote:
    """One Event about the planned object, for people who read `kubectl describe`."""

    type: Literal["Normal", "Warning"]
    reason: str
    action: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A change of the last execution that the API server, or the executor's ownership check, refused.

    The executor keeps a refusal until the same change passes or the object's generation moves on;
    the planner turns it into a condition.
    """

    kind: str
    name: str
    #: The HTTP status; 409 with reason `NameTaken` when the name belongs to someone else's object.
    status: int
    reason: str
    message: str
    #: `(field, message)` of each cause the server named.
    causes: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything one reconcile should change. An empty plan means that all is as it should be.

    Carried out in this order: `apply` one after the other (server-side apply), `delete`, then one write of
    `status` if it differs from the observed one, then `events`.
    """

    apply: tuple[Manifest, ...] = ()
    delete: tuple[Deletion, ...] = ()
    #: The whole `.status` as it should stand; None leaves it alone.
    status: Manifest | None = None
    events: tuple[EventNote, ...] = ()
    #: Seconds after which to plan again even if nothing happens; None waits for the next event.
    look_again_in: float | None = None

    @property
    def changes_nothing(self) -> bool:
        """Whether no child is written or deleted; the status may still differ."""
        return not self.apply and not self.delete
