"""Reads one PDService and its children out of the cache, as the frozen values that planning knows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, get_args

from pydantic import ValidationError

from tidewheel.api import meta
from tidewheel.api.manifest import CONFIG_MAPS, PD_SERVICE_SCALERS, PDBS, PODS, SERVICES, Manifest
from tidewheel.api.pdservice import PDServiceSpec, PDServiceStatus
from tidewheel.api.ranktable import Role
from tidewheel.api.scaler import PDServiceScalerSpec, PDServiceScalerStatus
from tidewheel.api.scenarios import DEFAULT_SCENARIO
from tidewheel.building.config_maps import MEMORY_KEY, RECORD_KEY
from tidewheel.controllers.cache import Snapshot
from tidewheel.controllers.observe_nodes import Nodes
from tidewheel.planning.groups import COMPUTE_ROLES
from tidewheel.planning.load.window import Window
from tidewheel.planning.names import (
    Place,
    boosts_name,
    place_of,
    ranks_name,
    read_place,
    routes_name,
    scaling_name,
)
from tidewheel.planning.observed import (
    ChildKind,
    Exit,
    ObservedChild,
    ObservedPod,
    ObservedScaler,
    ObservedService,
    PublishedMap,
)
from tidewheel.planning.plan import Refusal
from tidewheel.planning.times import from_time

_ROLES = frozenset(get_args(Role))
_COMPUTE: Mapping[str, Role] = {role: role for role in COMPUTE_ROLES}


def observe_service(
    manifest: Manifest,
    cache: Snapshot,
    refusals: tuple[Refusal, ...] = (),
    *,
    window: Window | None = None,
    watches_nodes: bool = False,
) -> ObservedService:
    """Everything planning looks at. Only children whose controller ownerReference names this very object count.

    Args:
        manifest: the PDService.
        cache: what is known.
        refusals: what the API server refused.
        window: the last one of the pods' metrics that has ended.
        watches_nodes: whether nodes are known: then one that is not in the cache is gone.
    """
    nodes = Nodes(cache) if watches_nodes else None
    metadata = manifest["metadata"]
    uid, name = metadata["uid"], metadata["name"]
    spec, unreadable = observe_spec(manifest.get("spec"))
    pods = tuple(
        pod
        for raw in cache.owned_by(uid, PODS)
        if (pod := observe_pod(raw, service=name, nodes=nodes)) is not None
    )
    config_maps = cache.owned_by(uid, CONFIG_MAPS)
    by_name = {raw["metadata"]["name"]: raw for raw in config_maps if not _is_deleting(raw)}
    groups = {pod.group for pod in pods if pod.group}
    return ObservedService(
        name=name,
        namespace=metadata["namespace"],
        uid=uid,
        generation=metadata.get("generation", 0),
        deleting=_is_deleting(manifest),
        traceparent=(metadata.get("annotations") or {}).get(meta.ANNOTATION_TRACEPARENT, ""),
        spec=spec,
        unreadable=unreadable,
        status=_status(manifest.get("status")),
        pods=pods,
        children=(
            *_children(config_maps, "ConfigMap"),
            *_children(cache.owned_by(uid, SERVICES), "Service"),
            *_children(cache.owned_by(uid, PDBS), "PodDisruptionBudget"),
        ),
        routes=_published(by_name.get(routes_name(name)), meta.ROUTES_KEY),
        ranks={
            group: published
            for group in sorted(groups)
            if (published := _published(by_name.get(ranks_name(group)), meta.RANKS_KEY)) is not None
        },
        records=dict(_records(by_name.values())),
        refusals=refusals,
        window=window,
        scaling_memory=_memory(by_name.get(scaling_name(name))),
        boosts_memory=_memory(by_name.get(boosts_name(name))),
        scalers=observe_scalers(cache, metadata["namespace"], name),
    )


def observe_pod(raw: Manifest, *, service: str, nodes: Nodes | None = None) -> ObservedPod | None:
    """A pod as planning sees it, or None if its labels and name are none that planning gives."""
    metadata, spec, status = raw["metadata"], raw.get("spec") or {}, raw.get("status") or {}
    labels = metadata.get("labels") or {}
    role: Any = labels.get(meta.LABEL_ROLE)
    group, revision = labels.get(meta.LABEL_GROUP, ""), labels.get(meta.LABEL_REVISION, "")
    if role not in _ROLES:
        return None
    annotations = metadata.get("annotations") or {}
    born = _born(metadata["name"], role, service=service, group=group, revision=revision)
    if born is None:
        return None
    place = read_place(annotations.get(meta.ANNOTATION_PLACE, "")) if role != "gateway" else None
    if place is None and born[0] != role:
        return None
    conditions = {condition["type"]: condition for condition in status.get("conditions") or ()}
    containers = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
    waiting = _waiting(containers)
    scheduled = conditions.get("PodScheduled") or {}
    phase = status.get("phase", "Pending")
    ready = conditions.get("Ready") or {}
    is_ready, since = phase == "Running" and ready.get("status") == "True", ready.get("lastTransitionTime")
    return ObservedPod(
        name=metadata["name"],
        uid=metadata["uid"],
        role=role,
        group=group,
        revision=revision,
        ordinal=(place or born[1]).ordinal,
        incarnation=(place or born[1]).incarnation,
        born=born if place is not None else None,
        created=from_time(metadata.get("creationTimestamp", "")),
        scenario=labels.get(meta.LABEL_SCENARIO, DEFAULT_SCENARIO),
        phase=phase,
        ip=status.get("podIP", ""),
        node=spec.get("nodeName", ""),
        node_fault=nodes.fault(raw) if nodes is not None else None,
        ready=is_ready,
        ready_since=from_time(since) if is_ready and since else None,
        deleting=_is_deleting(raw),
        restarts=max((container.get("restartCount", 0) for container in containers), default=0),
        waiting_reason=waiting.get("reason", ""),
        waiting_message=waiting.get("message", ""),
        exit=_exit(containers),
        unschedulable=scheduled.get("message", "") if scheduled.get("reason") == "Unschedulable" else "",
        failed_reason=status.get("reason", ""),
        failed_message=status.get("message", ""),
        map_digest=annotations.get(meta.ANNOTATION_MAP_DIGEST, ""),
        may_flip=annotations.get(meta.ANNOTATION_MAY_FLIP) == "true",
        flips_to=_COMPUTE.get(annotations.get(meta.ANNOTATION_FLIPS_TO, "")),
        flip_began=_time(annotations.get(meta.ANNOTATION_FLIP_BEGAN)),
    )


def _born(name: str, role: Role, *, service: str, group: str, revision: str) -> tuple[Role, Place] | None:
    """The role and place that a name stands for; a member may have the other compute role by now."""
    roles: tuple[Role, ...] = (role,) if role == "gateway" else (role, *_COMPUTE.values())
    for one in roles:
        place = place_of(name, service=service, group=group, role=one, revision=revision)
        if place is not None:
            return one, place
    return None


def _time(text: str | None) -> datetime | None:
    """A time that planning wrote; one that cannot be read is long past."""
    return from_time(text) if text else None


def observe_scalers(cache: Snapshot, namespace: str, service: str) -> tuple[ObservedScaler, ...]:
    """The PDServiceScalers of a service that are to stay; one that cannot be read asks for nothing."""
    return tuple(
        scaler
        for raw in cache.in_namespace(PD_SERVICE_SCALERS, namespace)
        if not _is_deleting(raw) and (scaler := _scaler(raw)) is not None and scaler.spec.service == service
    )


def _scaler(raw: Manifest) -> ObservedScaler | None:
    metadata = raw["metadata"]
    try:
        return ObservedScaler(
            name=metadata["name"],
            uid=metadata["uid"],
            created=from_time(metadata.get("creationTimestamp", "")),
            generation=metadata.get("generation", 0),
            spec=PDServiceScalerSpec.model_validate(raw.get("spec")),
            status=PDServiceScalerStatus.model_validate(raw.get("status") or {}),
        )
    except ValidationError:
        return None


def observe_spec(raw: Any) -> tuple[PDServiceSpec | None, str]:
    """A spec, or None and what is wrong with it."""
    try:
        return PDServiceSpec.model_validate(raw), ""
    except ValidationError as error:
        faults = (
            f"spec.{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}" for fault in error.errors()
        )
        return None, "; ".join(faults)


def _status(raw: Any) -> PDServiceStatus:
    """The last status; an unreadable one counts as none, for all but the decisions can be seen anew."""
    try:
        return PDServiceStatus.model_validate(raw or {})
    except ValidationError:
        return PDServiceStatus()


def _children(raws: Iterable[Manifest], kind: ChildKind) -> Iterator[ObservedChild]:
    for raw in raws:
        metadata = raw["metadata"]
        yield ObservedChild(kind=kind, name=metadata["name"], uid=metadata["uid"], deleting=_is_deleting(raw))


def _published(raw: Manifest | None, key: str) -> PublishedMap | None:
    """A map as it stands. One whose text cannot be read sends nobody anywhere, and is published anew."""
    if raw is None:
        return None
    annotations = raw["metadata"].get("annotations") or {}
    try:
        document = json.loads((raw.get("data") or {}).get(key, "{}"))
        if key == meta.ROUTES_KEY:
            members = (
                backend["name"]
                for group in document.get("groups", ())
                for role in ("prefill", "decode")
                for backend in group[role]
            )
        else:
            members = (member["uid"] for member in document.get("members", ()))
        names = frozenset(members)
        is_combined = document.get("combined") is True
    except (ValueError, LookupError, TypeError, AttributeError):
        return PublishedMap(digest="")
    since = annotations.get(meta.ANNOTATION_PUBLISHED)
    return PublishedMap(
        digest=annotations.get(meta.ANNOTATION_MAP_DIGEST, ""),
        members=names,
        is_combined=is_combined,
        since=from_time(since) if since else None,
    )


def _memory(raw: Manifest | None) -> str:
    return str(((raw or {}).get("data") or {}).get(MEMORY_KEY, ""))


def _records(raws: Iterable[Manifest]) -> Iterator[tuple[str, PDServiceSpec]]:
    for raw in raws:
        metadata = raw["metadata"]
        text = (raw.get("data") or {}).get(RECORD_KEY)
        revision = (metadata.get("labels") or {}).get(meta.LABEL_REVISION)
        if text is None or revision is None:
            continue
        try:
            yield revision, PDServiceSpec.model_validate_json(text)
        except ValidationError:
            # A record that another version of the operator wrote: its groups serve on and are replaced whole.
            continue


def _waiting(containers: Iterable[Manifest]) -> Manifest:
    """The state of the first container that waits for a reason other than its turn."""
    for container in containers:
        waiting: Manifest = (container.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") not in (None, "PodInitializing", "ContainerCreating"):
            return waiting
    return {}


def _exit(containers: Iterable[Manifest]) -> Exit | None:
    """The latest failed end of a container that does not run to its full satisfaction now."""
    for container in containers:
        for state in (container.get("state") or {}, container.get("lastState") or {}):
            ended = state.get("terminated")
            if ended and (ended.get("exitCode") or ended.get("reason") not in (None, "Completed")):
                return Exit(
                    reason=ended.get("reason", ""),
                    exit_code=ended.get("exitCode", 0),
                    message=ended.get("message", ""),
                )
    return None


def _is_deleting(raw: Manifest) -> bool:
    return bool(raw["metadata"].get("deletionTimestamp"))
