"""Which replica acts: an election over one coordination.k8s.io Lease.

The rules are client-go's. A lease is held as long as its record keeps changing, judged by our own monotonic clock and
never by the times in the record, so clocks may differ. The holder renews it; if it cannot for the renew deadline,
which is shorter than the lease, it must stop at once. On a wanted end it gives the lease back, so that the next one
need not wait it out. `Election` decides; `Elector` does what it says.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from contextvars import Context
from dataclasses import dataclass
from datetime import UTC, datetime
from math import ceil

from tidewheel.api.manifest import LEASES, Manifest
from tidewheel.kube.client import Api
from tidewheel.kube.errors import AlreadyExists, ApiError, Conflict, Forbidden, NotFound

logger = logging.getLogger(__name__)


class LeaseLost(Exception):
    """Another replica may act from now on; this process must end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseTimes:
    """Seconds. `renew_deadline` below `duration` leaves time to stop before another one starts."""

    duration: float = 15.0
    renew_deadline: float = 10.0
    retry: float = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """The lease's spec as we want it; on top of `version`, or created if that is None."""

    spec: Manifest
    version: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Someone else holds the lease; look again after so many seconds."""

    seconds: float


class Election:
    """One candidate's view of the lease, and what it may do. Pure: time is passed in."""

    def __init__(self, identity: str, times: LeaseTimes) -> None:
        self.identity = identity
        self._times = times
        self._spec: Manifest = {}
        self._version: str | None = None
        self._changed_at = 0.0
        self._renewed_at: float | None = None

    @property
    def holder(self) -> str:
        """Who holds the lease as far as is known; empty if nobody does."""
        return str(self._spec.get("holderIdentity") or "")

    @property
    def leads(self) -> bool:
        """Whether we hold the lease, or held it last and nobody else does."""
        return self._renewed_at is not None

    def saw(self, lease: Manifest | None, at: float) -> None:
        """The lease as it is on the server at the monotonic time `at`; None if there is none."""
        version = None if lease is None else lease["metadata"]["resourceVersion"]
        if version != self._version or lease is None:
            self._changed_at = at
        self._spec = {} if lease is None else lease.get("spec") or {}
        self._version = version
        if self.holder not in ("", self.identity):
            self._renewed_at = None

    def decide(self, at: float, now: datetime) -> Write | Wait:
        """Take it, renew it, or wait for it."""
        held_by_other = self.holder not in ("", self.identity)
        if held_by_other:
            # What the holder promised, not what we would: replicas may be configured differently.
            promised = float(self._spec.get("leaseDurationSeconds") or self._times.duration)
            left = self._changed_at + promised - at
            if left > 0:
                return Wait(seconds=min(left, self._times.retry))
        return Write(spec=self._spec_of(self.identity, now), version=self._version)

    def wrote(self, lease: Manifest, asked_at: float) -> None:
        """Our write was accepted. It counts from when it was asked for: the answer may have been slow."""
        self.saw(lease, asked_at)
        self._renewed_at = asked_at if self.holder == self.identity else None

    def must_stop(self, at: float) -> bool:
        """Whether we held the lease and could not renew it in time."""
        return self._renewed_at is not None and at - self._renewed_at >= self._times.renew_deadline

    def seconds_left(self, at: float) -> float:
        """Until we must stop, if no renewal succeeds."""
        return max(0.0, (self._renewed_at or 0.0) + self._times.renew_deadline - at)

    def release(self, now: datetime) -> Write | None:
        """Gives the lease back; None if it is not ours."""
        if not self.leads:
            return None
        # One second, as client-go writes: whoever looks at the duration need not wait.
        spec = self._spec_of("", now) | {"leaseDurationSeconds": 1}
        return Write(spec=spec, version=self._version)

    def _spec_of(self, holder: str, now: datetime) -> Manifest:
        time_now = now.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        changes_hands = holder not in ("", self.holder)
        transitions = int(self._spec.get("leaseTransitions") or 0)
        # The first holder ever is no transition.
        return {
            "holderIdentity": holder,
            "leaseDurationSeconds": ceil(self._times.duration),
            "acquireTime": time_now if changes_hands else self._spec.get("acquireTime", time_now),
            "renewTime": time_now,
            "leaseTransitions": transitions + 1 if changes_hands and self._spec else transitions,
        }


