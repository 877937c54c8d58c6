"""Pods that only pretend: Running and Ready at once, without processes, for measuring control planes with many of them."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from datetime import UTC, datetime
from ipaddress import IPv4Address
from typing import Literal

from tidewheel.api.manifest import PODS, Manifest
from tidewheel.kube.client import Api
from tidewheel.kube.errors import ApiError, Conflict, Invalid, NotFound
from tidewheel.local.node.status import ContainerRecord, PodRecord, Running, Terminated, pod_status

logger = logging.getLogger(__name__)

_FIRST_ADDRESS = int(IPv4Address("10.64.0.1"))
_WRITERS = 32

_Act = Literal["start", "remove"]


class StandIn:
    """Answers for the pods of an agent's nodes with status writes alone, some dozens at a time."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._waiting: OrderedDict[str, tuple[_Act, Manifest]] = OrderedDict()
        self._more = asyncio.Event()
        self._started: set[str] = set()
        self._count = 0

    def pod_changed(self, pod: Manifest) -> None:
        """Sees to it that the pod soon is what its spec and metadata ask for."""
        metadata = pod["metadata"]
        uid = metadata["uid"]
        if metadata.get("deletionTimestamp"):
            self._put(uid, "remove", pod)
        elif uid not in self._started and (pod.get("status") or {}).get("phase", "Pending") == "Pending":
            self._started.add(uid)
            self._put(uid, "start", pod)

    def pod_gone(self, pod: Manifest) -> None:
        """Forgets the pod."""
        self._started.discard(pod["metadata"]["uid"])
        self._waiting.pop(pod["metadata"]["uid"], None)

    async def run(self) -> None:
        """Works until cancelled."""
        async with asyncio.TaskGroup() as group:
            for number in range(_WRITERS):
                group.create_task(self._work(), name=f"stand-in {number}")

    def _put(self, uid: str, act: _Act, pod: Manifest) -> None:
        self._waiting[uid] = (act, pod)
        self._more.set()

    async def _work(self) -> None:
        while True:
            while not self._waiting:
                self._more.clear()
                await self._more.wait()
            uid, (act, pod) = self._waiting.popitem(last=False)
            metadata = pod["metadata"]
            try:
                if act == "remove":
                    await self._api.delete(
                        PODS, metadata["name"], metadata["namespace"], uid=uid, grace_seconds=0
                    )
                else:
                    patch = {"metadata": {"uid": uid}, "status": self._status(pod)}
                    await self._api.patch(
                        PODS,
                        metadata["name"],
                        patch,
                        metadata["namespace"],
                        type="strategic",
                        subresource="status",
                    )
            except (NotFound, Conflict):
                continue
            except Invalid as error:
                logger.error("Stand-in for pod %s refused: %s", metadata["name"], error)
            except ApiError:
                await asyncio.sleep(0.5)
                self._waiting.setdefault(uid, (act, pod))

    def _status(self, pod: Manifest) -> Manifest:
        now = datetime.now(UTC)
        self._count += 1
        spec = pod["spec"]
        record = PodRecord(
            restart_policy=spec.get("restartPolicy", "Always"),
            init={
                c["name"]: ContainerRecord(
                    name=c["name"],
                    image=c.get("image", ""),
                    state=Terminated(exit_code=0, reason="Completed", started_at=now, finished_at=now),
                    ready=True,
                )
                for c in spec.get("initContainers") or []
            },
            main={
                c["name"]: ContainerRecord(
                    name=c["name"],
                    image=c.get("image", ""),
                    state=Running(now),
                    ready=True,
                    started=True,
                    container_id=f"stand-in://{pod['metadata']['uid']}/{c['name']}",
                )
                for c in spec["containers"]
            },
            initialized=True,
            pod_ip=str(IPv4Address(_FIRST_ADDRESS + self._count)),
            started_at=now,
        )
        return pod_status(record, (pod.get("status") or {}).get("conditions") or [], now=now)
