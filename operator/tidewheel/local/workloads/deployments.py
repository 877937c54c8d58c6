"""The Deployment controller: one ReplicaSet per pod template, resized step by step, with the conditions clients wait for."""

from __future__ import annotations

from datetime import UTC, datetime

from tidewheel.api.manifest import DEPLOYMENTS, REPLICA_SETS, Manifest
from tidewheel.kube.client import Api
from tidewheel.kube.errors import AlreadyExists
from tidewheel.local.events import EventRecorder
from tidewheel.local.informer import Informer, Key
from tidewheel.local.workloads.loop import Loop, is_controlled_by, owner_reference
from tidewheel.local.workloads.rollout import SetSize, bounds, next_sizes, template_hash

REVISION = "deployment.kubernetes.io/revision"
HASH_LABEL = "pod-template-hash"
_DEFAULT_DEADLINE_SECONDS = 600
_DEFAULT_HISTORY = 10


class Deployments:
    """Keeps every Deployment's ReplicaSets as its spec says."""

    def __init__(self, api: Api, deployments: Informer, sets: Informer, recorder: EventRecorder) -> None:
        self._api = api
        self._deployments = deployments
        self._sets = sets
        self._recorder = recorder
        self.loop = Loop("deployment", self._sync)
        deployments.subscribe(lambda _, after: self.loop.enqueue(_key(after)) if after else None)
        sets.subscribe(lambda before, after: self.loop.enqueue_owner(after or before or {}, "Deployment"))

    async def _sync(self, key: Key) -> None:
        deployment = self._deployments.get(*key)
        if deployment is None or deployment["metadata"].get("deletionTimestamp"):
            return
        owned = [s for s in self._sets.in_namespace(key[0]) if is_controlled_by(s, deployment)]
        current = _set_of_template(deployment, owned)
        if current is None:
            current = await self._create_set(deployment, owned)
            owned = [*owned, current]
        current = await self._keep_revision(deployment, current, owned)
        old = [s for s in owned if s["metadata"]["name"] != current["metadata"]["name"]]
        if not deployment["spec"].get("paused"):
            sizes = next_sizes(deployment["spec"], _size(current), [_size(s) for s in old])
            for one in owned:
                name = one["metadata"]["name"]
                if sizes.get(name, one["spec"].get("replicas")) != one["spec"].get("replicas"):
                    await self._resize(deployment, one, sizes[name])
        await self._write_status(deployment, current, old)
        await self._forget_history(deployment, old)

    async def _create_set(self, deployment: Manifest, owned: list[Manifest]) -> Manifest:
        metadata, spec = deployment["metadata"], deployment["spec"]
        hashed = template_hash(spec["template"])
        template = _labelled(spec["template"], hashed)
        body: Manifest = {
            "apiVersion": "apps/v1",
            "kind": "ReplicaSet",
            "metadata": {
                "name": f"{metadata['name']}-{hashed}",
                "namespace": metadata["namespace"],
                "labels": template["metadata"]["labels"],
                "annotations": {REVISION: str(1 + max((_revision(s) for s in owned), default=0))},
                "ownerReferences": [owner_reference(deployment, "apps/v1", "Deployment")],
            },
            "spec": {
                "replicas": 0,
                "selector": {
                    **spec["selector"],
                    "matchLabels": {**(spec["selector"].get("matchLabels") or {}), HASH_LABEL: hashed},
                },
                "template": template,
                "minReadySeconds": spec.get("minReadySeconds", 0),
            },
        }
        try:
            return await self._api.create(REPLICA_SETS, body)
        except AlreadyExists:
            return await self._api.get(REPLICA_SETS, body["metadata"]["name"], metadata["namespace"])

    async def _keep_revision(
        self, deployment: Manifest, current: Manifest, owned: list[Manifest]
    ) -> Manifest:
        """The set in use has the highest revision (a rollback raises it), and the Deployment shows it."""
        others = [_revision(s) for s in owned if s["metadata"]["uid"] != current["metadata"]["uid"]]
        revision = max(_revision(current), 1 + max(others, default=0))
        namespace = deployment["metadata"]["namespace"]
        annotate = {"metadata": {"annotations": {REVISION: str(revision)}}}
        if _revision(current) != revision:
            name = current["metadata"]["name"]
            current = await self._api.patch(REPLICA_SETS, name, annotate, namespace)
        if _revision(deployment) != revision:
            await self._api.patch(DEPLOYMENTS, deployment["metadata"]["name"], annotate, namespace)
        return current

    async def _resize(self, deployment: Manifest, replica_set: Manifest, replicas: int) -> None:
        name, before = replica_set["metadata"]["name"], replica_set["spec"].get("replicas", 0)
        await self._api.patch(
            REPLICA_SETS, name, {"spec": {"replicas": replicas}}, deployment["metadata"]["namespace"]
        )
        direction = "up" if replicas > before else "down"
        message = f"Scaled {direction} replica set {name} from {before} to {replicas}"
        self._recorder.event({**deployment, "kind": "Deployment"}, "Normal", "ScalingReplicaSet", message)

    async def _write_status(self, deployment: Manifest, current: Manifest, old: list[Manifest]) -> None:
        status = deployment_status(deployment, current, old, now=datetime.now(UTC))
        before = deployment.get("status") or {}
        if {key: before.get(key) for key in status} != status:
            metadata = deployment["metadata"]
            await self._api.patch(
                DEPLOYMENTS, metadata["name"], {"status": status}, metadata["namespace"], subresource="status"
            )
        if status["conditions"][1]["reason"] == "ReplicaSetUpdated":
            deadline = float(deployment["spec"].get("progressDeadlineSeconds", _DEFAULT_DEADLINE_SECONDS))
            self.loop.enqueue(_key(deployment), after_seconds=deadline + 1.0)

    async def _forget_history(self, deployment: Manifest, old: list[Manifest]) -> None:
        limit = int(deployment["spec"].get("revisionHistoryLimit", _DEFAULT_HISTORY))
        idle = sorted(
            (s for s in old if not s["spec"].get("replicas") and not _count(s, "replicas")), key=_revision
        )
        for one in idle[: max(len(idle) - limit, 0)]:
            metadata = one["metadata"]
            await self._api.delete(REPLICA_SETS, metadata["name"], metadata["namespace"], uid=metadata["uid"])


