"""From an HTTP request to its answer: which operation it is, and in which form the client gets the outcome."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import yaml
from aiohttp import web

from tidewheel.local.apimachinery import patching
from tidewheel.local.apiserver import discovery, errors, subresources
from tidewheel.local.apiserver.conversion import (
    core_face,
    has_other_face,
    new_face,
    presented,
    presented_object,
)
from tidewheel.local.apiserver.deletion import DeleteOptions, delete, delete_options, success
from tidewheel.local.apiserver.encoding import dumps
from tidewheel.local.apiserver.errors import ApiError
from tidewheel.local.apiserver.logs import LogFetcher, answer_logs
from tidewheel.local.apiserver.negotiation import Form, preferred
from tidewheel.local.apiserver.openapi import OpenApi
from tidewheel.local.apiserver.reads import answer_object, list_objects, selection
from tidewheel.local.apiserver.registry import Resource, Subresource
from tidewheel.local.apiserver.requests import (
    APPLY_PATCH,
    BUILTIN_PATCHES,
    CUSTOM_PATCHES,
    JSON_PATCH,
    MERGE_PATCH,
    STRATEGIC_PATCH,
    Body,
    Target,
    checked_body,
    find_target,
    is_true,
    media_type,
    read_object,
    read_patch,
    write_options,
)
from tidewheel.local.apiserver.reviews import answer_review
from tidewheel.local.apiserver.shaping import typed
from tidewheel.local.apiserver.watches import WatchStream
from tidewheel.local.apiserver.writes import Writer, Written

Manifest = dict[str, Any]

log = logging.getLogger(__name__)

PLAIN: Form = Form()
READY_PATHS = ("/healthz", "/livez", "/readyz")
NOT_SERVED = ("attach", "exec", "portforward", "proxy")


@dataclass(slots=True)
class Handlers:
    """Answers every request of the API."""

    writer: Writer
    openapi: OpenApi
    fetch_log: LogFetcher
    bookmark_seconds: float

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """The answer to one request; failures become Status objects."""
        try:
            return await self._answer(request)
        except ApiError as error:
            return _json(error.status(), status=error.code, headers=error.headers)
        except web.HTTPRequestEntityTooLarge as error:
            failure = ApiError(413, "RequestEntityTooLarge", f"Request entity too large: {error.text}")
            return _json(failure.status(), status=413)
        except ConnectionError:
            raise
        except Exception as error:
            log.exception("%s %s failed", request.method, request.path_qs)
            failure = ApiError(
                500, "InternalError", f"Internal error occurred: {type(error).__name__}: {error}"
            )
            return _json(failure.status(), status=500)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        path = request.path
        target = find_target(self.writer.registry, path) if path.startswith("/api") else None
        if target is not None:
            return await self._resource(request, target)
        document = self._document(request, path.rstrip("/") or "/")
        return document or web.Response(status=404, text="404 page not found\n")

    # Documents

    def _document(self, request: web.Request, path: str) -> web.Response | None:
        registry = self.writer.registry
        if path.startswith(READY_PATHS):
            return web.Response(text="ok")
        if path == "/version":
            return _json(discovery.VERSION)
        if path in ("/api", "/apis"):
            form = preferred(request.headers.get("Accept", ""))
            if form.shown_as == "APIGroupDiscoveryList" and form.version == "v2":
                found = discovery.aggregated(registry, core=path == "/api")
                return _json(found, content_type=discovery.AGGREGATED)
            return _json(
                discovery.core_versions(request.host) if path == "/api" else discovery.group_list(registry)
            )
        if path == "/openapi/v3":
            return _json(self.openapi.index())
        if path.startswith("/openapi/v3/"):
            document = self.openapi.document(path.removeprefix("/openapi/v3/"))
            return None if document is None else web.Response(body=document, content_type="application/json")
        parts = path.strip("/").split("/")
        shown: Manifest | None = None
        if parts[0] == "api" and len(parts) == 2:
            shown = discovery.resource_list(registry, "", parts[1])
        elif parts[0] == "apis" and len(parts) == 2:
            shown = discovery.group(registry, parts[1])
        elif parts[0] == "apis" and len(parts) == 3:
            shown = discovery.resource_list(registry, parts[1], parts[2])
        elif path == "/":
            shown = {"paths": ["/api", "/apis", "/healthz", "/livez", "/openapi/v3", "/readyz", "/version"]}
        return None if shown is None else _json(shown)

    # Resources

    async def _resource(self, request: web.Request, target: Target) -> web.StreamResponse:
        resource = target.resource
        if target.subresource is not None and target.subresource.name != "status":
            return await self._subresource(request, target, target.subresource)
        match request.method:
            case "GET" | "HEAD":
                return await self._read(request, target)
            case "POST" if target.subresource is None and (not target.name or resource.custom):
                return await self._create(request, target)
            case "PUT" if target.name and "update" in resource.verbs:
                return await self._update(request, target)
            case "PATCH" if target.name and "patch" in resource.verbs:
                return await self._patch(request, target)
            case "DELETE" if target.name and target.subresource is None and "delete" in resource.verbs:
                return await self._delete(request, target)
            case "DELETE" if not target.name and "deletecollection" in resource.verbs:
                return await self._delete_collection(request, target)
        raise errors.method_not_allowed()

    async def _read(self, request: web.Request, target: Target) -> web.StreamResponse:
        resource, query = target.resource, request.query
        if "get" not in resource.verbs:
            raise errors.method_not_allowed()
        form = preferred(request.headers.get("Accept", ""))
        if is_true(query, "watch"):
            stream = WatchStream(
                self.writer.store,
                resource,
                target.namespace,
                target.name,
                form,
                query,
                self.writer.clock,
                self.bookmark_seconds,
            )
            return await stream.respond(request)
        if not target.name:
            listed = list_objects(
                self.writer.store, resource, target.namespace, form, query, self.writer.clock
            )
            return _encoded(listed, form)
        item = self.writer.find(resource, target.namespace, target.name)
        if not form.shown_as:
            return _encoded(presented(resource, item), form)
        shown = answer_object(resource, presented_object(resource, item), form, query, self.writer.clock)
        return _encoded(shown, form)

    async def _create(self, request: web.Request, target: Target) -> web.StreamResponse:
        resource = target.resource
        if "create" not in resource.verbs or (resource.namespaced and not target.namespace):
            raise errors.method_not_allowed()
        body = await read_object(request, resource.kind)
        options = write_options(request)
        if not resource.is_stored:
            if resource.kind == "Binding":
                return _json(subresources.bind(self.writer, target, body, options), status=201)
            review = typed(body.value, resource.group, resource.version, resource.kind)
            return _json(answer_review(resource.kind, review), status=201)
        kept, body = self._as_kept(resource, body)
        return self._written(request, target, self.writer.create(kept, target.namespace, body, options))

    async def _update(self, request: web.Request, target: Target) -> web.StreamResponse:
        kept, body = self._as_kept(target.resource, await read_object(request, target.resource.kind))
        written = self.writer.update(
            kept, target.namespace, target.name, body, write_options(request), _below(target)
        )
        return self._written(request, target, written)

    async def _patch(self, request: web.Request, target: Target) -> web.StreamResponse:
        resource = target.resource
        accepted = CUSTOM_PATCHES if resource.custom else BUILTIN_PATCHES
        kind = media_type(request)
        if kind not in accepted:
            raise errors.unsupported_media_type(accepted)
        options = write_options(request)
        if kind == APPLY_PATCH and not request.query.get("fieldManager"):
            problem = errors.cause(
                "fieldManager", "Required value: is required for apply patch", "FieldValueRequired"
            )
            raise errors.invalid("PatchOptions", "meta.k8s.io", "", [problem])
        patch = await read_patch(request)
        if kind == APPLY_PATCH:
            kept, body = self._as_kept(resource, Body(value=patch, raw=await request.read()))
            written = self.writer.apply(kept, target.namespace, target.name, body, options, _below(target))
        else:
            change = _patch_function(kind, patch, resource)
            kept = resource
            if has_other_face(resource):
                kept, inner = self._kept(resource), change

                def change(event: Manifest) -> Manifest:
                    return core_face(inner(new_face(event)))

            written = self.writer.patch(kept, target.namespace, target.name, change, options, _below(target))
        return self._written(request, target, written)

    def _kept(self, resource: Resource) -> Resource:
        """The resource as which objects are written."""
        return self.writer.registry.builtin(resource.plural) if has_other_face(resource) else resource

    def _as_kept(self, resource: Resource, body: Body) -> tuple[Resource, Body]:
        """The resource as which an object is written, and the object in its form."""
        if has_other_face(resource):
            body = replace(body, value=core_face(checked_body(resource, body)))
        return self._kept(resource), body

    async def _delete(self, request: web.Request, target: Target) -> web.StreamResponse:
        options = await self._delete_options(request)
        item = self.writer.find(target.resource, target.namespace, target.name)
        return _json(success(target.resource, delete(self.writer, target.resource, item, options)))

    async def _delete_collection(self, request: web.Request, target: Target) -> web.StreamResponse:
        resource, store = target.resource, self.writer.store
        options = await self._delete_options(request)
        chosen = selection(resource, target.namespace, request.query)
        found = store.collection(resource.storage).select(namespace=chosen.namespace, labels=chosen.pairs)
        items = [item for item in found if chosen.wants(item)]
        listed = list_objects(
            store, resource, target.namespace, PLAIN, _without_paging(request.query), self.writer.clock
        )
        for item in items:
            delete(self.writer, resource, item, options)
        return _encoded(listed, PLAIN)

    async def _delete_options(self, request: web.Request) -> DeleteOptions:
        body = (await read_object(request, "DeleteOptions")).value if request.can_read_body else None
        return delete_options(request.query, body)

    # Subresources

    async def _subresource(
        self, request: web.Request, target: Target, below: Subresource
    ) -> web.StreamResponse:
        verb = {"GET": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}.get(
            request.method
        )
        if verb not in below.verbs:
            raise errors.method_not_allowed()
        if below.name in NOT_SERVED:
            raise ApiError(
                501,
                "NotImplemented",
                f"the local API server does not offer {target.resource.plural}/{below.name}",
            )
        if below.name == "log":
            return await answer_logs(request, self.writer, target, self.fetch_log)
        if below.name == "scale":
            return await self._scale(request, target)
        if verb == "create":
            body = await read_object(request, below.kind)
            match below.name:
                case "binding":
                    answer = subresources.bind(self.writer, target, body, write_options(request))
                case "eviction":
                    answer = subresources.evict(self.writer, target, body)
                case _:
                    answer = subresources.issue_token(self.writer, target, body)
            return _json(answer, status=201)
        if verb == "get":
            return await self._read(request, target)
        return await (self._update(request, target) if verb == "update" else self._patch(request, target))

    async def _scale(self, request: web.Request, target: Target) -> web.StreamResponse:
        if request.method == "GET":
            item = self.writer.find(target.resource, target.namespace, target.name)
            return _json(subresources.read_scale(target.resource, presented_object(target.resource, item)))
        change: Callable[[Manifest], Manifest]
        if request.method == "PUT":
            body = await read_object(request, "Scale")

            def change(_: Manifest) -> Manifest:
                return body.value if isinstance(body.value, dict) else {}

        else:
            kind = media_type(request)
            if kind not in (JSON_PATCH, MERGE_PATCH, STRATEGIC_PATCH):
                raise errors.unsupported_media_type((JSON_PATCH, MERGE_PATCH))
            # A Scale has no lists, so a strategic patch is a merge patch.
            change = _patch_function(
                MERGE_PATCH if kind == STRATEGIC_PATCH else kind, await read_patch(request), target.resource
            )
        return _json(subresources.write_scale(self.writer, target, change, write_options(request)))

    def _written(self, request: web.Request, target: Target, written: Written) -> web.Response:
        form = preferred(request.headers.get("Accept", ""))
        shown = written.encoded(target.resource)
        if form.shown_as:
            shown = answer_object(
                target.resource, written.object(target.resource), form, request.query, self.writer.clock
            )
        response = _encoded(shown, form, status=201 if written.created else 200)
        for warning in written.warnings:
            response.headers.add("Warning", f"299 - {json.dumps(warning)}")
        return response


def _below(target: Target) -> str:
    return target.subresource.name if target.subresource is not None else ""


def _patch_function(kind: str, patch: Any, resource: Resource) -> Callable[[Manifest], Manifest]:
    if kind == JSON_PATCH:
        return lambda obj: patching.json_patch(obj, patch)
    if kind == MERGE_PATCH:
        return lambda obj: patching.merge_patch(obj, patch)
    return lambda obj: patching.strategic_merge_patch(obj, patch, resource.schema)


def _without_paging(query: Any) -> dict[str, str]:
    return {key: value for key, value in query.items() if key in ("labelSelector", "fieldSelector")}


def _encoded(body: bytes, form: Form, *, status: int = 200) -> web.Response:
    if form.media_type == "application/yaml":
        text = yaml.safe_dump(json.loads(body), sort_keys=False)
        return web.Response(text=text, content_type="application/yaml", status=status)
    return web.Response(body=body, content_type="application/json", status=status)


def _json(
    value: Manifest,
    *,
    status: int = 200,
    headers: dict[str, str] | None = None,
    content_type: str = "application/json",
) -> web.Response:
    return web.Response(
        body=dumps(value), status=status, headers={**(headers or {}), "Content-Type": content_type}
    )
