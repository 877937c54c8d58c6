"""The one seam to the Kubernetes API: what controllers may ask, and the HTTP client that asks it."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, NamedTuple, Protocol, Self

import aiohttp

from tidewheel.api.manifest import Manifest, Resource
from tidewheel.kube.connection import Connection
from tidewheel.kube.errors import ApiError, Unavailable, error_from_status

PatchType = Literal["merge", "json", "strategic"]
_PATCH_CONTENT_TYPES: Mapping[PatchType, str] = {
    "merge": "application/merge-patch+json",
    "json": "application/json-patch+json",
    "strategic": "application/strategic-merge-patch+json",
}
_APPLY_CONTENT_TYPE = "application/apply-patch+yaml"
_METADATA_ONLY = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io,application/json"
#: An event of a watch is one line; the largest object etcd takes is 1.5 MiB.
_LONGEST_LINE = 8 * 1024 * 1024
_PAGE = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """A consistent list and the version from which a watch goes on."""

    items: tuple[Manifest, ...]
    resource_version: str


class ObjectVersion(NamedTuple):
    """One version of one object; `namespace` is empty for a cluster-wide one."""

    namespace: str
    name: str
    uid: str
    resource_version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Versions:
    """A consistent list of what there is, without the objects."""

    items: tuple[ObjectVersion, ...]
    resource_version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchEvent:
    """One line of a watch: ADDED, MODIFIED, DELETED or BOOKMARK."""

    type: str
    object: Manifest


class RequestObserver(Protocol):
    """Told of every answered request, for metrics: method, status (0: none came) and seconds."""

    def __call__(self, method: str, status: int, seconds: float) -> None:
        """One request was answered, or failed."""
        ...


class Api(Protocol):
    """What the control plane asks of Kubernetes. Every call raises an `ApiError` when it is refused."""

    async def get(self, resource: Resource, name: str, namespace: str | None = None) -> Manifest:
        """One object; `NotFound` if it is not there."""
        ...

    async def list(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        label_selector: str | None = None,
        field_selector: str | None = None,
    ) -> Listing:
        """All objects of a namespace, or of the cluster without one."""
        ...

    async def list_versions(
        self, resource: Resource, namespace: str | None = None, *, label_selector: str | None = None
    ) -> Versions:
        """Which objects there are in which versions: a list that costs little memory however many they are."""
        ...

    async def create(self, resource: Resource, body: Manifest, *, manager: str | None = None) -> Manifest:
        """A new object in its own namespace; `AlreadyExists` if its name is taken."""
        ...

    async def replace(
        self, resource: Resource, body: Manifest, *, subresource: str | None = None
    ) -> Manifest:
        """The whole object; its resourceVersion, when given, must still be the current one."""
        ...

    async def apply(
        self,
        resource: Resource,
        body: Manifest,
        *,
        manager: str,
        force: bool = True,
        subresource: str | None = None,
    ) -> Manifest:
        """Server-side apply: the fields in `body` become `manager`'s."""
        ...

    async def patch(
        self,
        resource: Resource,
        name: str,
        patch: Any,
        namespace: str | None = None,
        *,
        type: PatchType = "merge",  # noqa: A002  (the API's own word)
        subresource: str | None = None,
    ) -> Manifest:
        """A merge, JSON or strategic-merge patch."""
        ...

    async def delete(
        self,
        resource: Resource,
        name: str,
        namespace: str | None = None,
        *,
        uid: str | None = None,
        grace_seconds: int | None = None,
        propagation: str | None = None,
    ) -> Manifest:
        """Deletes one object, only if it still has `uid` when one is given (`Conflict` otherwise).

        Answers the object if it is on its way out (grace period, finalizers), a Status if it is gone.
        """
        ...

    def watch(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        resource_version: str,
        label_selector: str | None = None,
        field_selector: str | None = None,
        timeout_seconds: int = 300,
    ) -> AsyncIterator[WatchEvent]:
        """Events after `resource_version` until the server ends the stream; `Gone` if it is too old."""
        ...


