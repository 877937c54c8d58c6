"""Writes an object's status: once per reconcile, only if it says something new, and only over what was seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tidewheel.api.manifest import Manifest
from tidewheel.controllers.cache import Cache
from tidewheel.controllers.controller import Controller
from tidewheel.kube.client import Api
from tidewheel.kube.errors import Conflict


def new_status(seen: Manifest, status: Manifest | None) -> Manifest | None:
    """The status to write over `seen`, or None if it already says the same but for times.

    A condition keeps its lastTransitionTime as long as its status stays, whatever the planner put there.
    """
    if status is None:
        return None
    before = seen.get("status") or {}
    if _same(before, status):
        return None
    times = {
        condition["type"]: condition.get("lastTransitionTime")
        for condition in before.get("conditions") or ()
        if any(
            condition["type"] == now["type"] and condition["status"] == now["status"]
            for now in status.get("conditions") or ()
        )
    }
    conditions = [
        condition | {"lastTransitionTime": times[condition["type"]]}
        if times.get(condition["type"])
        else condition
        for condition in status.get("conditions") or ()
    ]
    return status | {"conditions": conditions} if "conditions" in status else status


async def write_status(
    api: Api, cache: Cache, controller: Controller, seen: Manifest, status: Manifest
) -> None:
    """Applies `status` if the status is still the one that was planned on.

    Someone may have changed the spec or a label meanwhile. What the plan did is done and has to be told all the same:
    then `observedGeneration` says which spec it was about.

    Raises:
        Conflict: another status was written since, or it is another object of that name; plan again on what it is now.
        ApiError: the server refused or failed the write.
    """
    try:
        answer = await _apply(api, controller, seen, status)
    except Conflict:
        metadata = seen["metadata"]
        live = await api.get(controller.kind, metadata["name"], metadata["namespace"])
        if live["metadata"]["uid"] != metadata["uid"] or live.get("status") != seen.get("status"):
            raise
        answer = await _apply(api, controller, live, status)
    cache.put(controller.kind, answer)


async def _apply(api: Api, controller: Controller, seen: Manifest, status: Manifest) -> Manifest:
    metadata = seen["metadata"]
    return await api.apply(
        controller.kind,
        {
            "apiVersion": controller.kind.api_version,
            "kind": controller.kind.kind,
            "metadata": {
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "resourceVersion": metadata["resourceVersion"],
            },
            "status": status,
        },
        manager=controller.status_manager,
        subresource="status",
    )


def _same(one: Any, other: Any) -> bool:
    """Equal but for times, and for what is empty on one side and left out on the other."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        keys = {key for key in one.keys() | other.keys() if key != "time" and not key.endswith("Time")}
        return all(_same(one.get(key), other.get(key)) for key in keys)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other) or (_is_nothing(one) and _is_nothing(other))


def _is_nothing(value: Any) -> bool:
    return value is None or value in ((), [], {}, "")
