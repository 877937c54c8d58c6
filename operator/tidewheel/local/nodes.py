"""The nodes file: which virtual nodes a node agent registers, and what stands for the images its pods name."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic.alias_generators import to_camel

from tidewheel.local.quantities import parse_quantity


class NodesFileError(ValueError):
    """The nodes file cannot be read or understood; the message names the file, the field and the fault."""


class _FileModel(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True, extra="forbid")


class Taint(_FileModel):
    """A taint as it stands in a Node's spec."""

    key: str = Field(min_length=1)
    value: str = ""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"]

    def to_manifest(self) -> dict[str, str]:
        """The taint as the API has it."""
        taint = {"key": self.key, "effect": self.effect}
        return taint | ({"value": self.value} if self.value else {})


class VirtualNode(_FileModel):
    """One Node object. Its accelerators are made up: they count for scheduling, and no device stands behind them."""

    name: str = Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
    labels: dict[str, str] = Field(default_factory=dict)
    taints: tuple[Taint, ...] = ()
    #: Capacity beyond the default cpu, memory and pods, such as `nvidia.com/gpu: 8`.
    capacity: dict[str, str] = Field(default_factory=dict)

    @field_validator("capacity", mode="before")
    @classmethod
    def _quantities(cls, capacity: Any) -> Any:
        if not isinstance(capacity, dict):
            return capacity
        for name, amount in capacity.items():
            try:
                parse_quantity(amount)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        return {name: str(amount) for name, amount in capacity.items()}

    def resources(self) -> dict[str, str]:
        """The node's whole capacity: this machine's cpu and memory unless the file says otherwise."""
        return {"cpu": str(os.cpu_count() or 1), "memory": _machine_memory(), "pods": "110"} | self.capacity


class ImageRow(_FileModel):
    """What runs for images whose name starts with `prefix`. Nothing is ever pulled; the longest prefix wins."""

    prefix: str
    #: The Python that `python` and `python3` mean in these containers; the agent's own by default.
    python: Path = Path(sys.executable)
    #: Runs when a container gives no command, as an image's ENTRYPOINT does.
    entrypoint: tuple[str, ...] = ()
    env: dict[str, str] = Field(default_factory=dict)
    #: Pretend that no registry has the image: its containers wait with ErrImagePull.
    absent: bool = False


#: The images of this project start its own commands; any other image needs a command in the pod.
DEFAULT_IMAGES = (
    ImageRow(prefix=""),
    ImageRow(prefix="ghcr.io/tidewheel/operator", entrypoint=("python", "-m", "tidewheel.cli")),
)


class NodesFile(_FileModel):
    """The whole file: `nodes` and, when some pods need another interpreter, `images`."""

    nodes: tuple[VirtualNode, ...] = Field(min_length=1)
    images: tuple[ImageRow, ...] = ()

    @field_validator("nodes")
    @classmethod
    def _names_differ(cls, nodes: tuple[VirtualNode, ...]) -> tuple[VirtualNode, ...]:
        names = [node.name for node in nodes]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two nodes are named {twice[0]!r}; give each its own name")
        return nodes

    def image(self, name: str) -> ImageRow:
        """The row that stands for an image; the file's rows come before the built-in ones."""
        rows = (*self.images, *DEFAULT_IMAGES)
        return max((row for row in rows if name.startswith(row.prefix)), key=lambda row: len(row.prefix))


def default_nodes() -> NodesFile:
    """Two plain nodes in two made-up zones, so that spreading and affinity have something to choose from."""
    return NodesFile(
        nodes=tuple(
            VirtualNode(name=f"local-{number}", labels={"topology.kubernetes.io/zone": f"zone-{letter}"})
            for number, letter in enumerate("ab", start=1)
        )
    )


def load_nodes(path: Path | None) -> NodesFile:
    """The nodes of a file, or the default ones without a file.

    Raises:
        NodesFileError: the file is missing, is not YAML, or a field is wrong.
    """
    if path is None:
        return default_nodes()
    try:
        return NodesFile.model_validate(yaml.safe_load(path.read_text()) or {})
    except (OSError, yaml.YAMLError) as error:
        raise NodesFileError(f"{path}: cannot be read as YAML: {error}") from error
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, f['loc'])) or 'file'}: {f['msg']}" for f in error.errors())
        raise NodesFileError(f"{path}: {faults}") from error


def _machine_memory() -> str:
    kibibytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 1024
    return f"{kibibytes}Ki"
