"""Startup, liveness and readiness probes and lifecycle handlers: one attempt, and the counting of attempts."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, Self

import aiohttp

from tidewheel.api.manifest import Manifest

_MOST_OUTPUT = 1024

#: Hears whether a probe's run of like outcomes means success or failure, and the last message.
Verdict = Callable[[bool, str], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one attempt went, with what the probe saw when it failed."""

    succeeded: bool
    message: str = ""


class Target(Protocol):
    """The running container that a handler is about."""

    manifest: Manifest

    @property
    def address(self) -> str:
        """The pod's address."""
        ...

    async def execute(self, argv: list[str]) -> tuple[int, str]:
        """Runs a command in the container's environment: exit code and output. Ended when cancelled."""
        ...


async def attempt(handler: Manifest, target: Target, *, timeout_seconds: float) -> Outcome:
    """Carries out an httpGet, tcpSocket, exec or sleep handler once."""
    try:
        async with asyncio.timeout(timeout_seconds):
            if (http := handler.get("httpGet")) is not None:
                return await _http(http, target)
            if (tcp := handler.get("tcpSocket")) is not None:
                return await _tcp(tcp, target)
            if (command := handler.get("exec")) is not None:
                code, output = await target.execute(command["command"])
                return Outcome(code == 0, output[-_MOST_OUTPUT:])
            if (sleep := handler.get("sleep")) is not None:
                await asyncio.sleep(float(sleep["seconds"]))
            return Outcome(True)
    except TimeoutError:
        return Outcome(False, f"no answer within {timeout_seconds:g} s")
    except aiohttp.ClientConnectorError as error:
        return Outcome(False, f"connect to {error.host}:{error.port}: {error.os_error.strerror}")
    except (OSError, aiohttp.ClientError, _NoSuchPort) as error:
        return Outcome(False, str(error) or type(error).__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeSpec:
    """A probe's handler and its numbers, with the API's defaults."""

    kind: str
    handler: Manifest
    initial_delay_seconds: float = 0.0
    period_seconds: float = 10.0
    timeout_seconds: float = 1.0
    success_threshold: int = 1
    failure_threshold: int = 3
    grace_seconds: float | None = None

    @classmethod
    def of(cls, container: Manifest, kind: str) -> Self | None:
        """The container's probe of a kind (`livenessProbe` ...), None without one."""
        probe = container.get(kind)
        if probe is None:
            return None
        grace = probe.get("terminationGracePeriodSeconds")
        return cls(
            kind=kind.removesuffix("Probe").capitalize(),
            handler=probe,
            initial_delay_seconds=float(probe.get("initialDelaySeconds") or 0),
            period_seconds=float(probe.get("periodSeconds") or 10),
            timeout_seconds=float(probe.get("timeoutSeconds") or 1),
            success_threshold=int(probe.get("successThreshold") or 1),
            failure_threshold=int(probe.get("failureThreshold") or 3),
            grace_seconds=float(grace) if grace is not None else None,
        )


async def watch(
    spec: ProbeSpec,
    target: Target,
    *,
    on_verdict: Verdict,
    on_failure: Callable[[str], None],
    until_first_success: bool = False,
) -> None:
    """Repeats a probe until cancelled, or until it succeeds for the first time.

    `on_verdict` hears of every run of like outcomes that reaches its threshold, once per run;
    `on_failure` of every failed attempt.
    """
    await asyncio.sleep(spec.initial_delay_seconds)
    verdict: bool | None = None
    last: bool | None = None
    count = 0
    while True:
        outcome = await attempt(spec.handler, target, timeout_seconds=spec.timeout_seconds)
        count = count + 1 if outcome.succeeded is last else 1
        last = outcome.succeeded
        if not last:
            on_failure(outcome.message)
        threshold = spec.success_threshold if last else spec.failure_threshold
        if count >= threshold and last is not verdict:
            verdict = last
            await on_verdict(last, outcome.message)
        if until_first_success and verdict:
            return
        await asyncio.sleep(spec.period_seconds)


class _NoSuchPort(Exception):
    """A handler names a port that the container does not have."""


def _port(port: int | str, target: Target) -> int:
    if isinstance(port, int) or str(port).isdecimal():
        return int(port)
    for named in target.manifest.get("ports") or []:
        if named.get("name") == port:
            return int(named["containerPort"])
    raise _NoSuchPort(f"the container has no port named {port!r}")


async def _http(http: Manifest, target: Target) -> Outcome:
    scheme = str(http.get("scheme") or "HTTP").lower()
    url = f"{scheme}://{http.get('host') or target.address}:{_port(http['port'], target)}{http.get('path') or '/'}"
    headers = {"User-Agent": "kube-probe/tidewheel", "Accept": "*/*", "Connection": "close"}
    headers |= {header["name"]: header["value"] for header in http.get("httpHeaders") or []}
    # As the kubelet does: a probe asks whether the container lives, not who it is.
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=False)) as session,
        session.get(url, headers=headers, allow_redirects=False) as response,
    ):
        if 200 <= response.status < 400:
            return Outcome(True)
        text = (await response.content.read(_MOST_OUTPUT)).decode(errors="replace").strip()
        return Outcome(
            False, f"HTTP probe failed with statuscode: {response.status}{': ' + text if text else ''}"
        )


async def _tcp(tcp: Manifest, target: Target) -> Outcome:
    _, writer = await asyncio.open_connection(tcp.get("host") or target.address, _port(tcp["port"], target))
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return Outcome(True)
