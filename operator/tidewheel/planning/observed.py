"""What is known of one PDService when it is planned: frozen values, so that a plan is a function of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from tidewheel.api.pdservice import PDServiceSpec, PDServiceStatus
from tidewheel.api.ranktable import Role
from tidewheel.api.scaler import PDServiceScalerSpec, PDServiceScalerStatus
from tidewheel.api.scenarios import DEFAULT_SCENARIO
from tidewheel.planning.load.window import Window
from tidewheel.planning.names import Place
from tidewheel.planning.plan import Refusal


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """How a container last ended."""

    reason: str
    exit_code: int
    #: What the process wrote to its termination log.
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFault:
    """What is wrong with the node of a pod."""

    kind: Literal["Lost", "Devices"]
    message: str
    #: Whether it is expected to pass by itself.
    recovers: bool
    since: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedPod:
    """One pod of the service, as far as planning looks at it."""

    name: str
    uid: str
    role: Role
    #: The group's name; empty for a gateway.
    group: str
    revision: str
    #: The pod's place among those of its role; a substitute takes its predecessor's.
    ordinal: int
    #: How many pods had this place before.
    incarnation: int
    created: datetime
    #: Whom its group serves.
    scenario: str = DEFAULT_SCENARIO
    phase: str = "Pending"
    ip: str = ""
    node: str = ""
    node_fault: NodeFault | None = None
    #: It runs and takes requests.
    ready: bool = False
    #: Since when.
    ready_since: datetime | None = None
    #: It has a deletionTimestamp: it finishes its requests and goes.
    deleting: bool = False
    restarts: int = 0
    #: Why a container does not run, such as `ImagePullBackOff`; with the kubelet's words.
    waiting_reason: str = ""
    waiting_message: str = ""
    #: The last end of the container that failed, if one did.
    exit: Exit | None = None
    #: The scheduler's words, if it finds no node.
    unschedulable: str = ""
    #: Why the pod as a whole failed, such as `Evicted`.
    failed_reason: str = ""
    failed_message: str = ""
    #: The digest of the map it was last told of.
    map_digest: str = ""
    #: Whether its process can take the other compute role with the model loaded.
    may_flip: bool = False
    #: The role it is to take once it has left its own.
    flips_to: Role | None = None
    #: When it was marked for that, or, if it is not marked any more, got its new role and has not been seen ready since.
    flip_began: datetime | None = None
    #: What its name stands for, where it has another role or place by now.
    born: tuple[Role, Place] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedMap:
    """A rank table or the routes, as it stands in the cluster."""

    digest: str
    #: The uids (rank table) or names (routes) of the pods it sends others to.
    members: frozenset[str] = frozenset()
    #: Of a rank table: whether the group's decodes compute the prompts, too.
    is_combined: bool = False
    #: When this content was first published.
    since: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedScaler:
    """A PDServiceScaler that names the service."""

    name: str
    uid: str
    created: datetime
    generation: int
    spec: PDServiceScalerSpec
    status: PDServiceScalerStatus = field(default_factory=PDServiceScalerStatus)


ChildKind = Literal["ConfigMap", "Service", "PodDisruptionBudget"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedChild:
    """A child that is not a pod."""

    kind: ChildKind
    name: str
    uid: str
    deleting: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedService:
    """A PDService with everything that belongs to it, and nothing that belongs to anyone else."""

    name: str
    namespace: str
    uid: str
    generation: int = 1
    deleting: bool = False
    #: W3C trace context of whoever applied the object.
    traceparent: str = ""
    #: None if it cannot be read; `unreadable` then says why.
    spec: PDServiceSpec | None = None
    unreadable: str = ""
    status: PDServiceStatus = field(default_factory=PDServiceStatus)
    pods: tuple[ObservedPod, ...] = ()
    children: tuple[ObservedChild, ...] = ()
    routes: PublishedMap | None = None
    #: Rank tables by group.
    ranks: Mapping[str, PublishedMap] = field(default_factory=dict)
    #: The specs that older revisions were built from, by revision.
    records: Mapping[str, PDServiceSpec] = field(default_factory=dict)
    refusals: tuple[Refusal, ...] = ()
    scalers: tuple[ObservedScaler, ...] = ()
    #: The last window of the pods' metrics that has ended; None if none has, or none is asked for.
    window: Window | None = None
    #: What the planner of the numbers remembered, and that of the boosts; empty for nothing.
    scaling_memory: str = ""
    boosts_memory: str = ""
