"""The ReplicaSet controller: as many pods as asked for, the worst ones first to go."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime

from tidewheel.api.manifest import PODS, REPLICA_SETS, Manifest
from tidewheel.kube.client import Api
from tidewheel.kube.errors import AlreadyExists, ApiError, Conflict, NotFound
from tidewheel.local.events import EventRecorder
from tidewheel.local.informer import Informer, Key
from tidewheel.local.workloads.loop import Loop, is_active, is_controlled_by, is_ready, owner_reference

_SUFFIX_LETTERS = "bcdfghjklmnpqrstvwxz2456789"
_SUFFIX_LENGTH = 5


class ReplicaSets:
    """Keeps every ReplicaSet's pods as many as its spec says."""

    def __init__(self, api: Api, sets: Informer, pods: Informer, recorder: EventRecorder) -> None:
        self._api = api
        self._sets = sets
        self._pods = pods
        self._recorder = recorder
        #: Pods just created that the informer has not shown yet, so that none is created twice.
        self._expected: dict[str, set[str]] = {}
        self.loop = Loop("replicaset", self._sync)
        sets.subscribe(lambda _, after: self.loop.enqueue(_key(after)) if after else None)
        pods.subscribe(lambda before, after: self.loop.enqueue_owner(after or before or {}, "ReplicaSet"))

    async def _sync(self, key: Key) -> None:
        replica_set = self._sets.get(*key)
        if replica_set is None or replica_set["metadata"].get("deletionTimestamp"):
            return
        uid = replica_set["metadata"]["uid"]
        owned = [p for p in self._pods.in_namespace(key[0]) if is_controlled_by(p, replica_set)]
        expected = self._expected.get(uid, set()) - {p["metadata"]["name"] for p in owned}
        self._expected[uid] = expected
        active = [pod for pod in owned if is_active(pod)]
        wanted = int(replica_set["spec"].get("replicas", 1))
        missing = wanted - len(active) - len(expected)
        for _ in range(missing):
            await self._create(replica_set)
        if missing < 0:
            for pod in sorted(active, key=_worth)[:-missing]:
                await self._delete(replica_set, pod)
        if expected:
            self.loop.enqueue(key, after_seconds=5.0)
            self._expected[uid] = set()
        await self._write_status(replica_set, active)

    async def _create(self, replica_set: Manifest) -> None:
        metadata, template = replica_set["metadata"], replica_set["spec"]["template"]
        suffix = "".join(secrets.choice(_SUFFIX_LETTERS) for _ in range(_SUFFIX_LENGTH))
        name = f"{metadata['name'][:57]}-{suffix}"
        own = template.get("metadata") or {}
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name,
                "namespace": metadata["namespace"],
                "generateName": f"{metadata['name']}-",
                "labels": own.get("labels") or {},
                "annotations": own.get("annotations") or {},
                "ownerReferences": [owner_reference(replica_set, "apps/v1", "ReplicaSet")],
            },
            "spec": template["spec"],
        }
        about = {**replica_set, "apiVersion": "apps/v1", "kind": "ReplicaSet"}
        try:
            await self._api.create(PODS, pod)
        except AlreadyExists:
            return
        except ApiError as error:
            self._recorder.event(about, "Warning", "FailedCreate", f"Error creating: {error}")
            raise
        self._expected.setdefault(metadata["uid"], set()).add(name)
        self._recorder.event(about, "Normal", "SuccessfulCreate", f"Created pod: {name}")

    async def _delete(self, replica_set: Manifest, pod: Manifest) -> None:
        metadata = pod["metadata"]
        try:
            await self._api.delete(PODS, metadata["name"], metadata["namespace"], uid=metadata["uid"])
        except (NotFound, Conflict):
            return
        about = {**replica_set, "apiVersion": "apps/v1", "kind": "ReplicaSet"}
        self._recorder.event(about, "Normal", "SuccessfulDelete", f"Deleted pod: {metadata['name']}")

    async def _write_status(self, replica_set: Manifest, active: list[Manifest]) -> None:
        ready = [pod for pod in active if is_ready(pod)]
        patience = float(replica_set["spec"].get("minReadySeconds") or 0)
        ages = [_ready_seconds(pod) for pod in ready]
        available = sum(age >= patience for age in ages)
        status = {
            "observedGeneration": replica_set["metadata"].get("generation", 1),
            "replicas": len(active),
            "fullyLabeledReplicas": len(active),
            "readyReplicas": len(ready),
            "availableReplicas": available,
        }
        before = replica_set.get("status") or {}
        if any(before.get(key, 0) != value for key, value in status.items()):
            metadata = replica_set["metadata"]
            await self._api.patch(
                REPLICA_SETS,
                metadata["name"],
                {"status": status},
                metadata["namespace"],
                subresource="status",
            )
        young = [patience - age for age in ages if age < patience]
        if young:
            self.loop.enqueue(_key(replica_set), after_seconds=min(young) + 0.1)


def _worth(pod: Manifest) -> tuple[bool, bool, bool, str]:
    """What is not placed, not running or not ready goes first; among equals the youngest."""
    phase = (pod.get("status") or {}).get("phase")
    age = pod["metadata"]["creationTimestamp"]
    return bool(pod["spec"].get("nodeName")), phase == "Running", is_ready(pod), _inverted(age)


def _inverted(text: str) -> str:
    return "".join(chr(0x10FFFF - ord(letter)) for letter in text)


def _ready_seconds(pod: Manifest) -> float:
    conditions = pod["status"]["conditions"]
    since = next(c["lastTransitionTime"] for c in conditions if c["type"] == "Ready")
    return (datetime.now(UTC) - datetime.fromisoformat(since)).total_seconds()


def _key(obj: Manifest) -> Key:
    return obj["metadata"]["namespace"], obj["metadata"]["name"]
