"""Services on this machine: a TCP proxy listens on every cluster address and node port and spreads connections."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import itertools
import logging
import socket
import struct
from dataclasses import dataclass

from tidewheel.api.manifest import Manifest
from tidewheel.local.events import EventRecorder
from tidewheel.local.informer import Informer, Key, key_of
from tidewheel.local.workloads.endpoints import SERVICE_NAME

logger = logging.getLogger(__name__)

_LOOPBACK = ipaddress.IPv4Network("127.0.0.0/8")
_NODE_PORT_HOST = "127.0.0.1"
_CHUNK = 64 * 1024
_CONNECT_SECONDS = 2.0
_RETRY_SECONDS = 5.0

Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class _Listener:
    """An address a Service is reached at, and the port of the Service that it is."""

    address: Address
    service: Key
    port_name: str


class ServiceProxy:
    """Keeps listeners for the Services' addresses and forwards each connection to a ready endpoint in turn."""

    def __init__(self, services: Informer, slices: Informer, recorder: EventRecorder) -> None:
        """Both are informers that the caller runs; this subscribes to them."""
        self._services = services
        self._slices = slices
        self._recorder = recorder
        self._listening: dict[_Listener, asyncio.Server] = {}
        self._turns: dict[_Listener, itertools.count[int]] = {}
        self._connections: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        services.subscribe(lambda *_: self._changed.set())

    async def run(self) -> None:
        """Proxies until cancelled."""
        await self._services.synced.wait()
        try:
            while True:
                self._changed.clear()
                settled = await self._follow_services()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), None if settled else _RETRY_SECONDS)
        finally:
            for server in self._listening.values():
                server.close()
            for connection in self._connections:
                connection.cancel()

    def endpoints(self, service: Key, port_name: str) -> list[Address]:
        """Where the ready pods of a Service's port are."""
        found: list[Address] = []
        for piece in self._slices.in_namespace(service[0]):
            if (piece["metadata"].get("labels") or {}).get(SERVICE_NAME) != service[1]:
                continue
            ports = [port["port"] for port in piece.get("ports") or [] if port.get("name", "") == port_name]
            for endpoint in piece.get("endpoints") or []:
                if (endpoint.get("conditions") or {}).get("ready", True):
                    found += [(address, port) for address in endpoint["addresses"] for port in ports]
        return found

    async def _follow_services(self) -> bool:
        """Opens and closes listeners; False if some could not be opened."""
        wanted = {
            listener
            for service in self._services.objects.values()
            if not service["metadata"].get("deletionTimestamp")
            for listener in _listeners_of(service)
        }
        for listener in self._listening.keys() - wanted:
            self._listening.pop(listener).close()
            self._turns.pop(listener, None)
        settled = True
        for listener in sorted(wanted - self._listening.keys(), key=lambda each: each.address):
            settled = await self._listen(listener) and settled
        return settled

    async def _listen(self, listener: _Listener) -> bool:
        self._turns[listener] = itertools.count()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            if task is not None:
                self._connections.add(task)
                task.add_done_callback(self._connections.discard)
            await self._forward(listener, reader, writer)

        host, port = listener.address
        try:
            self._listening[listener] = await asyncio.start_server(serve, host, port, limit=_CHUNK)
        except OSError as error:
            message = f"cannot listen on {host}:{port} for this Service: {error.strerror or error}"
            logger.warning("Service %s: %s", "/".join(listener.service), message)
            service = self._services.get(*listener.service)
            if service is not None:
                self._recorder.event({**service, "kind": "Service"}, "Warning", "PortTaken", message)
            return False
        return True

    async def _forward(
        self, listener: _Listener, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        upstream = await self._connect(listener)
        if upstream is None:
            # As kube-proxy does without endpoints: refused, not silently closed.
            _reset(writer)
            return
        upstream_reader, upstream_writer = upstream
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_pump(reader, upstream_writer))
                group.create_task(_pump(upstream_reader, writer))
        except* OSError:
            # One side broke off; so must the other.
            _reset(writer)
            _reset(upstream_writer)
        finally:
            writer.close()
            upstream_writer.close()

    async def _connect(self, listener: _Listener) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """The next endpoint that answers; each is tried once."""
        endpoints = self.endpoints(listener.service, listener.port_name)
        if not endpoints:
            return None
        first = next(self._turns[listener])
        for number in range(len(endpoints)):
            host, port = endpoints[(first + number) % len(endpoints)]
            try:
                async with asyncio.timeout(_CONNECT_SECONDS):
                    return await asyncio.open_connection(host, port, limit=_CHUNK)
            except (OSError, TimeoutError):
                continue
        return None


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Passes bytes on until their end, and then the end: the other direction goes on."""
    while chunk := await reader.read(_CHUNK):
        writer.write(chunk)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    if connection is not None:
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def _listeners_of(service: Manifest) -> list[_Listener]:
    spec, key = service["spec"], key_of(service)
    cluster_ip = spec.get("clusterIP", "")
    listeners: list[_Listener] = []
    for port in spec.get("ports") or []:
        if port.get("protocol", "TCP") != "TCP":
            continue
        name = port.get("name", "")
        if _is_loopback(cluster_ip):
            listeners.append(_Listener((cluster_ip, port["port"]), key, name))
        if port.get("nodePort"):
            listeners.append(_Listener((_NODE_PORT_HOST, port["nodePort"]), key, name))
    return listeners


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.IPv4Address(address) in _LOOPBACK
    except ValueError:
        return False
