"""kopf lists and watches as it does on a real cluster."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import kopf
import pytest
from tests.local.apiserver.conftest import GADGETS, KUBECONFIG, MERGE, Client


class Heard:
    """What an operator's event handler was told."""

    def __init__(self) -> None:
        self.events: list[tuple[str | None, str, int]] = []
        self._changed = asyncio.Event()

    def tell(self, event_type: str | None, body: Any) -> None:
        self.events.append((event_type, body["metadata"]["name"], body["spec"]["size"]))
        self._changed.set()

    async def until(self, name: str, size: int) -> None:
        while not any(event[1:] == (name, size) for event in self.events):
            self._changed.clear()
            await self._changed.wait()


@pytest.fixture
def settings() -> kopf.OperatorSettings:
    made = kopf.OperatorSettings()
    made.watching.server_timeout = 60
    made.watching.chunk_size = 2
    made.watching.reconnect_backoff = 0.01
    made.posting.enabled = False
    made.scanning.disabled = True
    return made


async def test_kopf_sees_pages_changes_and_what_happened_during_a_cut(
    gadgets: Client, settings: kopf.OperatorSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = tmp_path / "config"
    config.write_text(KUBECONFIG.format(url=str(gadgets.session._base_url)))
    monkeypatch.setenv("KUBECONFIG", str(config))
    registry, heard = kopf.OperatorRegistry(), Heard()

    @kopf.on.login(registry=registry)
    def login(**kwargs: Any) -> Any:
        return kopf.login_with_kubeconfig(**kwargs)

    @kopf.on.event("test.example.com", "v1", "gadgets", registry=registry)
    def tell(type: str | None, body: Any, **_: Any) -> None:  # noqa: A002 - kopf's name
        heard.tell(type, body)

    for name in ("a", "b", "c", "d", "e"):
        await gadgets.create_gadget(name)
    stop = asyncio.Event()
    operator = asyncio.create_task(
        kopf.operator(
            registry=registry, settings=settings, standalone=True, namespaces=["default"], stop_flag=stop
        )
    )
    try:
        await heard.until("e", 1)
        assert {event[1] for event in heard.events} == {"a", "b", "c", "d", "e"}
        await gadgets.ok("PATCH", f"{GADGETS}/a", {"spec": {"size": 2}}, content_type=MERGE)
        await heard.until("a", 2)
        gadgets.server.cut_watches()
        await gadgets.ok("PATCH", f"{GADGETS}/b", {"spec": {"size": 3}}, content_type=MERGE)
        await heard.until("b", 3)
    finally:
        stop.set()
        await operator
