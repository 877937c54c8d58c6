"""The operator looks at pods' metrics over real sockets: at services whose planner asks, window by window."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from tidewheel.api import meta
from tidewheel.api.manifest import PD_SERVICES, PODS
from tidewheel.controllers.cache import Cache
from tidewheel.controllers.controller import Key
from tidewheel.controllers.load_watch import LoadBook, LoadWatch
from tidewheel.planning.load.page import ARRIVALS, Series

KEY = Key("shop", "chat")
GATEWAY, SILENT = "127.61.7.1", "127.61.7.2"


class Pod:
    """A pod's metrics page."""

    def __init__(self) -> None:
        self.arrivals = 0
        self.body: str | None = None
        self.asked = 0

    async def page(self, _: web.Request) -> web.Response:
        self.asked += 1
        body = f'tidewheel_gateway_arrivals_total{{scenario="default"}} {self.arrivals}\n'
        return web.Response(text=body if self.body is None else self.body)


@asynccontextmanager
async def serving(pod: Pod, address: str) -> AsyncIterator[None]:
    app = web.Application()
    app.router.add_get("/metrics", pod.page)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, address, meta.HTTP_PORT).start()
    try:
        yield
    finally:
        await runner.cleanup()


class World:
    """A cache with one service, a clock that is moved by hand, and who was told of windows."""

    def __init__(self, seconds: float | None = 10.0) -> None:
        self.cache = Cache()
        self.book = LoadBook()
        self.now = 1000.0
        self.seconds = seconds
        self.told: list[Key] = []
        self.version = 0
        self.put(PD_SERVICES, "chat", uid="s")
        self.watch = LoadWatch(
            self.cache,
            self.book,
            seconds_of=lambda _: self.seconds,
            has_ended=self.told.append,
            clock=lambda: self.now,
        )

    def put(self, resource, name: str, *, uid: str, **more) -> None:
        self.version += 1
        metadata = {"namespace": "shop", "name": name, "uid": uid, "resourceVersion": str(self.version)}
        if resource is PODS:
            metadata["ownerReferences"] = [
                {"controller": True, "kind": "PDService", "name": "chat", "uid": "s", "apiVersion": "tidewheel.dev/v1alpha1"}
            ]  # fmt: skip
        self.cache.put(resource, {"metadata": metadata, **more})

    def add_pod(self, uid: str, address: str, phase: str = "Running") -> None:
        self.put(PODS, f"pod-{uid}", uid=uid, status={"phase": phase, "podIP": address})

    async def look(self, after: float = 0.0) -> None:
        self.now += after
        await self.watch.look_at_those_due()

    def arrivals(self) -> tuple[float, float]:
        window = self.book.window(KEY)
        assert window is not None
        series = Series(ARRIVALS, "default")
        return window.first.pods["g"].values[series], window.last.pods["g"].values[series]


async def test_each_window_has_the_pods_pages_at_its_beginning_and_end():
    world, pod = World(), Pod()
    world.add_pod("g", GATEWAY)
    async with serving(pod, GATEWAY), world.watch:
        await world.look()
        assert world.book.window(KEY) is None
        pod.arrivals = 7
        await world.look(after=10)
        assert world.arrivals() == (0, 7)
        pod.arrivals = 9
        await world.look(after=10)
        assert world.arrivals() == (7, 9)
    assert world.told == [KEY, KEY]


async def test_nobody_is_asked_before_a_window_has_ended():
    world, pod = World(), Pod()
    world.add_pod("g", GATEWAY)
    async with serving(pod, GATEWAY), world.watch:
        await world.look()
        await world.look(after=9.9)
        assert pod.asked == 1
        await world.look(after=0.1)
        assert pod.asked == 2


async def test_a_service_without_a_planner_is_left_alone_and_found_when_it_gets_one():
    world, pod = World(seconds=None), Pod()
    world.add_pod("g", GATEWAY)
    async with serving(pod, GATEWAY), world.watch:
        await world.look()
        assert pod.asked == 0
        world.seconds = 10.0
        await world.look(after=5)
        await world.look(after=10)
        assert world.told == [KEY]
        world.seconds = None
        await world.look(after=10)
    assert world.book.window(KEY) is None


@pytest.mark.parametrize("body", ["<html>", "x" * 5_000_000], ids=["no page of metrics", "far too long"])
async def test_a_pod_that_shows_nonsense_is_left_out_and_the_others_are_not(body):
    world, pod, other = World(), Pod(), Pod()
    world.add_pod("g", GATEWAY)
    world.add_pod("h", SILENT)
    other.body = body
    async with serving(pod, GATEWAY), serving(other, SILENT), world.watch:
        await world.look()
        await world.look(after=10)
    window = world.book.window(KEY)
    assert window is not None
    assert window.last.pods.keys() == {"g"}


async def test_pods_that_cannot_answer_are_not_waited_for():
    world, pod = World(), Pod()
    world.add_pod("g", GATEWAY)
    world.add_pod("h", SILENT)  # nobody listens
    world.add_pod("i", "", phase="Pending")
    async with serving(pod, GATEWAY), world.watch:
        await asyncio.wait_for(world.look(), timeout=5)
        await world.look(after=10)
    window = world.book.window(KEY)
    assert window is not None
    assert window.last.pods.keys() == {"g"}


async def test_what_a_service_was_seen_doing_goes_with_it():
    world, pod = World(), Pod()
    world.add_pod("g", GATEWAY)
    async with serving(pod, GATEWAY), world.watch:
        await world.look()
        await world.look(after=10)
        world.cache.forget(PD_SERVICES, "shop", "chat", "s")
        await world.look(after=10)
    assert world.book.window(KEY) is None
