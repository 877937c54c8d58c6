"""Objects that were written under an older schema of their definition, as clients see them under the present one."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from tests.local.apiserver.conftest import APPLY, CRDS, GADGET_CRD, GADGETS, MERGE, Client, serving

WHEELS = {"type": "integer", "default": 4}


async def define(client: Client, **fields: Any) -> None:
    """Serve gadgets whose spec has these fields besides `size`."""
    crd = copy.deepcopy(GADGET_CRD)
    spec = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    spec["properties"] = {"size": spec["properties"]["size"], **fields}
    path = f"{CRDS}/{crd['metadata']['name']}?fieldManager=test&force=true"
    await client.ok("PATCH", path, crd, content_type=APPLY)


async def test_every_read_shows_the_defaults_of_the_present_schema(client: Client):
    await define(client)
    written = await client.create_gadget("old")
    await define(client, wheels=WHEELS)

    read = await client.get(f"{GADGETS}/old")
    assert read["spec"] == {"size": 1, "wheels": 4}
    assert read["metadata"] == written["metadata"], "nothing was written"
    assert (await client.get(GADGETS))["items"][0]["spec"] == {"size": 1, "wheels": 4}
    async for event in client.events(f"{GADGETS}?watch=1&timeoutSeconds=1"):
        assert event["object"]["spec"] == {"size": 1, "wheels": 4}
    scaled = await client.ok("PATCH", f"{GADGETS}/old/scale", {"spec": {"replicas": 2}}, content_type=MERGE)
    assert scaled["spec"]["replicas"] == 2
    assert (await client.get(f"{GADGETS}/old"))["spec"] == {"size": 2, "wheels": 4}


async def test_a_field_that_the_present_schema_lacks_is_hidden_until_a_write_drops_it(client: Client):
    await define(client, wheels=WHEELS)
    for name in ("untouched", "rewritten"):
        await client.create_gadget(name)
    await client.ok("PATCH", f"{GADGETS}/untouched", {"spec": {"wheels": 6}}, content_type=MERGE)
    await client.ok("PATCH", f"{GADGETS}/rewritten", {"spec": {"wheels": 6}}, content_type=MERGE)
    await define(client)
    assert (await client.get(f"{GADGETS}/untouched"))["spec"] == {"size": 1}
    await client.ok("PATCH", f"{GADGETS}/rewritten", {"spec": {"size": 2}}, content_type=MERGE)
    await define(client, wheels=WHEELS)
    assert (await client.get(f"{GADGETS}/untouched"))["spec"] == {"size": 1, "wheels": 6}
    assert (await client.get(f"{GADGETS}/rewritten"))["spec"] == {"size": 2, "wheels": 4}


async def test_a_write_that_changes_nothing_stores_the_new_defaults(client: Client):
    await define(client)
    await client.create_gadget("old")
    await define(client, wheels=WHEELS)
    read = await client.get(f"{GADGETS}/old")
    written = await client.ok("PATCH", f"{GADGETS}/old", {}, content_type=MERGE)
    assert written["metadata"]["resourceVersion"] != read["metadata"]["resourceVersion"]
    assert written["spec"] == read["spec"]
    again = await client.ok("PATCH", f"{GADGETS}/old", {}, content_type=MERGE)
    assert again == written, "now there is nothing to store"


async def test_a_new_default_is_no_change_of_what_is_desired(client: Client):
    await define(client)
    old = await client.create_gadget("old")
    await define(client, wheels=WHEELS)
    status = {"status": {"replicas": 1}}
    reported = await client.ok("PATCH", f"{GADGETS}/old/status", status, content_type=MERGE)
    assert reported["metadata"]["generation"] == old["metadata"]["generation"]
    assert reported["spec"] == {"size": 1, "wheels": 4}
    changed = await client.ok("PATCH", f"{GADGETS}/old", {"spec": {"wheels": 5}}, content_type=MERGE)
    assert changed["metadata"]["generation"] == old["metadata"]["generation"] + 1


@pytest.mark.parametrize("policy", ["Foreground", "Orphan", "Background"])
async def test_an_object_of_an_older_schema_is_deleted_like_any_other(client: Client, policy: str):
    await define(client)
    await client.create_gadget("old")
    await define(client, wheels=WHEELS)
    await client.ok("DELETE", f"{GADGETS}/old", {"propagationPolicy": policy})
    await client.gone(f"{GADGETS}/old")


async def test_a_restart_knows_which_objects_are_older_than_their_schema(tmp_path: Path):
    async with serving(data=tmp_path / "state.db") as client:
        await define(client)
        await client.create_gadget("old")
        await define(client, wheels=WHEELS)
    async with serving(data=tmp_path / "state.db") as client:
        assert (await client.get(f"{GADGETS}/old"))["spec"] == {"size": 1, "wheels": 4}
