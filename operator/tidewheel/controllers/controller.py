"""What a controller is: a kind, the kinds of its children, and one pure function from what is seen to a plan."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import NamedTuple, Protocol

from tidewheel.api.manifest import Manifest, Resource
from tidewheel.controllers.cache import Snapshot
from tidewheel.planning.plan import Plan, Refusal


class Key(NamedTuple):
    """Which object of the controller's kind is meant. Work is queued, and done, by key."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class Controller(Protocol):
    """One kind's logic. The loop that drives it does all the I/O; see `tidewheel.controllers.loop`."""

    @property
    def kind(self) -> Resource:
        """The kind it reconciles."""
        ...

    @property
    def children(self) -> tuple[Resource, ...]:
        """The kinds it creates. All carry the label `tidewheel.dev/service` and a controller ownerReference."""
        ...

    @property
    def looks_at(self) -> tuple[Resource, ...]:
        """Kinds that its plans depend on and that it does not own; every object of them is watched."""
        ...

    @property
    def manager(self) -> str:
        """Field manager of the children."""
        ...

    @property
    def status_manager(self) -> str:
        """Field manager of the status."""
        ...

    def concerned_by(self, resource: Resource, manifest: Manifest, cache: Snapshot) -> Iterable[Key]:
        """Which of its objects to plan again when an object of its own kind, or of one that it looks at, has changed.

        Its own kind's changed object itself need not be named.
        """
        ...

    def plan(
        self, key: Key, cache: Snapshot, now: datetime, refusals: tuple[Refusal, ...] = ()
    ) -> Plan | None:
        """What should change about `key`. It must be pure: same arguments, same plan; no await, no clock.

        It is called again after every plan that changed a child, until one changes nothing. Manifests in the plan
        name their namespace, carry the labels and the ownerReference, and leave out what others may decide.

        Args:
            key: the object.
            cache: everything that is known; nothing in it is older than this controller's own last write.
            now: the time, in UTC.
            refusals: what the API server refused of the last plans, and still would.

        Returns:
            The plan, or None if the object is gone: its children are left to the garbage collector.
        """
        ...