class HttpApi:
    """`Api` over HTTP. One connection pool; use it as an asynchronous context manager."""

    def __init__(
        self,
        connection: Connection,
        *,
        user_agent: str = "tidewheel",
        timeout_seconds: float = 30.0,
        observer: RequestObserver | None = None,
    ) -> None:
        self._connection = connection
        self._user_agent = user_agent
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds, connect=5.0)
        self._observer = observer
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            headers={"User-Agent": self._user_agent, "Accept": "application/json"},
            connector=aiohttp.TCPConnector(limit=64, ssl=self._connection.ssl_context or True),
            timeout=self._timeout,
            read_bufsize=_LONGEST_LINE,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def get(self, resource: Resource, name: str, namespace: str | None = None) -> Manifest:
        """See `Api.get`."""
        return await self._request("GET", resource.path(namespace, name))

    async def list(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        label_selector: str | None = None,
        field_selector: str | None = None,
    ) -> Listing:
        """See `Api.list`."""
        items: list[Manifest] = []
        version = ""
        query = _query(labelSelector=label_selector, fieldSelector=field_selector)
        async for page in self._pages(resource, namespace, query):
            items += page.get("items") or []
            version = _version(page)
        return Listing(items=tuple(items), resource_version=version)

    async def list_versions(
        self, resource: Resource, namespace: str | None = None, *, label_selector: str | None = None
    ) -> Versions:
        """See `Api.list_versions`."""
        items: list[ObjectVersion] = []
        version = ""
        query = _query(labelSelector=label_selector)
        async for page in self._pages(resource, namespace, query, accept=_METADATA_ONLY):
            items += (_object_version(item["metadata"]) for item in page.get("items") or ())
            version = _version(page)
        return Versions(items=tuple(items), resource_version=version)

    async def create(self, resource: Resource, body: Manifest, *, manager: str | None = None) -> Manifest:
        """See `Api.create`."""
        namespace = body["metadata"].get("namespace")
        return await self._request(
            "POST", resource.path(namespace), query=_query(fieldManager=manager), body=body
        )

    async def replace(
        self, resource: Resource, body: Manifest, *, subresource: str | None = None
    ) -> Manifest:
        """See `Api.replace`."""
        metadata = body["metadata"]
        path = resource.path(metadata.get("namespace"), metadata["name"], subresource)
        return await self._request("PUT", path, body=body)

    async def apply(
        self,
        resource: Resource,
        body: Manifest,
        *,
        manager: str,
        force: bool = True,
        subresource: str | None = None,
    ) -> Manifest:
        """See `Api.apply`."""
        metadata = body["metadata"]
        return await self._request(
            "PATCH",
            resource.path(metadata.get("namespace"), metadata["name"], subresource),
            query=_query(fieldManager=manager, force="true" if force else None),
            body=body,
            content_type=_APPLY_CONTENT_TYPE,
        )

    async def patch(
        self,
        resource: Resource,
        name: str,
        patch: Any,
        namespace: str | None = None,
        *,
        type: PatchType = "merge",  # noqa: A002  (the API's own word)
        subresource: str | None = None,
    ) -> Manifest:
        """See `Api.patch`."""
        path = resource.path(namespace, name, subresource)
        return await self._request("PATCH", path, body=patch, content_type=_PATCH_CONTENT_TYPES[type])

    async def delete(
        self,
        resource: Resource,
        name: str,
        namespace: str | None = None,
        *,
        uid: str | None = None,
        grace_seconds: int | None = None,
        propagation: str | None = None,
    ) -> Manifest:
        """See `Api.delete`."""
        options: Manifest = {"apiVersion": "v1", "kind": "DeleteOptions"}
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        if propagation is not None:
            options["propagationPolicy"] = propagation
        return await self._request("DELETE", resource.path(namespace, name), body=options)

    async def watch(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        resource_version: str,
        label_selector: str | None = None,
        field_selector: str | None = None,
        timeout_seconds: int = 300,
    ) -> AsyncIterator[WatchEvent]:
        """See `Api.watch`."""
        query = _query(
            watch="true",
            allowWatchBookmarks="true",
            resourceVersion=resource_version,
            labelSelector=label_selector,
            fieldSelector=field_selector,
            timeoutSeconds=str(timeout_seconds),
        )
        path = resource.path(namespace)
        # The server ends the stream; bookmarks come every minute, so a longer silence is a dead connection.
        timeout = aiohttp.ClientTimeout(total=timeout_seconds + 30, connect=5.0, sock_read=90.0)
        try:
            async with self._open().get(
                self._connection.server + path, params=query, headers=self._headers(), timeout=timeout
            ) as response:
                if response.status >= 400:
                    raise await _error(response, f"WATCH {path}")
                async for line in response.content:
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        status = event["object"]
                        raise error_from_status(int(status.get("code", 500)), status, request=f"WATCH {path}")
                    yield WatchEvent(type=event["type"], object=event["object"])
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unavailable(f"WATCH {path}: {error or type(error).__name__}") from error

    async def _pages(
        self,
        resource: Resource,
        namespace: str | None,
        query: Mapping[str, str],
        *,
        accept: str | None = None,
    ) -> AsyncIterator[Manifest]:
        token = ""
        while True:
            query = {**query, "limit": str(_PAGE), **({"continue": token} if token else {})}
            page = await self._request("GET", resource.path(namespace), query=query, accept=accept)
            yield page
            token = (page.get("metadata") or {}).get("continue", "")
            if not token:
                return

    async def _request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
        accept: str | None = None,
    ) -> Manifest:
        headers = self._headers()
        if accept is not None:
            headers["Accept"] = accept
        payload = None
        if body is not None:
            payload = json.dumps(body, separators=(",", ":")).encode()
            headers["Content-Type"] = content_type
        started, status = time.monotonic(), 0
        try:
            async with self._open().request(
                method, self._connection.server + path, params=query, data=payload, headers=headers
            ) as response:
                status = response.status
                if status >= 400:
                    raise await _error(response, f"{method} {path}")
                answer: Manifest = json.loads(await response.read())
                return answer
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unavailable(f"{method} {path}: {error or type(error).__name__}") from error
        finally:
            if self._observer is not None:
                self._observer(method, status, time.monotonic() - started)

    def _headers(self) -> dict[str, str]:
        authorization = self._connection.authorization()
        return {"Authorization": authorization} if authorization else {}

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("HttpApi is closed; use it inside `async with`")
        return self._session


def _version(page: Manifest) -> str:
    return str((page.get("metadata") or {}).get("resourceVersion", ""))


def _object_version(metadata: Manifest) -> ObjectVersion:
    return ObjectVersion(
        metadata.get("namespace", ""), metadata["name"], metadata["uid"], str(metadata["resourceVersion"])
    )


def _query(**parameters: str | None) -> dict[str, str]:
    return {name: value for name, value in parameters.items() if value is not None}


async def _error(response: aiohttp.ClientResponse, request: str) -> ApiError:
    text = await response.text()
    try:
        body = json.loads(text)
    except ValueError:
        body = text
    return error_from_status(
        response.status, body, request=request, retry_after=response.headers.get("Retry-After")
    )
