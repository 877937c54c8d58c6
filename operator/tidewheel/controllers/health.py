"""The probes and the metrics page. `/healthz` fails when a restart would help, `/readyz` until all is known."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Self

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from tidewheel.controllers.settings import Address

#: What is wrong, or None. A check must not wait for anything.
Check = Callable[[], str | None]


class ServerAddressTaken(Exception):
    """Something else listens on the address; the message names the flag to change."""


class HealthServer:
    """Serves /healthz, /readyz and /metrics, each on the addresses that were asked for."""

    def __init__(
        self,
        *,
        health: Address | None,
        metrics: Address | None,
        registry: CollectorRegistry,
        live: Mapping[str, Check],
        ready: Mapping[str, Check],
    ) -> None:
        self._health = health
        self._metrics = metrics
        self._registry = registry
        self._live = live
        self._ready = ready
        self._runners: list[web.AppRunner] = []
        #: Where the servers really listen, with the ports the system chose.
        self.health_address: Address | None = None
        self.metrics_address: Address | None = None

    async def __aenter__(self) -> Self:
        health, metrics = self._health, self._metrics
        try:
            if health is not None:
                self.health_address = await self._listen(
                    health, "--health-address", self._probes() + (self._scrape() if metrics == health else [])
                )
            if metrics is not None and metrics != health:
                self.metrics_address = await self._listen(metrics, "--metrics-address", self._scrape())
        except BaseException:
            await self.__aexit__()
            raise
        if metrics == health:
            self.metrics_address = self.health_address
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(runner.cleanup() for runner in self._runners))
        self._runners.clear()

    async def _listen(self, address: Address, flag: str, routes: list[web.RouteDef]) -> Address:
        app = web.Application()
        app.add_routes(routes)
        runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
        await runner.setup()
        self._runners.append(runner)
        try:
            await web.TCPSite(runner, address.host, address.port).start()
        except OSError as error:
            raise ServerAddressTaken(
                f"{flag} {address}: {error.strerror or error}; choose another"
            ) from error
        return Address(host=address.host, port=runner.addresses[0][1])

    def _probes(self) -> list[web.RouteDef]:
        async def live(_: web.Request) -> web.Response:
            return _answer(self._live)

        async def ready(_: web.Request) -> web.Response:
            return _answer(self._ready)

        return [web.get("/healthz", live), web.get("/livez", live), web.get("/readyz", ready)]

    def _scrape(self) -> list[web.RouteDef]:
        async def metrics(_: web.Request) -> web.Response:
            return web.Response(
                body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
            )

        return [web.get("/metrics", metrics)]


def _answer(checks: Mapping[str, Check]) -> web.Response:
    """As kube-apiserver answers: one line per check."""
    lines, well = [], True
    for name, check in checks.items():
        problem = check()
        well = well and problem is None
        lines.append(f"[+]{name} ok" if problem is None else f"[-]{name} failed: {problem}")
    lines.append("check passed" if well else "check failed")
    return web.Response(text="\n".join(lines) + "\n", status=200 if well else 503)


class Heartbeat:
    """Beats as long as the event loop turns; a loop that is blocked shows in its age."""

    def __init__(self, *, every_seconds: float = 1.0, clock: Callable[[], float]) -> None:
        self._every = every_seconds
        self._clock = clock
        self._last = clock()

    async def run(self) -> None:
        """Beats until cancelled."""
        while True:
            self._last = self._clock()
            await asyncio.sleep(self._every)

    def age_seconds(self) -> float:
        """Seconds since the last beat."""
        return self._clock() - self._last
