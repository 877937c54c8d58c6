"""A write that was refused waits for its turn, however often the object is looked at meanwhile."""

from __future__ import annotations

from datetime import timedelta

import pytest
from tests.unit.planning.world import KEY, World

from tidewheel.api.manifest import Manifest, Resource
from tidewheel.controllers.execute import Executor
from tidewheel.controllers.queue import Backoff
from tidewheel.kube.errors import Forbidden, NotFound

SOMEONE_ELSES = {
    "metadata": {"name": "chat-routes", "namespace": "ns", "uid": "uid-other", "resourceVersion": "1"}
}


class Server:
    """An API server in which the routes cannot be written, and everything else can."""

    def __init__(self, *, name_taken: bool) -> None:
        self.name_taken = name_taken
        self.attempts = 0
        self._written = 0

    async def get(self, _resource: Resource, name: str, _namespace: str) -> Manifest:
        if name == "chat-routes":
            self.attempts += 1
            if self.name_taken:
                return SOMEONE_ELSES
        raise NotFound(f"no {name}", status=404)

    async def apply(self, _resource: Resource, manifest: Manifest, **_: object) -> Manifest:
        if manifest["metadata"]["name"] == "chat-routes":
            raise Forbidden("the quota is used up", status=403)
        return self._stored(manifest)

    async def create(self, _resource: Resource, manifest: Manifest, **_: object) -> Manifest:
        return self._stored(manifest)

    def _stored(self, manifest: Manifest) -> Manifest:
        self._written += 1
        marks = {"uid": f"uid-{self._written}", "resourceVersion": str(self._written)}
        return manifest | {"metadata": manifest["metadata"] | marks}


@pytest.mark.parametrize(
    "name_taken", [True, False], ids=["the name is someone else's", "writing is forbidden"]
)
async def test_a_refused_map_is_sent_again_when_its_wait_is_over_and_not_before(name_taken: bool):
    world, server, seconds = World(), Server(name_taken=name_taken), 0.0
    executor = Executor(
        world.controller, server, world.cache, clock=lambda: seconds, backoff=Backoff(first=2.0, most=300.0)
    )

    async def look(*, times: int) -> None:
        for _ in range(times):
            world.now += timedelta(milliseconds=10)
            plan = world.controller.plan(KEY, world.cache, world.now, executor.refusals(KEY))
            await executor.carry_out(KEY, "uid-chat", executor.changes(KEY, "uid-chat", plan))

    await look(times=20)
    assert server.attempts == 1
    assert [refusal.name for refusal in executor.refusals(KEY)] == ["chat-routes"]
    seconds += 300.0
    await look(times=20)
    assert server.attempts == 2
