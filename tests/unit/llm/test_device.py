"""A device is found by name, or the error says what is missing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tidewheel_workers.llm.device import Device, find_device, use_threads
from tidewheel_workers.llm.errors import DeviceUnavailable


def test_the_processor_is_always_there() -> None:
    device = find_device("cpu")
    assert device.dtype() == torch.float32
    assert device.dtype("bfloat16") == torch.bfloat16


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(DeviceUnavailable, match="int3"):
        find_device("cpu").dtype("int3")


def test_an_unknown_device_is_refused_with_the_known_ones() -> None:
    with pytest.raises(DeviceUnavailable, match="known are cpu, cuda, npu"):
        find_device("abacus")


def test_a_backend_that_is_not_installed_is_named() -> None:
    row = Device(
        name="abacus", torch_device="abacus", backend_module="torch_abacus", default_dtype=torch.float32
    )
    with pytest.raises(DeviceUnavailable, match="torch_abacus"):
        find_device("abacus", (row,))


def test_a_backend_without_hardware_is_named() -> None:
    # torch.mtia is part of every build and finds nothing here
    row = Device(name="mtia", torch_device="mtia", default_dtype=torch.float32, namespace="mtia")
    with pytest.raises(DeviceUnavailable, match="finds no mtia device"):
        find_device("mtia", (row,))


@pytest.fixture
def _threads_stay() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_threads_stay")
@pytest.mark.parametrize(
    ("limit", "asked", "want"),
    [
        pytest.param("max 100000", None, 4, id="without a limit all processors"),
        pytest.param("250000 100000", None, 2, id="whole processors of the limit"),
        pytest.param("50000 100000", None, 1, id="at least one"),
        pytest.param("250000 100000", "3,1", 3, id="what the environment asks for"),
    ],
)
def test_threads_follow_the_containers_limit(
    limit: str, asked: str | None, want: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpu.max").write_text(limit)
    monkeypatch.setattr("tidewheel_workers.llm.device.CPU_LIMIT", tmp_path / "cpu.max")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert use_threads() == want == torch.get_num_threads()