class Elector:
    """Takes part in the election over one lease.

    Args:
        api: the API server.
        namespace: the lease's namespace.
        name: the lease's name.
        identity: this replica, unlike all others, such as the pod's name and a random suffix.
        times: see `LeaseTimes`.
        changed: called with True when we begin to lead and with False when we end.
        clock: monotonic seconds.
        now: the time for people who read the lease.
        chance: random numbers in [0, 1) for the jitter.
    """

    def __init__(
        self,
        api: Api,
        *,
        namespace: str,
        name: str,
        identity: str,
        times: LeaseTimes,
        changed: Callable[[bool], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._api = api
        self._namespace = namespace
        self._name = name
        self._times = times
        self._changed = changed
        self._clock = clock
        self._now = now
        self._chance = chance
        self._election = Election(identity, times)

    async def acquire(self) -> None:
        """Returns as soon as we lead; waits for as long as another one does."""
        told = ""
        while True:
            delay = self._jittered(self._times.retry)
            try:
                async with asyncio.timeout(self._times.renew_deadline):
                    await self._look()
                    step = self._election.decide(self._clock(), self._now())
                    if isinstance(step, Write):
                        await self._write(step)
                        break
                if step.seconds < self._times.retry:
                    # Just after it runs out, so that the next look takes it.
                    delay = step.seconds + 0.01
            except (Conflict, AlreadyExists):
                pass  # another candidate was faster; look at what it wrote
            except Forbidden as error:
                logger.error(
                    "the operator may not use its lease; give its service account get, create and update on "
                    "leases in %s: %s",
                    self._namespace,
                    error,
                )
            except (ApiError, TimeoutError) as error:
                logger.warning("the lease cannot be read or written: %s", error or "no answer in time")
            if self._election.holder not in ("", told):
                told = self._election.holder
                logger.info("standing by: %s leads", told)
            await asyncio.sleep(delay)
        logger.info("leading as %s", self._election.identity)
        self._changed(True)

    async def hold(self) -> None:
        """Renews the lease until cancelled.

        Raises:
            LeaseLost: it went to another replica, or could not be renewed in time.
        """
        try:
            while True:
                await asyncio.sleep(self._times.retry)
                await self._renew()
        finally:
            self._changed(False)

    def start_holding(self) -> asyncio.Task[None]:
        """`hold` as a task, outside of any span."""
        return asyncio.create_task(self.hold(), name="lease", context=Context())

    async def release(self) -> None:
        """Gives the lease back, so that a standby takes over at once. It is a courtesy: failing is no error."""
        step = self._election.release(self._now())
        if step is None:
            return
        try:
            async with asyncio.timeout(self._times.retry):
                await self._write(step)
        except (ApiError, TimeoutError) as error:
            logger.warning("the lease was not given back and will run out: %s", error)

    async def _renew(self) -> None:
        while True:
            at = self._clock()
            if self._election.must_stop(at):
                raise LeaseLost(f"the lease was not renewed for {self._times.renew_deadline:g} s; stopping")
            try:
                async with asyncio.timeout(self._election.seconds_left(at)):
                    step = self._election.decide(at, self._now())
                    if isinstance(step, Write):
                        await self._write(step)
                        return
            except (Conflict, NotFound):
                # Changed or deleted by someone else; as long as it names nobody else it is ours.
                await self._look_again()
            except (ApiError, TimeoutError) as error:
                logger.warning("the lease was not renewed, trying again: %s", error or "no answer in time")
                await asyncio.sleep(
                    min(self._jittered(0.5), 0.01 + self._election.seconds_left(self._clock()))
                )
            if not self._election.leads:
                raise LeaseLost(f"{self._election.holder or 'nobody'} holds the lease now; stopping")

    async def _look_again(self) -> None:
        try:
            await self._look()
        except (ApiError, TimeoutError) as error:
            logger.warning("the lease cannot be read: %s", error)
            await asyncio.sleep(self._jittered(0.25))

    async def _look(self) -> None:
        try:
            lease = await self._api.get(LEASES, self._name, self._namespace)
        except NotFound:
            lease = None
        self._election.saw(lease, self._clock())

    async def _write(self, step: Write) -> None:
        asked_at = self._clock()
        metadata: Manifest = {"name": self._name, "namespace": self._namespace}
        body: Manifest = {
            "apiVersion": LEASES.api_version,
            "kind": LEASES.kind,
            "metadata": metadata,
            "spec": step.spec,
        }
        if step.version is None:
            answer = await self._api.create(LEASES, body)
        else:
            metadata["resourceVersion"] = step.version
            answer = await self._api.replace(LEASES, body)
        self._election.wrote(answer, asked_at)

    def _jittered(self, seconds: float) -> float:
        return seconds * (1.0 + 0.2 * self._chance())
