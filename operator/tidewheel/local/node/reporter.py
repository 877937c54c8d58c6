"""One pod's status on its way to the API: written when it changed, in order, retried while the API is away."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from tidewheel.api.manifest import PODS, Manifest
from tidewheel.kube.client import Api
from tidewheel.kube.errors import ApiError, Conflict, NotFound, TooManyRequests, Unavailable

logger = logging.getLogger(__name__)

_RETRY_SECONDS = 0.5


class StatusReporter:
    """Writes the pod's status whenever `changed` was called and the status is another one than before."""

    def __init__(self, api: Api, pod: Manifest, compute: Callable[[list[Manifest]], Manifest]) -> None:
        """`compute` gets the conditions that stand now and gives the status to write."""
        self._api = api
        self._pod = pod
        self._compute = compute
        self._conditions: dict[str, Manifest] = {}
        self._written: Manifest | None = None
        self._dirty = asyncio.Event()
        self._lock = asyncio.Lock()
        self.pod_changed(pod)

    def changed(self) -> None:
        """The status may be another one now."""
        self._dirty.set()

    def pod_changed(self, pod: Manifest) -> None:
        """Takes in the conditions that others wrote; those that the agent writes it knows better itself."""
        self._pod = pod
        for condition in (pod.get("status") or {}).get("conditions") or []:
            own = self._written is not None and any(
                written["type"] == condition["type"] for written in self._written["conditions"]
            )
            if not own:
                self._conditions[condition["type"]] = condition

    async def run(self) -> None:
        """Writes what changes until cancelled."""
        while True:
            await self._dirty.wait()
            await self.flush()

    async def flush(self) -> None:
        """Writes the present status if it was not written yet; returns when it is, or when the pod is gone."""
        async with self._lock:
            while True:
                self._dirty.clear()
                status = self._compute(list(self._conditions.values()))
                if status == self._written or await self._write(status):
                    return
                await asyncio.sleep(_RETRY_SECONDS)

    async def _write(self, status: Manifest) -> bool:
        metadata = self._pod["metadata"]
        patch = {"metadata": {"uid": metadata["uid"]}, "status": status}
        try:
            await self._api.patch(
                PODS, metadata["name"], patch, metadata["namespace"], type="strategic", subresource="status"
            )
        except (Unavailable, TooManyRequests):
            return False
        except (NotFound, Conflict):
            return True  # the pod is gone, or a namesake has its place
        except ApiError as error:
            logger.error("Status of pod %s/%s refused: %s", metadata["namespace"], metadata["name"], error)
            return True
        self._written = status
        for condition in status["conditions"]:
            self._conditions[condition["type"]] = condition
        return True
