"""One Lease as an API server keeps it, seen through clients that can be cut off one by one."""

from __future__ import annotations

import asyncio
from typing import Any

from tidewheel.kube.errors import AlreadyExists, ApiError, Conflict, NotFound, Unavailable


class FakeLeases:
    def __init__(self) -> None:
        self._lease: dict[str, Any] | None = None
        self._version = 0
        self._refusals: dict[str, ApiError] = {}

    @property
    def spec(self) -> dict[str, Any]:
        assert self._lease is not None
        return self._lease["spec"]

    def api_of(self, name: str) -> Any:
        return _Api(self, name)

    def cut_off(self, name: str) -> None:
        self._refusals[name] = Unavailable("no route to host")

    def refuse(self, name: str, error: ApiError) -> None:
        self._refusals[name] = error

    def restore(self, name: str) -> None:
        self._refusals.pop(name, None)

    def delete(self) -> None:
        self._lease = None

    def write(self, spec: dict[str, Any]) -> dict[str, Any]:
        self._version += 1
        metadata = {"name": "l", "namespace": "ns", "resourceVersion": str(self._version)}
        self._lease = {"metadata": metadata, "spec": spec}
        return self._lease


class _Api:
    def __init__(self, leases: FakeLeases, name: str) -> None:
        self._leases = leases
        self._name = name

    async def _answer(self) -> None:
        await asyncio.sleep(0.01)
        if self._name in self._leases._refusals:
            raise self._leases._refusals[self._name]

    async def get(self, *_: Any) -> Any:
        await self._answer()
        if self._leases._lease is None:
            raise NotFound("no such lease")
        return self._leases._lease

    async def create(self, _: Any, body: Any) -> Any:
        await self._answer()
        if self._leases._lease is not None:
            raise AlreadyExists("it is there")
        return self._leases.write(body["spec"])

    async def replace(self, _: Any, body: Any) -> Any:
        await self._answer()
        if self._leases._lease is None:
            raise NotFound("no such lease")
        if body["metadata"]["resourceVersion"] != self._leases._lease["metadata"]["resourceVersion"]:
            raise Conflict("changed since")
        return self._leases.write(body["spec"])
