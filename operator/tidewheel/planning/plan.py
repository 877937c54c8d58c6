"""What a controller decided: the one value that every planner returns and the executor carries out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
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
class Annotation:
    """Annotations and labels to set on one object by one merge patch, leaving all its other fields to their owners.

    A planner uses it to tell a kubelet that a mounted map changed: an annotated pod is synced at once,
    while an untouched one would see the change up to a minute later; and to give a running pod another role.
    """

    resource: Resource
    namespace: str
    name: str
    uid: str
    #: None takes one away.
    annotations: Mapping[str, str | None]
    labels: Mapping[str, str] = field(default_factory=dict)


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
    """Everything one reconcile wants of the cluster.

    Carried out in this order: those of `apply` that differ from what stands (server-side apply), `annotate` (merge
    patches with the object's uid in them; one that is gone is no failure), `delete`, then one write of `status` if
    it differs from the observed one, then `events`.
    """

    apply: tuple[Manifest, ...] = ()
    annotate: tuple[Annotation, ...] = ()
    delete: tuple[Deletion, ...] = ()
    #: The whole `.status` as it should stand; None leaves it alone.
    status: Manifest | None = None
    events: tuple[EventNote, ...] = ()
    #: Seconds after which to plan again even if nothing happens; None waits for the next event.
    look_again_in: float | None = None
