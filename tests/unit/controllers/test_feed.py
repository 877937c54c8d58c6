"""The cache laid beside a list: what the list proves, and what only seems so."""

from __future__ import annotations

import pytest

from tidewheel.api.manifest import PODS, Manifest
from tidewheel.controllers.cache import Cache
from tidewheel.controllers.feed import Feed
from tidewheel.kube.client import Listing, ObjectVersion, Versions


def pod(version: int) -> Manifest:
    metadata = {"name": "p", "namespace": "ns", "uid": "u1", "resourceVersion": str(version)}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata}


class Server:
    """Lists one pod at a version, while something else happens meanwhile."""

    def __init__(self, version: int, meanwhile=lambda: None) -> None:
        self.version = version
        self.meanwhile = meanwhile

    async def list_versions(self, *_: object, **__: object) -> Versions:
        item = ObjectVersion("ns", "p", "u1", str(self.version))
        self.meanwhile()
        return Versions(items=(item,), resource_version=str(self.version))

    async def list(self, *_: object, **__: object) -> Listing:
        return Listing(items=(pod(self.version),), resource_version=str(self.version))


@pytest.fixture
def cache() -> Cache:
    known = Cache()
    known.put(PODS, pod(5))
    return known


def version_in(cache: Cache) -> int | None:
    return cache.version(PODS, "ns", "p", "u1")


async def test_what_a_watch_brings_during_the_list_is_kept(cache):
    server = Server(5, meanwhile=lambda: cache.put(PODS, pod(9)))
    await Feed(cache, (), lambda *_: None).settle(server, PODS, None)
    assert version_in(cache) == 9


async def test_a_server_whose_history_went_back_is_believed(cache):
    await Feed(cache, (), lambda *_: None).settle(Server(3), PODS, None)
    assert version_in(cache) == 3
