"""The devices that the engine runs on, one row each; adding a backend is adding a row."""

from __future__ import annotations

import importlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tidewheel_workers.llm.errors import DeviceUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One row: what a name stands for in torch."""

    name: str
    torch_device: str  # as torch.device takes it; an index may follow
    backend_module: str | None = None  # imported first; registers the device type with torch
    default_dtype: torch.dtype
    namespace: str | None = None  # torch.<namespace>.is_available() tells whether hardware is there
    prepare: Callable[[], None] | None = None  # called once the hardware is seen

    def dtype(self, name: str = "auto") -> torch.dtype:
        """The dtype of that name; `auto` is what suits the device.

        Raises:
            DeviceUnavailable: the name is none of `auto` and DTYPES.
        """
        if name == "auto":
            return self.default_dtype
        if name not in DTYPES:
            raise DeviceUnavailable(f"the dtype {name!r} is unknown; take auto or one of {', '.join(DTYPES)}")
        return DTYPES[name]


def _attend_without_plans() -> None:
    """cuDNN's attention makes a plan for every new length, which is every step of an answer: 40 ms where others take 5."""
    torch.backends.cuda.enable_cudnn_sdp(False)


DEVICES: tuple[Device, ...] = (
    Device(name="cpu", torch_device="cpu", default_dtype=torch.float32),
    # ROCm builds of torch answer to cuda, too
    Device(
        name="cuda",
        torch_device="cuda",
        default_dtype=torch.bfloat16,
        namespace="cuda",
        prepare=_attend_without_plans,
    ),
    Device(
        name="npu",
        torch_device="npu",
        backend_module="torch_npu",
        default_dtype=torch.bfloat16,
        namespace="npu",
    ),
)


def find_device(name: str, devices: tuple[Device, ...] = DEVICES) -> Device:
    """The row of that name, with its backend imported and its hardware seen.

    Raises:
        DeviceUnavailable: no such row, its backend is not installed, or the backend finds no hardware.
    """
    row = next((device for device in devices if device.name == name), None)
    if row is None:
        known = ", ".join(device.name for device in devices)
        raise DeviceUnavailable(f"the device {name!r} is unknown; known are {known}")
    if row.backend_module is not None:
        try:
            importlib.import_module(row.backend_module)
        except ImportError as error:
            raise DeviceUnavailable(
                f"the device {name} needs the Python package {row.backend_module}, which this image lacks ({error})"
            ) from error
    backend = getattr(torch, row.namespace) if row.namespace else None
    if backend is not None and not backend.is_available():
        raise DeviceUnavailable(
            f"torch {torch.__version__} finds no {name} device; check that the image has the right torch build and "
            "that the pod was given a device"
        )
    if row.prepare is not None:
        row.prepare()
    return row


def use_threads(count: int | None = None) -> int:
    """Let torch compute with `count` threads, by default as many as the container may use; returns the number.

    More threads than free processors cost far more than they bring (measured: fifty times slower decoding), because
    each small parallel region spins until its slowest thread gets a processor. Workers that share processors should
    therefore start with OMP_NUM_THREADS=1, or at least with OMP_WAIT_POLICY=PASSIVE.
    """
    chosen = count or _threads_asked_for() or min(len(os.sched_getaffinity(0)), _cpu_limit())
    torch.set_num_threads(chosen)
    return chosen


def _threads_asked_for() -> int:
    """What OMP_NUM_THREADS says, which is a list for nested regions; 0 when it says nothing."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(first) if first.isdigit() else 0


def _cpu_limit() -> int:
    """Whole processors of the container's CPU limit, at least 1; where there is no limit, more than any machine has."""
    try:
        quota, period = CPU_LIMIT.read_text().split()
        return max(1, int(quota) // int(period))
    except (OSError, ValueError):
        # no cgroup v2, or "max"
        return sys.maxsize
