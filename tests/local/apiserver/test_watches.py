"""Lists and watches over HTTP: pages, bookmarks, cuts, tables."""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web
from tests.local.apiserver.conftest import CONFIG_MAPS, MERGE, PODS, Client, serving


async def first_events(client: Client, path: str, count: int) -> list[dict[str, Any]]:
    found = []
    async for event in client.events(path):
        found.append(event)
        if len(found) == count:
            return found
    raise AssertionError(f"the watch ended after {found}")


async def test_pages_show_the_moment_of_the_first_one(client: Client):
    for name in ("a", "b", "c"):
        await client.create(CONFIG_MAPS, name, data={"k": "old"})
    page = await client.get(f"{CONFIG_MAPS}?limit=2")
    assert page["metadata"]["remainingItemCount"] == 1
    await client.ok("PATCH", f"{CONFIG_MAPS}/c", {"data": {"k": "new"}}, content_type=MERGE)
    await client.create(CONFIG_MAPS, "d")
    rest = await client.get(f"{CONFIG_MAPS}?limit=2&continue={page['metadata']['continue']}")
    assert [(one["metadata"]["name"], one["data"]) for one in rest["items"]] == [("c", {"k": "old"})]
    assert rest["metadata"]["resourceVersion"] == page["metadata"]["resourceVersion"]


async def test_a_page_whose_moment_is_forgotten_has_expired():
    async with serving(history=3) as client:
        for name in ("a", "b"):
            await client.create(CONFIG_MAPS, name)
        page = await client.get(f"{CONFIG_MAPS}?limit=1")
        for value in range(5):
            await client.ok("PATCH", f"{CONFIG_MAPS}/a", {"data": {"k": str(value)}}, content_type=MERGE)
        status, answer = await client.ask(
            "GET", f"{CONFIG_MAPS}?limit=1&continue={page['metadata']['continue']}"
        )
        assert (status, answer["reason"]) == (410, "Expired")


async def test_a_continue_token_from_elsewhere_is_a_bad_request(client: Client):
    assert (await client.ask("GET", f"{CONFIG_MAPS}?continue=nonsense"))[0] == 400


async def test_a_version_from_the_future_is_not_awaited(client: Client):
    status, answer = await client.ask("GET", f"{CONFIG_MAPS}?resourceVersion=99999999")
    assert (status, answer["details"]["causes"][0]["reason"]) == (504, "ResourceVersionTooLarge")
    [event] = await first_events(client, f"{CONFIG_MAPS}?watch=true&resourceVersion=99999999", 1)
    assert event["object"]["code"] == 410


async def test_a_quiet_watch_hears_that_the_world_goes_on():
    async with serving(bookmark_seconds=0.05) as client:
        await client.create(CONFIG_MAPS, "a")
        version = (await client.get(CONFIG_MAPS))["metadata"]["resourceVersion"]
        path = f"{PODS}?watch=true&resourceVersion={version}&allowWatchBookmarks=true"
        [event] = await first_events(client, path, 1)
        assert (event["type"], event["object"]["metadata"]["resourceVersion"]) == ("BOOKMARK", version)


async def test_a_cut_watch_ends_and_can_be_resumed_without_loss(client: Client):
    version = (await client.get(CONFIG_MAPS))["metadata"]["resourceVersion"]
    path = f"{CONFIG_MAPS}?watch=true&resourceVersion={version}"
    reading = asyncio.create_task(_all(client, path))
    while not client.server.store.collection("configmaps").watches:  # noqa: ASYNC110
        await asyncio.sleep(0)
    assert client.server.cut_watches() == 1
    assert await reading == []
    await client.create(CONFIG_MAPS, "a")
    [event] = await first_events(client, path, 1)
    assert (event["type"], event["object"]["metadata"]["name"]) == ("ADDED", "a")


async def _all(client: Client, path: str) -> list[dict[str, Any]]:
    return [event async for event in client.events(path)]


async def test_a_watch_of_one_node_sees_only_its_pods(client: Client):
    version = (await client.get(PODS))["metadata"]["resourceVersion"]
    await client.create_pod("here", node="n")
    await client.create_pod("there", node="m")
    await client.ok("DELETE", f"{PODS}/here?gracePeriodSeconds=0")
    path = f"/api/v1/pods?watch=true&resourceVersion={version}&fieldSelector=spec.nodeName%3Dn"
    events = await first_events(client, path, 2)
    assert [(one["type"], one["object"]["metadata"]["name"]) for one in events] == [
        ("ADDED", "here"),
        ("DELETED", "here"),
    ]


async def test_metadata_can_be_had_alone(client: Client):
    await client.create(CONFIG_MAPS, "a", data={"k": "v"})
    accept = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
    listed = await client.ok("GET", CONFIG_MAPS, Accept=accept)
    assert listed["kind"] == "PartialObjectMetadataList"
    assert [sorted(one) for one in listed["items"]] == [["apiVersion", "kind", "metadata"]]


async def test_a_client_that_only_takes_protobuf_is_told(client: Client):
    assert (await client.ask("GET", CONFIG_MAPS, Accept="application/vnd.kubernetes.protobuf"))[0] == 406


async def test_faults_answer_in_place_of_the_server():
    async def busy(request: web.Request) -> web.Response | None:
        return (
            web.json_response({"kind": "Status", "code": 429}, status=429)
            if request.method == "POST"
            else None
        )

    async with serving(faults=busy) as client:
        assert (await client.ask("POST", CONFIG_MAPS, {"metadata": {"name": "a"}}))[0] == 429
        assert (await client.get(CONFIG_MAPS))["items"] == []
