"""A server with a data file survives a restart, and clients notice."""

from __future__ import annotations

from pathlib import Path

from tests.local.apiserver.conftest import CONFIG_MAPS, CRDS, GADGET_CRD, GADGETS, serving


async def test_a_restart_loses_nothing(tmp_path: Path):
    async with serving(data=tmp_path / "state.db") as before:
        await before.ok("POST", CRDS, GADGET_CRD)
        await before.create_gadget("g", labels={"a": "b"})
        await before.create(CONFIG_MAPS, "gone")
        await before.ok("DELETE", f"{CONFIG_MAPS}/gone")
        stored = await before.get(f"{GADGETS}/g")
    async with serving(data=tmp_path / "state.db") as after:
        assert await after.get(f"{GADGETS}/g") == stored
        assert (await after.ask("GET", f"{CONFIG_MAPS}/gone"))[0] == 404
        found = await after.get(f"{GADGETS}?labelSelector=a%3Db&fieldSelector=metadata.name%3Dg")
        assert found["items"] == [stored]
        assert int((await after.create_gadget("new"))["metadata"]["resourceVersion"]) > int(
            stored["metadata"]["resourceVersion"]
        )


async def test_a_watch_from_before_the_restart_must_list_again(tmp_path: Path):
    async with serving(data=tmp_path / "state.db") as before:
        version = (await before.get(CONFIG_MAPS))["metadata"]["resourceVersion"]
    async with serving(data=tmp_path / "state.db") as after:
        [event] = [one async for one in after.events(f"{CONFIG_MAPS}?watch=true&resourceVersion={version}")]
        assert (event["type"], event["object"]["code"]) == ("ERROR", 410)


async def test_collection_goes_on_after_a_restart(tmp_path: Path):
    async with serving(data=tmp_path / "state.db") as before:
        await before.ok("POST", CRDS, GADGET_CRD)
        owner = await before.create_gadget("owner")
        reference = {
            "apiVersion": "test.example.com/v1",
            "kind": "Gadget",
            "name": "owner",
            "uid": owner["metadata"]["uid"],
        }
        # The last moment of a server that dies between the delete of the owner and the collection of its dependents.
        store = before.server.store
        await before.create(CONFIG_MAPS, "child", metadata={"ownerReferences": [reference]})
        store.delete("gadgets.test.example.com", store.get("gadgets.test.example.com", "default", "owner"))
    async with serving(data=tmp_path / "state.db") as after:
        await after.gone(f"{CONFIG_MAPS}/child")
