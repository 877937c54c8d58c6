"""The accelerator table: one row says all that pods, nodes and torch need to know about a kind of device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pydantic import Field

from tidewheel.api.model import ApiModel


class Toleration(ApiModel):
    """A taint that pods of this accelerator tolerate."""

    key: str = Field(max_length=253, description="key is the taint's key.")
    operator: str = Field("Exists", max_length=16, description="operator is Exists or Equal.")
    value: str | None = Field(None, max_length=63, description="value is compared when operator is Equal.")
    effect: str | None = Field(
        None, max_length=32, description="effect is the taint's effect; empty means all."
    )


class Accelerator(ApiModel):
    """One row of the table."""

    name: str = Field(max_length=63, description="name is what a role's `accelerator` field says.")
    resource: str | None = Field(
        None,
        max_length=253,
        description="resource is the extended resource a device plugin offers; none for the CPU.",
    )
    node_selector: Mapping[str, str] = Field({}, description="nodeSelector are node labels the pods need.")
    tolerations: tuple[Toleration, ...] = Field((), description="tolerations are taints the pods tolerate.")
    runtime_class_name: str | None = Field(
        None, max_length=253, description="runtimeClassName is the pods' runtime class."
    )
    visible_devices_variable: str | None = Field(
        None, max_length=63, description="visibleDevicesVariable names the devices a process may use."
    )
    health_file: str | None = Field(
        None,
        max_length=512,
        pattern=r"^/[^/].*/[^/]+$",
        description=(
            "healthFile is a path on nodes where a detector writes what it knows of the devices, as in docs/operations.md; "
            "its directory is mounted into the pods, which the restricted Pod Security Standard forbids."
        ),
    )
    torch_device: str = Field(
        "cpu", max_length=16, description="torchDevice is torch's device type, such as cuda or npu."
    )
    torch_module: str | None = Field(
        None, max_length=63, description="torchModule is imported to make the device type known to torch."
    )
    collective_backend: str = Field(
        "gloo", max_length=16, description="collectiveBackend is torch.distributed's backend."
    )


DEFAULT_ACCELERATORS: tuple[Accelerator, ...] = (
    Accelerator(name="cpu"),
    Accelerator(
        name="nvidia",
        resource="nvidia.com/gpu",
        tolerations=(Toleration(key="nvidia.com/gpu"),),
        visible_devices_variable="CUDA_VISIBLE_DEVICES",
        torch_device="cuda",
        collective_backend="nccl",
    ),
    Accelerator(
        name="amd",
        resource="amd.com/gpu",
        tolerations=(Toleration(key="amd.com/gpu"),),
        visible_devices_variable="HIP_VISIBLE_DEVICES",
        torch_device="cuda",
        collective_backend="nccl",
    ),
    Accelerator(
        name="ascend-910",
        resource="huawei.com/Ascend910",
        node_selector={"accelerator": "huawei-Ascend910"},
        visible_devices_variable="ASCEND_RT_VISIBLE_DEVICES",
        torch_device="npu",
        torch_module="torch_npu",
        collective_backend="hccl",
    ),
    Accelerator(
        name="ascend-310p",
        resource="huawei.com/Ascend310P",
        node_selector={"accelerator": "huawei-Ascend310P"},
        visible_devices_variable="ASCEND_RT_VISIBLE_DEVICES",
        torch_device="npu",
        torch_module="torch_npu",
        collective_backend="hccl",
    ),
)


class UnknownAccelerator(LookupError):
    """A role names a row that is not in the table."""


class AcceleratorTable:
    """Rows by name."""

    def __init__(self, rows: Iterable[Accelerator] = DEFAULT_ACCELERATORS) -> None:
        self._rows = {row.name: row for row in rows}

    def __getitem__(self, name: str) -> Accelerator:
        """The row of that name.

        Raises:
            UnknownAccelerator: there is none; the message lists those there are.
        """
        try:
            return self._rows[name]
        except KeyError:
            known = ", ".join(sorted(self._rows))
            raise UnknownAccelerator(
                f"accelerator {name!r} is not in the operator's table ({known})"
            ) from None
