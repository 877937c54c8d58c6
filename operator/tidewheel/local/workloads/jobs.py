"""The Job controller: pods until enough have succeeded or too many failed. What Helm's hooks and tests need, no more."""

from __future__ import annotations

from datetime import UTC, datetime

from tidewheel.api.manifest import PODS, Manifest, Resource
from tidewheel.kube.client import Api
from tidewheel.local.informer import Informer, Key
from tidewheel.local.workloads.loop import Loop, is_active, is_controlled_by, is_ready, owner_reference

JOBS = Resource("batch", "v1", "jobs", "Job")


class Jobs:
    """Runs every Job to its end."""

    def __init__(self, api: Api, jobs: Informer, pods: Informer) -> None:
        self._api = api
        self._jobs = jobs
        self._pods = pods
        self.loop = Loop("job", self._sync)
        jobs.subscribe(lambda _, after: self.loop.enqueue(_key(after)) if after else None)
        pods.subscribe(lambda before, after: self.loop.enqueue_owner(after or before or {}, "Job"))

    async def _sync(self, key: Key) -> None:
        job = self._jobs.get(*key)
        if job is None or job["metadata"].get("deletionTimestamp") or _is_finished(job):
            await self._remove_expired(job)
            return
        spec = job["spec"]
        owned = [p for p in self._pods.in_namespace(key[0]) if is_controlled_by(p, job)]
        active = [p for p in owned if is_active(p)]
        succeeded = sum((p.get("status") or {}).get("phase") == "Succeeded" for p in owned)
        failed = sum((p.get("status") or {}).get("phase") == "Failed" for p in owned)
        completions = int(spec.get("completions") or 1)
        verdict: tuple[str, str, str] | None = None
        if succeeded >= completions:
            verdict = ("Complete", "CompletionsReached", "Reached expected number of succeeded pods")
        elif failed > int(spec.get("backoffLimit", 6)):
            verdict = ("Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit")
        elif _seconds_over(job) is not None and (_seconds_over(job) or 0) >= 0:
            verdict = ("Failed", "DeadlineExceeded", "Job was active longer than specified deadline")
        if verdict is None and not spec.get("suspend"):
            room = min(int(spec.get("parallelism", 1)), completions - succeeded) - len(active)
            for number in range(room):
                await self._create(job, attempt=len(owned) + number)
            if (left := _seconds_over(job)) is not None:
                self.loop.enqueue(key, after_seconds=-left + 0.1)
        elif verdict is not None:
            for pod in active:
                metadata = pod["metadata"]
                await self._api.delete(PODS, metadata["name"], metadata["namespace"], uid=metadata["uid"])
        await self._write_status(job, active, succeeded, failed, verdict)

    async def _create(self, job: Manifest, *, attempt: int) -> None:
        metadata, template = job["metadata"], job["spec"]["template"]
        own = template.get("metadata") or {}
        # A name by attempt makes a repeated sync fail on the existing pod instead of adding one.
        name = f"{metadata['name'][:50]}-{metadata['uid'][:5]}-{attempt}"
        labels = {
            **(own.get("labels") or {}),
            "batch.kubernetes.io/controller-uid": metadata["uid"],
            "batch.kubernetes.io/job-name": metadata["name"],
            "controller-uid": metadata["uid"],
            "job-name": metadata["name"],
        }
        await self._api.create(
            PODS,
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {
                    "name": name,
                    "namespace": metadata["namespace"],
                    "labels": labels,
                    "annotations": own.get("annotations") or {},
                    "ownerReferences": [owner_reference(job, "batch/v1", "Job")],
                },
                "spec": template["spec"],
            },
        )

    async def _write_status(
        self,
        job: Manifest,
        active: list[Manifest],
        succeeded: int,
        failed: int,
        verdict: tuple[str, str, str] | None,
    ) -> None:
        before = job.get("status") or {}
        now = _now()
        status: Manifest = {
            "startTime": before.get("startTime") or now,
            "active": 0 if verdict else len(active),
            "ready": 0 if verdict else sum(is_ready(pod) for pod in active),
            "succeeded": succeeded,
            "failed": failed,
            "terminating": 0,
            "uncountedTerminatedPods": {},
        }
        if verdict is not None:
            kind, reason, message = verdict
            stamps = {"lastProbeTime": now, "lastTransitionTime": now}
            early = "SuccessCriteriaMet" if kind == "Complete" else "FailureTarget"
            status["conditions"] = [
                {"type": name, "status": "True", "reason": reason, "message": message, **stamps}
                for name in (early, kind)
            ]
            if kind == "Complete":
                status["completionTime"] = now
        if any(
            before.get(key, 0 if isinstance(value, int) else None) != value for key, value in status.items()
        ):
            metadata = job["metadata"]
            await self._api.patch(
                JOBS, metadata["name"], {"status": status}, metadata["namespace"], subresource="status"
            )

    async def _remove_expired(self, job: Manifest | None) -> None:
        if (
            job is None
            or "ttlSecondsAfterFinished" not in job["spec"]
            or job["metadata"].get("deletionTimestamp")
        ):
            return
        ended = next(c["lastTransitionTime"] for c in job["status"]["conditions"] if c["type"] in _FINAL)
        age = (datetime.now(UTC) - datetime.fromisoformat(ended)).total_seconds()
        left = float(job["spec"]["ttlSecondsAfterFinished"]) - age
        if left > 0:
            self.loop.enqueue(_key(job), after_seconds=left + 0.1)
        else:
            metadata = job["metadata"]
            await self._api.delete(
                JOBS,
                metadata["name"],
                metadata["namespace"],
                uid=metadata["uid"],
                propagation="Background",
            )


_FINAL = ("Complete", "Failed")


def _is_finished(job: Manifest) -> bool:
    conditions = (job.get("status") or {}).get("conditions") or []
    return any(c["type"] in _FINAL and c["status"] == "True" for c in conditions)


def _seconds_over(job: Manifest) -> float | None:
    """Seconds since the Job's deadline, negative before it; None without a deadline or before the start."""
    deadline = job["spec"].get("activeDeadlineSeconds")
    started = (job.get("status") or {}).get("startTime")
    if deadline is None or not started:
        return None
    return (datetime.now(UTC) - datetime.fromisoformat(started)).total_seconds() - float(deadline)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _key(obj: Manifest) -> Key:
    return obj["metadata"]["namespace"], obj["metadata"]["name"]
