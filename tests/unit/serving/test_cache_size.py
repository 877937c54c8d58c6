"""A worker's cache has the size that was asked for, or one that its role needs and its memory allows."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from tidewheel_workers.serving.cache_size import cache_tokens, memory_left
from tidewheel_workers.serving.settings import WorkerSettings

CPU = torch.device("cpu")


def tokens(role: str, *, left: int | None, **more: int) -> int:
    settings = WorkerSettings(model_name="m", model_source="x", role=role, group="g", slots=4, **more)
    return cache_tokens(settings, context=1000, token_bytes=10, left=left)


@pytest.mark.parametrize(
    ("role", "left", "want"),
    [
        pytest.param("decode", None, 4000, id="a decode holds a context for each slot"),
        pytest.param("prefill", 1 << 40, 2000, id="a prefill holds one prompt and as much of earlier ones"),
        pytest.param("decode", 60_000, 3000, id="half of the memory that is left is the most"),
        pytest.param("decode", 100, 1000, id="one context is the least"),
    ],
)
def test_the_size_follows_from_role_and_memory(role: str, left: int | None, want: int) -> None:
    assert tokens(role, left=left) == want


def test_what_is_asked_for_is_taken() -> None:
    assert tokens("decode", left=100, kv_cache_tokens=7777) == 7777


def test_a_smaller_cache_than_the_role_needs_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        tokens("decode", left=60_000)
    assert "3000 tokens instead of 4000" in caplog.text


def container(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    return root


V2 = {
    "memory.max": "5000000\n",
    "memory.current": "3000000\n",
    "memory.stat": "anon 1\ninactive_file 1000000\n",
}
V1 = {
    "memory/memory.limit_in_bytes": "5000000",
    "memory/memory.usage_in_bytes": "4500000",
    "memory/memory.stat": "cache 9\ntotal_inactive_file 0",
}


@pytest.mark.parametrize(
    ("files", "want"),
    [
        pytest.param(V2, 3_000_000, id="what the kernel would give back is not counted as taken"),
        pytest.param(V1, 500_000, id="version 1"),
        pytest.param(V1 | {"memory/memory.limit_in_bytes": "10"}, 0, id="over the limit"),
    ],
)
def test_a_containers_limit_counts(tmp_path: Path, files: dict[str, str], want: int) -> None:
    assert memory_left(CPU, container(tmp_path, files)) == want


@pytest.mark.parametrize("files", [{}, V2 | {"memory.max": "max\n"}], ids=["no control group", "no limit"])
def test_without_a_limit_the_machines_memory_counts(tmp_path: Path, files: dict[str, str]) -> None:
    left = memory_left(CPU, container(tmp_path, files))
    assert left is not None
    assert left > 5_000_000


def test_a_device_that_cannot_tell_is_not_asked() -> None:
    assert memory_left(torch.device("meta")) is None
