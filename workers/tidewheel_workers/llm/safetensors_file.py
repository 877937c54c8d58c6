"""Safetensors directories as Hugging Face lays them out: config.json, one or many *.safetensors, an index."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from tidewheel_workers.llm.config import ModelConfig
from tidewheel_workers.llm.errors import ModelUnreadable, ModelUnsupported
from tidewheel_workers.llm.fields import Fields

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import torch

INDEX = "model.safetensors.index.json"
#: Larger than any index or tokenizer there is; a file beyond it is something else.
MOST_JSON_BYTES = 256 << 20
DTYPES = frozenset({"F64", "F32", "F16", "BF16"})
ELEMENTS_PER_PIECE = 1 << 19


class SafetensorsDirectory:
    """An open directory of a Llama model; tensors are read one at a time."""

    def __init__(self, directory: Path, weights: tuple[Path, ...]) -> None:
        self.directory = directory
        config = read_json(directory / "config.json")
        generation = read_json(directory / "generation_config.json", missing={})
        if generation.get("eos_token_id") is not None:
            # instruction models list their end-of-turn tokens only here
            config["eos_token_id"] = generation["eos_token_id"]
        self.config = ModelConfig.from_hf(config)
        self._files = [_open(path) for path in self._wanted(weights)]
        self._where = {name: file for file in self._files for name in file.keys()}  # noqa: SIM118 - not a dict

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor.

        Raises:
            ModelUnreadable: no file has such a tensor.
            ModelUnsupported: its numbers are no weights without others that scale them.
        """
        part = self._find(name).get_slice(name)
        if (dtype := part.get_dtype()) not in DTYPES:
            raise ModelUnsupported(
                f"{self.directory}: tensor {name} holds {dtype}; weights of {', '.join(sorted(DTYPES))} are read"
            )
        return tuple(part.get_shape())

    def read_into(self, name: str, out: torch.Tensor) -> None:
        """Copy a tensor into `out`, which has its shape; dtype and device are out's.

        Raises:
            ModelUnreadable: no file has such a tensor.
        """
        out.copy_(self._find(name).get_tensor(name))

    def pieces(self, name: str) -> Iterator[tuple[int, torch.Tensor]]:
        """The rows of a matrix in pieces [some rows, columns], each with the number of its first row.

        Raises:
            ModelUnreadable: no file has such a tensor.
        """
        matrix = self._find(name).get_slice(name)
        rows, columns = matrix.get_shape()
        step = max(1, ELEMENTS_PER_PIECE // columns)
        for at in range(0, rows, step):
            yield at, matrix[at : at + step]

    def close(self) -> None:
        """Let the files go."""
        self._files.clear()
        self._where.clear()

    def _find(self, name: str) -> Any:
        file = self._where.get(name)
        if file is None:
            raise ModelUnreadable(f"{self.directory} has no tensor {name}; the download is incomplete")
        return file

    def _wanted(self, weights: tuple[Path, ...]) -> list[Path]:
        """The files that the index names, where there is one: repositories may hold the same weights twice."""
        index = Fields(read_json(self.directory / INDEX, missing={}), INDEX)
        files = (index.maybe("weight_map", dict) or {}).values()
        names = sorted({str(name) for name in files})
        if not names:
            return list(weights)
        here = {path.name: path for path in weights}
        missing = [name for name in names if name not in here]
        if missing:
            raise ModelUnreadable(
                f"{self.directory} lacks {', '.join(missing)}, which {INDEX} names; download it again"
            )
        return [here[name] for name in names]


def read_json(path: Path, *, missing: dict[str, Any] | None = None) -> dict[str, Any]:
    """The object in a JSON file; `missing` stands for a file that is not there.

    Raises:
        ModelUnreadable: the file holds no JSON object, or is not there and nothing stands for it.
    """
    try:
        if path.stat().st_size > MOST_JSON_BYTES:
            raise ModelUnreadable(f"{path} is larger than {MOST_JSON_BYTES} bytes; it is no such file")
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        if missing is None:
            raise ModelUnreadable(f"{path} is missing; download the whole repository") from error
        return dict(missing)
    except (OSError, ValueError, RecursionError) as error:
        raise ModelUnreadable(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelUnreadable(f"{path} holds {type(content).__name__}, not a JSON object")
    return content


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ModelUnreadable(
            f"{path} cannot be read as safetensors ({error}); it may be truncated or an LFS pointer, download it again"
        ) from error
