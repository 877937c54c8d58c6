"""A device is found by name, or the error says what is missing."""

from __future__ import annotations

import pytest
import torch

from tidewheel_workers.llm.device import Device, find_device
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
