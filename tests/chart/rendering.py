"""What the real helm makes of the chart; equal values are rendered once."""

from __future__ import annotations

import functools
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tidewheel.local.tools import find_tool

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "tidewheel"
NAMESPACE = "tidewheel-system"
#: Names of the values matrix, ci/*-values.yaml.
MATRIX = tuple(sorted(path.name.removesuffix("-values.yaml") for path in (CHART / "ci").iterdir()))

Manifest = dict[str, Any]


class Refused(Exception):
    """Helm would not render; the message is what it says."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """All objects of one rendering."""

    objects: tuple[Manifest, ...]

    def all(self, kind: str) -> list[Manifest]:
        return [each for each in self.objects if each["kind"] == kind]

    def one(self, kind: str, name: str | None = None) -> Manifest:
        found = [each for each in self.all(kind) if name in (None, each["metadata"]["name"])]
        assert len(found) == 1, (
            f"{len(found)} {kind} objects {name or ''}: {[o['metadata']['name'] for o in found]}"
        )
        return found[0]

    @property
    def operator(self) -> Manifest:
        """The operator's container."""
        (container,) = self.one("Deployment")["spec"]["template"]["spec"]["containers"]
        return container


def render(
    values: Manifest | None = None, *, matrix: str = "default", release: str = "tidewheel"
) -> Rendered:
    """The objects for `values` on top of an entry of the matrix; raises `Refused`."""
    return _render(json.dumps(values or {}, sort_keys=True), matrix, release)


def helm(*arguments: str | Path, stdin: str | None = None) -> str:
    """What helm prints; raises `Refused`."""
    done = subprocess.run(
        [find_tool("helm"), *arguments], input=stdin, capture_output=True, text=True, check=False, timeout=60
    )
    if done.returncode != 0:
        raise Refused(done.stdout + done.stderr)
    return done.stdout


def values_file(matrix: str) -> Path:
    return CHART / "ci" / f"{matrix}-values.yaml"


@functools.cache
def _render(values: str, matrix: str, release: str) -> Rendered:
    options = ("--namespace", NAMESPACE, "--values", values_file(matrix), "--values", "-")
    text = helm("template", release, CHART, *options, stdin=values)
    return Rendered(tuple(each for each in yaml.load_all(text, yaml.CSafeLoader) if each))
