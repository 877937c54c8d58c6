"""Pod logs, fetched from the agent of the pod's node."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import aiohttp
from aiohttp import web

from tidewheel.local.apiserver import errors
from tidewheel.local.apiserver.requests import Target
from tidewheel.local.apiserver.writes import Writer

Manifest = dict[str, Any]
LogFetcher = Callable[[str, Mapping[str, str]], AbstractAsyncContextManager[AsyncIterator[bytes]]]
"""Fetches a log from a node agent's URL with query parameters, as chunks.

Raises:
    ApiError: the agent cannot be reached or refuses.
"""

log = logging.getLogger(__name__)

LOG_ENDPOINT = "tidewheel.dev/log-endpoint"
PASSED_ON = ("follow", "previous", "sinceSeconds", "sinceTime", "timestamps", "tailLines", "limitBytes")


async def answer_logs(
    request: web.Request, writer: Writer, target: Target, fetch: LogFetcher
) -> web.StreamResponse:
    """Stream the log of one container.

    Raises:
        ApiError: 400 when the pod has no such container or has not started, 404 without the pod, 502 without its agent.
    """
    pod = writer.find(target.resource, target.namespace, target.name).object()
    container = _container(pod, target.name, request.query.get("container", ""))
    url = f"{_agent(writer, pod, container)}/containerLogs/{target.namespace}/{target.name}/{container}"
    passed_on = {key: request.query[key] for key in PASSED_ON if key in request.query}
    async with fetch(url, passed_on) as chunks:
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        response.enable_chunked_encoding()
        try:
            await response.prepare(request)
            async for chunk in chunks:
                await response.write(chunk)
            await response.write_eof()
        except ConnectionError:
            pass  # the client has gone
        except aiohttp.ClientError as error:
            log.warning("the log of %s/%s broke off: %s", target.namespace, target.name, error)
            if request.transport is not None:
                # An orderly end would tell the client that this was all.
                request.transport.abort()
        return response


@asynccontextmanager
async def fetch_over_http(url: str, query: Mapping[str, str]) -> AsyncIterator[AsyncIterator[bytes]]:
    """The default fetcher: plain HTTP to the agent."""
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        try:
            response = await session.get(url, params=dict(query))
        except (aiohttp.ClientError, TimeoutError) as error:
            raise errors.bad_gateway(
                f"the node agent at {url} does not answer: {error}; is `tidewheel node` running?"
            ) from error
        async with response:
            if response.status != 200:
                text = (await response.text()).strip() or f"the node agent answered {response.status}"
                raise errors.ApiError(response.status, _reason(response.status), text)
            yield response.content.iter_any()


def _container(pod: Manifest, name: str, wanted: str) -> str:
    spec = pod.get("spec") or {}
    plain = [one["name"] for one in spec.get("containers") or ()]
    names = plain + [one["name"] for one in spec.get("initContainers") or ()]
    if wanted:
        if wanted not in names:
            raise errors.bad_request(f"container {wanted} is not valid for pod {name}")
        return wanted
    if len(plain) != 1:
        raise errors.bad_request(
            f"a container name must be specified for pod {name}, choose one of: [{' '.join(plain)}]"
        )
    return str(plain[0])


def _agent(writer: Writer, pod: Manifest, container: str) -> str:
    node_name = pod["spec"].get("nodeName")
    if not node_name:
        raise errors.bad_request(
            f'container "{container}" in pod "{pod["metadata"]["name"]}" is waiting to start: the pod is on no node yet'
        )
    node = writer.store.get("nodes", "", node_name)
    annotations = node.object()["metadata"].get("annotations") or {} if node is not None else {}
    endpoint = annotations.get(LOG_ENDPOINT)
    if not endpoint:
        raise errors.bad_gateway(
            f'node "{node_name}" has no annotation {LOG_ENDPOINT}, so its logs cannot be fetched; '
            "start its agent with `tidewheel node`"
        )
    return str(endpoint).rstrip("/")


def _reason(status: int) -> str:
    return {400: "BadRequest", 404: "NotFound"}.get(status, "InternalError")
