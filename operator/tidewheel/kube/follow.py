"""A list and then a watch for ever, for those who want to see everything once and then every change."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from tidewheel.api.manifest import Resource
from tidewheel.kube.client import Api, WatchEvent
from tidewheel.kube.errors import Gone, TooManyRequests, Unavailable


async def follow(
    api: Api,
    resource: Resource,
    namespace: str | None = None,
    *,
    label_selector: str | None = None,
    field_selector: str | None = None,
) -> AsyncIterator[WatchEvent]:
    """A list and then a watch, for ever: what is there comes as ADDED, then one BOOKMARK, then the changes.

    A cut or ended watch goes on where it stopped. When history was lost (410) everything is listed
    anew and followed by a BOOKMARK again; the consumer drops what such a relist does not name.
    """
    while True:
        try:
            listing = await api.list(
                resource, namespace, label_selector=label_selector, field_selector=field_selector
            )
            for item in listing.items:
                yield WatchEvent(type="ADDED", object=item)
            version = listing.resource_version
            yield WatchEvent(type="BOOKMARK", object={"metadata": {"resourceVersion": version}})
            while True:
                try:
                    async for event in api.watch(
                        resource,
                        namespace,
                        resource_version=version,
                        label_selector=label_selector,
                        field_selector=field_selector,
                    ):
                        version = event.object["metadata"]["resourceVersion"]
                        if event.type != "BOOKMARK":
                            yield event
                except Unavailable:
                    await asyncio.sleep(0.5)
        except Gone:
            continue
        except (Unavailable, TooManyRequests) as error:
            await asyncio.sleep(error.retry_after_seconds or 1.0)