def deployment_status(
    deployment: Manifest, current: Manifest, old: list[Manifest], *, now: datetime
) -> Manifest:
    """The status that `kubectl rollout status` and `helm --wait` read."""
    spec, before = deployment["spec"], deployment.get("status") or {}
    wanted = int(spec.get("replicas", 1))
    sets = [current, *old]
    replicas, ready = (sum(_count(s, key) for s in sets) for key in ("replicas", "readyReplicas"))
    available = sum(_count(s, "availableReplicas") for s in sets)
    updated = _count(current, "replicas")
    standing = {condition["type"]: condition for condition in before.get("conditions") or []}
    complete = updated == wanted == replicas == available
    moved = any(
        before.get(key, 0) != value
        for key, value in (
            ("updatedReplicas", updated),
            ("availableReplicas", available),
            ("replicas", replicas),
        )
    )
    progressing = _progress(deployment, current, standing.get("Progressing"), complete, moved, now)
    enough = available >= wanted - bounds(spec)[1]
    availability = {
        "type": "Available",
        "status": "True" if enough else "False",
        "reason": "MinimumReplicasAvailable" if enough else "MinimumReplicasUnavailable",
        "message": f"Deployment {'has' if enough else 'does not have'} minimum availability.",
    }
    return {
        "observedGeneration": deployment["metadata"].get("generation", 1),
        "replicas": replicas,
        "updatedReplicas": updated,
        "readyReplicas": ready,
        "availableReplicas": available,
        "unavailableReplicas": max(wanted - available, 0),
        "conditions": [_dated(one, standing, now) for one in (availability, progressing)],
    }


def _progress(
    deployment: Manifest,
    current: Manifest,
    before: Manifest | None,
    complete: bool,
    moved: bool,
    now: datetime,
) -> Manifest:
    name = current["metadata"]["name"]
    if complete:
        reason, status, message = (
            "NewReplicaSetAvailable",
            "True",
            f'ReplicaSet "{name}" has successfully progressed.',
        )
    else:
        reason, status, message = "ReplicaSetUpdated", "True", f'ReplicaSet "{name}" is progressing.'
        deadline = int(deployment["spec"].get("progressDeadlineSeconds", _DEFAULT_DEADLINE_SECONDS))
        stood = before is not None and before["reason"] in (reason, "ProgressDeadlineExceeded")
        if before is not None and stood and not moved and before["message"].split('"')[1:2] == [name]:
            waited = (now - datetime.fromisoformat(before["lastUpdateTime"])).total_seconds()
            if waited > deadline or before["reason"] == "ProgressDeadlineExceeded":
                reason, status = "ProgressDeadlineExceeded", "False"
                message = f'ReplicaSet "{name}" has timed out progressing.'
    return {"type": "Progressing", "status": status, "reason": reason, "message": message, "_moved": moved}


def _dated(condition: Manifest, standing: dict[str, Manifest], now: datetime) -> Manifest:
    moved = condition.pop("_moved", False)
    before = standing.get(condition["type"]) or {}
    stamp = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    same = all(before.get(key) == condition[key] for key in ("status", "reason", "message"))
    kept = before.get("lastUpdateTime") if same and not moved else None
    since = before.get("lastTransitionTime") if before.get("status") == condition["status"] else None
    return condition | {"lastUpdateTime": kept or stamp, "lastTransitionTime": since or stamp}


def _set_of_template(deployment: Manifest, owned: list[Manifest]) -> Manifest | None:
    hashed = template_hash(deployment["spec"]["template"])
    return next((s for s in owned if (s["metadata"].get("labels") or {}).get(HASH_LABEL) == hashed), None)


def _labelled(template: Manifest, hashed: str) -> Manifest:
    metadata = template.get("metadata") or {}
    labels = {**(metadata.get("labels") or {}), HASH_LABEL: hashed}
    return {**template, "metadata": {**metadata, "labels": labels}}


def _size(replica_set: Manifest) -> SetSize:
    return SetSize(
        name=replica_set["metadata"]["name"],
        replicas=int(replica_set["spec"].get("replicas", 0)),
        available=_count(replica_set, "availableReplicas"),
    )


def _count(obj: Manifest, field: str) -> int:
    return int((obj.get("status") or {}).get(field, 0))


def _revision(obj: Manifest) -> int:
    return int((obj["metadata"].get("annotations") or {}).get(REVISION, 0))


def _key(obj: Manifest) -> Key:
    return obj["metadata"]["namespace"], obj["metadata"]["name"]
