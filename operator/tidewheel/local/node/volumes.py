"""The content of a pod's volumes, and how it reaches the disk without a reader ever seeing half of an update."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tidewheel.api.manifest import Manifest
from tidewheel.local.node.environment import (
    PodPlace,
    Sources,
    Unresolvable,
    entries_of,
    field_of,
    resource_of,
)
from tidewheel.local.node.paths import AgentPaths, PodPaths

_DATA = "..data"


@dataclass(frozen=True, slots=True)
class File:
    """One file of a volume."""

    content: bytes
    mode: int = 0o644


#: A service account token for an audience ("" is the API server's own) and a life in seconds.
TokenSource = Callable[[str, int], str]
#: Files by path relative to the volume.
Files = Mapping[str, File]


class CannotMount(Exception):
    """A volume cannot be set up (yet); the message is for the pod's FailedMount event."""


def volume_directories(pod: Manifest, *, paths: PodPaths, agent: AgentPaths) -> dict[str, Path]:
    """Where each volume of the pod really is. A hostPath is itself; a claim outlives the pod."""
    directories: dict[str, Path] = {}
    for volume in pod["spec"].get("volumes") or []:
        if (host := volume.get("hostPath")) is not None:
            directories[volume["name"]] = Path(host["path"])
        elif (claim := volume.get("persistentVolumeClaim")) is not None:
            directories[volume["name"]] = agent.claim(pod["metadata"]["namespace"], claim["claimName"])
        else:
            directories[volume["name"]] = paths.volume(volume["name"])
    return directories


def mount(
    pod: Manifest,
    directories: Mapping[str, Path],
    *,
    place: PodPlace,
    sources: Sources,
    token: TokenSource,
) -> None:
    """Brings every volume to its present content; calling it again updates what changed.

    Raises:
        CannotMount: something that a volume names is not there.
    """
    for volume in pod["spec"].get("volumes") or []:
        directory = directories[volume["name"]]
        try:
            files = projected_files(volume, pod, place=place, sources=sources, token=token)
            if files is not None:
                write_atomically(directory, files)
            elif (host := volume.get("hostPath")) is not None:
                _check_host_path(directory, host.get("type", ""))
            else:
                directory.mkdir(parents=True, exist_ok=True)
        except (Unresolvable, OSError) as error:
            raise CannotMount(f'MountVolume.SetUp failed for volume "{volume["name"]}" : {error}') from error


def projected_files(
    volume: Manifest, pod: Manifest, *, place: PodPlace, sources: Sources, token: TokenSource
) -> Files | None:
    """The files that the API's objects put into a volume; None for volumes that hold none.

    Raises:
        Unresolvable: a ConfigMap, Secret, key or field is not there.
    """
    if (projected := volume.get("projected")) is not None:
        files: dict[str, File] = {}
        for source in projected.get("sources") or []:
            files |= _source_files(source, projected.get("defaultMode"), pod, place, sources, token)
        return files
    if volume.keys() & {"configMap", "secret", "downwardAPI"}:
        source = dict(volume)
        if (secret := volume.get("secret")) is not None:
            source["secret"] = {**secret, "name": secret["secretName"]}
        mode = next(
            volume[key].get("defaultMode") for key in ("configMap", "secret", "downwardAPI") if key in volume
        )
        return _source_files(source, mode, pod, place, sources, token)
    return None


def _source_files(
    source: Manifest,
    mode: int | None,
    pod: Manifest,
    place: PodPlace,
    sources: Sources,
    token: TokenSource,
) -> dict[str, File]:
    default = 0o644 if mode is None else mode
    if (reference := source.get("configMap")) is not None:
        return _picked(reference, sources.config_map(reference["name"]), "configmap", default)
    if (reference := source.get("secret")) is not None:
        return _picked(reference, sources.secret(reference["name"]), "secret", default)
    if (downward := source.get("downwardAPI")) is not None:
        return {
            item["path"]: File(_downward(item, pod, place).encode(), item.get("mode") or default)
            for item in downward.get("items") or []
        }
    if (wanted := source.get("serviceAccountToken")) is not None:
        text = token(wanted.get("audience", ""), int(wanted.get("expirationSeconds") or 3600))
        return {wanted["path"]: File(text.encode(), 0o600)}
    raise Unresolvable(f"projected source {next(iter(source), '')!r} is not supported by this agent")


def _picked(reference: Manifest, found: Manifest | None, kind: str, default: int) -> dict[str, File]:
    if found is None:
        if reference.get("optional"):
            return {}
        raise Unresolvable(f'{kind} "{reference["name"]}" not found')
    entries = entries_of(found)
    items = reference.get("items")
    if not items:
        return {key: File(content, default) for key, content in entries.items()}
    files: dict[str, File] = {}
    for item in items:
        if item["key"] in entries:
            files[item["path"]] = File(entries[item["key"]], item.get("mode") or default)
        elif not reference.get("optional"):
            raise Unresolvable(f'{kind} "{reference["name"]}" references non-existent key: {item["key"]}')
    return files


def _downward(item: Manifest, pod: Manifest, place: PodPlace) -> str:
    if (field := item.get("fieldRef")) is not None:
        return field_of(pod, field["fieldPath"], place)
    return resource_of(pod, item["resourceFieldRef"], place)


def write_atomically(directory: Path, files: Files) -> bool:
    """Makes `files` the whole content of `directory` in one step; says whether anything changed.

    As the kubelet does it: the files stand in a directory of their own, `..data` is a link to it that is
    replaced by one rename, and each top-level name is a link through `..data`. A reader that opens a path
    finds the old file or the new one.
    """
    digest = _digest(files)
    data = directory / _DATA
    if data.is_symlink() and data.readlink().name.endswith(digest):
        return False
    directory.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix="..", suffix=f".{digest}", dir=directory))
    fresh.chmod(0o755)
    for path, file in files.items():
        place = fresh / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(file.content)
        place.chmod(file.mode)
    stale = directory / data.readlink() if data.is_symlink() else None
    _link(data, fresh.name)
    names = {Path(path).parts[0] for path in files}
    for name in names:
        if not (directory / name).is_symlink():
            _link(directory / name, f"{_DATA}/{name}")
    for entry in list(directory.iterdir()):
        if not entry.name.startswith("..") and entry.name not in names:
            entry.unlink()
    if stale is not None:
        shutil.rmtree(stale)
    return True


def _link(place: Path, target: str) -> None:
    temporary = place.with_name("..tmp-" + place.name.lstrip("."))
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(place)


def _digest(files: Files) -> str:
    described = {
        path: (hashlib.sha256(file.content).hexdigest(), file.mode) for path, file in sorted(files.items())
    }
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16]


def _check_host_path(path: Path, kind: str) -> None:
    match kind:
        case "DirectoryOrCreate":
            path.mkdir(parents=True, exist_ok=True)
        case "Directory" if not path.is_dir():
            raise Unresolvable(f"hostPath type check failed: {path} is not a directory")
        case "File" if not path.is_file():
            raise Unresolvable(f"hostPath type check failed: {path} is not a file")
        case "FileOrCreate" if not path.exists():
            path.touch()
