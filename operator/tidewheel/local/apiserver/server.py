"""The API server as a whole: store, registry, handlers and collector behind one HTTP address."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aiohttp import web

from tidewheel.local.apimachinery import selectors
from tidewheel.local.apimachinery.schema import builtin_schema
from tidewheel.local.apiserver import crds
from tidewheel.local.apiserver.builtins import builtin_resources
from tidewheel.local.apiserver.changes import Change
from tidewheel.local.apiserver.collector import Collector
from tidewheel.local.apiserver.crds import CRD_STORAGE
from tidewheel.local.apiserver.handlers import Handlers
from tidewheel.local.apiserver.logs import LogFetcher, fetch_over_http
from tidewheel.local.apiserver.openapi import OpenApi
from tidewheel.local.apiserver.registry import Registry, Resource
from tidewheel.local.apiserver.requests import Body, WriteOptions
from tidewheel.local.apiserver.services import SERVICE_RANGE, ServiceAddresses
from tidewheel.local.apiserver.shaping import gvk_of
from tidewheel.local.apiserver.sqlite import SqliteJournal
from tidewheel.local.apiserver.store import Store
from tidewheel.local.apiserver.writes import Clock, Writer

Manifest = dict[str, Any]
Faults = Callable[[web.Request], Awaitable[web.StreamResponse | None]]
"""Looks at a request before it is served; an answer of its own takes the place of the real one."""

NAMESPACES = ("default", "kube-system", "kube-public", "kube-node-lease")
MOST_BODY_BYTES = 3 * 1024 * 1024


class ApiServer:
    """A Kubernetes API on a loopback address, without authentication.

    Args:
        data: file that keeps the objects; None keeps them in memory.
        clock: the time that metadata shows.
        faults: a seam for tests: answers some requests itself, or delays them.
        fetch_log: fetches a container's log from its node agent.
        history: how many changes of each resource a watch can catch up on.
        bookmark_seconds: how often a quiet watch gets a bookmark.
        service_range: where cluster addresses of Services come from.
    """

    def __init__(
        self,
        *,
        data: Path | None = None,
        clock: Clock | None = None,
        faults: Faults | None = None,
        fetch_log: LogFetcher = fetch_over_http,
        history: int = 10_000,
        bookmark_seconds: float = 30.0,
        service_range: ipaddress.IPv4Network = SERVICE_RANGE,
    ) -> None:
        self._faults = faults
        self._fields: dict[str, tuple[str, ...]] = {}
        self.registry = Registry(_with_schema())
        self._definitions = self.registry.builtin("customresourcedefinitions", "apiextensions.k8s.io")
        journal = SqliteJournal(data) if data is not None else None
        self._learn_fields(self.registry.stored())
        # What custom resources can be selected by must be known before their objects are read.
        for _, encoded in journal.objects(CRD_STORAGE) if journal is not None else ():
            self._learn_fields(crds.resources_of(json.loads(encoded)))
        self.store = Store(journal=journal, history=history, fields_of=self._fields_of)
        self.writer = Writer(
            store=self.store,
            registry=self.registry,
            clock=clock or (lambda: datetime.now(UTC)),
            services=ServiceAddresses(self.store, service_range),
        )
        self.collector = Collector(self.writer)
        self._handlers = Handlers(
            writer=self.writer,
            openapi=OpenApi(self.registry),
            fetch_log=fetch_log,
            bookmark_seconds=bookmark_seconds,
        )
        self._runner: web.AppRunner | None = None
        self._collecting: asyncio.Task[None] | None = None
        for item in self.store.collection(CRD_STORAGE).select():
            self._serve_definition(item.object())
        self.store.listen(self._follow)
        self._bootstrap()

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> str:
        """Listen, and say where: a URL such as `http://127.0.0.1:6443`.

        Raises:
            OSError: the address cannot be bound.
        """
        app = web.Application(client_max_size=MOST_BODY_BYTES)
        app.router.add_route("*", "/{path:.*}", self._serve)
        # Long watches must not hold up a stop: their connections are closed at once.
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0, handler_cancellation=True)
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port, backlog=1024)
        await site.start()
        self.collector.check_everything()
        self._collecting = asyncio.create_task(self.collector.run(), name="collector")
        bound = self._runner.addresses[0]
        return f"http://{bound[0]}:{bound[1]}"

    async def stop(self) -> None:
        """End watches, stop listening and release the data file."""
        if self._collecting is not None:
            self._collecting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._collecting
        self.store.cut_watches()
        if self._runner is not None:
            await self._runner.cleanup()
        self.store.close()

    def cut_watches(self) -> int:
        """End every watch now, as a network that fails would; says how many there were."""
        return self.store.cut_watches()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        if self._faults is not None:
            answer = await self._faults(request)
            if answer is not None:
                return answer
        return await self._handlers.handle(request)

    def _follow(self, storage: str, change: Change) -> None:
        if storage == CRD_STORAGE:
            self._follow_definition(change)
        elif storage == "namespaces" and change.type == "ADDED":
            self._add_default_account(change.item.key[1])

    def _follow_definition(self, change: Change) -> None:
        crd = change.item.object()
        if change.type == "DELETED":
            self.registry.remove_custom(crd["spec"]["group"], crd["spec"]["names"]["plural"])
            self.store.drop_collection(change.item.key[1])
            return
        status = {**(crd.get("status") or {}), **crds.established(crd, self.writer.now())}
        if crd.get("status") != status:
            crd["status"] = status
            self.writer.replace(
                self._definitions, change.item, crd, manager="kube-apiserver", subresource="status"
            )
            return
        self._serve_definition(crd)

    def _serve_definition(self, crd: Manifest) -> None:
        resources = crds.resources_of(crd)
        since = [self._schema_since(resource, crd) for resource in resources]
        self.registry.remove_custom(crd["spec"]["group"], crd["spec"]["names"]["plural"])
        self._learn_fields(resources)
        for resource, version in zip(resources, since, strict=True):
            self.registry.add(replace(resource, schema_since=version))
            # The history begins with the resource, not with its first object.
            self.store.collection(resource.storage)

    def _schema_since(self, resource: Resource, crd: Manifest) -> int:
        served = self.registry.find(resource.group, resource.version, resource.plural)
        if served is not None and served.raw_schema == resource.raw_schema:
            return served.schema_since
        return int(crd["metadata"]["resourceVersion"])

    def _learn_fields(self, resources: Iterable[Resource]) -> None:
        for resource in resources:
            self._fields[resource.storage] = selectors.supported_fields(gvk_of(resource), resource.selectable)

    def _fields_of(self, storage: str, obj: Manifest) -> Manifest:
        cut: Manifest = {}
        for path in self._fields.get(storage, ()):
            _copy_path(obj, cut, path.split("."))
        return cut

    def _bootstrap(self) -> None:
        """The namespaces that every cluster has."""
        for name in NAMESPACES:
            if self.store.get("namespaces", "", name) is None:
                self._create("namespaces", "", {"metadata": {"name": name}})

    def _add_default_account(self, namespace: str) -> None:
        self._create("serviceaccounts", namespace, {"metadata": {"name": "default"}})

    def _create(self, plural: str, namespace: str, obj: Manifest) -> None:
        options = WriteOptions(manager="kube-apiserver")
        self.writer.create(self.registry.builtin(plural), namespace, Body(value=obj, raw=b""), options)


def _with_schema() -> list[Resource]:
    return [
        replace(one, schema=builtin_schema(one.group, one.version, one.kind)) for one in builtin_resources()
    ]


def _copy_path(source: Manifest, target: Manifest, path: list[str]) -> None:
    for key in path[:-1]:
        inner = source.get(key)
        if not isinstance(inner, dict):
            return
        source, target = inner, target.setdefault(key, {})
    if path[-1] in source:
        target[path[-1]] = source[path[-1]]
